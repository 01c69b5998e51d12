//! The source of a migration: a state machine that a driver feeds with [`Event`]s and whose [`Command`]s it
//! carries out. Page streams and the fault stream ask it directly ([`Source::next_batch`],
//! [`Source::demanded`]): it is the one place that knows which page is whose turn.

mod ahead;
mod asking;
mod batch;
mod disks;
mod event;
mod live;
mod measured;
mod pace;
mod pushing;
mod recorder;
mod references;
mod state;
mod stop;

use std::time::Duration;

use thiserror::Error;

pub use event::{Batch, Command, Demand, Enlightenment, Event, SentBatch, Side, Summary};
pub use measured::Measured;
pub use state::Ownership;

use crate::bitmap::PageBitmap;
use crate::disks::Convergence;
use crate::handover::{Epoch, EpochMismatch};
use crate::ledger::Ledger;
use crate::pages::PageRun;
use crate::policy::{Faults, Needs, Pick, Policy, View, in_address_order};
use crate::rates::Rates;
use crate::report::{Outcome, Progress};
use crate::strategy::Limits;
use crate::tracking::{ScanPoint, Tracking};
use ahead::Ahead;
use asking::{Answer, Free};
use batch::StreamPace;
use disks::Disks;
use pace::Pace;
use recorder::{Recorder, RoundJudged};
use state::State;

/// What a source has to know beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Pages of guest RAM.
    pub pages: u64,
    /// Page streams.
    pub streams: usize,
    /// The guest may have pinned I/O: see [`crate::tracking`].
    pub pinned_io: bool,
    /// Compare every page at the end.
    pub verify: bool,
    /// The epoch under which the destination will own the guest.
    pub epoch: Epoch,
}

/// An event that does not belong.
#[derive(Clone, Debug, Error)]
pub enum SourceError {
    /// An event that the state has no place for.
    #[error("got {found} while in phase {phase:?}, expected {expected}")]
    Unexpected {
        /// What came.
        found: String,
        /// The phase of the migration.
        phase: &'static str,
        /// What could have come.
        expected: &'static str,
    },
    /// A cancel or resolve at a time when it cannot be.
    #[error("{0}")]
    TooLate(&'static str),
    /// The peer's journal contradicts ours.
    #[error(transparent)]
    Epoch(#[from] EpochMismatch),
    /// The peer denies what it said before.
    #[error(
        "the destination ran the guest and now says that it does not have it: find out what became of it there, then use `vmferry resolve`"
    )]
    Denied,
}

/// The source's side of one migration.
pub struct Source {
    setup: Setup,
    policy: Box<dyn Policy>,
    needs: Needs,
    state: State,
    ledger: Ledger,
    tracking: Tracking,
    last_scan: PageBitmap,
    last_scan_at: Duration,
    rates: Rates,
    /// Rounds finished.
    rounds: u32,
    /// Pages that the destination demanded.
    demanded: PageBitmap,
    /// Of these, the ones to push first after a reconnect: the guest waits for them.
    urgent: PageBitmap,
    /// Pages that crossed as references to content that the destination should have.
    referenced: PageBitmap,
    /// What crosses between the stop and the resume.
    ahead: Ahead,
    recorder: Recorder,
    /// What the guest says about its pages.
    answer: Answer,
    free: Free,
    /// Tracking is armed.
    tracked: bool,
    /// The driver was restarted past the commit point.
    recovered: bool,
    /// Pages that were dropped because the guest does not use them; unknown after a restart.
    dropped: Option<PageBitmap>,
    /// The bandwidth cap.
    pace: Pace,
    /// What each stream does with its batches.
    streams: Vec<StreamPace>,
    /// See [`Limits::timeout`].
    timeout: Option<Duration>,
    /// Of the round that ended last, until the scan of its end has come.
    judged: Option<RoundJudged>,
    /// The mirrors of its disks, where these move with the guest.
    disks: Option<Disks>,
    /// When everything but memory was there: policies count time from then on.
    memory_began: Duration,
}

impl Source {
    /// A migration that begins now: the offer is about to be sent.
    pub fn new(setup: Setup, policy: Box<dyn Policy>) -> Self {
        let needs = policy.needs();
        let answer = match policy.wants_hints() {
            Some(_) => Answer::Awaited,
            None => Answer::NotAwaited,
        };
        Self {
            setup,
            policy,
            needs,
            state: State::Offered,
            ledger: Ledger::new(PageBitmap::new(setup.pages)),
            tracking: Tracking::new(setup.pages, setup.pinned_io),
            last_scan: PageBitmap::new(setup.pages),
            last_scan_at: Duration::ZERO,
            rates: Rates::default(),
            rounds: 0,
            demanded: PageBitmap::new(setup.pages),
            urgent: PageBitmap::new(setup.pages),
            referenced: PageBitmap::new(setup.pages),
            ahead: Ahead::default(),
            recorder: Recorder::new(State::Offered.phase()),
            answer,
            free: Free::Unknown,
            tracked: false,
            recovered: false,
            dropped: None,
            pace: Pace::unlimited(),
            streams: vec![StreamPace::default(); setup.streams],
            timeout: None,
            judged: None,
            disks: None,
            memory_began: Duration::ZERO,
        }
    }

    /// The same within these limits of time and bandwidth; the other ones are the policy's or the driver's.
    pub fn within(mut self, limits: &Limits) -> Self {
        self.timeout = limits.timeout;
        self.set_bandwidth(Duration::ZERO, limits.bandwidth_bytes_per_s);
        self
    }

    /// What the policy needs of both hosts.
    pub fn needs(&self) -> Needs {
        self.needs
    }

    /// A migration past the commit point whose driver was restarted: it has to reach the destination again,
    /// which knows what it lacks. Begin with [`Command::Reconnect`].
    pub fn recovered(setup: Setup, policy: Box<dyn Policy>) -> Self {
        let mut source = Self::new(setup, policy);
        let post_copy = source.needs.faults != Faults::None;
        source.state = State::Severed { post_copy };
        source.answer = Answer::NotAwaited;
        source.recovered = true;
        source
            .recorder
            .note("taken up again after a restart of the source's daemon".into());
        source
    }

    /// Takes in what happened at `now` (time since the request) and says what to do.
    ///
    /// # Errors
    /// When the event does not belong to the state: the driver then fails the migration
    /// ([`Event::Failed`]), except for a cancel or resolve, which it just refuses.
    pub fn handle(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        let commands = self.dispatch(now, event)?;
        self.recorder.enter(now, self.state.phase());
        Ok(commands)
    }

    /// When to send [`Event::Tick`].
    pub fn deadline(&self) -> Option<Duration> {
        let next = match &self.state {
            State::Waiting { until } | State::AwaitingDisks { until } => Some(*until),
            State::Round(round) => round.next_sample,
            State::Asking { until, .. } => Some(*until),
            _ => None,
        };
        let timeout = self.timeout.filter(|_| self.state.may_give_up());
        next.into_iter().chain(timeout).min()
    }

    /// What page stream `stream` does next.
    pub fn next_batch(&mut self, now: Duration, stream: usize) -> Batch {
        if let Some(pace) = self.streams.get_mut(stream) {
            pace.asks(now);
        }
        match &self.state {
            State::Ended { .. } => Batch::Finished,
            state if state.awaits_resume() => self.batch_ahead(now),
            State::Round(_) | State::StopCopy(_) => self.round_batch(now, stream),
            State::Pushing { .. } => self.push_batch(now, stream),
            _ => Batch::Idle(None),
        }
    }

    /// Whether pages are there that only the bandwidth cap keeps back.
    pub fn waits_for_bandwidth(&self) -> bool {
        self.pace.is_waiting()
    }

    /// A stream sent the batch of `pages` pages that [`Source::next_batch`] gave it.
    pub fn sent(&mut self, batch: SentBatch) {
        let pages = batch.pages();
        self.recorder.sent(batch);
        self.pace.sent(pages, batch.bytes);
        if let Some(round) = self.state.round_mut() {
            round.pages += pages;
            round.bytes += batch.bytes;
            round.referenced += batch.deduplicated;
        }
    }

    /// How it ended and why, once it has.
    pub fn ended(&self) -> Option<(Outcome, Option<&str>)> {
        match &self.state {
            State::Ended { outcome, error } => Some((*outcome, error.as_deref())),
            _ => None,
        }
    }

    /// Whose the guest is.
    pub fn ownership(&self) -> Ownership {
        match &self.state {
            State::Ended {
                outcome: Outcome::Completed | Outcome::Unresolved,
                ..
            } => Ownership::HandedOver(self.setup.epoch),
            state if state.committed() => Ownership::HandedOver(self.setup.epoch),
            _ => Ownership::Here,
        }
    }

    /// A look at it.
    pub fn progress(&self, now: Duration) -> Progress {
        let remaining = self.ledger.pending().count();
        let eta = match &self.state {
            State::CopyingDisks => self.disk_convergence().and_then(Convergence::time_left),
            State::Pushing { .. } | State::StopCopy(_) => self.rates.time_to_send(remaining),
            _ => self.rates.time_to_converge(remaining),
        };
        Progress {
            phase: self.state.phase().to_owned(),
            round: match &self.state {
                State::Round(round) => round.number,
                _ => 0,
            },
            elapsed_ms: now.as_secs_f64() * 1e3,
            remaining_pages: remaining,
            sent_pages: self.recorder.counts.sent,
            bytes_on_wire: self.recorder.bytes,
            encoding: None,
            rate_bytes_per_s: self.rate_now(now),
            dirty_bytes_per_s: self.rates.dirty_bytes_per_s(),
            eta_ms: eta.map(|eta| eta.as_secs_f64() * 1e3),
            faults: self.recorder.demands,
            bandwidth_limit_bytes_per_s: self.pace.bytes_per_s(),
            cpu_limit_percent: None,
            bandwidth_waited_ms: self.pace.waited(now).as_secs_f64() * 1e3,
            disks: self.disk_convergence().map(Convergence::progress),
        }
    }

    /// Everything measured, for the report.
    pub fn measured(&self) -> Measured {
        Measured {
            bandwidth_bytes_per_s: self.pace.bytes_per_s(),
            bandwidth_waited: self.pace.waited(Duration::ZERO),
            filter: self.policy.filter_report(),
            ..self.recorder.measured(&self.ledger)
        }
    }

    fn dispatch(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        match event {
            Event::Cancel => self.cancel(now),
            Event::Failed(reason) => Ok(self.fail(now, Outcome::Failed, reason)),
            Event::JournalFailed(reason) => Ok(self.journal_failed(now, reason)),
            Event::Disconnected(reason) => Ok(self.disconnected(now, reason)),
            Event::Resolve(side) => self.resolve(now, side),
            Event::LimitBandwidth(bytes_per_s) => self.limit_bandwidth(now, bytes_per_s),
            Event::Tick if self.timed_out(now) => Ok(self.give_up(now)),
            event @ (Event::Accepted { .. }
            | Event::Armed { .. }
            | Event::Scanned(_)
            | Event::Resumed
            | Event::Tick) => self.live_event(now, event),
            Event::SwitchTaken => self.switch_taken(),
            event @ (Event::DisksProgress(_) | Event::DisksSettled) => self.disks_event(now, event),
            Event::Missed(pages) => self.missed(&pages),
            event @ Event::Enlightened(_) => self.asking_event(now, event),
            event @ (Event::Stopped { .. }
            | Event::StateSent { .. }
            | Event::StateConfirmed
            | Event::RoundReceived { .. }
            | Event::Ready(_)
            | Event::Journaled
            | Event::Running(_)) => self.stop_event(now, event),
            event @ (Event::Complete(_) | Event::Reconnected { .. }) => self.pushing_event(now, event),
        }
    }

    /// The operator cancels: possible until the commit point.
    fn cancel(&mut self, now: Duration) -> Result<Vec<Command>, SourceError> {
        match &self.state {
            State::Ended { .. } => Err(SourceError::TooLate("the migration is over")),
            State::TakingBack { .. } => Err(SourceError::TooLate(
                "the migration failed already; the guest is being taken back",
            )),
            state if state.committed() => Err(SourceError::TooLate(
                "the guest belongs to the destination already; a migration can be cancelled only before that",
            )),
            _ => Ok(self.fail(now, Outcome::Cancelled, "cancelled by the operator".into())),
        }
    }

    /// The operator caps the bandwidth, or lifts the cap: possible until the end.
    fn limit_bandwidth(
        &mut self,
        now: Duration,
        bytes_per_s: Option<u64>,
    ) -> Result<Vec<Command>, SourceError> {
        if self.ended().is_some() {
            return Err(SourceError::TooLate("the migration is over"));
        }
        self.recorder.note(match bytes_per_s {
            Some(rate) => format!("bandwidth limited to {rate} bytes/s after {} ms", now.as_millis()),
            None => format!("bandwidth limit lifted after {} ms", now.as_millis()),
        });
        self.set_bandwidth(now, bytes_per_s);
        Ok(vec![Command::WakeStreams])
    }

    fn set_bandwidth(&mut self, now: Duration, bytes_per_s: Option<u64>) {
        self.pace.limit(now, bytes_per_s);
        self.rates.limit(bytes_per_s);
    }

    fn timed_out(&self, now: Duration) -> bool {
        self.state.may_give_up() && self.timeout.is_some_and(|timeout| now >= timeout)
    }

    /// The time limit has come before the commit point.
    fn give_up(&mut self, now: Duration) -> Vec<Command> {
        let reason = format!(
            "the time limit of {} ms passed before the handover, in phase {}",
            self.timeout.unwrap_or(now).as_millis(),
            self.state
        );
        self.fail(now, Outcome::Failed, reason)
    }

    /// Ends the migration with the guest at the source, if that is where it is.
    fn fail(&mut self, now: Duration, outcome: Outcome, reason: String) -> Vec<Command> {
        match &self.state {
            State::Ended { .. } => Vec::new(),
            // The guest is here whatever the peer and the connection do: only the journal's answer counts.
            State::TakingBack { .. } => Vec::new(),
            // Past the commit point an error is an error of the connection: the guest is the destination's.
            state if state.committed() => self.disconnected(now, reason),
            _ => {
                let abort = Command::SendAbort(reason.clone());
                let mut commands = self.end(now, outcome, Some(reason));
                commands.extend([Command::Rollback, abort]);
                commands
            }
        }
    }

    /// The journal did not take the record, or took it and could not say so.
    fn journal_failed(&mut self, now: Duration, reason: String) -> Vec<Command> {
        match self.state {
            // No commit was sent, so the guest is still ours. But *handed over* may be on the disk, and after a
            // restart it would count, while the destination may wait for its commit: *owner* has to follow it
            // before the guest runs.
            State::HandingOver { .. } => {
                self.state = State::TakingBack {
                    reason: reason.clone(),
                };
                vec![
                    Command::SendAbort(reason),
                    Command::JournalOwner(self.setup.epoch.next()),
                ]
            }
            // Whose the guest is only a restart can tell, which reads what is on the disk.
            State::TakingBack { .. } => self.end(now, Outcome::Unresolved, Some(reason)),
            _ => self.fail(now, Outcome::Failed, reason),
        }
    }

    fn disconnected(&mut self, now: Duration, reason: String) -> Vec<Command> {
        match self.state {
            State::HandingOver { post_copy, .. } => {
                self.state = State::HandingOver {
                    post_copy,
                    connected: false,
                };
                self.recorder
                    .note(format!("connection lost at the commit point: {reason}"));
                Vec::new()
            }
            State::Committing { post_copy } | State::Pushing { post_copy, .. } => {
                self.state = State::Severed { post_copy };
                self.recorder
                    .note(format!("connection lost after the commit point: {reason}"));
                vec![Command::Reconnect]
            }
            State::Severed { .. } => vec![Command::Reconnect],
            _ => self.fail(now, Outcome::Failed, reason),
        }
    }

    fn end(&mut self, now: Duration, outcome: Outcome, error: Option<String>) -> Vec<Command> {
        self.recorder.ended(now);
        self.pace.nothing_to_send(now);
        self.state = State::Ended { outcome, error };
        vec![Command::WakeStreams]
    }

    /// Claims the next batch of a stream, of `left` pages: as many as the stream can send soon and the bandwidth cap
    /// allows. Where these are none, or the policy waits, says until when.
    fn claim_batch(&mut self, now: Duration, stream: usize, left: u64) -> (Vec<PageRun>, Option<Duration>) {
        let guest_waits = self.state.committed();
        let pace = self.streams.get(stream).copied().unwrap_or_default();
        let wanted = pace.pages(left, self.setup.streams, guest_waits);
        let room = match self.pace.admit(now, wanted) {
            Ok(room) => room,
            Err(at) => return (Vec::new(), Some(at)),
        };
        let (runs, retry_at) = self.claim_pages(now, room);
        let claimed = runs.iter().map(|run| run.count).sum();
        self.pace.not_claimed(room.saturating_sub(claimed));
        if let Some(pace) = self.streams.get_mut(stream) {
            pace.gets(now, claimed);
        }
        (runs, retry_at)
    }

    /// Claims up to `room` pages, as the policy says: of the round's pages left where there is a round, of all that are
    /// pending otherwise. Without a round the policy may also wait.
    fn claim_pages(&mut self, now: Duration, mut room: u64) -> (Vec<PageRun>, Option<Duration>) {
        let mut runs = Vec::new();
        while room > 0 {
            let Self {
                policy,
                state,
                ledger,
                last_scan,
                tracking,
                rounds,
                rates,
                recorder,
                memory_began,
                ..
            } = self;
            let time = now.saturating_sub(*memory_began);
            let view = view(time, ledger, last_scan, tracking, *rounds, rates, recorder);
            let mut left = state.round_mut().map(|round| &mut round.left);
            let (candidates, may_wait) = match &left {
                Some(left) => (&**left, false),
                None => (ledger.pending(), true),
            };
            if candidates.is_empty() {
                break;
            }
            let run = match policy.pick(&view, candidates, room) {
                Pick::Run(run) if run.count > 0 => run,
                Pick::Wait(at) if may_wait => return (runs, at.map(|at| at + *memory_began)),
                // No policy may stop a round, nor spin.
                _ => match in_address_order(candidates, room) {
                    Pick::Run(run) => run,
                    Pick::Wait(_) => break,
                },
            };
            debug_assert_eq!(
                candidates.count_in(run),
                run.count,
                "a policy picked pages that are not left"
            );
            if let Some(left) = &mut left {
                left.remove_run(run);
            }
            recorder.counts.resent += ledger.claim(run);
            room -= run.count.min(room);
            runs.push(run);
        }
        (runs, None)
    }

    fn record_scan(&mut self, now: Duration, scanned: PageBitmap, point: ScanPoint) {
        self.rates
            .dirtied(scanned.count(), now.saturating_sub(self.last_scan_at));
        self.last_scan_at = now;
        self.last_scan = self.tracking.record(scanned, point);
        self.ledger.dirtied(&self.last_scan);
        if let Free::Listed(free) = &mut self.free {
            free.subtract(&self.last_scan);
        }
    }

    fn unexpected(&self, found: &str, expected: &'static str) -> SourceError {
        SourceError::Unexpected {
            found: found.into(),
            phase: self.state.phase(),
            expected,
        }
    }
}

fn view<'a>(
    now: Duration,
    ledger: &'a Ledger,
    last_scan: &'a PageBitmap,
    tracking: &'a Tracking,
    rounds: u32,
    rates: &'a Rates,
    recorder: &Recorder,
) -> View<'a> {
    View {
        now,
        ledger,
        last_scan,
        unsettled: tracking.unsettled(),
        rounds,
        bytes_sent: recorder.bytes,
        rates,
    }
}
