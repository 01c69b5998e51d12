//! Holding up a guest's writes, so that its memory of one moment can be saved while it runs.

use std::time::Duration;

use vmferry_core::{PageBitmap, PageRun};

use crate::error::Result;

/// Something that happened to pages whose writes are held up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeldEvent {
    /// The guest wants to write this page, which is protected, and waits until it is released.
    Write(u64),
    /// These pages were given back to the host (a balloon, free page reporting): what they held is gone, they read as
    /// zero. It happened before anybody could be asked.
    Discarded(PageRun),
}

/// Writes of a guest to protected pages, each held up until somebody has seen to the page: what a checkpoint of a running
/// guest needs. One a guest at a time, and none beside a [`DirtyTracker`](crate::DirtyTracker). All methods may be called from
/// several threads.
///
/// When it is dropped, or its process ends in whatever way, all protection is lifted and the guest goes on.
///
/// # What is seen
/// Writes by vCPUs, by the hypervisor's devices and by the kernel for them. A page that a device had pinned *before* it
/// was protected is filled unseen: what must not change is protected, for good, while the guest is paused and its I/O
/// drained. From then on pinning a page for a device to fill counts as a write, and waits.
pub trait WriteHolds: Send + Sync {
    /// From now on the guest's writes to the pages of `run` wait.
    ///
    /// # Errors
    /// When the kernel refuses: part of the run may be protected.
    fn protect(&self, run: PageRun) -> Result<()>;
    /// Lifts the protection of `run`, and wakes who waits to write there. Releasing what is not protected is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn release(&self, run: PageRun) -> Result<()>;
    /// Waits at most `timeout` for something to happen, and adds what is there to `events`. A write may come twice.
    ///
    /// # Errors
    /// When the mechanism broke, or the guest ended.
    fn wait(&self, timeout: Duration, events: &mut Vec<HeldEvent>) -> Result<()>;
    /// Begins anew with which pages are touched. The guest need not be paused; what it touches meanwhile may be forgotten.
    ///
    /// # Errors
    /// When the hypervisor's process does not let it be done.
    fn forget_touches(&self) -> Result<()>;
    /// Adds to `pages` those the guest read or wrote since [`WriteHolds::forget_touches`]. Without that before, all that
    /// it ever touched.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn touched(&self, pages: &mut PageBitmap) -> Result<()>;
    /// Lifts all protection for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn end(&self) -> Result<()>;
}
