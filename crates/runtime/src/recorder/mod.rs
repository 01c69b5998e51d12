//! Records a trace of a guest that runs: looks when, and at what, `vmferry_core::sampling::Recording` says.

mod content;
mod hints;
mod loads;

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmferry_core::sampling::{Budget, Recorded, Recording};
use vmferry_core::tuning::MAX_INTERVAL;
use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{DirtyTracker, GuestState, Vm};
use vmferry_memory::WriteFaultCost;
use vmferry_trace::{Cost, Header, PageSet, Plan, Sample, Trace};

use crate::link::chain;
use crate::sampler;
use content::Contents;
use loads::Loads;

/// Longest recording.
pub const MAX_RECORDING: Duration = Duration::from_secs(24 * 3600);
/// Shortest time between two scans.
pub const MIN_INTERVAL: Duration = Duration::from_millis(1);
/// A recording ends early when its samples take so many bytes of memory: what is written can be read again, its list of resident
/// pages included.
const MOST_SAMPLE_BYTES: u64 = vmferry_trace::MOST_BYTES / 4 * 3;
/// How often a guest that cannot be looked at is tried again.
const PATIENCE: Duration = Duration::from_millis(100);

/// What to record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecordPlan {
    /// For how long.
    pub length: Duration,
    /// Time from one sample to the next.
    pub interval: Duration,
    /// All pages all the time, or within a budget of the guest's time.
    pub plan: Plan,
}

/// Why nothing can be recorded.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum RecordError {
    /// Parameters that make no sense.
    #[error("{0}")]
    BadPlan(String),
    /// The guest does not run.
    #[error("guest {0} does not run: there is nothing to record")]
    NotRunning(String),
    /// It cannot be looked at.
    #[error("guest {vm} cannot be recorded: {why}")]
    CannotTrack {
        /// Its name.
        vm: String,
        /// Why.
        why: String,
    },
    /// It ended before anything was recorded.
    #[error("nothing of guest {0} was recorded: it was stopped, moved or ended before the first sample")]
    Nothing(String),
}

impl RecordPlan {
    /// Checks it.
    ///
    /// # Errors
    /// With what makes no sense and what would.
    pub fn check(&self) -> Result<(), RecordError> {
        let bad = |why: String| Err(RecordError::BadPlan(why));
        if self.interval < MIN_INTERVAL || self.interval > MAX_INTERVAL {
            return bad(format!(
                "an interval of {} us between samples is not possible; choose {} to {} ms",
                self.interval.as_micros(),
                MIN_INTERVAL.as_millis(),
                MAX_INTERVAL.as_millis()
            ));
        }
        if self.length < self.interval || self.length > MAX_RECORDING {
            return bad(format!(
                "recording for {} ms is not possible; choose at least the interval, and at most {} h",
                self.length.as_millis(),
                MAX_RECORDING.as_secs() / 3600
            ));
        }
        self.budget().map(drop)
    }

    fn budget(&self) -> Result<Option<Budget>, RecordError> {
        match self.plan {
            Plan::Full => Ok(None),
            Plan::Within { budget_percent } => Budget::percent(budget_percent)
                .map(Some)
                .map_err(|error| RecordError::BadPlan(error.to_string())),
        }
    }
}

/// How far a recording is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RecordProgress {
    /// Since it began, milliseconds.
    pub elapsed_ms: f64,
    /// How long it is to take, milliseconds.
    pub length_ms: f64,
    /// Samples taken.
    pub samples: u64,
    /// Dirty rate in the last sample, bytes a second; an estimate where a part of memory is looked at.
    pub dirty_bytes_per_s: f64,
    /// One in so many pages is looked at.
    pub one_in: u32,
    /// Estimated cost to the guest so far, percent of its time.
    pub cost_percent: f64,
    /// Why the guest cannot be looked at now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Ends a recording early, and tells how far it is.
#[derive(Default)]
pub struct RecordControl {
    inner: Mutex<Control>,
    wake: Condvar,
}

#[derive(Default)]
struct Control {
    stop: bool,
    /// Somebody waits for the guest.
    let_go: bool,
    progress: RecordProgress,
}

impl RecordControl {
    /// Ends it; what was recorded so far is kept.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.wake.notify_all();
    }

    /// The same for somebody who waits for the guest: its agent is asked nothing any more.
    pub fn let_go(&self) {
        self.lock().let_go = true;
        self.stop();
    }

    /// How far it is.
    pub fn progress(&self) -> RecordProgress {
        self.lock().progress.clone()
    }

    /// Waits for `time`; false when it is to end.
    fn wait(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut inner = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if inner.stop || left.is_zero() {
                return !inner.stop;
            }
            let waited = self.wake.wait_timeout(inner, left);
            inner = waited.map_or_else(|e| e.into_inner().0, |(inner, _)| inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks a guest for the operations it did for its clients so far.
pub type CountOperations = Box<dyn Fn() -> Option<u64> + Send>;

/// Records on this thread until the time is over or `control` ends it, and asks the guest's agent what its pages are used for. It takes the guest's one tracker meanwhile, and lets
/// go of it before it returns. The guest is never paused.
///
/// # Errors
/// When nothing could be recorded.
pub fn record(
    vm: &Arc<dyn Vm>,
    plan: &RecordPlan,
    operations: Option<CountOperations>,
    control: &RecordControl,
) -> Result<Trace, RecordError> {
    plan.check()?;
    let name = vm.spec().name.clone();
    if vm.state() != GuestState::Running {
        return Err(RecordError::NotRunning(name));
    }
    let resident = vm.ram().data_pages().map_err(|error| RecordError::CannotTrack {
        vm: name.clone(),
        why: error.to_string(),
    })?;
    let loads = Loads::begin(vm.clone(), operations);
    let mut recorder = Recorder {
        recording: Recording::new(resident.len(), plan.interval, plan.length, plan.budget()?),
        dirty: PageBitmap::new(resident.len()),
        looked_at: PageBitmap::new(resident.len()),
        contents: Contents::new(&resident),
        trace: Trace::new(header(vm, plan), PageSet::from_bitmap(&resident)),
        tracker: None,
        cpu_used: None,
        sample_bytes: 0,
        began: Instant::now(),
        vm,
        plan,
        control,
    };
    recorder.measure_cost();
    let ended = recorder.run();
    let Recorder {
        tracker,
        trace,
        contents,
        recording,
        began,
        ..
    } = recorder;
    // Dropping it disarms it.
    drop(tracker);
    let took = began.elapsed();
    let mut trace = trace;
    trace.content = contents.finish();
    trace.loads = loads.end();
    if !control.lock().let_go && !trace.samples.is_empty() && vm.state() == GuestState::Running {
        trace.hints = hints::told(&**vm);
    }
    trace.cost = Some(Cost {
        took_us: took.as_micros() as u64,
        cost_us: recording.spent().as_micros() as u64,
        scans: recording.scans(),
    });
    match (trace.samples.is_empty(), ended) {
        (false, _) => Ok(trace),
        (true, Err(why)) => Err(RecordError::CannotTrack { vm: name, why }),
        (true, Ok(())) => Err(RecordError::Nothing(name)),
    }
}

fn header(vm: &Arc<dyn Vm>, plan: &RecordPlan) -> Header {
    let since_1970 = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let spec = vm.spec();
    Header {
        vm: spec.name.clone(),
        backend: spec.backend.clone(),
        layout: vm.ram().layout().clone(),
        started_unix_ms: since_1970.as_millis() as u64,
        interval_us: plan.interval.as_micros() as u64,
        plan: plan.plan,
        page_cost_ns: 0,
        processors: 0,
        pinned_io: vm.has_pinned_io(),
        device_state_bytes: None,
    }
}

struct Recorder<'a> {
    vm: &'a Arc<dyn Vm>,
    plan: &'a RecordPlan,
    control: &'a RecordControl,
    recording: Recording,
    tracker: Option<Box<dyn DirtyTracker>>,
    trace: Trace,
    contents: Contents,
    /// What a scan finds, and what was looked at.
    dirty: PageBitmap,
    looked_at: PageBitmap,
    cpu_used: Option<Duration>,
    /// What the samples take of memory.
    sample_bytes: u64,
    began: Instant,
}

impl Recorder<'_> {
    /// Looks until it is over.
    ///
    /// # Errors
    /// Why the guest could not be looked at in the end.
    fn run(&mut self) -> Result<(), String> {
        let mut problem = None;
        loop {
            let now = self.began.elapsed();
            if now >= self.plan.length || self.sample_bytes >= MOST_SAMPLE_BYTES {
                return problem.map_or(Ok(()), Err);
            }
            let at = self.recording.next_look().min(self.plan.length);
            if !self.control.wait(at.saturating_sub(now)) {
                return problem.map_or(Ok(()), Err);
            }
            let looked = match self.vm.state() {
                GuestState::Running => self.look(),
                GuestState::Gone => return Err("it ended".into()),
                GuestState::Paused | GuestState::Incoming => Err("it stands still".into()),
            };
            problem = looked.err();
            if problem.is_some() {
                self.tracker = None;
                self.recording.interrupted(self.began.elapsed());
                self.tell(0.0, problem.clone());
                if !self.control.wait(PATIENCE) {
                    return problem.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn look(&mut self) -> Result<(), String> {
        match (self.recording.is_in_burst(), &mut self.tracker) {
            (true, Some(_)) => self.scan(),
            _ => self.arm(),
        }
    }

    fn arm(&mut self) -> Result<(), String> {
        self.tracker = None;
        let coverage = self.recording.coverage();
        let runs: Vec<PageRun> = coverage.runs(self.dirty.len()).collect();
        self.looked_at.clear();
        runs.iter().for_each(|run| self.looked_at.insert_run(*run));
        let began = Instant::now();
        let mut tracker = self.vm.dirty_tracker().map_err(|e| chain(&e))?;
        match coverage.is_all() {
            true => tracker.arm_running().map_err(|e| chain(&e))?,
            false => tracker.arm_running_only(&runs).map_err(|e| chain(&e))?,
        }
        self.tracker = Some(tracker);
        self.cpu_used = self.guest_cpu();
        self.recording.armed(self.began.elapsed(), began.elapsed());
        Ok(())
    }

    fn scan(&mut self) -> Result<(), String> {
        let tracker = self.tracker.as_mut().ok_or("tracking is not armed")?;
        self.dirty.clear();
        let began = Instant::now();
        tracker.scan(&mut self.dirty).map_err(|e| chain(&e))?;
        let (took, now) = (began.elapsed(), self.began.elapsed());
        // A tracker that cannot look at a part finds more.
        self.dirty.intersect_with(&self.looked_at);
        let used = self.guest_cpu();
        let cpu = used
            .zip(self.cpu_used)
            .map(|(used, before)| used.saturating_sub(before));
        self.cpu_used = used;
        if let Some(recorded) = self.recording.scanned(now, took, self.dirty.count()) {
            self.keep(&recorded, cpu);
        }
        if !self.recording.is_in_burst() {
            // In a pause the guest pays nothing.
            self.tracker = None;
        }
        Ok(())
    }

    fn keep(&mut self, recorded: &Recorded, cpu: Option<Duration>) {
        let sample = Sample {
            start_us: recorded.start.as_micros() as u64,
            end_us: recorded.end.as_micros() as u64,
            burst: recorded.burst,
            coverage: recorded.coverage,
            dirty: PageSet::from_bitmap(&self.dirty),
            cpu_us: cpu.map(|cpu| cpu.as_micros() as u64),
        };
        self.contents.written(self.vm.ram(), &self.dirty);
        let pages_per_s = sample.dirty_pages() as f64 / sample.length().as_secs_f64().max(1e-6);
        if sample.end_us > sample.start_us {
            self.sample_bytes += sample.memory_bytes();
            self.trace.samples.push(sample);
        }
        self.contents.look(self.vm.ram());
        self.tell(pages_per_s * PAGE_SIZE as f64, None);
    }

    fn tell(&self, dirty_bytes_per_s: f64, problem: Option<String>) {
        let elapsed = self.began.elapsed();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        self.control.lock().progress = RecordProgress {
            elapsed_ms: ms(elapsed),
            length_ms: ms(self.plan.length),
            samples: self.trace.samples.len() as u64,
            dirty_bytes_per_s,
            one_in: self.recording.coverage().stride(),
            cost_percent: 100.0 * ms(self.recording.spent()) / ms(elapsed).max(1e-3),
            problem,
        };
    }

    fn guest_cpu(&self) -> Option<Duration> {
        self.vm.pid().and_then(sampler::cpu_used)
    }

    /// What the guest will pay for a page. Where that cannot be measured the estimate has to do.
    fn measure_cost(&mut self) {
        if let Ok(write) = WriteFaultCost::new().and_then(|mut cost| cost.measure()) {
            self.recording.write_costs(write);
        }
        self.trace.header.page_cost_ns = self.recording.page_cost().as_nanos() as u64;
    }
}
