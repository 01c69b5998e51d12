//! The pager: what is known of every page of a guest whose memory is not all here, and how a page gets into the guest. At the
//! destination of a migration pages come from the source, in a resume from the store.
//!
//! Before the switch pages are written straight into memory. From the switch on the guest may run, and a page
//! must appear whole:
//!
//! * a page that holds nothing (*absent*) appears with the kernel's atomic copy;
//! * a page that holds an old version (*stale*) is not mapped yet, so the guest's access faults: whoever brings
//!   the new version *claims* the page, overwrites the memory behind it, and reveals it;
//! * a page that will not come is *zero*: it is answered here, when the guest asks.
//!
//! The states live in a file, so that a restarted daemon finds them ([`SharedPageStates`]).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use vmferry_core::report::FaultReport;
use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{FaultMode, GuestError, GuestRam, Installed, PageFaults};
use vmferry_memory::SharedPageStates;

/// Never came.
const ABSENT: u8 = 0;
/// In place.
const PRESENT: u8 = 1;
/// In place in an old version; a new one follows.
const STALE: u8 = 2;
/// Will not come, reads as zero, is not in place yet.
const ZERO: u8 = 3;
/// Claimed when absent: the kernel's copy is under way. Doing it again is harmless.
const FILLING: u8 = 4;
/// Claimed when stale: memory is being overwritten. Doing it again is harmless, the guest does not see it yet.
const REWRITING: u8 = 5;
/// Overwritten completely and about to be revealed: from here on it may be the guest's own.
const REWRITTEN: u8 = 6;

/// Pages around a local fault that are answered with it.
const LOCAL_WINDOW: u64 = 16;

/// The longest service time that is told from longer ones, microseconds: a fault waits while the connection is lost.
const LONGEST_SERVICE_US: u64 = 600_000_000;

/// How long to wait for a fault before looking whether it is over.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Answered here, or on its way already.
    Local,
    /// Ask whoever has it: the source, or the store.
    Demand,
}

/// See the module.
pub struct Pager {
    ram: Arc<GuestRam>,
    faults: Arc<dyn PageFaults>,
    mode: FaultMode,
    states: SharedPageStates,
    /// Pages that have not come.
    outstanding: AtomicU64,
    /// Pages the guest waits for, since when.
    demanded: Mutex<HashMap<u64, Instant>>,
    service_us: Mutex<Histogram<u64>>,
    local: AtomicU64,
    network: AtomicU64,
    /// Hashes of pages as they arrived, where pages are compared.
    hashes: Option<ArrivalHashes>,
}

/// See [`Pager::hashes`].
struct ArrivalHashes(Vec<OnceLock<u128>>);

impl Pager {
    /// A pager of the guest that `faults` belongs to, every page in the state that `states` has. With `verify` it keeps a hash of
    /// each page as it came.
    pub fn new(
        ram: Arc<GuestRam>,
        faults: Arc<dyn PageFaults>,
        mode: FaultMode,
        states: SharedPageStates,
        verify: bool,
    ) -> Self {
        let pages = ram.layout().pages();
        Self {
            faults,
            mode,
            states,
            outstanding: AtomicU64::new(0),
            demanded: Mutex::default(),
            service_us: Mutex::new(
                Histogram::new_with_bounds(1, LONGEST_SERVICE_US, 3).expect("the bounds are possible"),
            ),
            local: AtomicU64::new(0),
            network: AtomicU64::new(0),
            hashes: verify.then(|| ArrivalHashes((0..pages).map(|_| OnceLock::new()).collect())),
            ram,
        }
    }

    /// Takes over the states that an earlier daemon left: a page it was about to fill is filled anew.
    pub fn recover(&self) {
        let mut outstanding = 0;
        for state in self.states.as_slice() {
            let again = match state.load(Ordering::Acquire) {
                FILLING => ABSENT,
                REWRITING => STALE,
                REWRITTEN => PRESENT,
                other => other,
            };
            state.store(again, Ordering::Release);
            outstanding += u64::from(matches!(again, ABSENT | STALE));
        }
        self.outstanding.store(outstanding, Ordering::Release);
    }

    /// Pages of `run` were written into memory before the switch.
    pub fn received(&self, run: PageRun) {
        self.set(run, PRESENT);
    }

    /// The switch: `pending` pages follow. Answers how many.
    pub fn switch(&self, pending: &PageBitmap) -> u64 {
        for page in pending.pages() {
            let received = self.states.load(page as usize, Ordering::Relaxed) == PRESENT;
            self.states.store(
                page as usize,
                if received { STALE } else { ABSENT },
                Ordering::Relaxed,
            );
        }
        for (page, state) in self.states.as_slice().iter().enumerate() {
            if state.load(Ordering::Relaxed) == ABSENT && !pending.contains(page as u64) {
                state.store(ZERO, Ordering::Relaxed);
            }
        }
        if let Some(hashes) = &self.hashes {
            for page in 0..self.ram.layout().pages() {
                match self.states.load(page as usize, Ordering::Relaxed) {
                    PRESENT => hashes.set(page, || self.ram.hash(page)),
                    ZERO => hashes.set(page, crate::destination::compare::zero_hash),
                    _ => {}
                }
            }
        }
        let outstanding = pending.count();
        self.outstanding.store(outstanding, Ordering::Release);
        outstanding
    }

    /// Serves the guest's faults until `over` is set, on the caller's thread. `ask` is told of pages that have to be asked for.
    ///
    /// # Errors
    /// When the kernel's mechanism broke: the guest can not go on.
    pub fn serve(&self, over: &AtomicBool, mut ask: impl FnMut(u64)) -> Result<(), GuestError> {
        let mut pages = Vec::new();
        while !over.load(Ordering::Acquire) {
            pages.clear();
            self.faults.wait(LOOK_UP_EVERY, &mut pages)?;
            for &page in &pages {
                if self.fault(page)? == Answer::Demand {
                    ask(page);
                }
            }
        }
        Ok(())
    }

    /// The guest waits for `page`.
    ///
    /// # Errors
    /// When the kernel refuses the answer.
    pub fn fault(&self, page: u64) -> Result<Answer, GuestError> {
        match self.states.load(page as usize, Ordering::Acquire) {
            ABSENT | STALE => {
                let new = self.demanded().insert(page, Instant::now()).is_none();
                // It may have arrived in between; then nobody looks at the entry again.
                if self.states.load(page as usize, Ordering::Acquire) == PRESENT {
                    self.demanded().remove(&page);
                    return self.local(page);
                }
                Ok(if new { Answer::Demand } else { Answer::Local })
            }
            // Whoever fills it wakes the guest.
            FILLING | REWRITING | REWRITTEN => {
                self.demanded().entry(page).or_insert_with(Instant::now);
                Ok(Answer::Local)
            }
            _ => self.local(page),
        }
    }

    /// Answers a fault on a page that is in place or zero.
    fn local(&self, page: u64) -> Result<Answer, GuestError> {
        self.local.fetch_add(1, Ordering::Relaxed);
        let state = self.states.load(page as usize, Ordering::Acquire);
        let run = self.same_state_around(page, state);
        if state == PRESENT && self.mode == FaultMode::MissingAndStale {
            // A page in place faults because it was not mapped yet. Where it is gone instead (the guest gave
            // it back), it is zero.
            if self.faults.reveal(run).is_ok() {
                return Ok(Answer::Local);
            }
        }
        // Zero, or in place: then it was just installed, or the guest gave it back and it is zero now. A page
        // that is there stays as it is.
        let run = if state == ZERO { run } else { PageRun::single(page) };
        let installed = self.faults.install_zero(run)?;
        if state == ZERO {
            self.set(run, PRESENT);
        }
        if installed == Installed::SomePresent {
            self.faults.wake(run)?;
        }
        Ok(Answer::Local)
    }

    /// Pages from `page` on in the same state, within its window.
    fn same_state_around(&self, page: u64, state: u8) -> PageRun {
        let end = (page / LOCAL_WINDOW * LOCAL_WINDOW + LOCAL_WINDOW).min(self.ram.layout().pages());
        let same =
            (page + 1..end).take_while(|&next| self.states.load(next as usize, Ordering::Acquire) == state);
        PageRun::new(page, 1 + same.count() as u64)
    }

    /// Pages arrived after the switch. Answers whether these were the last ones outstanding.
    ///
    /// # Errors
    /// When the kernel refuses to install them.
    pub fn arrived(&self, run: PageRun, data: &[u8]) -> Result<bool, GuestError> {
        let mut at = run.first;
        let mut last = false;
        while at < run.end() {
            let (state, claimed) = self.claim(PageRun::new(at, run.end() - at));
            if claimed.count == 0 {
                // It came before, by demand or over an older connection.
                at += 1;
                continue;
            }
            let from = ((claimed.first - run.first) * PAGE_SIZE) as usize;
            last |= self.fill(state, claimed, &data[from..from + claimed.bytes() as usize])?;
            at = claimed.end();
        }
        Ok(last)
    }

    /// Claims pages from the front of `run` that are all absent or all stale.
    fn claim(&self, run: PageRun) -> (u8, PageRun) {
        let state = self.states.load(run.first as usize, Ordering::Acquire);
        let claimed = match state {
            ABSENT => FILLING,
            STALE => REWRITING,
            _ => return (state, PageRun::new(run.first, 0)),
        };
        let claimed = run.pages().take_while(|&page| {
            let page = page as usize;
            self.states
                .compare_exchange(page, state, claimed, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        });
        (state, PageRun::new(run.first, claimed.count() as u64))
    }

    fn fill(&self, state: u8, run: PageRun, data: &[u8]) -> Result<bool, GuestError> {
        if let Some(hashes) = &self.hashes {
            for (page, data) in run.pages().zip(data.chunks_exact(PAGE_SIZE as usize)) {
                hashes.set(page, || crate::destination::compare::hash(data));
            }
        }
        if state == ABSENT {
            if self.faults.install(run, data)? == Installed::SomePresent {
                self.faults.wake(run)?;
            }
        } else {
            self.ram.write(run, data);
            self.set(run, REWRITTEN);
            self.faults.reveal(run)?;
        }
        self.set(run, PRESENT);
        self.served(run);
        Ok(self.outstanding.fetch_sub(run.count, Ordering::AcqRel) == run.count)
    }

    /// Takes the time of those pages of `run` that the guest waited for.
    fn served(&self, run: PageRun) {
        let mut demanded = self.demanded();
        if demanded.is_empty() {
            return;
        }
        for page in run.pages() {
            if let Some(since) = demanded.remove(&page) {
                self.network.fetch_add(1, Ordering::Relaxed);
                let took_us = since.elapsed().as_micros() as u64;
                self.service_us
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .saturating_record(took_us);
            }
        }
    }

    /// Pages that the guest waits for now: to be asked for again on a new connection.
    pub fn waiting(&self) -> Vec<u64> {
        self.demanded().keys().copied().collect()
    }

    /// How many pages have not come.
    pub fn outstanding(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// The pages that need not be sent (again).
    pub fn have(&self) -> PageBitmap {
        let mut have = PageBitmap::new(self.ram.layout().pages());
        for (page, state) in self.states.as_slice().iter().enumerate() {
            if matches!(state.load(Ordering::Acquire), PRESENT | ZERO) {
                have.insert(page as u64);
            }
        }
        have
    }

    /// Nothing is outstanding: the guest's memory is its own.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn release(&self) -> Result<(), GuestError> {
        self.faults.release()
    }

    /// The mechanism under it.
    pub fn faults(&self) -> &Arc<dyn PageFaults> {
        &self.faults
    }

    /// The hash of `page` as it came, where hashes are kept.
    pub fn arrival_hash(&self, page: u64) -> Option<u128> {
        self.hashes
            .as_ref()
            .and_then(|hashes| hashes.0[page as usize].get().copied())
    }

    /// Faults so far, and how long the guest waited for those that were asked for.
    pub fn fault_report(&self) -> FaultReport {
        self.fault_summary().into()
    }

    pub(crate) fn fault_summary(&self) -> vmferry_wire::FaultSummary {
        let service_us = self.service_us.lock().unwrap_or_else(PoisonError::into_inner);
        let network = self.network.load(Ordering::Relaxed);
        let local = self.local.load(Ordering::Relaxed);
        vmferry_wire::FaultSummary {
            count: network + local,
            network,
            local,
            p50_us: service_us.value_at_quantile(0.5) as f64,
            p99_us: service_us.value_at_quantile(0.99) as f64,
            max_us: service_us.max() as f64,
        }
    }

    fn set(&self, run: PageRun, state: u8) {
        for page in run.pages() {
            self.states.store(page as usize, state, Ordering::Release);
        }
    }

    fn demanded(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.demanded.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ArrivalHashes {
    fn set(&self, page: u64, hash: impl FnOnce() -> u128) {
        self.0[page as usize].get_or_init(hash);
    }
}
