//! Learns about a guest while it runs normally: the thread that looks when `vmferry_core::sampling` says so.

mod cpu;
mod kept;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use vmferry_core::sampling::{Background, Budget, Learned, News, Ready, SamplingReport};
use vmferry_core::{PageBitmap, Tuning};
use vmferry_guest::{DirtyTracker, GuestState, Vm};
use vmferry_memory::WriteFaultCost;

use crate::link::chain;

pub use kept::{keep, load};

pub(crate) use cpu::used as cpu_used;

/// Learns about one guest on a thread of its own, until it is ended or dropped. It never pauses the guest, and what
/// goes wrong is no more than a line in the log: it tries again later.
///
/// While it is there it has the guest's one tracker: end it before anything else tracks the guest, moves it or ends it.
pub struct Sampler {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    inner: Mutex<Inner>,
    /// Notified when it is to end.
    wake: Condvar,
}

struct Inner {
    background: Background,
    /// Why nothing is learned.
    problem: Option<String>,
    stop: bool,
}

/// The time of all samplers, also of those of earlier daemons: since this host was started.
fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

impl Sampler {
    /// Begins, where possible with what is `known` of the guest; `tuning` was checked for it.
    pub fn start(vm: Arc<dyn Vm>, tuning: &Tuning, budget: Budget, known: Option<Learned>) -> Self {
        let pages = vm.ram().layout().pages();
        let shared = Arc::new(Shared {
            inner: Mutex::new(Inner {
                background: Background::new(pages, tuning, budget, known, now()),
                problem: None,
                stop: false,
            }),
            wake: Condvar::new(),
        });
        let looker = Looker {
            dirty: PageBitmap::new(pages),
            shared: Arc::clone(&shared),
            tracker: None,
            cost: None,
            vm,
        };
        let thread = thread::Builder::new()
            .name(format!("learn {}", looker.vm.spec().name))
            .spawn(move || looker.run());
        // Without a thread nothing is learned; the guest does not care.
        if let Err(error) = &thread {
            shared.lock().problem = Some(format!("no thread for it: {error}"));
        }
        Self {
            shared,
            thread: thread.ok(),
        }
    }

    /// How it stands.
    pub fn report(&self) -> SamplingReport {
        let inner = self.shared.lock();
        SamplingReport {
            problem: inner.problem.clone(),
            ..inner.background.report(now())
        }
    }

    /// Lets go of the guest, at once but for a scan under way, and answers what was learned.
    pub fn end(mut self) -> Learned {
        self.let_go();
        self.shared.lock().background.learned().clone()
    }

    fn let_go(&mut self) {
        self.shared.lock().stop = true;
        self.shared.wake.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a sampler panicked; its guest goes on");
        }
    }
}

/// What a migration that begins now can have of it.
pub fn ready(learned: &Learned) -> Option<Ready> {
    learned.ready(now())
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the time of the next scan; false when it is to end instead.
    fn wait(&self) -> bool {
        let mut inner = self.lock();
        loop {
            let left = inner.background.next_scan().saturating_sub(now());
            if inner.stop || left.is_zero() {
                return !inner.stop;
            }
            let waited = self.wake.wait_timeout(inner, left);
            inner = waited.map_or_else(|e| e.into_inner().0, |(inner, _)| inner);
        }
    }
}

/// The thread's own.
struct Looker {
    shared: Arc<Shared>,
    tracker: Option<Box<dyn DirtyTracker>>,
    cost: Option<WriteFaultCost>,
    /// What a scan finds; kept only to spare the allocation.
    dirty: PageBitmap,
    vm: Arc<dyn Vm>,
}

/// How a look at the guest ended.
enum Look {
    /// With a scan that took this long.
    Scanned(Duration),
    /// The guest stands still: there is nothing to learn.
    StandsStill,
    /// It ended.
    Gone,
}

impl Looker {
    fn run(mut self) {
        let mut told = false;
        while self.shared.wait() {
            let used = self.vm.pid().and_then(cpu::used);
            if !self.shared.lock().background.may_look(now(), used) {
                continue;
            }
            let look = self.look();
            let name = &self.vm.spec().name;
            let mut inner = self.shared.lock();
            inner.problem = None;
            match look {
                Ok(Look::Scanned(took)) => match inner.background.scanned(now(), took, &self.dirty) {
                    Some(News::Fits) => tracing::debug!("what was learned of {name} fits it"),
                    Some(News::Rebuilt) => tracing::debug!("{name} does something else: learning anew"),
                    None => {}
                },
                Ok(Look::StandsStill) => inner.background.interrupted(now()),
                Ok(Look::Gone) => {
                    inner.problem = Some("the guest ended".into());
                    return;
                }
                Err(why) => {
                    self.tracker = None;
                    inner.background.interrupted(now());
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("nothing is learned of {name} at present, which goes on: {why}");
                    }
                    inner.problem = Some(why);
                }
            }
        }
        // Dropping the tracker disarms it.
    }

    fn look(&mut self) -> Result<Look, String> {
        if !self.shared.lock().background.is_in_burst() {
            match self.vm.state() {
                GuestState::Running => {}
                GuestState::Gone => return Ok(Look::Gone),
                GuestState::Paused | GuestState::Incoming => return Ok(Look::StandsStill),
            }
            self.measure_cost();
        }
        let tracker = match &mut self.tracker {
            Some(tracker) => tracker,
            none => {
                let began = Instant::now();
                let mut tracker = self.vm.dirty_tracker().map_err(|e| chain(&e))?;
                tracker.arm_running().map_err(|e| chain(&e))?;
                self.shared.lock().background.armed(began.elapsed());
                none.insert(tracker)
            }
        };
        self.dirty.clear();
        let began = Instant::now();
        tracker.scan(&mut self.dirty).map_err(|e| chain(&e))?;
        Ok(Look::Scanned(began.elapsed()))
    }

    /// What the guest will pay for a page in the burst that begins. Where that cannot be measured (a guest may be tracked
    /// by software), the estimate of the last time serves.
    fn measure_cost(&mut self) {
        if self.cost.is_none() {
            self.cost = WriteFaultCost::new().ok();
        }
        if let Some(Ok(write)) = self.cost.as_mut().map(WriteFaultCost::measure) {
            self.shared.lock().background.write_costs(write);
        }
    }
}
