//! The driver of a source: one thread that owns the events of the state machine and carries its commands out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use vmferry_core::handover::{Claim, Epoch, Record};
use vmferry_core::policy::Faults;
use vmferry_core::report::{CpuSeconds, Outcome, Report, SidesBytes};
use vmferry_core::source::{Command, Event, SourceError};
use vmferry_core::{PAGE_SIZE, PageBitmap};
use vmferry_guest::{DirtyTracker, Vm};
use vmferry_transport::BoxedStream;
use vmferry_wire::{FaultModeWire, Offer, StreamRole, ToDestination, write_control};

use super::{Shared, control, faults, pages};
use crate::dir::{GuestDir, remove};
use crate::journal::Journal;
use crate::link::{chain, dial, token_text};
use crate::usage::MemorySampler;

/// How often a broken connection is tried again.
const RECONNECT_EVERY: Duration = Duration::from_millis(500);
/// And how soon at first.
const RECONNECT_AT_FIRST: Duration = Duration::from_millis(50);
/// How often the driver looks around when nothing happens.
const IDLE: Duration = Duration::from_millis(200);

/// What reaches the driver.
pub(super) enum Input {
    /// From a connection; of an older connection it does not count.
    Peer {
        /// Number of the connection.
        connection: u64,
        /// What happened.
        event: Event,
    },
    /// The operator asks.
    Ask(Event, Sender<Result<(), SourceError>>),
    /// A stream sent the last page and the machine said what follows.
    Commands(Vec<Command>),
    /// A reconnect succeeded.
    Connected(BoxedStream),
}

/// One connection to the destination: its control stream, and whatever threads serve it.
struct Connection {
    control: BoxedStream,
    /// All streams, to unblock the threads when it ends.
    streams: Vec<BoxedStream>,
    threads: Vec<JoinHandle<()>>,
    closing: Arc<AtomicBool>,
}

pub(super) struct Driver {
    vm: Arc<dyn Vm>,
    dir: GuestDir,
    journal: Journal,
    shared: Arc<Shared>,
    inputs: Sender<Input>,
    received: Receiver<Input>,
    connection: Option<Connection>,
    connections: u64,
    /// Page streams that the destination takes.
    streams: u16,
    tracker: Option<Box<dyn DirtyTracker>>,
    /// Bytes of the control stream, of connections that ended too.
    control_bytes: u64,
    /// The guest was paused by this migration and not resumed.
    paused: bool,
    stop_reconnecting: Arc<AtomicBool>,
}

impl Driver {
    pub(super) fn new(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        journal: Journal,
        shared: Arc<Shared>,
        inputs: Sender<Input>,
        received: Receiver<Input>,
    ) -> Self {
        let streams = shared.request.streams();
        Self {
            vm,
            dir,
            streams,
            journal,
            shared,
            inputs,
            received,
            connection: None,
            connections: 0,
            tracker: None,
            control_bytes: 0,
            paused: false,
            stop_reconnecting: Arc::default(),
        }
    }

    /// Runs the migration to its end.
    pub(super) fn run(mut self, recovered: bool) -> Report {
        let shared = self.shared.clone();
        let mut usage = shared.usage.thread();
        let mut memory = MemorySampler::new();
        let mut events = VecDeque::new();
        if recovered {
            self.paused = true;
            self.execute(Command::Reconnect, &mut events);
        } else if let Err(reason) = self.offer() {
            events.push_back(Event::Failed(reason));
        }
        loop {
            while let Some(event) = events.pop_front() {
                let commands = self.handle(event);
                self.execute_all(commands, &mut events);
            }
            memory.tick(&shared.usage);
            if shared.source().ended().is_some() {
                break;
            }
            match self.receive() {
                Some(Input::Peer { connection, event }) if connection == self.connections => {
                    events.push_back(self.with_streams(event));
                }
                Some(Input::Peer { .. }) => {}
                Some(Input::Ask(event, answer)) => {
                    let handled = shared.source().handle(shared.now(), event);
                    // The asker may be gone.
                    let _ = answer.send(handled.as_ref().map(|_| ()).map_err(Clone::clone));
                    self.execute_all(handled.unwrap_or_default(), &mut events);
                }
                Some(Input::Commands(commands)) => self.execute_all(commands, &mut events),
                Some(Input::Connected(control)) => events.extend(self.ask_owner(control)),
                None => events.push_back(Event::Tick),
            }
        }
        self.stop_reconnecting.store(true, Ordering::Relaxed);
        self.close_connection();
        drop(self.tracker.take());
        remove(&self.dir.session());
        usage.flush();
        shared.usage.sample_memory();
        self.make_report()
    }

    /// The destination takes streams once it accepted the guest, or knows it again.
    fn with_streams(&mut self, event: Event) -> Event {
        let opened = match &event {
            Event::Accepted { streams } => {
                self.streams = *streams as u16;
                self.open_streams()
            }
            Event::Reconnected {
                claim: Claim::Prepared,
                ..
            } => self.open_streams(),
            Event::Reconnected {
                claim: Claim::Owner,
                lacking: Some(lacking),
                ..
            } if !lacking.is_empty() => self.open_streams(),
            _ => Ok(()),
        };
        match opened {
            Ok(()) => event,
            Err(reason) => Event::Disconnected(reason),
        }
    }

    fn receive(&mut self) -> Option<Input> {
        let now = self.shared.now();
        let deadline = self.shared.source().deadline();
        let time = deadline.map_or(IDLE, |at| at.saturating_sub(now).min(IDLE));
        match self.received.recv_timeout(time) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Feeds the machine. An event that it has no place for ends the session like any other failure.
    fn handle(&mut self, event: Event) -> Vec<Command> {
        let mut source = self.shared.source();
        let now = self.shared.now();
        match source.handle(now, event) {
            Ok(commands) => commands,
            Err(error) => source
                .handle(now, Event::Failed(error.to_string()))
                .unwrap_or_default(),
        }
    }

    fn execute_all(&mut self, commands: Vec<Command>, events: &mut VecDeque<Event>) {
        for command in commands {
            self.execute(command, events);
        }
    }

    fn execute(&mut self, command: Command, events: &mut VecDeque<Event>) {
        tracing::debug!(command = ?CommandName(&command), "source");
        let answer = match command {
            Command::Arm => self.arm().map(Some),
            Command::Scan => self.scan().map(|dirty| Some(Event::Scanned(dirty))),
            Command::Stop { scan } => self.stop(scan).map(Some),
            Command::Retract => self.resume().map(|()| Some(Event::Resumed)),
            Command::SendSwitch { pending } => {
                let resend = self.shared.source().needs().faults == Faults::MissingAndStale;
                self.send_all(ToDestination::switch(&pending, resend))
                    .map(|()| None)
            }
            Command::SendState => self.send_state().map(Some),
            Command::SendHashes => self.send_hashes().map(|()| None),
            Command::SendPrepare(epoch) => self
                .send(&ToDestination::Prepare { epoch: epoch.0 })
                .map(|()| None),
            Command::JournalHandedOver(epoch) => {
                events.push_back(self.journal_handed_over(epoch));
                return;
            }
            Command::JournalOwner(epoch) => {
                events.push_back(self.append(&Record::Owner { epoch }));
                return;
            }
            Command::SendCommit(epoch) => self
                .send(&ToDestination::Commit { epoch: epoch.0 })
                .map(|()| None),
            Command::WakeStreams => {
                self.shared.wake.notify_all();
                Ok(None)
            }
            Command::SendAllPushed => self.send(&ToDestination::PushedAll).map(|()| None),
            Command::SendAbort(reason) => {
                let _ = self.send(&ToDestination::Abort {
                    reason: vmferry_wire::clip_reason(&reason),
                });
                Ok(None)
            }
            Command::Rollback => {
                self.rollback();
                Ok(None)
            }
            Command::Reconnect => {
                self.reconnect();
                Ok(None)
            }
            Command::Release(epoch) => {
                self.release(epoch);
                Ok(None)
            }
        };
        match answer {
            Ok(event) => events.extend(event),
            Err(reason) => events.push_back(Event::Failed(reason)),
        }
    }

    // The guest.

    /// The first protect happens inside a short stop: see `vmferry_core::tracking`.
    fn arm(&mut self) -> Result<Event, String> {
        let mut tracker = self.vm.dirty_tracker().map_err(|e| chain(&e))?;
        let began = Instant::now();
        self.vm.pause().map_err(|e| chain(&e))?;
        self.paused = true;
        let armed = tracker.arm().map_err(|e| chain(&e));
        self.tracker = Some(tracker);
        self.resume()?;
        let paused = began.elapsed();
        armed?;
        // What became data since is dirty as well, so looking after the pause loses nothing.
        let data = self.vm.ram().data_pages().map_err(|e| chain(&e))?;
        Ok(Event::Armed { data, paused })
    }

    fn scan(&mut self) -> Result<PageBitmap, String> {
        let mut dirty = PageBitmap::new(self.vm.ram().layout().pages());
        let tracker = self.tracker.as_mut().ok_or("tracking is not armed")?;
        tracker.scan(&mut dirty).map_err(|e| chain(&e))?;
        Ok(dirty)
    }

    fn stop(&mut self, scan: bool) -> Result<Event, String> {
        self.vm.before_stop().map_err(|e| chain(&e))?;
        let paused_at = self.shared.now();
        self.paused = true;
        self.vm.pause().map_err(|e| chain(&e))?;
        let data = || self.vm.ram().data_pages().map_err(|e| chain(&e));
        if !scan {
            return Ok(Event::Stopped {
                paused_at,
                pages: data()?,
                discarded: None,
            });
        }
        let discarded = match self.vm.may_discard_pages() {
            true => {
                let mut holes = data()?;
                holes.invert();
                Some(holes)
            }
            false => None,
        };
        Ok(Event::Stopped {
            paused_at,
            pages: self.scan()?,
            discarded,
        })
    }

    fn resume(&mut self) -> Result<(), String> {
        self.vm.resume().map_err(|e| chain(&e))?;
        self.paused = false;
        Ok(())
    }

    /// The guest goes on here. There is nobody to fail to: what goes wrong is logged.
    fn rollback(&mut self) {
        if let Some(mut tracker) = self.tracker.take()
            && let Err(error) = tracker.disarm()
        {
            tracing::error!(
                vm = self.vm.spec().name,
                error = chain(&error),
                "cannot stop tracking"
            );
        }
        if self.paused
            && let Err(error) = self.resume()
        {
            tracing::error!(vm = self.vm.spec().name, error, "cannot resume the guest");
        }
    }

    fn release(&mut self, epoch: Epoch) {
        drop(self.tracker.take());
        self.vm.destroy();
        if let Err(error) = self.journal.append(&Record::Released { epoch }) {
            tracing::error!(
                vm = self.vm.spec().name,
                error = chain(&error),
                "cannot write the journal"
            );
        }
    }

    // The journal.

    fn journal_handed_over(&self, epoch: Epoch) -> Event {
        let to = self.shared.request.destination.to_string();
        self.append(&Record::HandedOver {
            epoch,
            to,
            session: token_text(self.shared.session),
        })
    }

    fn append(&self, record: &Record) -> Event {
        match self.journal.append(record) {
            Ok(()) => Event::Journaled,
            Err(error) => Event::JournalFailed(chain(&error)),
        }
    }

    // The connection.

    /// Dials the destination and makes the offer.
    fn offer(&mut self) -> Result<(), String> {
        let shared = self.shared.clone();
        let request = &shared.request;
        let control = dial(
            &request.destination,
            shared.session,
            StreamRole::Control { resume: false },
        )?;
        self.begin_connection(control)?;
        let faults = match self.shared.source().needs().faults {
            Faults::None => None,
            Faults::Missing => Some(FaultModeWire::Missing),
            Faults::MissingAndStale => Some(FaultModeWire::MissingAndStale),
        };
        let spec_json = serde_json::to_string(self.vm.spec()).map_err(|e| chain(&e))?;
        self.send(&ToDestination::Offer(Offer {
            spec_json,
            layout: self.vm.ram().layout().clone(),
            strategy: request.strategy.name().into(),
            streams: request.streams(),
            faults,
            verify: request.verify,
            epoch: self.journal.epoch().next().0,
        }))
    }

    fn begin_connection(&mut self, control: BoxedStream) -> Result<(), String> {
        self.close_connection();
        self.connections += 1;
        let reader = control.try_clone().map_err(|e| chain(&e))?;
        let mut connection = Connection {
            streams: Vec::new(),
            threads: Vec::new(),
            control,
            closing: Arc::default(),
        };
        let peer = control::Peer {
            inputs: self.inputs.clone(),
            connection: self.connections,
            closing: connection.closing.clone(),
        };
        let shared = self.shared.clone();
        connection
            .threads
            .push(spawn("control", move || control::read(reader, &shared, &peer)));
        self.connection = Some(connection);
        Ok(())
    }

    /// Dials the page streams and the fault stream, once the destination has agreed to take them.
    fn open_streams(&mut self) -> Result<(), String> {
        let Some(connection) = &mut self.connection else {
            return Err("no connection".into());
        };
        let peer = control::Peer {
            inputs: self.inputs.clone(),
            connection: self.connections,
            closing: connection.closing.clone(),
        };
        let endpoint = &self.shared.request.destination;
        for index in 0..self.streams {
            let stream = dial(endpoint, self.shared.session, StreamRole::Pages { index })?;
            connection
                .streams
                .push(stream.try_clone().map_err(|e| chain(&e))?);
            let (shared, peer) = (self.shared.clone(), peer.clone());
            connection.threads.push(spawn("pages", move || {
                pages::send(stream, usize::from(index), &shared, &peer)
            }));
        }
        if self.shared.source().needs().faults != Faults::None {
            let stream = dial(endpoint, self.shared.session, StreamRole::Faults)?;
            connection
                .streams
                .push(stream.try_clone().map_err(|e| chain(&e))?);
            let (shared, peer) = (self.shared.clone(), peer.clone());
            connection
                .threads
                .push(spawn("faults", move || faults::serve(stream, &shared, &peer)));
        }
        Ok(())
    }

    fn close_connection(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        // What its threads still say does not count any more.
        self.connections += 1;
        connection.closing.store(true, Ordering::Relaxed);
        for stream in connection.streams.iter().chain([&connection.control]) {
            let _ = stream.shutdown();
        }
        self.shared.wake.notify_all();
        for thread in connection.threads {
            let _ = thread.join();
        }
        self.control_bytes += connection.control.bytes_written();
    }

    /// Keeps dialling on a thread of its own, so that the operator can still resolve.
    fn reconnect(&mut self) {
        self.close_connection();
        let (shared, inputs, stop) = (
            self.shared.clone(),
            self.inputs.clone(),
            self.stop_reconnecting.clone(),
        );
        spawn("reconnect", move || {
            let mut pause = RECONNECT_AT_FIRST;
            loop {
                thread::sleep(std::mem::replace(&mut pause, RECONNECT_EVERY));
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                match dial(
                    &shared.request.destination,
                    shared.session,
                    StreamRole::Control { resume: true },
                ) {
                    Ok(control) => {
                        let _ = inputs.send(Input::Connected(control));
                        return;
                    }
                    Err(reason) => tracing::info!(reason, "the destination cannot be reached yet"),
                }
            }
        });
    }

    /// Connected again: whose is the guest?
    fn ask_owner(&mut self, control: BoxedStream) -> Option<Event> {
        let asked = self.begin_connection(control).and_then(|()| {
            let epoch = self.journal.epoch().0;
            self.send(&ToDestination::Query { epoch })
        });
        // Still severed: try again.
        if asked.is_err() {
            self.reconnect();
        }
        None
    }

    fn send(&mut self, message: &ToDestination) -> Result<(), String> {
        let Some(connection) = &mut self.connection else {
            return Err("there is no connection to the destination".into());
        };
        write_control(&mut connection.control, message).map_err(|e| chain(&e))
    }

    fn send_all(&mut self, messages: Vec<ToDestination>) -> Result<(), String> {
        messages.iter().try_for_each(|message| self.send(message))
    }

    fn send_state(&mut self) -> Result<Event, String> {
        let state = self.vm.save_device_state().map_err(|e| chain(&e))?;
        self.send_all(ToDestination::device_state(&state))?;
        Ok(Event::StateSent {
            bytes: state.len() as u64,
        })
    }

    fn send_hashes(&mut self) -> Result<(), String> {
        let ram = self.vm.ram().clone();
        crate::destination::compare::hashes(&ram, |first, hashes| {
            self.send(&ToDestination::PageHashes { first, hashes })
        })
    }

    fn make_report(&self) -> Report {
        let source = self.shared.source();
        let measured = source.measured();
        let (outcome, error) = source.ended().unwrap_or((Outcome::Unresolved, None));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        Report {
            vm: self.vm.spec().name.clone(),
            strategy: self.shared.request.strategy.name().into(),
            backend: self.vm.spec().backend.clone(),
            outcome,
            error: error.map(str::to_owned),
            total_ms: ms(measured.total),
            execution_transfer_ms: measured.execution_transfer.map_or(0.0, ms),
            downtime_ms: measured.downtime.map_or(0.0, ms),
            perceived_downtime_ms: None,
            micro_stops_ms: ms(measured.micro_stops),
            ram_bytes: self.vm.ram().layout().bytes(),
            data_bytes: measured.data_pages * PAGE_SIZE,
            bytes_on_wire: measured.page_bytes + self.control_bytes,
            device_state_bytes: measured.device_state_bytes,
            pages: measured.counts,
            rounds: measured.rounds,
            faults: measured.summary.faults,
            phases: measured.phases,
            cpu_seconds: CpuSeconds {
                source: self.shared.usage.cpu_seconds(),
                destination: measured.summary.cpu_seconds,
            },
            memory_bytes: SidesBytes {
                source: self.shared.usage.peak_bytes(),
                destination: measured.summary.memory_bytes,
            },
            verified: measured.summary.verified,
            notes: measured.notes,
        }
    }
}

/// The name of a command without its data.
struct CommandName<'a>(&'a Command);

impl std::fmt::Debug for CommandName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(text.split([' ', '(', '{']).next().unwrap_or_default())
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(format!("out {name}"))
        .spawn(run)
        .expect("a thread can be started")
}
