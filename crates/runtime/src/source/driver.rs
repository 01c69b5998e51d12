//! The driver of a source: one thread that owns the events of the state machine and carries its commands out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use vmferry_core::filter::SampleCost;
use vmferry_core::handover::{Claim, Record};
use vmferry_core::policy::Faults;
use vmferry_core::report::Report;
use vmferry_core::source::{Command, Event, SourceError};
use vmferry_guest::{DirtyTracker, Vm};
use vmferry_transport::BoxedStream;
use vmferry_wire::ToDestination;

use super::Shared;
use super::connection::Connection;
use super::control::AFTER_SWITCH;
use super::disks::DiskCopy;
use crate::dir::{GuestDir, remove};
use crate::journal::Journal;
use crate::link::chain;
use crate::usage::MemorySampler;

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
    Commands {
        /// Number of the connection.
        connection: u64,
        /// What follows.
        commands: Vec<Command>,
    },
    /// From this host.
    Local(Event),
    /// A reconnect succeeded.
    Connected(BoxedStream),
}

pub(super) struct Driver {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) dir: GuestDir,
    pub(super) journal: Journal,
    pub(super) shared: Arc<Shared>,
    pub(super) inputs: Sender<Input>,
    pub(super) received: Receiver<Input>,
    pub(super) connection: Option<Connection>,
    pub(super) connections: u64,
    /// Page streams that the destination takes.
    pub(super) streams: u16,
    pub(super) tracker: Option<Box<dyn DirtyTracker>>,
    /// Bytes of the control stream, of connections that ended too.
    pub(super) control_bytes: u64,
    /// The guest was paused by this migration and not resumed.
    pub(super) paused: bool,
    pub(super) stop_reconnecting: Arc<AtomicBool>,
    /// Of scans, and of what was decided upon them.
    pub(super) sample_cost: SampleCost,
    /// The disks that move with the guest, once they were on offer.
    pub(super) disks: Option<DiskCopy>,
    /// Bytes of disks on the wire, both ways.
    pub(super) disk_bytes: u64,
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
        let streams = super::streams(&shared.request);
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
            sample_cost: SampleCost::default(),
            disks: None,
            disk_bytes: 0,
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
        } else {
            if shared.source().wants_hints().is_some() {
                self.ask_guest(false);
            }
            events.extend(self.offer().err().map(Event::Failed));
            // While the destination creates its like.
            if shared.source().needs().faults != Faults::None {
                let pages = self.vm.shared_with_devices();
                shared.source().read_by_load(pages);
            }
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
                Some(Input::Ask(event, answer)) => {
                    let limits = matches!(event, Event::LimitBandwidth(_));
                    let handled = shared.source().handle(shared.now(), event);
                    // The asker may be gone.
                    let _ = answer.send(handled.as_ref().map(|_| ()).map_err(Clone::clone));
                    self.execute_all(handled.unwrap_or_default(), &mut events);
                    if limits {
                        self.limit_disks();
                    }
                }
                Some(Input::Commands { connection, commands }) if connection == self.connections => {
                    self.execute_all(commands, &mut events);
                }
                Some(Input::Peer { .. } | Input::Commands { .. }) => {}
                Some(Input::Local(event)) => events.push_back(event),
                Some(Input::Connected(control)) => events.extend(self.ask_owner(control)),
                None => events.push_back(Event::Tick),
            }
        }
        self.stop_reconnecting.store(true, Ordering::Relaxed);
        self.end_disks();
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
        self.received.recv_timeout(time).ok()
    }

    /// Feeds the machine. An event that it has no place for ends the session like any other failure.
    fn handle(&mut self, event: Event) -> Vec<Command> {
        let is_scan = matches!(event, Event::Scanned(_));
        let mut source = self.shared.source();
        let (now, began) = (self.shared.now(), Instant::now());
        let handled = source.handle(now, event);
        if is_scan {
            self.sample_cost.decided(began.elapsed());
        }
        match handled {
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
            Command::Enlighten => {
                self.ask_guest(true);
                Ok(None)
            }
            Command::CopyDisks => self.copy_disks().map(|()| None),
            Command::SettleDisks => self.settle_disks().map(|()| None),
            Command::Arm => self.arm().map(Some),
            Command::Scan => {
                let began = Instant::now();
                let dirty = self.scan();
                self.sample_cost.scanned(began.elapsed());
                dirty.map(|dirty| Some(Event::Scanned(dirty)))
            }
            Command::Stop { scan, free } => self.stop(scan, free).map(Some),
            Command::Retract => self.resume().map(|()| Some(Event::Resumed)),
            Command::SendSwitch { pending } => {
                // From now on pages at the destination may be the guest's own.
                self.shared.encodings.no_more_deltas();
                let resend = self.shared.source().needs().faults == Faults::MissingAndStale;
                self.send_all(&ToDestination::switch(&pending, resend))
                    .and_then(|()| self.send(&ToDestination::Ping { nonce: AFTER_SWITCH }))
                    .map(|()| None)
            }
            Command::SendState => self.send_state().map(Some),
            Command::ConfirmState => self
                .vm
                .confirm_device_state()
                .map(|()| Some(Event::StateConfirmed))
                .map_err(|e| chain(&e)),
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
}

/// The name of a command without its data.
struct CommandName<'a>(&'a Command);

impl std::fmt::Debug for CommandName<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:?}", self.0);
        f.write_str(text.split([' ', '(', '{']).next().unwrap_or_default())
    }
}
