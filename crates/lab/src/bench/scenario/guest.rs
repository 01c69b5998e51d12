//! The guests of a scenario.

use serde::{Deserialize, Serialize};

use super::options::{Options, words};
use crate::workload::Workload;

/// What executes a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestKind {
    /// The synthetic guest.
    Synth,
    /// The Linux of the guest image, in QEMU.
    Qemu,
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guest {
    /// Its name in results.
    pub name: String,
    /// What executes it.
    pub kind: GuestKind,
    /// RAM, as in `512M`.
    pub memory: String,
    /// Virtual CPUs.
    #[serde(default = "one")]
    pub vcpus: u32,
    /// What it does, as `vmferry run --synthetic` reads it; of a guest of kind `qemu` what it does beside its workload, as the
    /// guest image reads it.
    #[serde(default)]
    pub load: Option<String>,
    /// What clients see it do, of a guest of kind `qemu`.
    #[serde(default)]
    pub workload: Workload,
    /// Whether the agent runs in it.
    #[serde(default)]
    pub agent: bool,
    /// Whether another guest like it runs beside it at the source, and stays. Then each host has one processor, which its
    /// guests contend for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub neighbour: bool,
    /// A disk that it may write, of a guest of kind `qemu`: it moves with `with-disks`, to a folder of the destination's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<Disk>,
    /// Further options of `vmferry run`, without their dashes.
    #[serde(default)]
    pub options: Options,
    /// What `--quick` changes.
    #[serde(default)]
    pub quick: Option<GuestQuick>,
}

/// A disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Its size.
    pub mib: u64,
    /// So much of it, at its end, holds data; the rest was never written.
    pub filled_mib: u64,
}

/// What `--quick` changes in a guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestQuick {
    /// See [`Guest::memory`].
    pub memory: Option<String>,
    /// See [`Guest::load`].
    pub load: Option<String>,
    /// See [`Guest::workload`].
    pub workload: Option<Workload>,
    /// See [`Guest::disk`].
    pub disk: Option<Disk>,
}

impl Guest {
    /// The guest as `--quick` has it.
    pub(super) fn quick(mut self) -> Self {
        if let Some(quick) = self.quick.take() {
            self.memory = quick.memory.unwrap_or(self.memory);
            self.load = quick.load.or(self.load);
            self.workload = quick.workload.unwrap_or(self.workload);
            self.disk = quick.disk.or(self.disk);
        }
        self
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let name = &self.name;
        if self.kind == GuestKind::Synth && (self.workload.has_client() || self.agent) {
            return Err(format!(
                "guest {name:?} is synthetic: workload and agent are for guests of kind \"qemu\""
            ));
        }
        if let Some(disk) = self.disk {
            if self.kind == GuestKind::Synth || self.workload.disk_mib().is_some() {
                return Err(format!(
                    "guest {name:?} can have no disk of its own: it is synthetic, or its workload brings one"
                ));
            }
            if disk.mib == 0 || disk.filled_mib > disk.mib {
                return Err(format!(
                    "the disk of guest {name:?} has {} MiB, of which {} hold data: expected more than none, and no more than all",
                    disk.mib, disk.filled_mib
                ));
            }
        }
        let workload = self.workload.check();
        workload.map_err(|why| format!("guest {name:?}: {why}"))?;
        words(&self.options).map(drop)
    }
}

fn one() -> u32 {
    1
}
