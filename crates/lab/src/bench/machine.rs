//! On what a run was measured.

use std::process::Command;

use serde::{Deserialize, Serialize};

/// A machine and the programs on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of vmferry.
    pub vmferry: String,
    /// Whether vmferry was built with optimisation.
    pub optimised: bool,
    /// What QEMU says of its version; absent where there is none.
    pub qemu: Option<String>,
    /// Release of the kernel.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// How many there are for us.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The commit that vmferry was built from; absent where it was not built in a checkout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The distribution, as it names itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<String>,
    /// What the machine itself runs on, where it is a virtual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hypervisor: Option<String>,
    /// When the kernel gives anonymous memory huge pages: `madvise`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let uname = rustix::system::uname();
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|total| total.split_whitespace().next()?.parse::<u64>().ok());
        Self {
            vmferry: env!("CARGO_PKG_VERSION").to_owned(),
            optimised: !cfg!(debug_assertions),
            qemu: qemu_version(),
            kernel: uname.release().to_string_lossy().into_owned(),
            cpu: field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into()),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            memory_bytes: memory_kib.unwrap_or(0) << 10,
            revision: option_env!("VMFERRY_REVISION").map(str::to_owned),
            distribution: distribution(&read("/etc/os-release")),
            hypervisor: hypervisor(&read("/proc/cpuinfo"), &read("/sys/class/dmi/id/product_name")),
            huge_pages: chosen(&read("/sys/kernel/mm/transparent_hugepage/enabled")),
        }
    }
}

impl Machine {
    /// The machine without the programs on it, in a line.
    pub fn hardware(&self) -> String {
        let gib = self.memory_bytes as f64 / (1u64 << 30) as f64;
        format!(
            "{} x {}, {gib:.1} GiB, Linux {}",
            self.cpus, self.cpu, self.kernel
        )
    }
}

/// How many processes waited for a CPU within the last minute, on average: what else the machine did.
pub(crate) fn load_average() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn qemu_version() -> Option<String> {
    let output = Command::new("qemu-system-x86_64")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

fn distribution(os_release: &str) -> Option<String> {
    let name = os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(name.trim_matches('"').to_owned())
}

/// A processor says when it is none of its own; the board says whose it is.
fn hypervisor(cpuinfo: &str, product: &str) -> Option<String> {
    let flags = field(cpuinfo, "flags")?;
    let product = match product.trim() {
        "" => "not named",
        product => product,
    };
    flags
        .split(' ')
        .any(|flag| flag == "hypervisor")
        .then(|| product.to_owned())
}

/// The word in brackets.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The value of the first line `NAME : VALUE`.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let machine = Machine::here();
        assert!(machine.kernel.contains('.'), "{machine:?}");
        assert!(machine.memory_bytes > 1 << 20 && machine.cpus > 0, "{machine:?}");
        assert!(load_average().is_some());
    }

    #[test]
    fn files_of_the_system_are_understood() {
        let os_release = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n";
        assert_eq!(
            distribution(os_release).unwrap(),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(chosen("always [madvise] never\n").unwrap(), "madvise");
        let cpuinfo = "model name\t: X\nflags\t\t: fpu hypervisor sse\n";
        assert_eq!(hypervisor(cpuinfo, "KVM\n").unwrap(), "KVM");
        assert_eq!(hypervisor("flags\t\t: fpu sse\n", "Laptop\n"), None);
    }
}
