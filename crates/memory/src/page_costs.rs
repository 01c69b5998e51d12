//! What tracking, scanning and placing pages cost on this host now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{
    CopyMode, Features, Mapping, Mode, PAGE_SIZE, PagemapScanner, Result, SharedMemory, Userfaultfd,
    WpAsyncTracker, WriteFaultCost,
};

/// Pages that are measured: 32 MiB, which is more than caches hold and takes tens of milliseconds.
const PAGES: u64 = 8192;
/// Of these, one in so many is written before a scan of scattered pages.
const SCATTERED: u64 = 8;
/// Pages placed at once.
const AT_ONCE: u64 = 64;

/// Times a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCosts {
    /// Protecting it for the first time.
    pub arm: Duration,
    /// Looking at it in a scan.
    pub scan: Duration,
    /// The same for one that is dirty, in addition.
    pub scan_dirty: Duration,
    /// The first write to it after a scan.
    pub write_fault: Duration,
    /// Writing it into memory that holds nothing yet.
    pub receive: Duration,
    /// Making it appear, whole, to who may access it at any time; unknown where this process may not serve such accesses.
    pub install: Option<Duration>,
}

impl PageCosts {
    /// Measures them on memory of our own.
    ///
    /// # Errors
    /// Where this process cannot track its own writes.
    pub fn measure() -> Result<Self> {
        let memory = SharedMemory::create("vmferry-page-costs", PAGES * PAGE_SIZE as u64)?;
        memory.populate(0..memory.len())?;
        let (uffd, _) = Userfaultfd::open()?;
        let whole = Mapping {
            addresses: memory.addresses(),
            file_offset: 0,
        };
        let scanner = PagemapScanner::open(std::process::id())?;
        let mut tracker = WpAsyncTracker::new(Arc::new(uffd), scanner, vec![whole])?;
        let arm = timed(|| tracker.arm())? / PAGES as u32;
        // The first scan walks page tables that nobody walked yet.
        tracker.scan(&mut |_| {})?;
        let scan = timed(|| tracker.scan(&mut |_| {}).map(drop))? / PAGES as u32;
        for page in (0..PAGES).step_by(SCATTERED as usize) {
            memory.store_u64(page * PAGE_SIZE as u64, page);
        }
        let scattered = timed(|| tracker.scan(&mut |_| {}).map(drop))?;
        let dirty = (PAGES / SCATTERED) as u32;
        Ok(Self {
            arm,
            scan,
            scan_dirty: scattered.saturating_sub(scan * PAGES as u32) / dirty,
            write_fault: WriteFaultCost::new()?.measure()?,
            receive: receive()?,
            // Not everybody may, and nothing else depends on it.
            install: install().ok(),
        })
    }
}

fn receive() -> Result<Duration> {
    let memory = SharedMemory::create("vmferry-page-costs", PAGES * PAGE_SIZE as u64)?;
    let data = vec![7; AT_ONCE as usize * PAGE_SIZE];
    let whole = timed(|| {
        for first in (0..PAGES).step_by(AT_ONCE as usize) {
            memory
                .write_through_file(first * PAGE_SIZE as u64, &data)
                .map_err(|error| crate::Error::system("write to memory", error))?;
        }
        Ok(())
    })?;
    Ok(whole / PAGES as u32)
}

fn install() -> Result<Duration> {
    let memory = SharedMemory::create("vmferry-page-costs", PAGES * PAGE_SIZE as u64)?;
    let (uffd, _) = Userfaultfd::open()?;
    uffd.handshake(Features::POST_COPY)?;
    uffd.register(memory.addresses(), Mode::MISSING)?;
    let data = vec![7; AT_ONCE as usize * PAGE_SIZE];
    let whole = timed(|| {
        for first in (0..PAGES).step_by(AT_ONCE as usize) {
            uffd.copy(
                memory.addresses().start + first * PAGE_SIZE as u64,
                &data,
                CopyMode::empty(),
            )?;
        }
        Ok(())
    })?;
    Ok(whole / PAGES as u32)
}

fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    act()?;
    Ok(began.elapsed())
}
