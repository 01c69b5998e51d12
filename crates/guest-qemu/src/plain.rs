//! A guest's QEMU as somebody without vmferry would start it, to be compared with.

use std::path::{Path, PathBuf};

use vmferry_core::PAGE_SIZE;

use crate::agent;
use crate::args::escape;
use crate::launch::{format_size, qmp_path};
use crate::spec::QemuConfig;

/// How to start a guest without vmferry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainQemu {
    /// The program.
    pub binary: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The socket of its monitor.
    pub monitor: PathBuf,
}

/// Dirty bits of QEMU that are handled as one word: 64 pages.
const WORD_BYTES: u64 = 64 * PAGE_SIZE;
/// QEMU makes RAM a multiple of it.
const RAM_UNIT_BYTES: u64 = 8 << 10;

impl QemuConfig {
    /// The same machine, devices and arguments as under vmferry, with RAM of QEMU's own. Its sockets are in the folder `dir`.
    ///
    /// Under TCG it has 8 KiB more where its RAM is a multiple of 256 KiB. Such RAM is looked through word by word for dirty pages, and
    /// in versions before 9.0 TCG was not told about bits cleared by that: it went on writing to those pages unseen,
    /// and a guest that worked was damaged more often than not. Other sizes are looked through page by page, which is right
    /// in all versions.
    pub fn plain(&self, name: &str, dir: &Path) -> PlainQemu {
        let monitor = qmp_path(dir);
        let path = |path: &Path| escape(&path.display().to_string());
        let mut args: Vec<String> = ["-name", &format!("guest={}", escape(name)), "-no-user-config"]
            .map(String::from)
            .into();
        args.extend(self.own_args());
        args.extend(["-m".into(), format!("size={}", format_size(self.plain_bytes()))]);
        args.extend_from_slice(&self.args);
        args.extend([
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", path(&monitor)),
        ]);
        if self.agent {
            args.extend(agent::port_args(&path(&agent::socket_path(dir))));
        }
        PlainQemu {
            binary: self.binary.clone(),
            args,
            monitor,
        }
    }

    fn plain_bytes(&self) -> u64 {
        let bytes = self.memory_bytes;
        if self.own_args().iter().any(|arg| arg == "tcg") && bytes.is_multiple_of(WORD_BYTES) {
            bytes + RAM_UNIT_BYTES
        } else {
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_everything_but_vmferrys_memory() {
        let config = QemuConfig {
            smp: "2".into(),
            agent: true,
            ..QemuConfig::new(64 << 20, ["-device", "virtio-rng-pci"])
        };
        let plain = config.plain("vm", Path::new("/run/a,b"));
        let line = plain.args.join(" ");
        for part in [
            "-machine q35 -accel tcg -smp 2",
            "-m size=65544k -device virtio-rng-pci",
            "-qmp unix:/run/a,,b/qmp.sock,server=on,wait=off",
            "virtserialport,",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("memory-backend"), "{line}");
        let kvm = QemuConfig {
            accel: "kvm".into(),
            ..config
        };
        let line = kvm.plain("vm", Path::new("/run")).args.join(" ");
        assert!(line.contains("-m size=65536k "), "{line}");
        assert_eq!(plain.monitor, Path::new("/run/a,b/qmp.sock"));
    }
}
