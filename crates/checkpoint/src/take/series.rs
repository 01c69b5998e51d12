//! Checkpoints of a guest at an interval, or a single one, on a thread of their own.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmferry_core::take::{InRun, TakeOutcome, TakeProgress, TakeReport};
use vmferry_guest::{GuestState, Vm};
use vmferry_store::{Retention, Store};

use super::error::{Result, TakeError};
use super::options::TakeOptions;
use super::session::{Session, TakeControl};

/// How long what the guest touches is watched before the first checkpoint, at most an interval.
const WATCH: Duration = Duration::from_secs(1);
/// Completed checkpoints between two times that the store is tidied up.
const TIDY_EVERY: u64 = 12;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesRequest {
    /// From one checkpoint to the next; a single one where absent.
    pub every: Option<Duration>,
    /// How long what the guest touches is watched before a single checkpoint.
    pub watch: Duration,
    /// Which checkpoints of the guest are kept; all where both are absent.
    pub retention: Retention,
}

impl SeriesRequest {
    /// A single checkpoint.
    pub fn once() -> Self {
        Self {
            every: None,
            watch: WATCH,
            retention: Retention::default(),
        }
    }

    fn first_watch(&self) -> Duration {
        self.every.map_or(self.watch, |every| every.min(self.watch))
    }
}

/// How it stands.
#[derive(Clone, Debug)]
pub struct SeriesState {
    /// Those that ended.
    pub run: InRun,
    /// How far the one under way is; absent between two.
    pub progress: Option<TakeProgress>,
    /// Until the next one begins.
    pub next_in: Option<Duration>,
    /// The last one that ended.
    pub last: Option<TakeReport>,
    /// Whether it is over.
    pub ended: bool,
}

/// What is told about it.
pub trait SeriesEvents: Send + 'static {
    /// A checkpoint ended.
    fn taken(&self, report: &TakeReport);
    /// It is over, and the guest is free.
    fn ended(&self);
}

/// Checkpoints of a guest that are being taken. Dropping it ends them.
pub struct Series {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    control: TakeControl,
    inner: Mutex<Inner>,
    wake: Condvar,
}

#[derive(Default)]
struct Inner {
    run: InRun,
    is_taking: bool,
    next: Option<Instant>,
    last: Option<TakeReport>,
    ended: bool,
}

impl Series {
    /// Gets hold of the guest and begins.
    ///
    /// # Errors
    /// When the guest's writes cannot be held up: nothing was begun.
    pub fn start(
        vm: Arc<dyn Vm>,
        store: Store,
        options: TakeOptions,
        request: SeriesRequest,
        events: Box<dyn SeriesEvents>,
    ) -> Result<Self> {
        let session = Session::begin(Arc::clone(&vm), store.clone(), options.clone())?;
        let shared = Arc::new(Shared {
            control: TakeControl::default(),
            inner: Mutex::default(),
            wake: Condvar::new(),
        });
        let taker = Taker {
            shared: Arc::clone(&shared),
            vm,
            store,
            options,
            request,
            events,
        };
        let thread = thread::Builder::new()
            .name(format!("checkpoint {}", taker.vm.spec().name))
            .spawn(move || taker.run(session))
            .map_err(TakeError::Thread)?;
        Ok(Self {
            shared,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// How it stands.
    pub fn state(&self) -> SeriesState {
        let inner = self.shared.lock();
        SeriesState {
            run: inner.run,
            progress: inner.is_taking.then(|| self.shared.control.progress()),
            next_in: inner
                .next
                .map(|next| next.saturating_duration_since(Instant::now())),
            last: inner.last.clone(),
            ended: inner.ended,
        }
    }

    /// Cancels the checkpoint under way and takes no more. Does not wait for that.
    pub fn cancel(&self) {
        self.shared.control.cancel();
        // Under the lock: or the one that is about to wait would not hear it.
        let _inner = self.shared.lock();
        self.shared.wake.notify_all();
    }

    /// Cancels it, and waits until the guest is free.
    pub fn end(&self) {
        self.cancel();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("taking checkpoints panicked; its guest goes on");
        }
    }

    /// Waits until it is over, and answers how it stands then.
    pub fn wait(&self) -> SeriesState {
        let mut inner = self.shared.lock();
        while !inner.ended {
            inner = self
                .shared
                .wake
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        drop(inner);
        self.state()
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `deadline`; false when it is cancelled.
    fn wait_until(&self, deadline: Instant) -> bool {
        let mut inner = self.lock();
        loop {
            if self.control.is_cancelled() {
                return false;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            let waited = self.wake.wait_timeout(inner, left);
            inner = waited.map_or_else(|error| error.into_inner().0, |(inner, _)| inner);
        }
    }
}

/// The thread's own.
struct Taker {
    shared: Arc<Shared>,
    vm: Arc<dyn Vm>,
    store: Store,
    options: TakeOptions,
    request: SeriesRequest,
    events: Box<dyn SeriesEvents>,
}

impl Taker {
    fn run(self, mut session: Session) {
        self.watch(&mut session);
        let mut due = Instant::now() + self.request.first_watch();
        let mut session = Some(session);
        loop {
            self.shared.lock().next = Some(due);
            let goes_on = self.shared.wait_until(due);
            self.shared.lock().next = None;
            // A single one is reported even if it was cancelled before it began.
            if !goes_on && (self.request.every.is_some() || self.shared.lock().last.is_some()) {
                break;
            }
            self.take(&mut session);
            let Some(every) = self.request.every else { break };
            if self.vm.state() == GuestState::Gone {
                break;
            }
            due += every;
            // One that took longer than the interval is followed by the next at once; nothing is caught up.
            due = due.max(Instant::now());
        }
        drop(session);
        self.events.ended();
        self.shared.lock().ended = true;
        self.shared.wake.notify_all();
    }

    fn take(&self, session: &mut Option<Session>) {
        if session.as_ref().is_none_or(Session::is_broken) {
            // The old one has to be gone before there can be another.
            *session = None;
            match Session::begin(Arc::clone(&self.vm), self.store.clone(), self.options.clone()) {
                Ok(mut new) => {
                    self.watch(&mut new);
                    *session = Some(new);
                }
                Err(error) => {
                    tracing::warn!(%error, "no checkpoint of {}", self.vm.spec().name);
                    self.shared.lock().run.failed += 1;
                    return;
                }
            }
        }
        let Some(current) = session else { return };
        self.shared.lock().is_taking = true;
        let report = current.take(&self.shared.control);
        if current.is_broken() {
            // At once: the guest is let go as far as it is not yet.
            *session = None;
        }
        let completed = report.outcome == TakeOutcome::Completed;
        self.events.taken(&report);
        let mut inner = self.shared.lock();
        inner.is_taking = false;
        match report.outcome {
            TakeOutcome::Completed => inner.run.completed += 1,
            TakeOutcome::Failed => inner.run.failed += 1,
            TakeOutcome::Cancelled => {}
        }
        inner.last = Some(report);
        let count = inner.run.completed;
        drop(inner);
        if completed {
            self.retire(count);
        }
    }

    /// Not to know what a guest touches is no reason to have no checkpoint.
    fn watch(&self, session: &mut Session) {
        if let Err(error) = session.watch() {
            tracing::warn!(%error, "what {} touches is not watched", self.vm.spec().name);
        }
    }

    /// Old checkpoints go, and now and then what nobody needs any more, in the background.
    fn retire(&self, completed: u64) {
        let (retention, vm) = (self.request.retention, &self.vm.spec().name);
        if retention != Retention::default()
            && let Err(error) = self.store.prune(Some(vm), retention)
        {
            tracing::warn!(%error, "old checkpoints of {vm} are not removed");
        }
        if self.request.every.is_none() || !completed.is_multiple_of(TIDY_EVERY) {
            return;
        }
        let store = self.store.clone();
        let tidy = move || {
            if let Err(error) = store.merge().and_then(|_| store.sweep()) {
                tracing::info!(%error, "the store is tidied up another time");
            }
        };
        if let Err(error) = thread::Builder::new().name("tidy store".into()).spawn(tidy) {
            tracing::info!(%error, "the store is tidied up another time");
        }
    }
}
