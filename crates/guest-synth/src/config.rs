//! What a synthetic guest consists of. It may come from a peer, so everything is checked.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmferry_core::PAGE_SIZE;

const MIB: u64 = 1 << 20;
/// The largest RAM of a synthetic guest.
const MAX_MEMORY_BYTES: u64 = 256 << 30;
const MAX_WORKERS: u32 = 64;
const MAX_LOADS: usize = 16;
/// What each worker needs of a load's region, so that the smallest tree or store fits.
const MIN_SLICE_BYTES: u64 = 256 << 10;

/// Configuration of a synthetic guest: the `config` of its [`GuestSpec`](vmferry_guest::GuestSpec).
///
/// RAM holds, in this order: one page that identifies the guest, the regions of the loads, the filled part, and
/// memory that is never touched. Each worker (vCPU) runs every load, on a part of the load's region of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SynthConfig {
    /// Size of RAM in bytes, whole pages.
    pub memory_bytes: u64,
    /// Threads that run the loads.
    #[serde(default = "one")]
    pub workers: u32,
    /// What they do. Without a load the guest is idle.
    #[serde(default)]
    pub loads: Vec<LoadConfig>,
    /// Static content of the memory behind the loads' regions.
    #[serde(default)]
    pub fill: Fill,
    /// Decides all content; two guests of the same configuration start alike.
    #[serde(default)]
    pub seed: u64,
    /// How writes are tracked and missing pages served. Not part of the guest's identity: each host may have
    /// its own.
    #[serde(default)]
    pub faults: FaultMechanism,
}

/// One load. The region is divided between the workers; a rate is the sum over them, none means as fast as it
/// goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LoadConfig {
    /// Writes page after page of the region, again and again. An operation is a page.
    Write {
        /// Size of the region in MiB.
        region_mib: u64,
        /// MiB written a second.
        #[serde(default)]
        rate_mib_per_s: Option<u64>,
    },
    /// A key-value store; keys are chosen by Zipf's law. An operation is a get or a put.
    KeyValue {
        /// Size of the region in MiB.
        region_mib: u64,
        /// Share of gets among the operations.
        #[serde(default = "ninety")]
        get_percent: u8,
        /// Exponent of the distribution of keys; 0 is uniform.
        #[serde(default = "zipf_exponent")]
        zipf_exponent: f64,
        /// Bytes of a value, a multiple of 8.
        #[serde(default = "value_bytes")]
        value_bytes: u32,
        /// Operations a second.
        #[serde(default)]
        operations_per_s: Option<u64>,
    },
    /// Rows in a b-tree, read, updated, inserted and deleted. An operation concerns one row.
    Oltp {
        /// Size of the region in MiB.
        region_mib: u64,
        /// Share of reads among the operations.
        #[serde(default = "fifty")]
        read_percent: u8,
        /// Operations a second.
        #[serde(default)]
        operations_per_s: Option<u64>,
    },
    /// Texts are edited and compressed one after the other. An operation is a text of 16 KiB.
    Compress {
        /// Size of the region in MiB.
        region_mib: u64,
        /// Operations a second.
        #[serde(default)]
        operations_per_s: Option<u64>,
    },
    /// Reads page after page of the region, again and again. An operation is a page.
    Read {
        /// Size of the region in MiB.
        region_mib: u64,
        /// MiB read a second.
        #[serde(default)]
        rate_mib_per_s: Option<u64>,
    },
    /// Computes, and touches no memory. An operation is what is done of it in 2 ms.
    Cpu {
        /// Share of each worker's time.
        percent: u8,
    },
    /// Nothing.
    Idle,
}

/// Static content of a part of RAM. The guest does not touch it while it runs; see
/// [`SynthGuest::verify`](crate::SynthGuest::verify) for how it is checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fill {
    /// Size in MiB.
    pub mib: u64,
    /// Share of pages that were touched and hold zeros only.
    #[serde(default)]
    pub zero_percent: u8,
    /// Share of pages of one byte other than zero.
    #[serde(default)]
    pub uniform_percent: u8,
    /// Share of pages that compress to a half or so. The remaining ones are random.
    #[serde(default)]
    pub compressible_percent: u8,
}

/// How writes are tracked and missing pages served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultMechanism {
    /// By the kernel where it permits it, else by software.
    #[default]
    Auto,
    /// By the kernel.
    Userfaultfd,
    /// By the workers themselves.
    Software,
}

/// What is wrong with a configuration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ConfigError {
    /// Not the JSON of a [`SynthConfig`].
    #[error("the configuration is not understood: {0}")]
    Syntax(String),
    /// A value out of bounds.
    #[error("{what} is {found}, expected {expected}")]
    OutOfBounds {
        /// Which value.
        what: &'static str,
        /// Its value.
        found: String,
        /// What is possible.
        expected: String,
    },
}

impl SynthConfig {
    /// An idle guest of `memory_bytes` with one worker.
    pub fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            workers: 1,
            loads: Vec::new(),
            fill: Fill::default(),
            seed: 0,
            faults: FaultMechanism::Auto,
        }
    }

    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn from_json(value: &serde_json::Value) -> Result<Self, ConfigError> {
        let config: Self =
            serde_json::from_value(value.clone()).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The JSON that [`SynthConfig::from_json`] reads.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a configuration has no map keys that are no strings")
    }

    /// Bytes of RAM that hold data from the start.
    pub fn configured_bytes(&self) -> u64 {
        let loads: u64 = self.loads.iter().map(LoadConfig::region_bytes).sum();
        PAGE_SIZE + loads + self.fill.mib * MIB
    }

    /// A number that guests of the same kind have in common: everything but [`SynthConfig::faults`].
    pub(crate) fn identity(&self) -> u64 {
        let same = Self {
            faults: FaultMechanism::Auto,
            ..self.clone()
        };
        xxhash_rust::xxh3::xxh3_64(same.to_json().to_string().as_bytes())
    }

    fn check(&self) -> Result<(), ConfigError> {
        let pages = PAGE_SIZE..=MAX_MEMORY_BYTES;
        within("memory_bytes", self.memory_bytes, pages)?;
        if !self.memory_bytes.is_multiple_of(PAGE_SIZE) {
            return Err(out_of_bounds(
                "memory_bytes",
                self.memory_bytes,
                "a multiple of 4096",
            ));
        }
        within("workers", u64::from(self.workers), 1..=u64::from(MAX_WORKERS))?;
        within(
            "the number of loads",
            self.loads.len() as u64,
            0..=MAX_LOADS as u64,
        )?;
        within("fill.mib", self.fill.mib, 0..=MAX_MEMORY_BYTES / MIB)?;
        let shares = [
            self.fill.zero_percent,
            self.fill.uniform_percent,
            self.fill.compressible_percent,
        ];
        within(
            "the sum of the shares of fill",
            shares.map(u64::from).iter().sum(),
            0..=100,
        )?;
        for load in &self.loads {
            load.check(self.workers)?;
        }
        let needed = self.configured_bytes();
        within("memory_bytes", self.memory_bytes, needed..=MAX_MEMORY_BYTES)
    }
}

impl LoadConfig {
    /// Bytes of RAM it works on.
    pub fn region_bytes(&self) -> u64 {
        match self {
            Self::Write { region_mib, .. }
            | Self::Read { region_mib, .. }
            | Self::KeyValue { region_mib, .. }
            | Self::Oltp { region_mib, .. }
            | Self::Compress { region_mib, .. } => region_mib * MIB,
            Self::Cpu { .. } | Self::Idle => 0,
        }
    }

    /// Operations a second over all workers; `None` for as fast as it goes.
    pub(crate) fn operations_per_s(&self) -> Option<u64> {
        match *self {
            Self::Write { rate_mib_per_s, .. } | Self::Read { rate_mib_per_s, .. } => {
                rate_mib_per_s.map(|rate| rate * (MIB / PAGE_SIZE))
            }
            Self::KeyValue { operations_per_s, .. }
            | Self::Oltp { operations_per_s, .. }
            | Self::Compress { operations_per_s, .. } => operations_per_s,
            Self::Cpu { .. } | Self::Idle => None,
        }
    }

    /// Its name in statistics, as in the configuration.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Write { .. } => "write",
            Self::KeyValue { .. } => "key-value",
            Self::Oltp { .. } => "oltp",
            Self::Compress { .. } => "compress",
            Self::Read { .. } => "read",
            Self::Cpu { .. } => "cpu",
            Self::Idle => "idle",
        }
    }

    fn check(&self, workers: u32) -> Result<(), ConfigError> {
        if let Self::Write { region_mib, .. }
        | Self::Read { region_mib, .. }
        | Self::KeyValue { region_mib, .. }
        | Self::Oltp { region_mib, .. }
        | Self::Compress { region_mib, .. } = self
        {
            let least = (u64::from(workers) * MIN_SLICE_BYTES).div_ceil(MIB);
            within("region_mib", *region_mib, least..=MAX_MEMORY_BYTES / MIB)?;
        }
        match *self {
            Self::Cpu { percent } => within("percent", u64::from(percent), 0..=100),
            Self::Write {
                rate_mib_per_s: Some(rate),
                ..
            }
            | Self::Read {
                rate_mib_per_s: Some(rate),
                ..
            } => within("rate_mib_per_s", rate, 1..=1 << 20),
            Self::KeyValue {
                get_percent,
                zipf_exponent,
                value_bytes,
                ..
            } => {
                within("get_percent", u64::from(get_percent), 0..=100)?;
                if !(0.0..=10.0).contains(&zipf_exponent) {
                    return Err(out_of_bounds("zipf_exponent", zipf_exponent, "0 to 10"));
                }
                if value_bytes % 8 != 0 {
                    return Err(out_of_bounds("value_bytes", value_bytes, "a multiple of 8"));
                }
                within("value_bytes", u64::from(value_bytes), 8..=4080)
            }
            Self::Oltp { read_percent, .. } => within("read_percent", u64::from(read_percent), 0..=100),
            _ => Ok(()),
        }?;
        match self.operations_per_s() {
            Some(rate) => within("operations_per_s", rate, 1..=1 << 40),
            None => Ok(()),
        }
    }
}

fn within(what: &'static str, found: u64, bounds: std::ops::RangeInclusive<u64>) -> Result<(), ConfigError> {
    if bounds.contains(&found) {
        return Ok(());
    }
    Err(out_of_bounds(
        what,
        found,
        format!("{} to {}", bounds.start(), bounds.end()),
    ))
}

fn out_of_bounds(
    what: &'static str,
    found: impl std::fmt::Display,
    expected: impl Into<String>,
) -> ConfigError {
    ConfigError::OutOfBounds {
        what,
        found: found.to_string(),
        expected: expected.into(),
    }
}

fn one() -> u32 {
    1
}

fn ninety() -> u8 {
    90
}

fn fifty() -> u8 {
    50
}

fn zipf_exponent() -> f64 {
    0.99
}

fn value_bytes() -> u32 {
    240
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_small_configuration_is_enough() {
        let config = SynthConfig::from_json(&json!({"memory_bytes": 1 << 20})).unwrap();
        assert_eq!(config, SynthConfig::new(1 << 20));
        assert_eq!(SynthConfig::from_json(&config.to_json()).unwrap(), config);
    }

    #[test]
    fn how_faults_are_served_is_no_part_of_the_identity() {
        let config = SynthConfig::new(1 << 20);
        let software = SynthConfig {
            faults: FaultMechanism::Software,
            ..config.clone()
        };
        assert_eq!(config.identity(), software.identity());
        assert_ne!(config.identity(), SynthConfig { seed: 1, ..config }.identity());
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_and_named() {
        let write = |mib: u64| json!({"kind": "write", "region_mib": mib});
        for (config, named) in [
            (json!({"memory_bytes": 0}), "memory_bytes"),
            (json!({"memory_bytes": 4097}), "memory_bytes"),
            (json!({"memory_bytes": u64::MAX - 4095}), "memory_bytes"),
            (json!({"memory_bytes": 1 << 20, "workers": 0}), "workers"),
            (json!({"memory_bytes": 1 << 20, "workers": 65}), "workers"),
            (
                json!({"memory_bytes": 1 << 20, "fill": {"mib": 1}}),
                "memory_bytes",
            ),
            (
                json!({"memory_bytes": 1 << 24, "fill": {"mib": u64::MAX}}),
                "fill.mib",
            ),
            (
                json!({"memory_bytes": 1 << 24, "fill": {"mib": 1, "zero_percent": 200}}),
                "shares",
            ),
            (
                json!({"memory_bytes": 1 << 24, "loads": [write(16)]}),
                "memory_bytes",
            ),
            (
                json!({"memory_bytes": 1 << 24, "loads": [write(0)]}),
                "region_mib",
            ),
            (
                json!({"memory_bytes": 1 << 24, "loads": [write(u64::MAX)]}),
                "region_mib",
            ),
            (
                json!({"memory_bytes": 1 << 24, "workers": 64, "loads": [write(1)]}),
                "region_mib",
            ),
            (
                json!({"memory_bytes": 1 << 24, "loads": vec![json!({"kind": "idle"}); 17]}),
                "loads",
            ),
            (
                json!({"memory_bytes": 1 << 24, "loads": [{"kind": "key-value", "region_mib": 1, "value_bytes": 9}]}),
                "value_bytes",
            ),
            (json!({"memory_bytes": 1 << 20, "surprise": 1}), "surprise"),
        ] {
            let error = SynthConfig::from_json(&config).unwrap_err().to_string();
            assert!(error.contains(named), "{config}: {error}");
        }
    }
}
