//! The world: one guest, a host at either side, the network between them, and virtual time.

use std::time::Duration;

use vmferry_core::forecast::{Expected, StrategyForecast};
use vmferry_core::policy::auto::Auto;
use vmferry_core::policy::{Faults, Policy};
use vmferry_core::report::Outcome;
use vmferry_core::sampling::{Background, Budget, Ready};
use vmferry_core::source::{Event, Side, Source};
use vmferry_core::{AtLimit, Limits, PageBitmap, PageRun, Strategy, Tuning};

use crate::agent::Agent;
use crate::checks::Checks;
use crate::chooser::Chooser;
use crate::destination_host::DestinationHost;
use crate::disk::Disk;
use crate::guest::{Guest, Habits, Memory, act_at_source};
use crate::network::Network;
use crate::source_host::SourceHost;

/// No run takes more steps, whatever happens.
const MOST_STEPS: u32 = 200_000;

/// What is given in a run.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub pages: u64,
    pub streams: usize,
    pub algorithm: Strategy,
    pub limits: Limits,
    pub tuning: Tuning,
    /// The host's sampler believes that the guest writes these pages all the time, which is most often wrong.
    pub believed: Option<PageRun>,
    pub verify: bool,
    pub habits: Habits,
    /// Hosts do their work beside and answer later.
    pub slow: bool,
    /// What sits in the guest.
    pub agent: Agent,
    /// What was expected of it, where it is watched by `auto`.
    pub expected: Option<StrategyForecast>,
    /// Writes to the disk that moves with the guest, before the migration; none where no disk moves.
    pub disk: Option<u64>,
    /// Pages that the source takes the loading of the device state to read.
    pub read_by_load: Vec<PageRun>,
}

impl Scenario {
    /// A scenario by chance.
    pub(crate) fn choose(chooser: &mut Chooser) -> Self {
        let algorithm = Strategy::ALL[chooser.below(Strategy::ALL.len() as u64) as usize];
        let pages = match chooser.below(12) {
            0 => 600 + chooser.below(600),
            _ => 1 + chooser.below(120),
        };
        let limits = Limits {
            downtime: Duration::from_micros([0, 300, 3_000][chooser.below(3) as usize]),
            rounds: 1 + chooser.below(5) as u32,
            time: (chooser.below(4) == 0).then(|| Duration::from_millis(20)),
            bytes: (chooser.below(4) == 0).then_some(pages * 2048),
            at_limit: [AtLimit::Stop, AtLimit::PostCopy, AtLimit::Abort][chooser.below(3) as usize],
            drain_after: Duration::from_millis(5),
            timeout: (chooser.below(10) == 0).then(|| Duration::from_micros(1 + chooser.below(200_000))),
            bandwidth_bytes_per_s: (chooser.below(5) == 0).then(|| 200_000 << chooser.below(10)),
            ..Limits::default()
        };
        let tuning = Tuning {
            alpha: [0.0, 0.3, 0.5, 1.0][chooser.below(4) as usize],
            samples: 1 + chooser.below(6) as u32,
            interval: Duration::from_micros(200 + chooser.below(1_000)),
            regions: (chooser.below(3) == 0).then(|| divisor(pages, chooser)),
            agent_timeout: Duration::from_millis(2),
            ..Tuning::default()
        };
        tuning.check(pages).expect("a world begins with what makes sense");
        let learns = matches!(algorithm, Strategy::PreCopyFilter | Strategy::HybridLearning);
        let believed = (learns && chooser.below(3) == 0).then(|| {
            let first = chooser.below(pages);
            PageRun::new(first, 1 + chooser.below(pages - first))
        });
        let frees = algorithm == Strategy::Enlightened;
        // Some of them beyond RAM.
        let read_by_load = (0..chooser.below(4))
            .map(|_| PageRun::new(chooser.below(pages + 2), 1 + chooser.below(5)))
            .collect();
        Self {
            pages,
            streams: 1 + chooser.below(3) as usize,
            algorithm,
            limits,
            tuning,
            believed,
            verify: chooser.below(3) == 0,
            habits: Habits {
                pinned_io: chooser.below(3) == 0,
                discards: chooser.below(3) == 0,
                frees,
            },
            slow: chooser.below(2) == 0,
            agent: match frees {
                true => Agent::choose(chooser),
                false => Agent::Silent,
            },
            expected: (chooser.below(3) == 0).then(|| expected(algorithm, chooser)),
            disk: (chooser.below(4) == 0).then(|| chooser.below(20)),
            read_by_load,
        }
    }

    pub(crate) fn policy(&self) -> Box<dyn Policy> {
        let policy = self.unwatched_policy();
        match &self.expected {
            Some(expected) => Box::new(Auto::new(policy, expected.clone())),
            None => policy,
        }
    }

    fn unwatched_policy(&self) -> Box<dyn Policy> {
        match self.believed {
            Some(run) => {
                self.algorithm
                    .policy_knowing(&self.limits, &self.tuning, self.pages, self.known(run))
            }
            None => self.algorithm.policy(&self.limits, &self.tuning, self.pages),
        }
    }

    /// What a sampler learned that saw `run` dirty in every sample.
    fn known(&self, run: PageRun) -> Ready {
        let (start, budget) = (Duration::ZERO, Budget::default());
        let mut background = Background::new(self.pages, &self.tuning, budget, None, start);
        let mut dirty = PageBitmap::new(self.pages);
        dirty.insert_run(run);
        loop {
            let now = background.next_scan();
            background.scanned(now, Duration::ZERO, &dirty);
            match background.ready(now) {
                Some(ready) if background.report(now).fits == Some(true) => return ready,
                _ => {}
            }
        }
    }

    pub(crate) fn faults(&self) -> Faults {
        self.policy().needs().faults
    }
}

pub(crate) struct World {
    pub scenario: Scenario,
    pub chooser: Chooser,
    pub now: Duration,
    pub guest: Guest,
    pub network: Network,
    pub source: SourceHost,
    pub destination: DestinationHost,
    pub checks: Checks,
}

impl World {
    pub(crate) fn new(scenario: Scenario, mut chooser: Chooser) -> Self {
        let mut memory = Memory::hole(scenario.pages);
        let guest = Guest::new(scenario.pages, &mut memory, &mut chooser);
        let checks = Checks::new(&scenario);
        let setup = vmferry_core::source::Setup {
            pages: scenario.pages,
            streams: scenario.streams,
            pinned_io: scenario.habits.pinned_io,
            verify: scenario.verify,
            epoch: crate::source_host::EPOCH,
        };
        let mut machine = Source::new(setup, scenario.policy()).within(&scenario.limits);
        machine.read_by_load(scenario.read_by_load.iter().copied());
        if scenario.disk.is_some() {
            machine = machine.with_disks(scenario.limits.downtime);
        }
        Self {
            source: SourceHost::new(memory, machine, scenario.disk.map(Disk::new)),
            destination: DestinationHost::new(scenario.pages),
            network: Network::default(),
            now: Duration::ZERO,
            guest,
            chooser,
            checks,
            scenario,
        }
    }

    /// Runs the migration to its end and checks that.
    pub(crate) fn run(&mut self) {
        self.source_offers();
        for step in 0.. {
            assert!(step < MOST_STEPS, "no end in sight: {}", self.describe());
            self.now += Duration::from_micros(self.chooser.below(200));
            self.guest_acts();
            if self.chooser.fails(90) {
                self.something_happens();
            }
            let moved = self.step();
            if step % 64 == 0 {
                self.look();
            }
            if !moved && !self.wait() {
                break;
            }
        }
        self.operator_resolves();
        self.check_end();
    }

    /// One of the threads of the world goes on.
    fn step(&mut self) -> bool {
        const KINDS: u64 = 19;
        let first = self.chooser.below(KINDS);
        (0..KINDS).any(|kind| match (first + kind) % KINDS {
            0 => self.source_takes_input(),
            1 => self.source_answers(),
            2 => self.source_reads(),
            3 | 4 => self.any_stream(Self::source_streams),
            5 => self.source_serves_a_fault(),
            6 => self.source_ticks(),
            7 => self.source_dials(),
            8 => self.destination_takes_input(),
            9 => self.destination_answers(),
            10 => self.destination_reads(),
            11 | 12 => self.any_stream(Self::destination_receives),
            13 => self.destination_loads(),
            14 => self.destination_admits() || self.destination_responds_from_log(),
            15 => self.destination_times_out(),
            16 => self.agent_answers(),
            17 => self.mirror_goes_on(),
            _ => self.daemons_restart(),
        })
    }

    /// Page streams in any order; the last one is the fault stream's.
    fn any_stream(&mut self, act: impl Fn(&mut Self, usize) -> bool) -> bool {
        let streams = self.scenario.streams + 1;
        let first = self.chooser.below(streams as u64) as usize;
        (0..streams).any(|index| act(self, (first + index) % streams))
    }

    fn daemons_restart(&mut self) -> bool {
        if !self.source.alive {
            self.restart_source();
            return true;
        }
        if !self.destination.alive {
            self.restart_destination();
            return true;
        }
        false
    }

    pub(crate) fn guest_acts(&mut self) {
        if self.source.running && self.chooser.once_in(3) {
            let Self {
                guest,
                source,
                chooser,
                scenario,
                ..
            } = self;
            act_at_source(
                guest,
                &mut source.memory,
                &mut source.tracker,
                scenario.habits,
                chooser,
            );
            if let Some(disk) = source.disk.as_mut().filter(|_| chooser.once_in(8)) {
                disk.write();
            }
        }
        if self.destination.running {
            self.guest_acts_at_destination();
        } else {
            self.device_touches();
        }
    }

    /// Jumps to the next time somebody waits for.
    fn wait(&mut self) -> bool {
        let next = self
            .source
            .timer()
            .into_iter()
            .chain(self.destination.timer())
            .min();
        match next {
            Some(at) if at > self.now => {
                self.now = at;
                true
            }
            // The step at that time did nothing.
            _ => false,
        }
    }

    fn something_happens(&mut self) {
        match self.chooser.below(16) {
            0..=5 => self.cut(),
            6 | 7 => self.crash_destination(),
            8 | 9 if self.source.alive => self.crash_source(),
            10 => {
                self.cut();
                self.network.down = true;
            }
            11 | 12 if self.source.machine.is_some() => self.cancel(),
            13 => self.destination_cancels(),
            14 if self.source.machine.is_some() => {
                // Nothing to resolve, or nobody sure of what to say: asked only at the end.
                let severed = self.phase() == "reconnect";
                if !severed {
                    self.ask_source(Event::Resolve(Side::Source))
                        .expect_err("nothing waits for that");
                }
            }
            _ => {}
        }
    }

    fn cut(&mut self) {
        let Self { network, chooser, .. } = self;
        for connection in &mut network.connections {
            connection.cut(chooser);
        }
    }

    fn cancel(&mut self) {
        let handed_over = self.source.journal.len() > 1;
        let cancelled = self.ask_source(Event::Cancel);
        assert!(
            cancelled.is_err() || !handed_over,
            "cancelled past the commit point"
        );
    }

    pub(crate) fn phase(&self) -> String {
        self.source
            .machine
            .as_ref()
            .map_or_else(String::new, |machine| machine.progress(self.now).phase)
    }

    /// What an operator does where the hosts cannot find each other any more. Nobody but him knows both.
    fn operator_resolves(&mut self) {
        if self.phase() != "reconnect" {
            return;
        }
        assert!(
            self.network.down,
            "the hosts do not find each other: {}",
            self.describe()
        );
        self.checks.severed = true;
        if self.destination.running {
            let complete = (0..self.scenario.pages).all(|page| self.destination.has(page).is_some());
            match self.ask_source(Event::Resolve(Side::Destination)) {
                Ok(()) => assert!(complete, "pages are lost"),
                Err(error) => {
                    assert!(error.to_string().contains("still needs pages"), "{error}");
                    if complete && self.chooser.once_in(2) {
                        return;
                    }
                    // Ends the guest there, so that it can go on here where it stopped.
                    self.destination.running = false;
                    self.destination.exists = false;
                    self.destination.session = None;
                    self.guest.truth = self.source.memory.version.clone();
                }
            }
        }
        if !self.destination.running {
            self.resolve_to_source();
        }
    }

    fn resolve_to_source(&mut self) {
        while !self.source.alive || self.source.machine.is_some() {
            if !self.source.alive {
                self.restart_source();
            } else if self.phase() == "reconnect" {
                self.ask_source(Event::Resolve(Side::Source))
                    .expect("it waits for that");
            } else {
                assert!(self.source_answers(), "stuck while it is taken back");
            }
        }
    }

    /// Whoever looks at it sees something that makes sense.
    fn look(&self) {
        let Some(machine) = &self.source.machine else {
            return;
        };
        let progress = machine.progress(self.now);
        assert!(progress.remaining_pages <= self.scenario.pages);
        assert!(
            progress.eta_ms.is_none_or(|ms| ms.is_finite() && ms >= 0.0),
            "{progress:?}"
        );
        assert!(
            progress.rate_bytes_per_s.is_finite() && progress.dirty_bytes_per_s.is_finite(),
            "{progress:?}"
        );
        let measured = machine.measured();
        assert_eq!(measured.counts.sent, progress.sent_pages);
    }

    pub(crate) fn describe(&self) -> String {
        let session = self
            .destination
            .session
            .as_ref()
            .map(|session| session.machine.phase());
        format!(
            "{:?}\nat {:?}: source {:?} over {:?} ({:?}) alive {} runs {} dials {} journal {:?}\n\
             destination {session:?} alive {} exists {} runs {} outstanding {:?} log {:?} journal {:?}\n\
             network down {}; errors {:?}; remaining {:?}; senders {:?}; machine {:?}",
            self.scenario,
            self.now,
            self.phase(),
            self.source.over,
            self.source.error,
            self.source.alive,
            self.source.running,
            self.source.dialling,
            self.source.journal,
            self.destination.alive,
            self.destination.exists,
            self.destination.running,
            self.destination.pager.as_ref().map(|pager| pager.outstanding),
            self.destination.log,
            self.destination.journal,
            self.network.down,
            self.checks.errors,
            self.source
                .machine
                .as_ref()
                .map(|machine| machine.progress(self.now).remaining_pages),
            self.source
                .senders
                .iter()
                .map(|sender| sender.asleep)
                .collect::<Vec<_>>(),
            self.source
                .machine
                .as_ref()
                .map(|machine| machine.measured().counts),
        )
    }

    /// Whether the guest ended where it was meant to.
    pub(crate) fn completed(&self) -> bool {
        self.source.over == Some(Some(Outcome::Completed))
    }
}

/// A number of regions that divides RAM.
fn divisor(pages: u64, chooser: &mut Chooser) -> u32 {
    let divisors: Vec<_> = (1..=pages.min(256))
        .filter(|regions| pages.is_multiple_of(*regions))
        .collect();
    divisors[chooser.below(divisors.len() as u64) as usize] as u32
}

/// Keeps bitmaps of a scenario's size in one place.
pub(crate) fn no_pages(scenario: &Scenario) -> PageBitmap {
    PageBitmap::new(scenario.pages)
}

/// A forecast that reality leaves now and then.
fn expected(strategy: Strategy, chooser: &mut Chooser) -> StrategyForecast {
    let up_to = |high: f64| Expected {
        likely: high / 2.0,
        low: 0.0,
        high,
    };
    StrategyForecast {
        strategy,
        total_ms: up_to(100.0),
        execution_transfer_ms: up_to([0.0, 5.0, 1e6][chooser.below(3) as usize]),
        downtime_ms: up_to(1.0),
        bytes_on_wire: up_to([1e4, 1e5, 1e9][chooser.below(3) as usize]),
        slow_down_percent: up_to(1.0),
        rounds: up_to([0.0, 2.0, 100.0][chooser.below(3) as usize]),
        completes: 1.0,
        typical_rounds: Vec::new(),
    }
}
