//! The suite that every backend has to pass.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use vmferry_guest::conformance::{self, Subject};
use vmferry_guest::{Backend, Vm};
use vmferry_guest_qemu::{QemuBackend, QemuConfig};

use crate::bench_guest::{Host, RAM_BYTES, wait_for_boot, word};

/// Guests that count in memory, each with a disk of its own.
struct Qemu {
    host: Host,
    started: AtomicU32,
}

impl Qemu {
    fn next(&self) -> u32 {
        self.started.fetch_add(1, Ordering::Relaxed)
    }
}

impl Subject for Qemu {
    fn source(&self) -> Arc<dyn Vm> {
        let folder = self.host.folder(&format!("guest-{}", self.next()));
        let disk = folder.join("boot.img");
        fs::copy(self.host.disk(), &disk).unwrap();
        let drive = format!("file={},format=raw,if=virtio", disk.display());
        let spec = QemuConfig::new(RAM_BYTES, ["-drive", &drive]).into_spec("conform");
        let guest = QemuBackend.launch(&spec, &folder).unwrap();
        wait_for_boot(guest.ram());
        guest
    }

    fn incoming(&self, source: &dyn Vm) -> Arc<dyn Vm> {
        let folder = self.host.folder(&format!("guest-{}", self.next()));
        QemuBackend
            .launch_incoming(source.spec(), source.ram().layout(), &folder)
            .unwrap()
    }

    fn violations(&self, guest: &dyn Vm) -> Vec<String> {
        let mark = word(guest.ram(), 0x600);
        if mark == 0xdead_beef {
            vec!["a page with a wrong count".into()]
        } else {
            Vec::new()
        }
    }

    fn is_busy(&self) -> bool {
        true
    }

    fn let_run(&self, _guest: &dyn Vm) {
        thread::sleep(Duration::from_millis(30));
    }
}

#[test]
fn conforms() {
    let Some(host) = Host::new() else { return };
    conformance::run(&Qemu {
        host,
        started: AtomicU32::new(0),
    });
}
