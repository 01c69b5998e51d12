//! A migration in virtual time: a queue of what happens when.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use vmferry_core::destination::Event as DestinationEvent;
use vmferry_core::encoding::{Codec, Encoded, SentWith};
use vmferry_core::report::{FaultReport, LimitsReport, Outcome as Ended, PageCounts, Report, RoundReport};
use vmferry_core::source::Event as SourceEvent;
use vmferry_core::{MigrationRequest, PAGE_SIZE, PageRun};

use crate::destination::DestinationHost;
use crate::error::SimError;
use crate::link::Link;
use crate::outcome::Outcome;
use crate::path::PathModel;
use crate::replay::Replay;
use crate::sizes::Batch;
use crate::source::SourceHost;

/// Things that happen in one migration at most.
const MOST_STEPS: u64 = 200_000_000;
/// Of these at one moment: time that stands still is a bug, and its agenda grows.
const MOST_AT_ONCE: u64 = 10_000_000;
/// Longest migration.
const MOST_TIME: Duration = Duration::from_secs(30 * 24 * 3600);

/// What happens.
#[derive(Debug)]
pub(crate) enum What {
    /// A page stream of the source looks for its next batch.
    StreamAsks(usize),
    /// The time for which a page stream waits has come, unless it waits for another by now.
    StreamTimer(usize),
    /// It encoded a batch, which goes to the socket.
    Encoded(usize, Box<Encoding>),
    /// The batch is in the socket.
    Written(Box<SentWith>, Box<Encoding>),
    /// The destination has these units of a batch.
    TakenIn(Vec<PageRun>),
    /// The mark of a round's end is at the destination.
    RoundEnd(usize, u32),
    /// The source's driver did what it was told to.
    SourceDone,
    /// The destination's driver did.
    DestinationDone,
    /// A message reaches the source's driver.
    ToSource(SourceEvent),
    /// A message reaches the destination's driver.
    ToDestination(DestinationEvent),
    /// The time that the source's machine waits for may have come.
    Tick,
    /// A demand reaches the source.
    Demand(u64),
    /// The answer is at the destination.
    Answer(u64),
    /// The guest at the destination is about to access something.
    Access,
}

/// A batch on its way through a stream of the source.
#[derive(Debug)]
pub(crate) struct Encoding {
    pub runs: Vec<PageRun>,
    pub batch: Batch,
    pub codec: Codec,
    pub sample: Option<(Codec, Encoded, Duration)>,
    pub wall: Duration,
}

/// When something happens; of several at once the first that was said.
struct At(Duration, u64, What);

impl PartialEq for At {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for At {}

impl PartialOrd for At {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for At {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// What is to happen.
#[derive(Default)]
pub(crate) struct Agenda {
    heap: BinaryHeap<Reverse<At>>,
    count: u64,
    pub(crate) now: Duration,
}

impl Agenda {
    pub(crate) fn at(&mut self, time: Duration, what: What) {
        self.count += 1;
        self.heap.push(Reverse(At(time.max(self.now), self.count, what)));
    }

    fn next(&mut self) -> Option<What> {
        let Reverse(At(time, _, what)) = self.heap.pop()?;
        self.now = time;
        Some(what)
    }
}

/// The link, both ways.
pub(crate) struct Wires {
    pub there: Link,
    pub back: Link,
}

/// The guest: where it runs, and in its own time how far it is.
pub(crate) struct Guest<'a> {
    pub replay: Replay<'a>,
    /// Its own time at the moment it was last started or stopped.
    own: Duration,
    /// Since when it runs.
    running: Option<Duration>,
}

impl Guest<'_> {
    pub(crate) fn own_time(&self, now: Duration) -> Duration {
        self.own
            + self
                .running
                .map_or(Duration::ZERO, |since| now.saturating_sub(since))
    }

    pub(crate) fn start(&mut self, now: Duration) {
        self.running.get_or_insert(now);
    }

    pub(crate) fn stop(&mut self, now: Duration) {
        self.own = self.own_time(now);
        self.running = None;
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }
}

/// Everything.
pub(crate) struct World<'a> {
    agenda: Agenda,
    wires: Wires,
    guest: Guest<'a>,
    source: SourceHost<'a>,
    destination: DestinationHost<'a>,
    strategy: &'static str,
    downtime_goal: Duration,
    timeout: Option<Duration>,
    seed: u64,
}

impl<'a> World<'a> {
    pub(crate) fn new<To>(
        replay: Replay<'a>,
        request: &MigrationRequest<To>,
        path: &'a PathModel,
        seed: u64,
    ) -> Self {
        let recorded = replay.recorded;
        let mut guest = Guest {
            replay,
            own: Duration::ZERO,
            running: None,
        };
        guest.start(Duration::ZERO);
        let source = SourceHost::new(recorded, request, path);
        Self {
            agenda: Agenda::default(),
            wires: Wires {
                there: Link::new(path),
                back: Link::new(path),
            },
            destination: DestinationHost::new(recorded, path, source.streams()),
            source,
            guest,
            strategy: request.strategy.name(),
            downtime_goal: request.limits.downtime,
            timeout: request.limits.timeout,
            seed,
        }
    }

    pub(crate) fn run(mut self) -> Result<Outcome, SimError> {
        self.source.begin(&mut self.agenda, &mut self.wires)?;
        let mut at_once = 0;
        for _ in 0..MOST_STEPS {
            if self.source.machine.ended().is_some() {
                return Ok(self.outcome());
            }
            let before = self.agenda.now;
            let Some(what) = self.agenda.next() else {
                return Err(SimError::Broken("nothing happens any more".into()));
            };
            at_once = if self.agenda.now > before { 0 } else { at_once + 1 };
            if at_once > MOST_AT_ONCE {
                return Err(SimError::Endless("10 million steps at one moment"));
            }
            if self.agenda.now > MOST_TIME {
                return Err(SimError::Endless("30 days"));
            }
            self.happens(what)?;
        }
        Err(SimError::Endless("200 million steps"))
    }

    fn happens(&mut self, what: What) -> Result<(), SimError> {
        let Self {
            agenda,
            wires,
            guest,
            source,
            destination,
            ..
        } = self;
        match what {
            What::StreamAsks(stream) => source.stream_asks(stream, agenda, wires),
            What::StreamTimer(stream) => source.stream_timer(stream, agenda, wires),
            What::Encoded(stream, encoding) => source.encoded(stream, encoding, agenda, wires),
            What::Written(sent, encoding) => source.written(&sent, &encoding, agenda),
            What::TakenIn(runs) => destination.taken_in(&runs, agenda, guest),
            What::RoundEnd(stream, round) => {
                destination.input(DestinationEvent::RoundEnd { stream, round });
            }
            What::SourceDone => source.done(agenda, guest),
            What::DestinationDone => destination.done(agenda, guest),
            What::ToSource(event) => source.input(event),
            What::ToDestination(event) => destination.input(event),
            What::Tick => source.tick(agenda.now),
            What::Demand(unit) => source.demanded(unit, agenda, wires),
            What::Answer(unit) => destination.answered(unit, agenda, guest),
            What::Access => destination.access(agenda, wires, guest),
        }
        source.work(agenda, wires, guest)?;
        if let Some(pending) = source.switched.take() {
            destination.switch(pending);
        }
        destination.work(agenda, wires, guest)
    }

    fn outcome(self) -> Outcome {
        let measured = self.source.machine.measured();
        let per = self.source.units.per();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let (ended, error) = match self.source.machine.ended() {
            Some((outcome, error)) => (outcome, error.map(str::to_owned)),
            None => (Ended::Failed, None),
        };
        let recorded = self.guest.replay.recorded;
        let report = Report {
            vm: recorded.vm.clone(),
            strategy: self.strategy.to_owned(),
            backend: recorded.backend.clone(),
            outcome: ended,
            error,
            total_ms: ms(measured.total),
            execution_transfer_ms: measured.execution_transfer.map_or(0.0, ms),
            downtime_ms: measured.downtime.map_or(0.0, ms),
            perceived_downtime_ms: None,
            micro_stops_ms: ms(measured.micro_stops),
            ram_bytes: recorded.units.pages() * PAGE_SIZE,
            data_bytes: measured.data_pages * per * PAGE_SIZE,
            bytes_on_wire: self.wires.there.bytes as u64,
            device_state_bytes: measured.device_state_bytes,
            pages: counts_in_pages(measured.counts, per),
            reuse: None,
            encoding: vmferry_core::encoding::EncodingReport::default(),
            rounds: rounds_in_pages(measured.rounds, per),
            faults: self.destination.fault_report(),
            phases: measured.phases,
            cpu_seconds: vmferry_core::report::CpuSeconds {
                source: self.source.cpu.as_secs_f64(),
                destination: self.destination.cpu.as_secs_f64(),
            },
            memory_bytes: vmferry_core::report::SidesBytes::default(),
            limits: LimitsReport {
                downtime_ms: ms(self.downtime_goal),
                timeout_ms: self.timeout.map(ms),
                bandwidth_bytes_per_s: measured.bandwidth_bytes_per_s,
                bandwidth_waited_ms: ms(measured.bandwidth_waited),
                ..LimitsReport::default()
            },
            verified: None,
            forecast: None,
            filter: measured.filter,
            disks: None,
            notes: measured.notes,
        };
        let waited_ms = ms(self.destination.guest_waited());
        let tracking_ms = ms(self.source.tracking_cost);
        let lost_ms = waited_ms + tracking_ms + report.downtime_ms + report.micro_stops_ms;
        Outcome {
            slow_down_percent: 100.0 * (lost_ms / report.total_ms.max(1e-9)).min(1.0),
            waited_for_pages_ms: waited_ms,
            tracking_ms,
            extended_ms: ms(self.guest.replay.extended()),
            pages_per_unit: per,
            seed: self.seed,
            report,
        }
    }
}

/// Counts of units that are `per` pages each, as pages.
fn counts_in_pages(mut counts: PageCounts, per: u64) -> PageCounts {
    for count in [
        &mut counts.sent,
        &mut counts.resent,
        &mut counts.ahead,
        &mut counts.raw,
        &mut counts.uniform,
        &mut counts.hole,
        &mut counts.free,
        &mut counts.filtered,
        &mut counts.compressed,
        &mut counts.delta,
    ] {
        *count *= per;
    }
    counts
}

/// The same of rounds.
fn rounds_in_pages(mut rounds: Vec<RoundReport>, per: u64) -> Vec<RoundReport> {
    for round in &mut rounds {
        round.pages_sent *= per;
        round.pages_dirtied *= per;
        for count in [
            &mut round.pages_filtered,
            &mut round.pages_taken_back,
            &mut round.bytes_saved,
        ] {
            *count = count.map(|count| count * per);
        }
    }
    rounds
}

/// Faults that were served, for the report: what they took each, and how many took that.
pub(crate) fn fault_report(mut service_us: Vec<(f64, u64)>) -> FaultReport {
    service_us.sort_by(|a, b| a.0.total_cmp(&b.0));
    let count: u64 = service_us.iter().map(|(_, faults)| faults).sum();
    let quantile = |q: f64| {
        let mut before = (count as f64 * q) as u64;
        let within = service_us.iter().find(|(_, faults)| {
            let found = before < *faults;
            before = before.saturating_sub(*faults);
            found
        });
        within.or(service_us.last()).map_or(0.0, |(took_us, _)| *took_us)
    };
    FaultReport {
        count,
        network: count,
        local: 0,
        p50_us: quantile(0.5),
        p99_us: quantile(0.99),
        max_us: quantile(1.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_reported_by_their_number() {
        let report = fault_report(vec![(500.0, 1), (10.0, 90), (20.0, 9)]);
        assert_eq!((report.count, report.network), (100, 100));
        assert_eq!(
            (report.p50_us, report.p99_us, report.max_us),
            (10.0, 500.0, 500.0)
        );
        assert_eq!(fault_report(vec![(10.0, 90), (20.0, 10)]).p99_us, 20.0);
        assert_eq!(fault_report(Vec::new()).max_us, 0.0);
    }
}
