//! Dirty tracking and page faults without help from the kernel.
//!
//! The vCPUs keep a dirty log and look before each access whether the page may be touched. It costs every access
//! a few nanoseconds, and needs no permission: for containers where userfaultfd is forbidden.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{FaultMode, GuestError, Installed, PageFaults, Result};
use vmferry_memory::SharedMemory;

use crate::holding::Holds;

/// Nothing is known of the page yet: its first access asks the memory file and, where that is not enough, faults.
const UNKNOWN: u8 = 0;
/// Somebody is writing it.
const FILLING: u8 = 1;
/// The guest may access it.
const VISIBLE: u8 = 2;

/// What stands in for the kernel between the vCPUs and their RAM.
pub(crate) struct SoftwarePaging {
    log: DirtyLog,
    faults: FaultGate,
    holds: Holds,
}

impl SoftwarePaging {
    /// For the RAM in `memory`, with neither tracking nor faults switched on.
    pub(crate) fn new(memory: Arc<SharedMemory>) -> Self {
        let pages = memory.len() / PAGE_SIZE;
        Self {
            log: DirtyLog::new(pages),
            faults: FaultGate::new(memory),
            holds: Holds::new(pages),
        }
    }

    /// Called by a vCPU before it reads or writes: waits until all pages of the range may be touched.
    pub(crate) fn before_access(&self, offset: u64, len: usize) {
        if self.faults.on.load(Ordering::Acquire) {
            for page in pages_of(offset, len) {
                self.faults.wait_for(page);
            }
        }
        self.holds.note_touch(pages_of(offset, len));
    }

    /// Called by a vCPU before it writes: waits as for any access, and while writes to the range are held up. While what it
    /// gives back lives, nobody can protect the range.
    pub(crate) fn before_write(&self, offset: u64, len: usize) -> Option<RwLockReadGuard<'_, ()>> {
        self.before_access(offset, len);
        self.holds.enter(pages_of(offset, len))
    }

    /// The writes that are held up.
    pub(crate) fn holds(&self) -> &Holds {
        &self.holds
    }

    /// Called by a vCPU once it has written.
    pub(crate) fn after_write(&self, offset: u64, len: usize) {
        if self.log.armed.load(Ordering::Acquire) {
            for page in pages_of(offset, len) {
                self.log.record(page);
            }
        }
    }

    /// Starts recording writes. The vCPUs stand still.
    pub(crate) fn arm(&self) {
        self.log.clear();
        self.log.armed.store(true, Ordering::Release);
    }

    /// Adds the pages written since the last call to `dirty`, and forgets them.
    pub(crate) fn take_dirty(&self, dirty: &mut PageBitmap) {
        self.log.take(dirty);
    }

    /// Stops recording writes.
    pub(crate) fn disarm(&self) {
        self.log.armed.store(false, Ordering::Release);
    }

    /// Lets accesses to pages that are not there wait. The vCPUs stand still.
    pub(crate) fn enable_faults(&self, mode: FaultMode) {
        self.faults.enable(mode);
    }

    /// Lets every access through again, and whoever waits.
    pub(crate) fn disable_faults(&self) {
        self.faults.disable();
    }
}

fn pages_of(offset: u64, len: usize) -> Range<u64> {
    offset / PAGE_SIZE..(offset + len as u64).div_ceil(PAGE_SIZE)
}

/// One bit a page, set after each write.
///
/// *After*, because then a page that was copied before or during the write is reported once more, and one that
/// was copied later holds it. Set before the write, the bit could be taken and the page copied in between, and
/// the write would be lost.
struct DirtyLog {
    armed: AtomicBool,
    words: Vec<AtomicU64>,
}

impl DirtyLog {
    fn new(pages: u64) -> Self {
        let words = (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            armed: AtomicBool::new(false),
            words,
        }
    }

    /// Always a read-modify-write: to look first whether the bit is set would allow the write before it to
    /// become visible after the look, and be missed by a scan in between.
    fn record(&self, page: u64) {
        self.words[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::AcqRel);
    }

    fn clear(&self) {
        self.words
            .iter()
            .for_each(|word| word.store(0, Ordering::Release));
    }

    fn take(&self, dirty: &mut PageBitmap) {
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                dirty.insert(index as u64 * 64 + u64::from(bits.trailing_zeros()));
                bits &= bits - 1;
            }
        }
    }
}

/// The state of each page, and who waits for one.
struct FaultGate {
    memory: Arc<SharedMemory>,
    on: AtomicBool,
    states: Vec<AtomicU8>,
    queue: Mutex<FaultQueue>,
    /// Signalled when pages became visible, are to be tried again, or faults end.
    retry: Condvar,
    /// Signalled when a fault was added.
    fault: Condvar,
}

struct FaultQueue {
    mode: FaultMode,
    /// Faults nobody has taken yet.
    reported: VecDeque<u64>,
    waiting: Vec<Waiter>,
    next_waiter: u64,
}

/// A vCPU that waits for `page`.
struct Waiter {
    id: u64,
    page: u64,
    /// It was told to try again: if the page is still not there it reports the fault again.
    woken: bool,
}

impl FaultGate {
    fn new(memory: Arc<SharedMemory>) -> Self {
        let pages = memory.len() / PAGE_SIZE;
        let queue = FaultQueue {
            mode: FaultMode::Missing,
            reported: VecDeque::new(),
            waiting: Vec::new(),
            next_waiter: 0,
        };
        Self {
            memory,
            on: AtomicBool::new(false),
            states: (0..pages).map(|_| AtomicU8::new(UNKNOWN)).collect(),
            queue: Mutex::new(queue),
            retry: Condvar::new(),
            fault: Condvar::new(),
        }
    }

    fn enable(&self, mode: FaultMode) {
        self.states
            .iter()
            .for_each(|state| state.store(UNKNOWN, Ordering::Release));
        self.lock().mode = mode;
        self.on.store(true, Ordering::Release);
    }

    fn disable(&self) {
        let mut queue = self.lock();
        self.on.store(false, Ordering::Release);
        queue.reported.clear();
        self.retry.notify_all();
    }

    fn wait_for(&self, page: u64) {
        if self.states[page as usize].load(Ordering::Acquire) != VISIBLE {
            self.fault(page);
        }
    }

    #[cold]
    fn fault(&self, page: u64) {
        let mut queue = self.lock();
        if self.may_access(page, queue.mode) {
            return;
        }
        let id = queue.next_waiter;
        queue.next_waiter += 1;
        queue.waiting.push(Waiter {
            id,
            page,
            woken: false,
        });
        queue.reported.push_back(page);
        self.fault.notify_one();
        loop {
            queue = self.retry.wait(queue).unwrap_or_else(PoisonError::into_inner);
            if self.may_access(page, queue.mode) {
                queue.waiting.retain(|waiter| waiter.id != id);
                return;
            }
            let waiter = queue.waiting.iter_mut().find(|waiter| waiter.id == id);
            if waiter.is_some_and(|waiter| std::mem::take(&mut waiter.woken)) {
                queue.reported.push_back(page);
                self.fault.notify_one();
            }
        }
    }

    /// Whether the guest may access `page` now. In memory that holds nothing stale, a page of the file is
    /// visible without being revealed.
    fn may_access(&self, page: u64, mode: FaultMode) -> bool {
        if !self.on.load(Ordering::Acquire) {
            return true;
        }
        let state = &self.states[page as usize];
        if state.load(Ordering::Acquire) == VISIBLE {
            return true;
        }
        mode == FaultMode::Missing
            && self.holds_data(page)
            && matches!(
                state.compare_exchange(UNKNOWN, VISIBLE, Ordering::AcqRel, Ordering::Acquire),
                Ok(_) | Err(VISIBLE)
            )
    }

    fn holds_data(&self, page: u64) -> bool {
        let range = page * PAGE_SIZE..(page + 1) * PAGE_SIZE;
        // An answer of the file that is an error means no hole was seen.
        self.memory.data_extents(range).next().is_some()
    }

    /// Fills the pages of `run` that hold nothing by `write`, which gets runs of them.
    fn install(&self, run: PageRun, write: impl Fn(PageRun)) -> io::Result<Installed> {
        let mut installed = Installed::Fresh;
        let mut from = run.first;
        while from < run.end() {
            let claimed = self.claim(PageRun::new(from, run.end() - from));
            if claimed == 0 {
                installed = Installed::SomePresent;
                from += 1;
                continue;
            }
            if !self.fill_claimed(PageRun::new(from, claimed), &write)? {
                installed = Installed::SomePresent;
            }
            from += claimed;
        }
        self.wake_waiters(run, false);
        Ok(installed)
    }

    /// Claims pages from the start of `run` on that are not visible; answers how many. A page that somebody
    /// else is filling is waited for, so that it is there when this returns.
    fn claim(&self, run: PageRun) -> u64 {
        for page in run.pages() {
            let state = &self.states[page as usize];
            loop {
                match state.compare_exchange(UNKNOWN, FILLING, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => break,
                    // What we have claimed ourselves must not wait for others: they may wait for us.
                    Err(FILLING) if page == run.first => std::thread::yield_now(),
                    Err(_) => return page - run.first,
                }
            }
        }
        run.count
    }

    /// Fills the holes among the claimed pages of `run`; the others were there before and are let go as they
    /// were. Answers whether all were holes.
    fn fill_claimed(&self, run: PageRun, write: &impl Fn(PageRun)) -> io::Result<bool> {
        let mut at = run.first;
        let mut all_holes = true;
        let settle = |pages: Range<u64>, state: u8| {
            pages.for_each(|page| self.states[page as usize].store(state, Ordering::Release));
        };
        for extent in self
            .memory
            .data_extents(run.first * PAGE_SIZE..run.end() * PAGE_SIZE)
        {
            let extent = extent
                .inspect_err(|_| settle(at..run.end(), UNKNOWN))
                .map_err(io::Error::other)?;
            let present = extent.start / PAGE_SIZE..extent.end.div_ceil(PAGE_SIZE);
            if at < present.start {
                write(PageRun::new(at, present.start - at));
                settle(at..present.start, VISIBLE);
            }
            settle(present.clone(), UNKNOWN);
            all_holes = false;
            at = present.end;
        }
        if at < run.end() {
            write(PageRun::new(at, run.end() - at));
            settle(at..run.end(), VISIBLE);
        }
        Ok(all_holes)
    }

    fn reveal(&self, run: PageRun) {
        for page in run.pages() {
            let state = &self.states[page as usize];
            while let Err(FILLING) =
                state.compare_exchange(UNKNOWN, VISIBLE, Ordering::AcqRel, Ordering::Acquire)
            {
                std::thread::yield_now();
            }
        }
        self.wake_waiters(run, false);
    }

    /// Lets the vCPUs look again; with `retry`, those that wait for a page of `run` also report it again.
    fn wake_waiters(&self, run: PageRun, retry: bool) {
        let mut queue = self.lock();
        if retry {
            for waiter in queue
                .waiting
                .iter_mut()
                .filter(|waiter| run.contains(waiter.page))
            {
                waiter.woken = true;
            }
        }
        if !queue.waiting.is_empty() {
            self.retry.notify_all();
        }
    }

    fn wait(&self, timeout: Duration, pages: &mut Vec<u64>) {
        let queue = self.lock();
        let (mut queue, _) = self
            .fault
            .wait_timeout_while(queue, timeout, |queue| queue.reported.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        pages.extend(queue.reported.drain(..));
    }

    fn lock(&self) -> MutexGuard<'_, FaultQueue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The faults of a guest in software mode.
pub(crate) struct SoftwareFaults {
    pub(crate) paging: Arc<SoftwarePaging>,
}

impl SoftwareFaults {
    fn gate(&self) -> &FaultGate {
        &self.paging.faults
    }
}

impl PageFaults for SoftwareFaults {
    fn wait(&self, timeout: Duration, pages: &mut Vec<u64>) -> Result<()> {
        self.gate().wait(timeout, pages);
        Ok(())
    }

    fn install(&self, run: PageRun, data: &[u8]) -> Result<Installed> {
        let gate = self.gate();
        let write = |part: PageRun| {
            let start = ((part.first - run.first) * PAGE_SIZE) as usize;
            gate.memory.write_at(
                part.first * PAGE_SIZE,
                &data[start..start + part.bytes() as usize],
            );
        };
        gate.install(run, write)
            .map_err(|e| GuestError::operation("installing pages", e))
    }

    fn install_zero(&self, run: PageRun) -> Result<Installed> {
        let gate = self.gate();
        let write = |part: PageRun| {
            gate.memory
                .fill(part.first * PAGE_SIZE..part.end() * PAGE_SIZE, 0);
        };
        gate.install(run, write)
            .map_err(|e| GuestError::operation("installing zero pages", e))
    }

    fn reveal(&self, run: PageRun) -> Result<()> {
        self.gate().reveal(run);
        Ok(())
    }

    fn wake(&self, run: PageRun) -> Result<()> {
        self.gate().wake_waiters(run, true);
        Ok(())
    }

    fn release(&self) -> Result<()> {
        self.paging.disable_faults();
        Ok(())
    }
}
