//! What a write to a tracked page costs on this host now.

use std::sync::Arc;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::{Mapping, PAGE_SIZE, PagemapScanner, Result, SharedMemory, Userfaultfd, WpAsyncTracker};

/// Pages written for a measurement: enough for a mean, and no more than a few milliseconds.
const PAGES: usize = 512;

/// Measures the cost of the first write to a page after a scan, which is what tracking costs a guest, on memory of our
/// own. It differs between machines by a factor of ten, and on one of them with what else is going on.
pub struct WriteFaultCost {
    memory: SharedMemory,
    tracker: WpAsyncTracker,
}

impl WriteFaultCost {
    /// Memory that is tracked like a guest's.
    ///
    /// # Errors
    /// Where this process cannot track its own writes.
    pub fn new() -> Result<Self> {
        let memory = SharedMemory::create("vmferry-fault-cost", (PAGES * PAGE_SIZE) as u64)?;
        memory.populate(0..memory.len())?;
        let (uffd, _) = Userfaultfd::open()?;
        let whole = Mapping {
            addresses: memory.addresses(),
            file_offset: 0,
        };
        let scanner = PagemapScanner::open(std::process::id())?;
        let mut tracker = WpAsyncTracker::new(Arc::new(uffd), scanner, vec![whole])?;
        tracker.arm()?;
        Ok(Self { memory, tracker })
    }

    /// The mean CPU time that such a write takes the calling thread.
    ///
    /// # Errors
    /// When the kernel refuses to scan.
    pub fn measure(&mut self) -> Result<Duration> {
        self.tracker.scan(&mut |_| {})?;
        let before = thread_cpu_time();
        for offset in (0..self.memory.len()).step_by(PAGE_SIZE) {
            self.memory.store_u64(offset, offset);
        }
        Ok(thread_cpu_time().saturating_sub(before) / PAGES as u32)
    }
}

fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
