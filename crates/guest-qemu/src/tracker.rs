//! Which pages the guest wrote.

use std::ops::Range;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{DirtyTracker, GuestError, Result};
use vmferry_memory::{Features, PagemapScanner, WpAsyncTracker};

use crate::guest::QemuGuest;
use crate::mappings::Mappings;

/// Tracks QEMU's writes to the guest's RAM through all mappings QEMU has of it.
pub(crate) struct QemuTracker {
    tracker: WpAsyncTracker,
}

impl QemuTracker {
    pub(crate) fn new(guest: &QemuGuest) -> Result<Self> {
        let pid = guest.process.pid();
        let uffd = guest.userfaultfd(Features::TRACKING)?;
        let scanner = PagemapScanner::open(pid).map_err(failed)?;
        let mappings = Mappings::find(pid, &guest.ram)?.by_page_number();
        let tracker = WpAsyncTracker::new(uffd, scanner, mappings).map_err(failed)?;
        Ok(Self { tracker })
    }
}

impl DirtyTracker for QemuTracker {
    fn arm(&mut self) -> Result<()> {
        self.tracker.arm().map_err(failed)
    }

    fn arm_running_only(&mut self, runs: &[PageRun]) -> Result<()> {
        let ranges = runs
            .iter()
            .map(|run| run.first * PAGE_SIZE..run.end() * PAGE_SIZE);
        self.tracker.arm_only(ranges).map_err(failed)
    }

    fn scan(&mut self, dirty: &mut PageBitmap) -> Result<()> {
        let mut insert = |written: Range<u64>| {
            dirty.insert_run(PageRun::new(
                written.start / PAGE_SIZE,
                (written.end - written.start) / PAGE_SIZE,
            ));
        };
        self.tracker.scan(&mut insert).map(drop).map_err(failed)
    }

    fn disarm(&mut self) -> Result<()> {
        self.tracker.disarm().map_err(failed)
    }
}

fn failed(error: vmferry_memory::Error) -> GuestError {
    GuestError::operation("tracking the guest's writes", error)
}
