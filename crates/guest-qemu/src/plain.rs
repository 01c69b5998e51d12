//! A guest's QEMU as somebody without vmferry would start it, to be compared with.

use std::path::{Path, PathBuf};

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

impl QemuConfig {
    /// The same machine, devices and arguments as under vmferry, with RAM of QEMU's own. Its sockets are in the folder `dir`.
    pub fn plain(&self, name: &str, dir: &Path) -> PlainQemu {
        let monitor = qmp_path(dir);
        let path = |path: &Path| escape(&path.display().to_string());
        let mut args: Vec<String> = ["-name", &format!("guest={}", escape(name)), "-no-user-config"]
            .map(String::from)
            .into();
        args.extend(self.own_args());
        args.extend(["-m".into(), format!("size={}", format_size(self.memory_bytes))]);
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
            "-m size=65536k -device virtio-rng-pci",
            "-qmp unix:/run/a,,b/qmp.sock,server=on,wait=off",
            "virtserialport,",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(!line.contains("memory-backend"), "{line}");
        assert_eq!(plain.monitor, Path::new("/run/a,b/qmp.sock"));
    }
}
