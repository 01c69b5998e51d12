//! The vCPUs: threads that run the loads, and the state they leave when they stand still.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;
use vmferry_guest::{GuestError, GuestState, Result};

use crate::config::LoadConfig;
use crate::loads::{COMPUTE_PERIOD, Checks, Context, Load};
use crate::memory::GuestMemory;
use crate::state::{LoadState, VcpuState};
use crate::stats::WorkerCounters;

/// Operations of a load before the next one has its turn.
const TURN: usize = 16;
/// A vCPU with nothing due sleeps at least this long, and then does what has come together.
const MIN_SLEEP: Duration = Duration::from_millis(1);
/// A paced load that was held up catches up at most this much.
const MAX_LAG: Duration = Duration::from_millis(100);

/// Bits of a [`Halt`].
const GO: u8 = 0;
const PAUSE: u8 = 1;
const ABANDON: u8 = 2;

/// Tells running vCPUs to stand still after the operation they are at.
pub(crate) struct Halt(AtomicU8);

impl Halt {
    fn requested(&self) -> u8 {
        self.0.load(Ordering::Acquire)
    }
}

/// A vCPU that stands still.
pub(crate) struct Vcpu {
    ram: Arc<GuestMemory>,
    loads: Vec<PacedLoad>,
    rng: Xoshiro256PlusPlus,
    /// When it last had done all it wanted to do.
    content_until: Option<SystemTime>,
    counters: Arc<WorkerCounters>,
}

/// A load and the pace it goes at.
struct PacedLoad {
    load: Box<dyn Load>,
    pace: Pace,
}

#[derive(Clone, Copy)]
enum Pace {
    /// It never operates.
    Idle,
    Unlimited,
    /// One operation in this time.
    Every(Duration),
}

impl Vcpu {
    pub(crate) fn new(
        ram: Arc<GuestMemory>,
        loads: Vec<Box<dyn Load>>,
        configs: &[LoadConfig],
        workers: u32,
        seed: u64,
        counters: Arc<WorkerCounters>,
    ) -> Self {
        let pace = |config: &LoadConfig| match (config, config.operations_per_s()) {
            (LoadConfig::Idle | LoadConfig::Cpu { percent: 0 }, _) => Pace::Idle,
            (LoadConfig::Cpu { percent: ..100 }, _) => Pace::Every(COMPUTE_PERIOD),
            (_, None) => Pace::Unlimited,
            (_, Some(rate)) => Pace::Every(Duration::from_nanos(u64::from(workers) * 1_000_000_000 / rate)),
        };
        let loads = loads
            .into_iter()
            .zip(configs)
            .map(|(load, config)| PacedLoad {
                load,
                pace: pace(config),
            })
            .collect();
        Self {
            ram,
            loads,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            content_until: None,
            counters,
        }
    }

    /// Its loads.
    pub(crate) fn loads(&self) -> impl Iterator<Item = &dyn Load> {
        self.loads.iter().map(|paced| &*paced.load)
    }

    /// What is needed to go on elsewhere.
    pub(crate) fn save(&self) -> VcpuState {
        let load_state = |(index, paced): (usize, &PacedLoad)| {
            let counters = self.counters.load(index);
            LoadState {
                cursor: paced.load.cursor(),
                operations: counters.operations.load(Ordering::Relaxed),
                checks: counters.checks.load(Ordering::Relaxed),
                violations: counters.violations.load(Ordering::Relaxed),
            }
        };
        VcpuState {
            rng: self.rng.clone(),
            loads: self.loads.iter().enumerate().map(load_state).collect(),
            content_until_unix_ns: self.content_until.map(unix_ns),
            longest_gap_ns: self.counters.longest_gap_ns(),
        }
    }

    /// Goes on from `state`, which has as many loads; answers the index of a load whose cursor it cannot take.
    pub(crate) fn restore(&mut self, state: &VcpuState) -> std::result::Result<(), usize> {
        for (index, (paced, saved)) in self.loads.iter_mut().zip(&state.loads).enumerate() {
            if !paced.load.restore(&saved.cursor) {
                return Err(index);
            }
            let counters = self.counters.load(index);
            counters.operations.store(saved.operations, Ordering::Relaxed);
            counters.checks.store(saved.checks, Ordering::Relaxed);
            counters.violations.store(saved.violations, Ordering::Relaxed);
        }
        self.rng = state.rng.clone();
        self.counters.set_longest_gap_ns(state.longest_gap_ns);
        self.content_until = state
            .content_until_unix_ns
            .map(|ns| UNIX_EPOCH + Duration::from_nanos(ns));
        Ok(())
    }

    /// How many loads it has.
    pub(crate) fn load_count(&self) -> usize {
        self.loads.len()
    }

    /// Runs until told to halt.
    fn run(mut self, halt: &Halt) -> Self {
        let mut clock = RunClock::start(self.content_until, self.loads.len());
        while halt.requested() == GO {
            let mut worked = false;
            for index in 0..self.loads.len() {
                worked |= self.take_turn(index, &mut clock, halt);
            }
            if !worked && halt.requested() == GO {
                clock.sleep_until_due(self.loads.iter().map(|paced| paced.pace));
            }
        }
        if self.loads.iter().any(|paced| !matches!(paced.pace, Pace::Idle)) {
            self.content_until = Some(clock.content_until_by_system_clock());
        }
        self
    }

    /// A few operations of load `index`, as far as they are due; answers whether there were any.
    fn take_turn(&mut self, index: usize, clock: &mut RunClock, halt: &Halt) -> bool {
        let PacedLoad { load, pace } = &mut self.loads[index];
        let mut checks = Checks::default();
        for turn in 0..TURN {
            if !clock.is_due(index, *pace) {
                return turn > 0;
            }
            load.operate(&mut Context {
                ram: &self.ram,
                rng: &mut self.rng,
                checks: &mut checks,
            });
            match halt.requested() {
                // RAM may have been taken away meanwhile: what was found means nothing.
                ABANDON => return true,
                halt => {
                    self.counters.record_operation(index, &mut checks);
                    self.counters.record_gap(clock.operation_ended(index, *pace));
                    if halt != GO {
                        return true;
                    }
                }
            }
        }
        true
    }
}

/// When a running vCPU has to do what.
struct RunClock {
    now: Instant,
    /// When all was done that was due.
    content_until: Instant,
    /// By load.
    due: Vec<Instant>,
}

impl RunClock {
    fn start(content_until: Option<SystemTime>, loads: usize) -> Self {
        let now = Instant::now();
        let elapsed = content_until.and_then(|until| SystemTime::now().duration_since(until).ok());
        let content_until = elapsed
            .and_then(|elapsed| now.checked_sub(elapsed))
            .unwrap_or(now);
        Self {
            now,
            content_until,
            due: vec![now; loads],
        }
    }

    fn is_due(&self, index: usize, pace: Pace) -> bool {
        match pace {
            Pace::Idle => false,
            Pace::Unlimited => true,
            Pace::Every(_) => self.due[index] <= self.now,
        }
    }

    /// Reads the clock; answers for how long nothing had been done that was wanted, in nanoseconds.
    fn operation_ended(&mut self, index: usize, pace: Pace) -> u64 {
        self.now = Instant::now();
        if let Pace::Every(period) = pace {
            let due = self.due[index] + period;
            self.due[index] = due.max(self.now.checked_sub(MAX_LAG).unwrap_or(due));
        }
        let gap = self.now.saturating_duration_since(self.content_until);
        self.content_until = self.now;
        gap.as_nanos() as u64
    }

    /// Sleeps until the first load is due, or for ever; a halt wakes it.
    fn sleep_until_due(&mut self, paces: impl Iterator<Item = Pace>) {
        let due = paces
            .zip(&self.due)
            .filter(|(pace, _)| matches!(pace, Pace::Every(_)))
            .map(|(_, &due)| due);
        match due.min() {
            None => thread::park(),
            Some(due) => {
                let due = due.max(self.now + MIN_SLEEP);
                thread::park_timeout(due - self.now);
                self.content_until = self.content_until.max(due.min(Instant::now()));
            }
        }
        self.now = Instant::now();
    }

    fn content_until_by_system_clock(&self) -> SystemTime {
        SystemTime::now() - Instant::now().saturating_duration_since(self.content_until)
    }
}

fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// All vCPUs of a guest, running or not.
pub(crate) struct Vcpus {
    name: String,
    life: Mutex<Life>,
    changed: Condvar,
}

/// What the vCPUs are doing, and where they are meanwhile.
enum Life {
    /// They have no state yet.
    Incoming(Vec<Vcpu>),
    /// Somebody has borrowed them, to load their state.
    Loading,
    Paused(Vec<Vcpu>),
    Running {
        halt: Arc<Halt>,
        threads: Vec<JoinHandle<Vcpu>>,
    },
    /// They were told to pause.
    Pausing {
        halt: Arc<Halt>,
    },
    Gone {
        why: String,
    },
}

impl Life {
    fn describe(&self) -> &'static str {
        match self {
            Self::Incoming(_) => "waiting for its device state",
            Self::Loading => "loading its device state",
            Self::Paused(_) => "paused",
            Self::Running { .. } | Self::Pausing { .. } => "running",
            Self::Gone { .. } => "gone",
        }
    }
}

impl Vcpus {
    /// vCPUs that stand still with the state of a guest just made.
    pub(crate) fn paused(name: &str, vcpus: Vec<Vcpu>) -> Self {
        Self {
            name: name.into(),
            life: Mutex::new(Life::Paused(vcpus)),
            changed: Condvar::new(),
        }
    }

    /// vCPUs that wait for their state.
    pub(crate) fn incoming(name: &str, vcpus: Vec<Vcpu>) -> Self {
        Self {
            name: name.into(),
            life: Mutex::new(Life::Incoming(vcpus)),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn state(&self) -> GuestState {
        match *self.lock() {
            Life::Incoming(_) | Life::Loading => GuestState::Incoming,
            Life::Paused(_) => GuestState::Paused,
            Life::Running { .. } | Life::Pausing { .. } => GuestState::Running,
            Life::Gone { .. } => GuestState::Gone,
        }
    }

    /// Lets them run.
    pub(crate) fn resume(&self) -> Result<()> {
        let mut life = self.settled();
        match std::mem::replace(&mut *life, Life::Loading) {
            Life::Paused(vcpus) => match start(&self.name, vcpus) {
                Ok(running) => {
                    *life = running;
                    Ok(())
                }
                Err(e) => {
                    *life = Life::Gone {
                        why: "its vCPU threads could not be started".into(),
                    };
                    Err(e)
                }
            },
            running @ Life::Running { .. } => {
                *life = running;
                Ok(())
            }
            other => {
                *life = other;
                Err(self.wrong_state(&life, "paused or running"))
            }
        }
    }

    /// Tells them to stand still and waits until all of them do. One that waits for a missing page stands still
    /// once that has been served.
    pub(crate) fn pause(&self) -> Result<()> {
        let mut life = self.settled();
        let (halt, threads) = match std::mem::replace(&mut *life, Life::Loading) {
            Life::Running { halt, threads } => (halt, threads),
            paused @ Life::Paused(_) => {
                *life = paused;
                return Ok(());
            }
            other => {
                *life = other;
                return Err(self.wrong_state(&life, "running or paused"));
            }
        };
        // Under the lock: whoever destroys the guest from here on overrules it.
        halt.0.store(PAUSE, Ordering::Release);
        *life = Life::Pausing { halt };
        drop(life);
        threads.iter().for_each(|thread| thread.thread().unpark());
        let vcpus: thread::Result<Vec<Vcpu>> = threads.into_iter().map(JoinHandle::join).collect();
        let mut life = self.lock();
        // Whoever destroyed the guest meanwhile has the last word.
        if let Life::Pausing { .. } = *life {
            *life = match vcpus {
                Ok(vcpus) => Life::Paused(vcpus),
                Err(_) => Life::Gone {
                    why: "a vCPU crashed: see the log".into(),
                },
            };
        }
        self.changed.notify_all();
        match &*life {
            Life::Gone { .. } => Err(self.wrong_state(&life, "running or paused")),
            _ => Ok(()),
        }
    }

    /// Lets `inspect` look at the vCPUs while they stand still with their state.
    pub(crate) fn with_paused<T>(&self, inspect: impl FnOnce(&[Vcpu]) -> T) -> Result<T> {
        let life = self.settled();
        match &*life {
            Life::Paused(vcpus) => Ok(inspect(vcpus)),
            _ => Err(self.wrong_state(&life, "paused")),
        }
    }

    /// Lets `load` give vCPUs that wait for their state one. It may take its time, and may touch RAM that is
    /// not there yet: the guest can be destroyed meanwhile.
    pub(crate) fn load(&self, load: impl FnOnce(&mut [Vcpu]) -> Result<()>) -> Result<()> {
        let mut life = self.lock();
        let mut vcpus = match std::mem::replace(&mut *life, Life::Loading) {
            Life::Incoming(vcpus) => vcpus,
            other => {
                *life = other;
                return Err(self.wrong_state(&life, "waiting for its device state"));
            }
        };
        drop(life);
        let outcome = load(&mut vcpus);
        let mut life = self.lock();
        if let Life::Gone { .. } = *life {
            return Err(self.wrong_state(&life, "waiting for its device state"));
        }
        *life = if outcome.is_ok() {
            Life::Paused(vcpus)
        } else {
            Life::Incoming(vcpus)
        };
        outcome
    }

    /// Ends them; `unblock` lets those go on that wait for a page. Answers whether they were there before.
    pub(crate) fn end(&self, unblock: impl FnOnce()) -> bool {
        let mut life = self.lock();
        if let Life::Gone { .. } = *life {
            return false;
        }
        let before = std::mem::replace(
            &mut *life,
            Life::Gone {
                why: "it was destroyed".into(),
            },
        );
        drop(life);
        let threads = match before {
            Life::Running { halt, threads } => {
                halt.0.store(ABANDON, Ordering::Release);
                threads
            }
            Life::Pausing { halt } => {
                halt.0.store(ABANDON, Ordering::Release);
                Vec::new()
            }
            _ => Vec::new(),
        };
        threads.iter().for_each(|thread| thread.thread().unpark());
        unblock();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a vCPU of guest {} had crashed", self.name);
            }
        }
        self.changed.notify_all();
        true
    }

    /// An error that says what they are doing instead.
    pub(crate) fn wrong_state_now(&self, expected: &'static str) -> GuestError {
        self.wrong_state(&self.lock(), expected)
    }

    fn wrong_state(&self, life: &Life, expected: &'static str) -> GuestError {
        let name = self.name.clone();
        match life {
            Life::Gone { why } => GuestError::Gone {
                name,
                why: why.clone(),
            },
            _ => GuestError::WrongState {
                name,
                found: life.describe().into(),
                expected,
            },
        }
    }

    /// The state once nobody is pausing them any more.
    fn settled(&self) -> MutexGuard<'_, Life> {
        self.changed
            .wait_while(self.lock(), |life| matches!(life, Life::Pausing { .. }))
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn start(name: &str, vcpus: Vec<Vcpu>) -> Result<Life> {
    let halt = Arc::new(Halt(AtomicU8::new(GO)));
    let mut threads = Vec::new();
    for (index, vcpu) in vcpus.into_iter().enumerate() {
        let vcpu_halt = halt.clone();
        let thread = thread::Builder::new()
            .name(format!("{name}-{index}"))
            .spawn(move || vcpu.run(&vcpu_halt))
            .inspect_err(|_| halt.0.store(ABANDON, Ordering::Release))
            .map_err(|e| GuestError::operation("starting a vCPU thread", e))?;
        threads.push(thread);
    }
    Ok(Life::Running { halt, threads })
}
