//! A guest that says what its pages are used for.

use std::time::Duration;

use vmferry_core::{Hints, PageBitmap};

use crate::error::Result;

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
    /// When no agent answers within `timeout`, it does not know, or the check fails. Then only [`Hints::free`], without
    /// what was written since, is known to be free.
    fn calibrate(&self, timeout: Duration) -> Result<()>;
    /// The pages that are free, exactly; the guest must be paused. Their content need not cross, they may read as zero.
    /// None without [`Enlightened::calibrate`] before.
    fn free_while_paused(&self) -> Option<PageBitmap>;
}
