//! Guests that somebody else started.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use vmferry_guest::{Guest, GuestState, MigrateIn, MigrateOut};
use vmferry_guest_qemu::{QemuBackend, attach, probe};

use crate::bench_guest::{Host, Running};

/// A QEMU of somebody else.
struct Stranger {
    child: Child,
    dir: PathBuf,
}

impl Stranger {
    fn start(host: &Host, ram: &[&str]) -> Self {
        let dir = host.folder("stranger");
        let _ = std::fs::remove_file(dir.join("qmp.sock"));
        let drive = format!("file={},format=raw,if=virtio", host.disk().display());
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-accel",
                "tcg",
                "-m",
                "64",
                "-nodefaults",
                "-display",
                "none",
                "-drive",
                &drive,
            ])
            .args(ram)
            .args([
                "-chardev",
                "socket,id=m0,path=qmp.sock,server=on,wait=off",
                "-mon",
                "chardev=m0,mode=control",
            ])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stderr(File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let start = Instant::now();
        // Bound is not listening yet.
        while UnixStream::connect(dir.join("qmp.sock")).is_err() {
            assert!(start.elapsed() < Duration::from_secs(120), "QEMU does not start");
            std::thread::sleep(Duration::from_millis(2));
        }
        Self { child, dir }
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_guest_with_shared_ram_is_taken_over_and_moved() {
    let Some(host) = Host::new() else { return };
    let shared = "memory-backend-memfd,id=mem0,size=64M,share=on";
    let stranger = Stranger::start(&host, &["-object", shared, "-machine", "q35,memory-backend=mem0"]);
    let guest = Running::new(attach(stranger.child.id(), None, "taken", &host.folder("taken")).unwrap());
    assert_eq!(guest.state(), GuestState::Running);
    guest.wait_for_progress();
    guest.prepare_out().unwrap();
    let mut tracker = guest.dirty_tracker().unwrap();
    guest.pause().unwrap();
    tracker.arm().unwrap();
    guest.resume().unwrap();
    guest.wait_for_progress();

    let layout = guest.ram().layout();
    let folder = host.folder("destination");
    let destination = Running::new(QemuBackend.start_incoming(guest.spec(), layout, &folder).unwrap());
    guest.pause().unwrap();
    for run in guest.ram().data_pages().unwrap().runs() {
        let mut data = vec![0; run.bytes() as usize];
        guest.ram().read(run, &mut data);
        destination.ram().write(run, &data);
    }
    destination
        .load_device_state(&guest.save_device_state().unwrap())
        .unwrap();
    destination.resume().unwrap();
    destination.wait_for_progress();
    assert!(stranger.dir.join("qmp.sock").exists());
}

#[test]
fn what_is_missing_is_named() {
    let Some(host) = Host::new() else { return };
    let dir = host.folder("taken");
    let error = |pid: u32, qmp: Option<&Path>| attach(pid, qmp, "taken", &dir).err().unwrap().to_string();

    let private = "memory-backend-ram,id=mem0,size=64M";
    let stranger = Stranger::start(
        &host,
        &["-object", private, "-machine", "q35,memory-backend=mem0"],
    );
    let said = error(stranger.child.id(), None);
    assert!(
        said.contains("mem0 is not shared") && said.contains("share=on"),
        "{said}"
    );
    drop(stranger);
    let stranger = Stranger::start(&host, &[]);
    let said = error(stranger.child.id(), None);
    assert!(
        said.contains("not shared") && said.contains("vmferry run"),
        "{said}"
    );
    let said = error(stranger.child.id(), Some(Path::new("/nowhere/qmp.sock")));
    assert!(said.contains("talking to QEMU"), "{said}");
    let gone = stranger.child.id();
    drop(stranger);
    assert!(error(gone, None).contains(&gone.to_string()));

    let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
    let said = error(sleeper.id(), None);
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    assert!(said.contains("no QEMU system emulator"), "{said}");
}

#[test]
fn an_installed_qemu_tells_what_it_can_do() {
    let Some(_host) = Host::new() else { return };
    let info = probe("qemu-system-x86_64").unwrap();
    assert!(
        info.ignores_shared && info.accelerators.contains(&"tcg".into()),
        "{info:?}"
    );
    assert!(
        info.version.starts_with(|digit: char| digit.is_ascii_digit()),
        "{info:?}"
    );
    let error = probe("qemu-system-none").unwrap_err();
    assert!(error.to_string().contains("install QEMU"), "{error}");
}
