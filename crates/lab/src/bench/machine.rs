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
        }
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
}
