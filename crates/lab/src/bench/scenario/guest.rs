//! The guests of a scenario.

use serde::{Deserialize, Serialize};

use super::options::{Options, words};

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
    /// What it does, as `vmferry run --synthetic` or the guest image reads it.
    #[serde(default)]
    pub load: Option<String>,
    /// Its memcached and the client of that.
    #[serde(default)]
    pub memcached: Option<Memcached>,
    /// Whether the agent runs in it.
    #[serde(default)]
    pub agent: bool,
    /// Further options of `vmferry run`, without their dashes.
    #[serde(default)]
    pub options: Options,
    /// What `--quick` changes.
    #[serde(default)]
    pub quick: Option<GuestQuick>,
}

/// What `--quick` changes in a guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestQuick {
    /// See [`Guest::memory`].
    pub memory: Option<String>,
    /// See [`Guest::load`].
    pub load: Option<String>,
    /// See [`Guest::memcached`].
    pub memcached: Option<Memcached>,
}

/// A memcached in the guest, and a client outside that reads and writes over one connection and knows every value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memcached {
    /// MiB that it may use for items.
    pub mib: u64,
    /// How many values there are.
    pub values: u32,
    /// Bytes of each.
    pub value_bytes: usize,
    /// Operations a second; as many as go where absent.
    #[serde(default)]
    pub operations_per_s: Option<u32>,
    /// One operation of so many stores, the others read.
    pub one_set_in: u64,
}

impl Guest {
    /// The guest as `--quick` has it.
    pub(super) fn quick(mut self) -> Self {
        if let Some(quick) = self.quick.take() {
            self.memory = quick.memory.unwrap_or(self.memory);
            self.load = quick.load.or(self.load);
            self.memcached = quick.memcached.or(self.memcached);
        }
        self
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let name = &self.name;
        if self.kind == GuestKind::Synth && (self.memcached.is_some() || self.agent) {
            return Err(format!(
                "guest {name:?} is synthetic: memcached and agent are for guests of kind \"qemu\""
            ));
        }
        if let Some(memcached) = &self.memcached
            && (memcached.values == 0 || memcached.one_set_in == 0)
        {
            return Err(format!(
                "memcached of guest {name:?}: values and one_set_in have to be more than 0"
            ));
        }
        words(&self.options).map(drop)
    }
}

fn one() -> u32 {
    1
}
