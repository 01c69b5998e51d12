//! Writes of the vCPUs held up, by the kernel or by software.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{GuestError, GuestState, HeldEvent, Result, WriteHolds};
use vmferry_memory::{Held, SharedMemory, WriteGate};

use crate::guest::TrackerClaim;
use crate::kernel;
use crate::software::SoftwarePaging;
use crate::vcpu::Vcpus;

/// What holds of both kinds share: whether the guest still is, and that nobody else tracks it.
pub(crate) struct HoldLife {
    pub(crate) vcpus: Arc<Vcpus>,
    pub(crate) _claim: TrackerClaim,
}

impl HoldLife {
    fn check(&self) -> Result<()> {
        match self.vcpus.state() {
            GuestState::Gone => Err(self.vcpus.wrong_state_now("running or paused")),
            _ => Ok(()),
        }
    }
}

/// By the kernel, on the vCPUs' mapping.
pub(crate) struct KernelHolds {
    gate: WriteGate,
    mapping: Arc<SharedMemory>,
    life: HoldLife,
}

impl KernelHolds {
    pub(crate) fn begin(mapping: Arc<SharedMemory>, life: HoldLife) -> vmferry_memory::Result<Self> {
        Ok(Self {
            gate: kernel::gate(&mapping)?,
            mapping,
            life,
        })
    }
}

impl WriteHolds for KernelHolds {
    fn protect(&self, run: PageRun) -> Result<()> {
        self.gate.protect(bytes(run)).map_err(failed)
    }

    fn release(&self, run: PageRun) -> Result<()> {
        self.gate.release(bytes(run)).map_err(failed)
    }

    fn wait(&self, timeout: Duration, events: &mut Vec<HeldEvent>) -> Result<()> {
        let mut held = Vec::new();
        self.gate.wait(timeout, &mut held).map_err(failed)?;
        if held.is_empty() {
            self.life.check()?;
        }
        events.extend(held.into_iter().filter_map(|event| match event {
            Held::Write(offset) => Some(HeldEvent::Write(offset / PAGE_SIZE)),
            // Nothing takes memory from a synthetic guest.
            Held::Dropped(_) => None,
        }));
        Ok(())
    }

    fn forget_touches(&self) -> Result<()> {
        self.mapping.forget_touches(0..self.mapping.len()).map_err(failed)
    }

    fn touched(&self, pages: &mut PageBitmap) -> Result<()> {
        let mut insert = |range: Range<u64>| {
            let first = range.start / PAGE_SIZE;
            pages.insert_run(PageRun::new(first, range.end / PAGE_SIZE - first));
        };
        self.gate.scan_touched(&mut insert).map_err(failed)
    }

    fn end(&self) -> Result<()> {
        self.gate.end().map_err(failed)
    }
}

/// What stands in for the kernel where writes are held up by software.
pub(crate) struct Holds {
    on: AtomicBool,
    protected: Vec<AtomicU64>,
    touched: Vec<AtomicU64>,
    /// Held for reading from the look at a page's protection until the write is done; for writing to protect.
    writing: RwLock<()>,
    wanted: Mutex<VecDeque<u64>>,
    /// Signalled when a write was held up.
    asked: Condvar,
    /// Signalled when pages were released.
    released: Condvar,
}

impl Holds {
    pub(crate) fn new(pages: u64) -> Self {
        let bits = || (0..pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self {
            on: AtomicBool::new(false),
            protected: bits(),
            touched: bits(),
            writing: RwLock::new(()),
            wanted: Mutex::default(),
            asked: Condvar::new(),
            released: Condvar::new(),
        }
    }

    /// Records that a vCPU accesses `pages`.
    pub(crate) fn note_touch(&self, pages: Range<u64>) {
        if self.on.load(Ordering::Acquire) {
            for page in pages {
                self.touched[(page / 64) as usize].fetch_or(1 << (page % 64), Ordering::AcqRel);
            }
        }
    }

    /// Waits until all of `pages` may be written. They stay so while the answer lives; none where nothing is held up.
    pub(crate) fn enter(&self, pages: Range<u64>) -> Option<RwLockReadGuard<'_, ()>> {
        loop {
            if !self.on.load(Ordering::Acquire) {
                return None;
            }
            let entered = self.writing.read().unwrap_or_else(PoisonError::into_inner);
            let Some(page) = pages.clone().find(|&page| self.is_protected(page)) else {
                return Some(entered);
            };
            drop(entered);
            self.wait_for(page);
        }
    }

    fn is_protected(&self, page: u64) -> bool {
        self.protected[(page / 64) as usize].load(Ordering::Acquire) >> (page % 64) & 1 == 1
    }

    /// Waits until some pages are released. As with the kernel, whoever is woken tries again, and is reported again where
    /// the page has been protected anew in between.
    #[cold]
    fn wait_for(&self, page: u64) {
        let mut wanted = self.lock();
        if self.on.load(Ordering::Acquire) && self.is_protected(page) {
            wanted.push_back(page);
            self.asked.notify_one();
            drop(self.released.wait(wanted));
        }
    }

    fn set(&self, run: PageRun, protected: bool) {
        for page in run.pages() {
            let (word, bit) = (&self.protected[(page / 64) as usize], 1 << (page % 64));
            match protected {
                true => word.fetch_or(bit, Ordering::AcqRel),
                false => word.fetch_and(!bit, Ordering::AcqRel),
            };
        }
    }

    fn begin(&self) {
        self.clear();
        self.on.store(true, Ordering::Release);
    }

    fn end(&self) {
        let mut wanted = self.lock();
        self.on.store(false, Ordering::Release);
        wanted.clear();
        self.clear();
        self.released.notify_all();
    }

    fn clear(&self) {
        for word in self.protected.iter().chain(&self.touched) {
            word.store(0, Ordering::Release);
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// By software.
pub(crate) struct SoftwareHolds {
    paging: Arc<SoftwarePaging>,
    life: HoldLife,
}

impl SoftwareHolds {
    pub(crate) fn begin(paging: Arc<SoftwarePaging>, life: HoldLife) -> Self {
        paging.holds().begin();
        Self { paging, life }
    }

    fn holds(&self) -> &Holds {
        self.paging.holds()
    }
}

impl WriteHolds for SoftwareHolds {
    fn protect(&self, run: PageRun) -> Result<()> {
        let holds = self.holds();
        // Whoever has looked at a page writes it before it is protected.
        let _nobody_writes = holds.writing.write().unwrap_or_else(PoisonError::into_inner);
        holds.set(run, true);
        Ok(())
    }

    fn release(&self, run: PageRun) -> Result<()> {
        let holds = self.holds();
        let _waiters = holds.lock();
        holds.set(run, false);
        holds.released.notify_all();
        Ok(())
    }

    fn wait(&self, timeout: Duration, events: &mut Vec<HeldEvent>) -> Result<()> {
        let holds = self.holds();
        let none_yet = |wanted: &mut VecDeque<u64>| wanted.is_empty();
        let (mut wanted, _) = holds
            .asked
            .wait_timeout_while(holds.lock(), timeout, none_yet)
            .unwrap_or_else(PoisonError::into_inner);
        if wanted.is_empty() {
            drop(wanted);
            return self.life.check();
        }
        events.extend(wanted.drain(..).map(HeldEvent::Write));
        Ok(())
    }

    fn forget_touches(&self) -> Result<()> {
        let words = &self.holds().touched;
        words.iter().for_each(|word| word.store(0, Ordering::Release));
        Ok(())
    }

    fn touched(&self, pages: &mut PageBitmap) -> Result<()> {
        for (index, word) in self.holds().touched.iter().enumerate() {
            pages.insert_word(index, word.load(Ordering::Acquire));
        }
        Ok(())
    }

    fn end(&self) -> Result<()> {
        self.holds().end();
        Ok(())
    }
}

impl Drop for SoftwareHolds {
    fn drop(&mut self) {
        self.holds().end();
    }
}

fn bytes(run: PageRun) -> Range<u64> {
    run.first * PAGE_SIZE..run.end() * PAGE_SIZE
}

fn failed(error: vmferry_memory::Error) -> GuestError {
    GuestError::operation("holding up the guest's writes", error)
}
