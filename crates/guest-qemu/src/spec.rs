//! What a QEMU guest is made from, and whether that can run on this host.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmferry_core::PAGE_SIZE;
use vmferry_guest::{GuestError, GuestSpec, Result};

use crate::args::{Arg, has_option, key_values, options, parse_size, value_of};
use crate::paths;

/// Name of this backend in specifications.
pub const BACKEND: &str = "qemu";
/// Id of the memory backend that holds the main RAM, where the guest did not come with its own.
pub const MAIN_RAM_ID: &str = "vmferry.ram0";

/// Options that vmferry gives itself or that cannot work with it, each with what to do instead.
const REFUSED: &[(&str, &str)] = &[
    (
        "incoming",
        "leave it out: vmferry gives it to a guest that arrives",
    ),
    ("qmp", "leave it out: vmferry talks QMP over a socket of its own"),
    (
        "qmp-pretty",
        "leave it out: vmferry talks QMP over a socket of its own",
    ),
    ("daemonize", "leave it out: vmferry starts QEMU in the background"),
    ("mem-path", "leave it out: vmferry backs the RAM with a memfd"),
    (
        "mem-prealloc",
        "leave it out: untouched RAM has to stay untouched to cost nothing",
    ),
    ("S", "leave it out and pause the guest once it runs"),
    (
        "loadvm",
        "leave it out: a guest starts from nothing or arrives by migration",
    ),
    (
        "snapshot",
        "leave it out: its temporary disk is of this host only",
    ),
    (
        "runas",
        "leave it out: files handed over by vmferry would not open",
    ),
    (
        "chroot",
        "leave it out: files handed over by vmferry would not open",
    ),
];

/// Configuration of a QEMU guest: [`GuestSpec::config`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QemuConfig {
    /// QEMU to run: a name looked up in `PATH`, or a path. It must be a system emulator of x86_64.
    #[serde(default = "default_binary")]
    pub binary: String,
    /// Machine type, unless `args` has its own `-machine`.
    #[serde(default = "default_machine")]
    pub machine: String,
    /// Accelerator (`tcg`, `kvm`), unless `args` has its own.
    #[serde(default = "default_accel")]
    pub accel: String,
    /// CPU model; QEMU's default when absent.
    #[serde(default)]
    pub cpu: Option<String>,
    /// Virtual CPUs, in the syntax of `-smp`.
    #[serde(default = "default_smp")]
    pub smp: String,
    /// Bytes of main RAM, whole pages of 2 MiB or at least of 4 KiB.
    pub memory_bytes: u64,
    /// Id of the memory backend of the main RAM. It travels in the device state: both hosts need the same.
    #[serde(default = "default_ram_id")]
    pub ram_id: String,
    /// Whether the machine has QEMU's default devices (VGA, a network card, ...) beside those in `args`.
    #[serde(default)]
    pub default_devices: bool,
    /// Whether the guest has a port for `vmferry-agent`, which says what its pages are used for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub agent: bool,
    /// Further arguments of QEMU.
    #[serde(default)]
    pub args: Vec<String>,
    /// Files that have to exist on a host that runs the guest, beside those that `args` names.
    #[serde(default)]
    pub files: Vec<PathBuf>,
}

/// A memory backend of the guest: id and size in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackendSize {
    pub(crate) id: String,
    pub(crate) bytes: u64,
}

impl QemuConfig {
    /// A q35 guest under TCG with `memory_bytes` of RAM and these further arguments.
    pub fn new(memory_bytes: u64, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            binary: default_binary(),
            machine: default_machine(),
            accel: default_accel(),
            cpu: None,
            smp: default_smp(),
            memory_bytes,
            ram_id: default_ram_id(),
            default_devices: false,
            agent: false,
            args: args.into_iter().map(Into::into).collect(),
            files: Vec::new(),
        }
    }

    /// The specification of a guest called `name` with this configuration.
    pub fn into_spec(self, name: impl Into<String>) -> GuestSpec {
        let config = serde_json::to_value(self).expect("a plain struct becomes JSON");
        GuestSpec {
            name: name.into(),
            backend: BACKEND.into(),
            config,
        }
    }

    /// Reads and checks the configuration in `spec`, which may come from a peer.
    ///
    /// # Errors
    /// [`GuestError::Unsuitable`] with what is wrong and how to mend it.
    pub fn from_spec(spec: &GuestSpec) -> Result<Self> {
        let config: Self = serde_json::from_value(spec.config.clone()).map_err(|error| {
            unsuitable(
                &spec.name,
                format!("its QEMU configuration is not understood ({error})"),
                "correct it",
            )
        })?;
        config.check_name(&spec.name)?;
        config.check_binary(&spec.name)?;
        config.check_memory(&spec.name)?;
        options(&config.args).try_for_each(|arg| config.check_arg(&spec.name, arg))?;
        Ok(config)
    }

    /// Whether this host has the files and the memory the guest needs.
    ///
    /// # Errors
    /// [`GuestError::Unsuitable`] naming the file and its argument, or the memory that is missing.
    pub fn check_host(&self, name: &str) -> Result<()> {
        for file in &self.files {
            if !file.exists() {
                return Err(missing(name, file, "the files of the guest"));
            }
        }
        if let Some((path, argument)) = paths::first_missing(&self.args) {
            return Err(missing(name, &path, &format!("its argument {argument}")));
        }
        let wanted = self
            .backends(name)?
            .iter()
            .map(|backend| backend.bytes)
            .sum::<u64>();
        match available_memory_bytes() {
            Some(available) if available < wanted => Err(unsuitable(
                name,
                format!(
                    "it needs {} MiB of RAM and {} MiB are available",
                    wanted >> 20,
                    available >> 20
                ),
                "free memory on this host or choose another one",
            )),
            _ => Ok(()),
        }
    }

    /// The memory backends: that of the main RAM, then those in `args`.
    pub(crate) fn backends(&self, name: &str) -> Result<Vec<BackendSize>> {
        let mut backends = Vec::new();
        if !self.ram_is_numa() {
            backends.push(BackendSize {
                id: self.ram_id.clone(),
                bytes: self.memory_bytes,
            });
        }
        for arg in options(&self.args).filter(|arg| is_memory_backend(*arg)) {
            let value = arg.value.unwrap_or_default();
            let size = value_of(value, "size").and_then(|size| parse_size(&size, 1));
            let (Some(id), Some(bytes)) = (value_of(value, "id"), size) else {
                let problem = format!("its argument -object {value} has no id or no size");
                return Err(unsuitable(name, problem, "give both"));
            };
            backends.push(BackendSize { id, bytes });
        }
        match backends
            .iter()
            .find(|backend| backend.bytes == 0 || backend.bytes % PAGE_SIZE != 0)
        {
            Some(odd) => Err(unsuitable(
                name,
                format!(
                    "memory backend {} of {} bytes is not made of whole pages",
                    odd.id, odd.bytes
                ),
                "make it a multiple of 4096, better of 2 MiB",
            )),
            None => Ok(backends),
        }
    }

    /// Whether the RAM is given node by node (`-numa node,memdev=`), which leaves no main backend.
    pub(crate) fn ram_is_numa(&self) -> bool {
        options(&self.args)
            .filter(|arg| arg.name == "numa")
            .any(|arg| arg.value.is_some_and(|value| value_of(value, "memdev").is_some()))
    }

    fn check_name(&self, name: &str) -> Result<()> {
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
        if name.is_empty() || name.len() > 128 || name.starts_with(['.', '-']) || !name.chars().all(plain) {
            let mend = "use letters, digits, dots, dashes and underscores, at most 128";
            return Err(unsuitable(name, "its name is not a plain word".into(), mend));
        }
        Ok(())
    }

    /// The specification may come from a peer: it must not name any program to run.
    fn check_binary(&self, name: &str) -> Result<()> {
        let file = Path::new(&self.binary)
            .file_name()
            .and_then(|file| file.to_str())
            .unwrap_or_default();
        if file.starts_with("qemu-system-") || ["qemu-kvm", "kvm"].contains(&file) {
            return Ok(());
        }
        let problem = format!("{:?} is not the name of a QEMU system emulator", self.binary);
        Err(unsuitable(name, problem, "name one like qemu-system-x86_64"))
    }

    fn check_memory(&self, name: &str) -> Result<()> {
        if self.memory_bytes == 0 || !self.memory_bytes.is_multiple_of(PAGE_SIZE) {
            let problem = format!("{} bytes of RAM are not whole pages", self.memory_bytes);
            return Err(unsuitable(
                name,
                problem,
                "make it a multiple of 4096, better of 2 MiB",
            ));
        }
        self.backends(name).map(drop)
    }

    fn check_arg(&self, name: &str, arg: Arg<'_>) -> Result<()> {
        let refuse = |problem: String, mend: &str| Err(unsuitable(name, problem, mend));
        if let Some((option, mend)) = REFUSED.iter().find(|(option, _)| *option == arg.name) {
            return refuse(
                format!("its argument -{option} belongs to vmferry or cannot move"),
                mend,
            );
        }
        let value = arg.value.unwrap_or_default();
        match arg.name {
            "m" if key_values(value)
                .iter()
                .any(|(key, _)| key.is_empty() || key == "size") =>
            {
                refuse(
                    format!("its argument -m {value} sets the RAM size, which vmferry does"),
                    "give the size as the guest's memory; -m may only add slots= and maxmem=",
                )
            }
            "machine" | "M" if value_of(value, "memory-backend").is_some() => refuse(
                format!("its argument -machine {value} sets the memory backend, which vmferry does"),
                "leave memory-backend= out",
            ),
            "object" if is_memory_backend(arg) && value_of(value, "id").as_deref() == Some(&self.ram_id) => {
                refuse(
                    format!("its argument -object {value} defines the main RAM, which vmferry does"),
                    "leave it out, or choose another id",
                )
            }
            _ => Ok(()),
        }
    }

    /// Arguments that stand for the members above, where `args` does not have its own.
    pub(crate) fn own_args(&self) -> Vec<String> {
        let mut own = Vec::new();
        let mut push = |option: &str, value: &str| own.extend([format!("-{option}"), value.to_owned()]);
        let machine_has = |key: &str| {
            options(&self.args)
                .filter(|arg| ["machine", "M"].contains(&arg.name))
                .any(|arg| arg.value.is_some_and(|value| value_of(value, key).is_some()))
        };
        if !(machine_has("") || machine_has("type")) {
            push("machine", &self.machine);
        }
        if !(machine_has("accel") || has_option(&self.args, &["accel", "enable-kvm"])) {
            push("accel", &self.accel);
        }
        if let Some(cpu) = self.cpu.as_deref().filter(|_| !has_option(&self.args, &["cpu"])) {
            push("cpu", cpu);
        }
        if !has_option(&self.args, &["smp"]) {
            push("smp", &self.smp);
        }
        if !self.default_devices && !has_option(&self.args, &["nodefaults"]) {
            own.push("-nodefaults".into());
        }
        if !has_option(&self.args, &["display", "nographic", "vnc", "spice", "curses"]) {
            own.extend(["-display".into(), "none".into()]);
        }
        own
    }
}

/// Whether an option defines a memory backend.
pub(crate) fn is_memory_backend(arg: Arg<'_>) -> bool {
    let kind = |value: &str| {
        key_values(value)
            .into_iter()
            .find(|(key, _)| key.is_empty() || key == "qom-type")
            .map(|(_, kind)| kind)
    };
    arg.name == "object"
        && arg
            .value
            .and_then(kind)
            .is_some_and(|kind| kind.starts_with("memory-backend-"))
}

pub(crate) fn unsuitable(name: &str, problem: String, mend: &str) -> GuestError {
    GuestError::Unsuitable {
        name: name.to_owned(),
        problem,
        mend: mend.to_owned(),
    }
}

fn missing(name: &str, path: &Path, named_by: &str) -> GuestError {
    unsuitable(
        name,
        format!(
            "{} does not exist on this host (named by {named_by})",
            path.display()
        ),
        "copy it there or use shared storage",
    )
}

fn available_memory_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn default_binary() -> String {
    "qemu-system-x86_64".into()
}

fn default_machine() -> String {
    "q35".into()
}

fn default_accel() -> String {
    "tcg".into()
}

fn default_smp() -> String {
    "1".into()
}

fn default_ram_id() -> String {
    MAIN_RAM_ID.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn check(args: &[&str]) -> Result<QemuConfig> {
        QemuConfig::from_spec(&QemuConfig::new(64 * MIB, args.iter().copied()).into_spec("vm"))
    }

    #[test]
    fn arguments_of_vmferrys_own_are_refused_with_the_way_out() {
        let refused: &[&[&str]] = &[
            &["-m", "512"],
            &["--m", "size=1G,slots=2"],
            &["-incoming", "defer"],
            &["-qmp", "unix:/x,server"],
            &["-daemonize"],
            &["-machine", "q35,memory-backend=x"],
            &["-object", "memory-backend-ram,id=vmferry.ram0,size=64M"],
            &["-object", "memory-backend-ram,id=other"],
            &["-snapshot"],
        ];
        for args in refused {
            let error = check(args).expect_err(&format!("{args:?}"));
            assert!(
                matches!(error, GuestError::Unsuitable { .. }),
                "{args:?}: {error}"
            );
            assert!(
                error.to_string().contains(args[0].trim_start_matches('-')),
                "{args:?}: {error}"
            );
        }
        assert!(check(&["-m", "slots=2,maxmem=4G"]).is_ok());
        assert!(check(&["-object", "rng-random,id=r,filename=/dev/urandom"]).is_ok());
    }

    #[test]
    fn what_a_peer_sends_cannot_name_a_program() {
        for binary in [
            "/bin/sh",
            "sh",
            "",
            "/usr/bin/qemu-img",
            "qemu-system-x86_64/../sh",
        ] {
            let config = QemuConfig {
                binary: binary.into(),
                ..QemuConfig::new(64 * MIB, [""; 0])
            };
            assert!(
                QemuConfig::from_spec(&config.into_spec("vm")).is_err(),
                "{binary:?}"
            );
        }
        for name in ["", "../etc", "a/b", "a b", "-x", ".."] {
            let spec = QemuConfig::new(64 * MIB, [""; 0]).into_spec(name);
            assert!(QemuConfig::from_spec(&spec).is_err(), "{name:?}");
        }
    }

    #[test]
    fn odd_sizes_are_refused() {
        for bytes in [0, 4095, MIB + 1] {
            assert!(
                QemuConfig::from_spec(&QemuConfig::new(bytes, [""; 0]).into_spec("vm")).is_err(),
                "{bytes}"
            );
        }
    }

    #[test]
    fn missing_files_and_missing_memory_are_named() {
        let config = QemuConfig::new(64 * MIB, ["-kernel", "/nowhere/vmlinuz"]);
        let error = config.check_host("vm").unwrap_err().to_string();
        assert!(
            error.contains("/nowhere/vmlinuz") && error.contains("-kernel"),
            "{error}"
        );
        let config = QemuConfig {
            files: vec!["/nowhere/x".into()],
            ..QemuConfig::new(64 * MIB, [""; 0])
        };
        assert!(
            config
                .check_host("vm")
                .unwrap_err()
                .to_string()
                .contains("/nowhere/x")
        );
        let error = QemuConfig::new(1 << 50, [""; 0])
            .check_host("vm")
            .unwrap_err()
            .to_string();
        assert!(error.contains("are available"), "{error}");
    }

    #[test]
    fn the_users_own_machine_and_accelerator_win() {
        let own =
            QemuConfig::new(64 * MIB, ["-M", "microvm,accel=tcg", "-smp", "2", "-nographic"]).own_args();
        assert_eq!(own, ["-nodefaults"]);
        let own = QemuConfig::new(64 * MIB, ["-machine", "usb=off"]).own_args();
        assert_eq!(own[..4], ["-machine", "q35", "-accel", "tcg"]);
    }

    #[test]
    fn dimms_are_backends_and_numa_replaces_the_main_one() {
        let dimm = [
            "-object",
            "memory-backend-ram,id=d0,size=128M",
            "-device",
            "pc-dimm,memdev=d0",
        ];
        let backends = check(&dimm).unwrap().backends("vm").unwrap();
        assert_eq!(
            backends.iter().map(|backend| backend.bytes).collect::<Vec<_>>(),
            [64 * MIB, 128 * MIB]
        );
        let numa = [
            "-object",
            "memory-backend-ram,id=n0,size=64M",
            "-numa",
            "node,memdev=n0",
        ];
        let backends = check(&numa).unwrap().backends("vm").unwrap();
        assert_eq!(
            backends,
            [BackendSize {
                id: "n0".into(),
                bytes: 64 * MIB
            }]
        );
    }
}
