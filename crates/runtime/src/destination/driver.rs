//! The driver of a destination: one thread a session that owns the events of its state machine and carries the
//! commands out. Mirrors the driver of a source.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use vmferry_core::PageBitmap;
use vmferry_core::destination::{Command, Destination, Event};
use vmferry_core::handover::{Epoch, Record};
use vmferry_core::report::Verified;
use vmferry_transport::BoxedStream;
use vmferry_wire::{PageSetParts, ToDestination, ToSource, clip_reason};

use super::Shared;
use super::compare::{Comparison, Expected};
use super::opening::Arrival;
use super::session::{Input, Session};
use crate::clock::Clock;
use crate::link::chain;
use crate::usage::MemorySampler;

/// How long a guest that was not committed is kept for a source that is gone.
const GRACE: Duration = Duration::from_secs(60);
/// How often the driver looks around when nothing happens.
const IDLE: Duration = Duration::from_millis(200);
/// The most device state a source may send.
const MAX_DEVICE_STATE_BYTES: usize = 256 << 20;

/// One session at work.
pub(super) struct Driver<'a> {
    pub(super) shared: &'a Arc<Shared>,
    pub(super) session: Arc<Session>,
    pub(super) received: Receiver<Input>,
    pub(super) machine: Destination,
    pub(super) arrival: Arrival,
    pub(super) clock: Clock,
    pub(super) control: Option<BoxedStream>,
    pub(super) control_reader: Option<JoinHandle<()>>,
    pub(super) fault_thread: Option<JoinHandle<()>>,
    /// The pages announced for after the resume, part by part.
    pub(super) announced: Option<PageSetParts>,
    pub(super) pending: PageBitmap,
    /// Pages and bytes of the rounds that were reported.
    pub(super) reported: (u64, u64),
    pub(super) device_state: Vec<u8>,
    pub(super) expected: Expected,
    pub(super) comparison: Comparison,
    pub(super) verified: Option<Verified>,
    pub(super) running: Option<Duration>,
    pub(super) give_up_at: Option<Instant>,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        shared: &'a Arc<Shared>,
        session: Arc<Session>,
        received: Receiver<Input>,
        machine: Destination,
        arrival: Arrival,
        clock: Clock,
    ) -> Self {
        let pages = arrival.vm.ram().layout().pages();
        Self {
            shared,
            session,
            received,
            machine,
            arrival,
            clock,
            control: None,
            control_reader: None,
            fault_thread: None,
            announced: None,
            pending: PageBitmap::new(pages),
            reported: (0, 0),
            device_state: Vec::new(),
            expected: Expected::default(),
            comparison: Comparison::default(),
            verified: None,
            running: None,
            give_up_at: None,
        }
    }

    /// Runs the session to its end.
    pub(super) fn run(mut self, failed: Option<String>) {
        let session = self.session.clone();
        let mut usage = session.usage.thread();
        let mut memory = MemorySampler::new();
        let mut events: VecDeque<_> = failed.map(Event::Broken).into_iter().collect();
        loop {
            while let Some(event) = events.pop_front() {
                for command in self.handle(event) {
                    self.execute(command, &mut events);
                }
                *session.phase.lock().unwrap_or_else(PoisonError::into_inner) = self.machine.phase();
            }
            memory.tick(&session.usage);
            // A source that comes back after the end is answered from the log.
            if self.machine.ended().is_some() {
                break;
            }
            if self.give_up_at.is_some_and(|at| Instant::now() >= at) {
                self.give_up_at = None;
                events.push_back(Event::Failed("the source did not come back".into()));
                continue;
            }
            if let Ok(input) = self.received.recv_timeout(IDLE) {
                usage.flush();
                self.take(input, &mut events);
            }
        }
        self.end();
    }

    fn take(&mut self, input: Input, events: &mut VecDeque<Event>) {
        let current = self.session.connection.load(Ordering::Acquire);
        match input {
            Input::Missed { connection, pages } if connection == current => {
                if let Err(reason) = self.tell_missed(&pages) {
                    events.push_back(Event::Broken(reason));
                }
            }
            Input::Peer { connection, event } if connection == current => events.push_back(event),
            Input::Message { connection, message } if connection == current => match self.message(message) {
                Ok(event) => events.extend(event),
                Err(reason) => events.push_back(Event::Failed(reason)),
            },
            // The last page may come over a connection that has just ended.
            Input::Peer {
                event: Event::AllArrived,
                ..
            } => events.push_back(Event::AllArrived),
            Input::Peer { .. } | Input::Message { .. } | Input::Missed { .. } => {}
            Input::Local(event) => events.push_back(event),
            Input::Connected(control) => {
                self.give_up_at = None;
                if let Err(reason) = self.begin_connection(control) {
                    events.push_back(Event::Broken(reason));
                }
            }
            Input::Cancel(answer) => {
                let possible = !self.machine.owns();
                let _ = answer.send(possible);
                if possible {
                    events.push_back(Event::Failed(
                        "given up by the operator of the destination".into(),
                    ));
                }
            }
        }
    }

    /// The event in a message; none where more belongs to it.
    fn message(&mut self, message: ToDestination) -> Result<Option<Event>, String> {
        let pages = self.pending.len();
        Ok(Some(match message {
            ToDestination::Offer(_) | ToDestination::Disks { .. } => {
                return Err("got a second offer, expected the migration to go on".into());
            }
            ToDestination::Pending { pages: part } => {
                self.announced().add(&part).map_err(|e| chain(&e))?;
                return Ok(None);
            }
            ToDestination::Switch { pending, .. } => {
                self.announced().add(&pending).map_err(|e| chain(&e))?;
                if let Some(announced) = self.announced.take() {
                    self.pending = announced.finish().map_err(|e| chain(&e))?;
                }
                Event::Switch
            }
            ToDestination::DeviceState { last, bytes } => {
                if self.device_state.len() + bytes.len() > MAX_DEVICE_STATE_BYTES {
                    return Err(format!(
                        "got more than {MAX_DEVICE_STATE_BYTES} bytes of device state"
                    ));
                }
                self.device_state.extend(bytes);
                if !last {
                    return Ok(None);
                }
                Event::StateArrived
            }
            ToDestination::PageHashes { first, hashes } => {
                // After a restart of this daemon there is nothing to compare with.
                match self.machine.pages_follow() {
                    _ if !self.arrival.verify => {}
                    true => self.expected.add(first, &hashes, pages)?,
                    // All pages are here, and nobody runs the guest.
                    false => {
                        let ram = self.arrival.vm.ram();
                        self.comparison.add(ram, first, &hashes, &self.session.usage)?;
                    }
                }
                return Ok(None);
            }
            ToDestination::Prepare { epoch } => Event::Prepare(Epoch(epoch)),
            ToDestination::Commit { epoch } => Event::Commit(Epoch(epoch)),
            ToDestination::PushedAll => Event::AllPushed,
            ToDestination::Abort { reason } => Event::Abort(reason),
            ToDestination::Query { epoch } => Event::Asked(Epoch(epoch)),
            ToDestination::CpuCap { percent } => {
                self.session.cpu_cap.set(percent);
                return Ok(None);
            }
            ToDestination::AskHeld => {
                self.tell_holdings()?;
                return Ok(None);
            }
            ToDestination::Ping { nonce } => {
                self.send(&ToSource::Pong { nonce })?;
                return Ok(None);
            }
        }))
    }

    fn announced(&mut self) -> &mut PageSetParts {
        let layout = self.arrival.vm.ram().layout();
        self.announced.get_or_insert_with(|| PageSetParts::new(layout))
    }

    /// Feeds the machine. An event that it has no place for fails the session.
    fn handle(&mut self, event: Event) -> Vec<Command> {
        tracing::debug!(?event, "destination");
        match self.machine.handle(event) {
            Ok(commands) => commands,
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(vm = self.session.name(), reason, "the source broke the protocol");
                let _ = self.send(&ToSource::Failed {
                    reason: clip_reason(&reason),
                });
                self.machine.handle(Event::Failed(reason)).unwrap_or_default()
            }
        }
    }

    fn execute(&mut self, command: Command, events: &mut VecDeque<Event>) {
        tracing::debug!(?command, "destination");
        let answer = match command {
            Command::SendRoundReceived { round } => self.round_received(round).map(|()| None),
            Command::ExpectPages => self.expect_pages(),
            Command::Load => self.load().map(|()| Some(Event::Loaded)),
            Command::Compare => self.compare().map(Some),
            Command::CompareArrived => self.compare_arrived().map(Some),
            Command::SendReady(epoch) => self.send_or_break(&ToSource::Ready { epoch: epoch.0 }),
            Command::JournalOwner(epoch) => {
                let written = self
                    .arrival
                    .journal
                    .append(&Record::Owner { epoch })
                    .map_err(|e| chain(&e));
                Ok(Some(
                    written.map_or_else(Event::JournalFailed, |()| Event::Journaled),
                ))
            }
            Command::JournalDeclined(epoch) => Ok(Some(
                self.decline(epoch)
                    .map_or_else(Event::JournalFailed, |()| Event::Journaled),
            )),
            Command::Run => self.run_guest().map(Some),
            Command::SendRunning(epoch) => self.send_or_break(&ToSource::Running { epoch: epoch.0 }),
            Command::Announce => {
                self.announce();
                Ok(None)
            }
            Command::ReleaseFaults => self.release_faults().map(|()| None),
            Command::SendComplete => {
                let summary = self.summary();
                let _ = self.send(&ToSource::Complete { summary });
                Ok(None)
            }
            Command::SendFailed(reason) => {
                let _ = self.send(&ToSource::Failed {
                    reason: clip_reason(&reason),
                });
                Ok(None)
            }
            Command::Discard => {
                self.arrival.vm.destroy();
                Ok(None)
            }
            Command::AwaitReconnect => {
                self.close_connection();
                self.give_up_at = (!self.machine.owns()).then(|| Instant::now() + GRACE);
                Ok(None)
            }
            Command::SendClaim { epoch, claim } => self.send_claim(epoch, claim).map(|()| None),
        };
        match answer {
            Ok(event) => events.extend(event),
            Err(reason) => events.push_back(Event::Failed(reason)),
        }
    }
}
