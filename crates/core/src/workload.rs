//! What a guest does while it is moved. Source: performance-model paper, section 3: four kinds of resource-intensive
//! benchmarks, at several intensities.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Which resource a guest uses most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Processors; idle is `cpu:0`.
    Cpu,
    /// Memory, which it reads.
    MemoryRead,
    /// Memory, which it writes.
    MemoryWrite,
    /// A disk, which it reads.
    DiskRead,
    /// The network, to which it sends.
    NetSend,
    /// The network, from which it receives.
    NetReceive,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Cpu,
        Self::MemoryRead,
        Self::MemoryWrite,
        Self::DiskRead,
        Self::NetSend,
        Self::NetReceive,
    ];

    /// Its name on the command line and in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::MemoryRead => "memory-read",
            Self::MemoryWrite => "memory-write",
            Self::DiskRead => "disk-read",
            Self::NetSend => "net-send",
            Self::NetReceive => "net-receive",
        }
    }
}

/// A class and how hard it is at work: `cpu:40`, `memory-write`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Workload {
    /// Which resource.
    pub class: Class,
    /// How much of it, in percent of what a guest can use.
    pub intensity_percent: u8,
}

/// No workload that is known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no class of workload; write CLASS or CLASS:PERCENT with cpu, memory-read, memory-write, disk-read, net-send or \
     net-receive"
)]
pub struct UnknownClass(String);

impl FromStr for Workload {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        let unknown = || UnknownClass(text.to_owned());
        let (name, intensity) = text.split_once(':').unwrap_or((text, "100"));
        let class = Class::ALL.into_iter().find(|class| class.name() == name);
        let intensity = intensity.trim_end_matches('%').parse().ok();
        Ok(Self {
            class: class.ok_or_else(unknown)?,
            intensity_percent: intensity.filter(|percent| *percent <= 100).ok_or_else(unknown)?,
        })
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.intensity_percent {
            100 => f.write_str(self.class.name()),
            percent => write!(f, "{}:{percent}", self.class.name()),
        }
    }
}

impl TryFrom<String> for Workload {
    type Error = UnknownClass;

    fn try_from(text: String) -> Result<Self, UnknownClass> {
        text.parse()
    }
}

impl From<Workload> for String {
    fn from(workload: Workload) -> Self {
        workload.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workloads_are_read_as_they_are_written() {
        for text in ["cpu:0", "cpu:40", "memory-write", "net-receive:5"] {
            assert_eq!(text.parse::<Workload>().unwrap().to_string(), text);
        }
        assert_eq!("cpu:80%".parse::<Workload>().unwrap().intensity_percent, 80);
        for text in ["", "gpu", "cpu:101", "cpu:x", ":40"] {
            let error = text.parse::<Workload>().unwrap_err().to_string();
            assert!(error.contains("memory-write"), "{error}");
        }
    }
}
