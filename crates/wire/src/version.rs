//! The versions of the protocol, and how two sides agree on one.
//!
//! # Version log
//!
//! * **1** (vmferry 0.1): control messages `Offer` to `Ping` and `Accept` to `Pong`; page frames `Raw`,
//!   `Uniform`, `RoundEnd`, `PushEnd`; fault requests. No flags but the payload checksum of raw frames.
//! * **2**: page frames `Lz4`, `Zstd`, `Delta` ([`crate::encoding`]). To a peer of version 1 pages cross raw.
//! * **3**: control messages `CpuCap`, `Disks` and `DisksPlaced`, streams of disks ([`crate::StreamRole::Disk`]). A destination of an
//!   earlier version uses as much CPU as it likes; a migration that moves disks is refused where the peer speaks one.
//!   Control messages `AskHeld`, `Held` and `Missed`, page frame `Held`: pages that the destination has in a store of its own
//!   cross as their hashes; to a peer of an earlier version they cross whole.
//!
//! Rules for the next entry: the layouts of hello and reply never change. A message or frame, once released,
//! keeps its number and its fields for good; what is new gets a new number and may be sent only where the
//! version agreed on has it. The golden bytes of every released version stay in the tests.

use std::fmt;

use crate::error::{Result, WireError};

/// The versions this build speaks.
pub const SPOKEN: VersionRange = VersionRange { min: 1, max: 3 };
/// The first version with encoded pages.
pub const ENCODED_PAGES_SINCE: u16 = 2;
/// The first version in which a destination can be told how much CPU to use.
pub const CPU_CAP_SINCE: u16 = 3;
/// The first version with disks that move with the guest.
pub const DISKS_SINCE: u16 = 3;
/// The first version in which pages that the destination has cross as their hashes.
pub const HELD_PAGES_SINCE: u16 = 3;

/// An unbroken range of protocol versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// The lowest.
    pub min: u16,
    /// The highest.
    pub max: u16,
}

impl VersionRange {
    /// The highest version in both ranges.
    ///
    /// # Errors
    /// [`WireError::Version`] when there is none; `self` is taken for this side's range.
    pub fn negotiate(self, theirs: Self) -> Result<u16> {
        let best = self.max.min(theirs.max);
        if best < self.min || best < theirs.min {
            return Err(WireError::Version { theirs, ours: self });
        }
        Ok(best)
    }

    /// Whether `version` lies in the range.
    pub fn contains(self, version: u16) -> bool {
        (self.min..=self.max).contains(&version)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "version {}", self.min)
        } else {
            write!(f, "versions {} to {}", self.min, self.max)
        }
    }
}
