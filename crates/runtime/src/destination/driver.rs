//! The driver of a destination: one thread a session that owns the events of its state machine and carries the
//! commands out. Mirrors the driver of a source.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use serde::{Deserialize, Serialize};
use vmferry_core::PageBitmap;
use vmferry_core::destination::{Command, Destination, Event, Setup};
use vmferry_core::handover::{Claim, Epoch, Record};
use vmferry_core::report::{Outcome, Verified};
use vmferry_guest::{FaultMode, GuestSpec, Vm};
use vmferry_memory::SharedPageStates;
use vmferry_transport::BoxedStream;
use vmferry_wire::{
    DestinationSummary, FaultModeWire, Offer, OwnerState, PageSetParts, SessionToken, ToDestination,
    ToSource, VerifySummary, clip_reason, read_control, write_control,
};

use super::compare::Expected;
use super::faults;
use super::pager::Pager;
use super::pages::{Intake, Sink};
use super::session::{Guest, Input, Session};
use super::session_log::{Became, Entry};
use super::{Admitted, IncomingReport, Shared};
use crate::clock::Clock;
use crate::dir::{GuestDir, load_json, remove, store_json};
use crate::error::RuntimeError;
use crate::journal::Journal;
use crate::link::{chain, parse_token, token_text};
use crate::source::MAX_STREAMS;
use crate::usage::{MemorySampler, Usage};

/// How long the offer may take after the hello.
const OFFER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a guest that was not committed is kept for a source that is gone.
const GRACE: Duration = Duration::from_secs(60);
/// How often the driver looks around when nothing happens.
const IDLE: Duration = Duration::from_millis(200);
/// The most device state a source may send.
const MAX_DEVICE_STATE_BYTES: usize = 256 << 20;

/// What a restarted daemon needs to take a session up again.
#[derive(Debug, Serialize, Deserialize)]
struct SavedSession {
    session: String,
    strategy: String,
    streams: u16,
    epoch: Epoch,
    mode: FaultMode,
}

/// The guest of a session and what belongs to it.
struct Arrival {
    vm: Arc<dyn Vm>,
    dir: GuestDir,
    journal: Journal,
    epoch: Epoch,
    verify: bool,
}

struct Driver<'a> {
    shared: &'a Arc<Shared>,
    session: Arc<Session>,
    received: Receiver<Input>,
    machine: Destination,
    arrival: Arrival,
    clock: Clock,
    control: Option<BoxedStream>,
    control_reader: Option<JoinHandle<()>>,
    fault_thread: Option<JoinHandle<()>>,
    /// The pages announced for after the resume, part by part.
    announced: Option<PageSetParts>,
    pending: PageBitmap,
    device_state: Vec<u8>,
    expected: Expected,
    verified: Option<Verified>,
    running: Option<Duration>,
    give_up_at: Option<Instant>,
}

/// Takes a new session from its offer to its end.
pub(super) fn run(shared: &Arc<Shared>, token: SessionToken, mut control: BoxedStream) {
    let clock = Clock::start();
    let offer = match control
        .set_read_timeout(Some(OFFER_TIMEOUT))
        .map_err(|e| chain(&e))
        .and_then(|()| read_control::<ToDestination>(&mut control).map_err(|e| chain(&e)))
    {
        Ok(ToDestination::Offer(offer)) => offer,
        Ok(_) => return refuse(&mut control, "expected an offer"),
        Err(reason) => return refuse(&mut control, &reason),
    };
    let streams = offer.streams.min(MAX_STREAMS);
    if streams == 0 {
        return refuse(
            &mut control,
            "got an offer of no page streams, expected at least one",
        );
    }
    let (arrival, mode) = match admit(shared, &offer) {
        Ok(admitted) => admitted,
        Err(reason) => return refuse(&mut control, &reason),
    };
    let name = arrival.vm.spec().name.clone();
    let prepared = prepare(shared, token, &offer, streams, &arrival, mode);
    let accepted = prepared.and_then(|ready| {
        control.set_read_timeout(None).map_err(|e| chain(&e))?;
        Ok(ready)
    });
    match accepted {
        Ok((session, received)) => {
            let setup = Setup {
                streams: usize::from(streams),
                verify: offer.verify,
                epoch: arrival.epoch,
            };
            let machine = Destination::new(setup);
            let mut driver = Driver::new(shared, session, received, machine, arrival, clock);
            let began = driver
                .begin_connection(control)
                .and_then(|()| driver.send(&ToSource::Accept { streams }));
            driver.run(began.err());
        }
        Err(reason) => {
            arrival.vm.destroy();
            shared.host.discarded(&name, &reason);
            refuse(&mut control, &reason);
        }
    }
}

/// Takes a session up whose guest runs here while pages are outstanding.
pub(super) fn recover(shared: &Arc<Shared>, vm: Arc<dyn Vm>, dir: GuestDir) -> Result<(), RuntimeError> {
    let damaged = |why: &str| RuntimeError::Damaged {
        path: dir.session(),
        why: why.into(),
    };
    let saved: SavedSession = load_json(&dir.session())?.ok_or_else(|| damaged("it is missing"))?;
    let token = parse_token(&saved.session).ok_or_else(|| damaged("its session is no token"))?;
    let ram = vm.ram().clone();
    let states = SharedPageStates::open(&dir.page_states(), ram.layout().pages() as usize)
        .map_err(|e| damaged(&chain(&e)))?;
    let faults = vm.reopen_page_faults()?;
    let pager = Pager::new(ram.clone(), faults, saved.mode, states, false);
    pager.recover();
    let outstanding = pager.outstanding() > 0;
    let sink = Sink::new(ram);
    sink.set_intake(Intake::Paged);
    let _ = sink.pager.set(Arc::new(pager));
    let guest = Guest {
        name: vm.spec().name.clone(),
        strategy: saved.strategy,
        sink: Arc::new(sink),
        streams: saved.streams,
        paged: true,
    };
    let (session, received) = new_session(token, guest);
    shared.sessions().insert(token, session.clone());
    let journal = Journal::open(dir.path())?;
    let setup = Setup {
        streams: usize::from(saved.streams),
        verify: false,
        epoch: saved.epoch,
    };
    let shared = shared.clone();
    let run = move || {
        let arrival = Arrival {
            vm,
            dir,
            journal,
            epoch: saved.epoch,
            verify: false,
        };
        let machine = Destination::recovered(setup, outstanding);
        let mut driver = Driver::new(&shared, session, received, machine, arrival, Clock::start());
        driver.running = Some(Duration::ZERO);
        driver.serve_faults();
        driver.run(None);
    };
    thread::Builder::new()
        .name("in recovered".into())
        .spawn(run)
        .expect("a thread can be started");
    Ok(())
}

/// Tells a source that every page is here.
pub(super) fn say_all_received(pages: u64, control: &mut BoxedStream) -> Result<(), String> {
    let all = PageBitmap::full(pages);
    ToSource::received(&all)
        .iter()
        .try_for_each(|message| write_control(control, message))
        .map_err(|e| chain(&e))
}

fn refuse(control: &mut BoxedStream, reason: &str) {
    // The source may be gone.
    let _ = write_control(
        control,
        &ToSource::Refuse {
            reason: clip_reason(reason),
        },
    );
}

/// Has the host create the guest.
fn admit(shared: &Shared, offer: &Offer) -> Result<(Arrival, Option<FaultMode>), String> {
    let spec: GuestSpec = serde_json::from_str(&offer.spec_json)
        .map_err(|e| format!("the guest's specification cannot be read: {e}"))?;
    let Admitted { vm, dir } = shared.host.admit(&spec, &offer.layout)?;
    let checked = if vm.ram().layout() == &offer.layout {
        Journal::open(dir.path()).map_err(|e| chain(&e))
    } else {
        Err("the guest created here has another RAM layout than the one on offer".into())
    };
    match checked {
        Ok(journal) => {
            let mode = offer.faults.map(|mode| match mode {
                FaultModeWire::Missing => FaultMode::Missing,
                FaultModeWire::MissingAndStale => FaultMode::MissingAndStale,
            });
            Ok((
                Arrival {
                    vm,
                    dir,
                    journal,
                    epoch: Epoch(offer.epoch),
                    verify: offer.verify,
                },
                mode,
            ))
        }
        Err(reason) => {
            vm.destroy();
            shared.host.discarded(&spec.name, &reason);
            Err(reason)
        }
    }
}

/// Sets up faults, files and the session, before the source hears of it.
fn prepare(
    shared: &Shared,
    token: SessionToken,
    offer: &Offer,
    streams: u16,
    arrival: &Arrival,
    mode: Option<FaultMode>,
) -> Result<(Arc<Session>, Receiver<Input>), String> {
    let Arrival { vm, dir, .. } = arrival;
    let sink = Sink::new(vm.ram().clone());
    if let Some(mode) = mode {
        let faults = vm.page_faults(mode).map_err(|e| chain(&e))?;
        let states = SharedPageStates::create(&dir.page_states(), vm.ram().layout().pages() as usize);
        let pager = Pager::new(
            vm.ram().clone(),
            faults,
            mode,
            states.map_err(|e| chain(&e))?,
            offer.verify,
        );
        let _ = sink.pager.set(Arc::new(pager));
        let saved = SavedSession {
            session: token_text(token),
            strategy: offer.strategy.clone(),
            streams,
            epoch: arrival.epoch,
            mode,
        };
        store_json(&dir.session(), &saved).map_err(|e| chain(&e))?;
    }
    let name = vm.spec().name.clone();
    let entry = log_entry(token, arrival, Became::Admitted);
    shared.log.append(&entry).map_err(|e| chain(&e))?;
    let guest = Guest {
        name,
        strategy: offer.strategy.clone(),
        sink: Arc::new(sink),
        streams,
        paged: mode.is_some(),
    };
    let (session, received) = new_session(token, guest);
    shared.sessions().insert(token, session.clone());
    Ok((session, received))
}

fn log_entry(token: SessionToken, arrival: &Arrival, became: Became) -> Entry {
    Entry {
        session: token_text(token),
        vm: arrival.vm.spec().name.clone(),
        dir: arrival.dir.path().to_owned(),
        epoch: arrival.epoch.0,
        pages: arrival.vm.ram().layout().pages(),
        became,
    }
}

fn new_session(token: SessionToken, guest: Guest) -> (Arc<Session>, Receiver<Input>) {
    let (inputs, received) = unbounded();
    let session = Session {
        token,
        inputs,
        usage: Usage::start(),
        faults: faults::FaultLine::default(),
        guest: OnceLock::from(guest),
        streams: Mutex::default(),
        phase: Mutex::new("preparing"),
        connection: AtomicU64::new(0),
    };
    (Arc::new(session), received)
}

impl<'a> Driver<'a> {
    fn new(
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
            device_state: Vec::new(),
            expected: Expected::default(),
            verified: None,
            running: None,
            give_up_at: None,
        }
    }

    /// Runs the session to its end.
    fn run(mut self, failed: Option<String>) {
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
            Input::Peer { .. } | Input::Message { .. } => {}
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
            ToDestination::Offer(_) => {
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
                if self.arrival.verify {
                    self.expected.add(first, &hashes, pages)?;
                }
                return Ok(None);
            }
            ToDestination::Prepare { epoch } => Event::Prepare(Epoch(epoch)),
            ToDestination::Commit { epoch } => Event::Commit(Epoch(epoch)),
            ToDestination::PushedAll => Event::AllPushed,
            ToDestination::Abort { reason } => Event::Abort(reason),
            ToDestination::Query { epoch } => Event::Asked(Epoch(epoch)),
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
            Command::SendRoundReceived { round } => self
                .send(&ToSource::RoundReceived {
                    round,
                    pages: 0,
                    bytes: 0,
                })
                .map(|()| None),
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

    // The guest.

    /// From here on pages go through the pager.
    fn expect_pages(&mut self) -> Result<Option<Event>, String> {
        let sink = self.sink();
        let pager = sink
            .pager
            .get()
            .ok_or("pages after the resume were not part of the offer")?;
        let outstanding = pager.switch(&self.pending);
        sink.set_intake(Intake::Paged);
        self.serve_faults();
        Ok((outstanding == 0).then_some(Event::AllArrived))
    }

    fn serve_faults(&mut self) {
        let (session, sink) = (self.session.clone(), self.sink());
        let serve = move || {
            let _usage = session.usage.thread();
            let Some(pager) = sink.pager.get() else { return };
            if let Err(error) = faults::serve(&sink, pager, &session.faults) {
                let reason = format!("faults of the guest cannot be served: {}", chain(&error));
                let _ = session.inputs.send(Input::Local(Event::Failed(reason)));
            }
        };
        self.fault_thread = Some(
            thread::Builder::new()
                .name("in faults".into())
                .spawn(serve)
                .expect("a thread can be started"),
        );
    }

    fn load(&mut self) -> Result<(), String> {
        let sink = self.sink();
        if self.fault_thread.is_none() {
            sink.set_intake(Intake::Closed);
            // Nothing is outstanding, but accesses fault while the mechanism is armed.
            if let Some(pager) = sink.pager.get() {
                pager.switch(&PageBitmap::new(self.pending.len()));
                self.serve_faults();
            }
        }
        let state = std::mem::take(&mut self.device_state);
        self.arrival.vm.load_device_state(&state).map_err(|e| chain(&e))
    }

    fn run_guest(&mut self) -> Result<Event, String> {
        self.arrival.vm.resume().map_err(|e| chain(&e))?;
        self.running = Some(self.clock.now());
        Ok(Event::Started)
    }

    fn announce(&mut self) {
        let name = self.session.name().to_owned();
        if let Err(error) = self.arrival.vm.announce() {
            tracing::warn!(
                vm = name,
                error = chain(&error),
                "cannot announce the guest to the network"
            );
        }
        let owner = log_entry(self.session.token, &self.arrival, Became::Owner);
        if let Err(error) = self.shared.log.append(&owner) {
            tracing::error!(
                vm = name,
                error = chain(&error),
                "cannot write the log of sessions"
            );
        }
        self.shared.host.arrived(&name);
    }

    fn release_faults(&mut self) -> Result<(), String> {
        let sink = self.sink();
        if let Some(pager) = sink.pager.get() {
            pager.release().map_err(|e| chain(&e))?;
        }
        sink.set_intake(Intake::Closed);
        self.stop_fault_thread();
        remove(&self.arrival.dir.page_states());
        Ok(())
    }

    fn compare(&mut self) -> Result<Event, String> {
        let verified = self.expected.compare_memory(self.arrival.vm.ram())?;
        self.verified = Some(verified);
        Ok(Event::Compared {
            mismatches: verified.mismatches,
        })
    }

    fn compare_arrived(&mut self) -> Result<Event, String> {
        let sink = self.sink();
        let pager = sink.pager.get().ok_or("nothing was paged in")?;
        let compared = self
            .expected
            .compare(self.pending.len(), |page| pager.arrival_hash(page));
        let mismatches = match compared {
            Ok(verified) => {
                self.verified = Some(verified);
                verified.mismatches
            }
            Err(reason) => {
                tracing::error!(vm = self.session.name(), reason, "pages could not be compared");
                0
            }
        };
        Ok(Event::Compared { mismatches })
    }

    fn decline(&mut self, epoch: Epoch) -> Result<(), String> {
        self.arrival
            .journal
            .append(&Record::Declined { epoch })
            .map_err(|e| chain(&e))?;
        let declined = log_entry(self.session.token, &self.arrival, Became::Declined);
        self.shared.log.append(&declined).map_err(|e| chain(&e))
    }

    // The connection.

    fn begin_connection(&mut self, control: BoxedStream) -> Result<(), String> {
        self.close_connection();
        let mut reader = control.try_clone().map_err(|e| chain(&e))?;
        let session = self.session.clone();
        let connection = session.connection.load(Ordering::Acquire);
        let read = move || {
            let _usage = session.usage.thread();
            loop {
                match read_control(&mut reader) {
                    Ok(message) => {
                        let _ = session.inputs.send(Input::Message { connection, message });
                    }
                    Err(error) => return session.tell(connection, Event::Broken(chain(&error))),
                }
            }
        };
        let thread = thread::Builder::new()
            .name("in control".into())
            .spawn(read)
            .expect("a thread can be started");
        self.control_reader = Some(thread);
        self.control = Some(control);
        Ok(())
    }

    fn close_connection(&mut self) {
        if let Some(control) = self.control.take() {
            let _ = control.shutdown();
        }
        self.session.close_streams();
        if let Some(thread) = self.control_reader.take() {
            let _ = thread.join();
        }
    }

    fn send(&mut self, message: &ToSource) -> Result<(), String> {
        let control = self
            .control
            .as_mut()
            .ok_or("there is no connection to the source")?;
        write_control(control, message).map_err(|e| chain(&e))
    }

    /// Sends what the source will ask for again after a reconnect.
    fn send_or_break(&mut self, message: &ToSource) -> Result<Option<Event>, String> {
        Ok(self.send(message).err().map(Event::Broken))
    }

    fn send_claim(&mut self, epoch: Epoch, claim: Claim) -> Result<(), String> {
        let state = match claim {
            Claim::Prepared => OwnerState::Prepared,
            Claim::Owner => OwnerState::Owner,
            Claim::Declined => OwnerState::Declined,
        };
        self.send(&ToSource::Owner {
            epoch: epoch.0,
            state,
        })?;
        if claim == Claim::Declined {
            return Ok(());
        }
        let sink = self.sink();
        let have = match sink.pager.get() {
            Some(pager) => pager.have(),
            None => PageBitmap::full(self.pending.len()),
        };
        ToSource::received(&have)
            .iter()
            .try_for_each(|message| self.send(message))
    }

    // The end.

    fn sink(&self) -> Arc<Sink> {
        self.session
            .guest
            .get()
            .expect("a session with a driver has a guest")
            .sink
            .clone()
    }

    fn stop_fault_thread(&mut self) {
        self.sink().closing.store(true, Ordering::Release);
        if let Some(thread) = self.fault_thread.take() {
            let _ = thread.join();
        }
    }

    fn summary(&self) -> DestinationSummary {
        let sink = self.sink();
        let usage = &self.session.usage;
        usage.sample_memory();
        DestinationSummary {
            faults: sink
                .pager
                .get()
                .map(|pager| pager.fault_summary())
                .unwrap_or_default(),
            cpu_seconds: usage.cpu_seconds(),
            memory_bytes: usage.peak_bytes(),
            verified: self.verified.map(|v| VerifySummary {
                pages: v.pages,
                mismatches: v.mismatches,
            }),
            pages_received: sink.pages.load(Ordering::Relaxed),
        }
    }

    fn end(mut self) {
        let name = self.session.name().to_owned();
        let report = self.report();
        // Until the log has the last word, the session answers itself.
        self.shared.sessions().remove(&self.session.token);
        self.stop_fault_thread();
        remove(&self.arrival.dir.session());
        match report.outcome {
            Outcome::Completed => self.shared.host.finished(&name, report),
            _ => {
                remove(&self.arrival.dir.page_states());
                let reason = report.error.clone().unwrap_or_default();
                self.shared.host.discarded(&name, &reason);
            }
        }
        // The source closes first: it may still be reading the last message.
        if let Some(thread) = self.control_reader.take()
            && let Some(control) = self.control.take()
        {
            let closes = Instant::now() + Duration::from_secs(5);
            while !thread.is_finished() && Instant::now() < closes {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = control.shutdown();
            let _ = thread.join();
        }
        self.session.close_streams();
    }

    fn report(&self) -> IncomingReport {
        let summary = self.summary();
        let (outcome, error) = self.machine.ended().unwrap_or((Outcome::Failed, None));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let strategy = self.session.guest.get().map(|guest| guest.strategy.clone());
        IncomingReport {
            vm: self.session.name().to_owned(),
            strategy: strategy.unwrap_or_default(),
            outcome,
            error: error.map(str::to_owned),
            total_ms: ms(self.clock.now()),
            running_ms: self.running.map_or(0.0, ms),
            pages_received: summary.pages_received,
            faults: summary.faults.into(),
            cpu_seconds: summary.cpu_seconds,
            memory_bytes: summary.memory_bytes,
            verified: self.verified,
        }
    }
}
