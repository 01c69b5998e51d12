//! Pages from the store into the guest: what all readers of a resume share, and what each of them does.
//!
//! Before the guest's faults are served pages are written straight into its memory. From then on they go through the pager, so
//! that each appears whole. A chunk that the store does not give, or gives damaged, brings no byte into the guest: the reader
//! that asked keeps asking, and once patience is at its end says so if the guest waits for a page of it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use vmferry_core::resume::{Cause, Event, Fetch, Next, Placed, Work};
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{GuestError, GuestRam};
use vmferry_runtime::pager::Pager;
use vmferry_runtime::usage::Usage;
use vmferry_store::{Reader, StoreError};

use super::Input;
use super::chain;

/// Pause before a read is repeated, the first time; twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest such pause: a store that is back is noticed that soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a reader is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Duty {
    /// Pages that the guest waits for, nothing else: so one is always free for them.
    Demands,
    /// Whatever comes next.
    Anything,
}

/// Why pages are not in place.
enum Trouble {
    /// The store.
    Store(StoreError),
    /// This host: no room, or the kernel refused.
    Here(String),
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<GuestError> for Trouble {
    fn from(error: GuestError) -> Self {
        Self::Here(chain(&error))
    }
}

/// See the module.
pub(super) struct Filling {
    pub(super) reader: Arc<Reader>,
    pub(super) ram: Arc<GuestRam>,
    /// In resumes whose guest may run before all pages are there.
    pub(super) pager: Option<Arc<Pager>>,
    /// Pages go through the pager.
    paged: AtomicBool,
    work: OnceLock<Mutex<Work>>,
    changed: Condvar,
    pub(super) over: AtomicBool,
    patience: Duration,
    since: Instant,
    pub(super) usage: Usage,
    /// Repeated reads.
    pub(super) retries: AtomicU64,
    /// Reads that patience is at its end with and that the guest waits for.
    lacking: Mutex<usize>,
    /// An earlier daemon paused the guest for a lack that nobody here has said anything about.
    lack_inherited: AtomicBool,
    /// What the store does not give and the guest has not asked for.
    problem: Mutex<Option<String>>,
    inputs: Sender<Input>,
}

impl Filling {
    pub(super) fn new(
        reader: Arc<Reader>,
        ram: Arc<GuestRam>,
        pager: Option<Arc<Pager>>,
        patience: Duration,
        since: Instant,
        inputs: Sender<Input>,
    ) -> Self {
        Self {
            reader,
            ram,
            pager,
            paged: AtomicBool::new(false),
            work: OnceLock::new(),
            changed: Condvar::new(),
            over: AtomicBool::new(false),
            patience,
            since,
            usage: Usage::start(),
            retries: AtomicU64::new(0),
            lacking: Mutex::default(),
            lack_inherited: AtomicBool::new(false),
            problem: Mutex::default(),
            inputs,
        }
    }

    /// What there is to do is known: readers begin.
    pub(super) fn begin(&self, work: Work) {
        let known = self.work.set(Mutex::new(work)).is_ok();
        debug_assert!(known, "a resume begins once");
    }

    /// An earlier daemon paused the guest for want of a page: the first page that it gets ends that, if no other is lacking.
    pub(super) fn inherit_lack(&self) {
        self.lack_inherited.store(true, Ordering::Release);
    }

    /// From now on pages appear by the fault mechanism. Nobody reads meanwhile.
    pub(super) fn go_through_pager(&self) {
        self.paged.store(true, Ordering::Release);
    }

    pub(super) fn work(&self) -> Option<MutexGuard<'_, Work>> {
        Some(self.work.get()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes what there is to do, and has readers look.
    pub(super) fn change(&self, change: impl FnOnce(&mut Work)) {
        if let Some(mut work) = self.work() {
            change(&mut work);
        }
        self.changed.notify_all();
    }

    /// No reader begins anything any more.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
        // A reader that has just looked is waiting once this can be locked.
        drop(self.work());
        self.changed.notify_all();
    }

    /// Why a page that nobody waits for yet cannot be had.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The thread of a reader: until the resume is over.
    pub(super) fn read(&self, duty: Duty) {
        let mut usage = self.usage.thread();
        let mut buffer = Vec::new();
        while let Some(fetch) = self.next(duty) {
            match self.insist(&fetch, &mut buffer) {
                Ok(true) => self.note_placed(&fetch),
                // It is over.
                Ok(false) => self.change(|work| work.failed(&fetch)),
                Err(why) => {
                    self.tell(Event::Failed(format!(
                        "pages cannot be put into the guest: {why}"
                    )));
                    self.change(|work| work.failed(&fetch));
                    return;
                }
            }
            usage.flush();
        }
    }

    fn next(&self, duty: Duty) -> Option<Fetch> {
        let mut work = self.work()?;
        while !self.over.load(Ordering::Acquire) {
            let now = self.since.elapsed();
            let next = match duty {
                Duty::Demands => work.next_demand().map_or(Next::Wait(None), Next::Fetch),
                Duty::Anything => work.next(now),
            };
            let wait = match next {
                Next::Fetch(fetch) => return Some(fetch),
                Next::Wait(until) => until.map(|until| until.saturating_sub(now)),
                Next::Done => None,
            };
            work = match wait {
                None => self.changed.wait(work).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => {
                    let waited = self.changed.wait_timeout(work, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        None
    }

    fn note_placed(&self, fetch: &Fetch) {
        if fetch.cause == Cause::Demand && self.lack_inherited.swap(false, Ordering::AcqRel) {
            let lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
            if *lacking == 0 {
                self.tell(Event::Back);
            }
        }
        let Some(placed) = self.work().map(|mut work| work.placed(fetch)) else {
            return;
        };
        match placed {
            Placed::More => {}
            Placed::Early => self.tell(Event::EarlyPlaced),
            Placed::All => self.tell(Event::AllPlaced),
        }
    }

    /// Carries a read out, however often the store fails. Answers whether it was carried out before the resume was over.
    fn insist(&self, fetch: &Fetch, buffer: &mut Vec<u8>) -> Result<bool, String> {
        let (begun, mut pause) = (Instant::now(), FIRST_PAUSE);
        let mut said = Said::Nothing;
        loop {
            let error = match self.carry_out(fetch, buffer) {
                Ok(()) => break,
                Err(Trouble::Here(why)) => return Err(why),
                Err(Trouble::Store(error)) => error,
            };
            // What is damaged is looked at a second time and then believed.
            let hopeless = error.is_damage() && pause > FIRST_PAUSE;
            if hopeless || begun.elapsed() >= self.patience {
                self.complain(fetch, &chain(&error), &mut said);
            }
            tracing::debug!(
                group = fetch.group,
                error = chain(&error),
                "a read of the store is repeated"
            );
            if !self.pause(pause) {
                self.take_back(said);
                return Ok(false);
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.take_back(said);
        Ok(true)
    }

    /// Says what is lacking: loudly where the guest cannot do without it.
    fn complain(&self, fetch: &Fetch, why: &str, said: &mut Said) {
        let needed = match fetch.cause {
            Cause::Early | Cause::Demand => true,
            Cause::Background => self.work().is_some_and(|work| work.waits_for(fetch)),
        };
        match said {
            Said::Lacking => {}
            _ if needed => {
                *said = Said::Lacking;
                // The news go out in the order in which they were true.
                let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
                *lacking += 1;
                self.tell(Event::Lacking(why.to_owned()));
            }
            Said::Problem => {}
            Said::Nothing => {
                *said = Said::Problem;
                tracing::warn!("a page that the guest has not asked for cannot be had: {why}");
                *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = Some(why.to_owned());
            }
        }
    }

    /// What was said does not hold any more.
    fn take_back(&self, said: Said) {
        match said {
            Said::Nothing => {}
            Said::Problem => *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = None,
            Said::Lacking => {
                let mut lacking = self.lacking.lock().unwrap_or_else(PoisonError::into_inner);
                *lacking -= 1;
                if *lacking == 0 {
                    self.tell(Event::Back);
                }
            }
        }
    }

    /// Waits; answers whether the resume goes on.
    fn pause(&self, pause: Duration) -> bool {
        let Some(work) = self.work() else { return false };
        let over = |_: &mut Work| !self.over.load(Ordering::Acquire);
        let waited = self.changed.wait_timeout_while(work, pause, over);
        drop(waited);
        !self.over.load(Ordering::Acquire)
    }

    fn carry_out(&self, fetch: &Fetch, buffer: &mut Vec<u8>) -> Result<(), Trouble> {
        for run in runs(fetch) {
            buffer.resize((run.count * PAGE_SIZE) as usize, 0);
            self.reader.read(run, buffer)?;
            self.place(run, buffer)?;
        }
        Ok(())
    }

    fn place(&self, run: PageRun, data: &[u8]) -> Result<(), Trouble> {
        match &self.pager {
            Some(pager) if self.paged.load(Ordering::Acquire) => {
                pager.arrived(run, data)?;
            }
            pager => {
                let written = self.ram.write_fresh(run, data);
                written.map_err(|error| Trouble::Here(chain(&error)))?;
                if let Some(pager) = pager {
                    pager.received(run);
                }
            }
        }
        Ok(())
    }

    fn tell(&self, event: Event) {
        // Nobody listens once it is over.
        let _ = self.inputs.send(Input::Event(event));
    }
}

/// What a reader has said about a read that fails.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Said {
    Nothing,
    /// That it fails, and nobody waits.
    Problem,
    /// That the guest lacks it.
    Lacking,
}

/// The pages of a read in their order, consecutive ones together; but a page that the guest waits for comes alone.
fn runs(fetch: &Fetch) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    let alone = usize::from(fetch.cause == Cause::Demand);
    for (index, &page) in fetch.pages.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if index > alone && run.end() == page => run.count += 1,
            _ => runs.push(PageRun::single(page)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_that_is_waited_for_comes_first_and_alone() {
        let fetch = |cause| Fetch {
            group: 0,
            pages: vec![7, 8, 9, 3, 4],
            cause,
        };
        let run = PageRun::new;
        assert_eq!(runs(&fetch(Cause::Demand)), [run(7, 1), run(8, 2), run(3, 2)]);
        assert_eq!(runs(&fetch(Cause::Background)), [run(7, 3), run(3, 2)]);
    }
}
