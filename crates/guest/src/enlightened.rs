//! A guest that says what its pages are used for.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_core::{Hints, PageBitmap};

use crate::error::Result;

/// How well it can be told which pages of a guest are free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FreeKnowledge {
    /// Exactly, while the guest is paused: [`Enlightened::free_while_paused`].
    Exact,
    /// Only by the guest's own list ([`Hints::free`]), as of when it was made.
    Listed {
        /// Why not exactly.
        why: String,
    },
}

/// How busy a guest is, by its own account.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestLoad {
    /// Load averages over 1, 5 and 15 minutes.
    pub load_averages: [f64; 3],
    /// Memory that its kernel manages.
    pub memory_total_bytes: u64,
    /// Memory that is free.
    pub memory_free_bytes: u64,
    /// Memory that could be had without swapping.
    pub memory_available_bytes: u64,
}

/// When a process of a guest ran last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRan {
    /// Its number in the guest.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Milliseconds since one of its threads ran.
    pub ago_ms: u64,
}

/// A guest with an agent in it. Nothing depends on its answers but how fast its own migration is, and the content of the
/// pages that it calls free: an agent can harm only its own guest.
pub trait Enlightened {
    /// What each page is used for now. Processes that ran within the last `active_within` count as active.
    ///
    /// # Errors
    /// When no agent answers within `timeout`, or what it says makes no sense. The migration goes on without.
    fn enlighten(&self, active_within: Duration, timeout: Duration) -> Result<Hints>;
    /// Gets ready to find free pages without the agent's help: learns where the guest's kernel keeps account of its
    /// pages, and checks that reading there gives what the kernel itself says.
    ///
    /// # Errors
    /// When no agent answers within `timeout`, or what it says makes no sense.
    fn calibrate(&self, timeout: Duration) -> Result<FreeKnowledge>;
    /// The pages that are free, exactly; the guest must be paused. Their content need not cross, they may read as zero.
    /// None without an exact [`Enlightened::calibrate`] before, or where the guest was reset since.
    fn free_while_paused(&self) -> Option<PageBitmap>;
    /// How busy the guest is.
    ///
    /// # Errors
    /// When no agent answers within `timeout`, or what it says makes no sense.
    fn load(&self, timeout: Duration) -> Result<GuestLoad>;
    /// When the guest's processes ran last, the latest first; a thousand of them at most.
    ///
    /// # Errors
    /// As [`Enlightened::load`].
    fn last_runs(&self, timeout: Duration) -> Result<Vec<ProcessRan>>;
}
