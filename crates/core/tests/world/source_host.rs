//! The host of the source: carries commands out as the driver of `vmferry-runtime` does.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::PageBitmap;
use vmferry_core::handover::{Claim, Epoch, Record};
use vmferry_core::report::Outcome;
use vmferry_core::source::{Command, Event, Setup, Source, SourceError};

use crate::agent::Asked;
use crate::chooser::Chooser;
use crate::disk::Disk;
use crate::guest::{Memory, Tracker, drain_io};
use crate::network::ToDestination;
use crate::source_streams::Sender;
use crate::world::World;

/// Epoch of the migration; the source owns the guest as of the one before.
pub(crate) const EPOCH: Epoch = Epoch(5);
/// What reaches the driver.
pub(crate) enum Input {
    Peer { connection: u64, event: Event },
    Commands(Vec<Command>),
    Local(Event),
    Connected(usize),
}

pub(crate) struct SourceHost {
    /// The daemon runs.
    pub alive: bool,
    /// While there is a migration.
    pub machine: Option<Source>,
    /// How the migration ended; nothing where the daemon was restarted before the commit point.
    pub over: Option<Option<Outcome>>,
    pub error: Option<String>,
    pub journal: Vec<Record>,
    pub memory: Memory,
    pub tracker: Tracker,
    pub running: bool,
    /// The migration paused the guest.
    paused: bool,
    pub released: bool,
    pub mailbox: VecDeque<Input>,
    pub answers: VecDeque<Event>,
    pub connection: Option<usize>,
    pub number: u64,
    pub senders: Vec<Sender>,
    /// The guest's agent is being asked.
    pub asked: Option<Asked>,
    /// Pages that the machine dropped.
    pub dropped: PageBitmap,
    /// The device state is known to be whole.
    confirmed: bool,
    /// The disk that moves with the guest.
    pub disk: Option<Disk>,
    /// Threads that try to reconnect.
    pub dialling: u32,
}

impl SourceHost {
    pub(crate) fn new(memory: Memory, machine: Source, disk: Option<Disk>) -> Self {
        let pages = memory.version.len() as u64;
        Self {
            alive: true,
            machine: Some(machine),
            over: None,
            error: None,
            journal: vec![Record::Owner {
                epoch: Epoch(EPOCH.0 - 1),
            }],
            memory,
            tracker: Tracker {
                armed: false,
                dirty: PageBitmap::new(pages),
            },
            running: true,
            paused: false,
            released: false,
            mailbox: VecDeque::new(),
            answers: VecDeque::new(),
            connection: None,
            number: 0,
            senders: Vec::new(),
            asked: None,
            dropped: PageBitmap::new(pages),
            confirmed: false,
            disk,
            dialling: 0,
        }
    }

    /// The next time it has something to do by itself.
    pub(crate) fn timer(&self) -> Option<Duration> {
        let asleep = self.senders.iter().filter_map(|sender| sender.asleep.flatten());
        asleep
            .chain(self.machine.as_ref().and_then(Source::deadline))
            .min()
    }
}

/// A record that may fail to be written, or be written while that is not known.
pub(crate) fn append(journal: &mut Vec<Record>, record: Record, chooser: &mut Chooser) -> Result<(), String> {
    if !chooser.fails(25) {
        journal.push(record);
        return Ok(());
    }
    if chooser.once_in(2) {
        journal.push(record);
    }
    Err("the disk is full".into())
}

impl World {
    pub(crate) fn source_setup(&self) -> Setup {
        Setup {
            pages: self.scenario.pages,
            streams: self.scenario.streams,
            pinned_io: self.scenario.habits.pinned_io,
            verify: self.scenario.verify,
            epoch: EPOCH,
        }
    }

    /// Dials and offers.
    pub(crate) fn source_offers(&mut self) {
        if self
            .source
            .machine
            .as_ref()
            .is_some_and(|m| m.wants_hints().is_some())
        {
            self.source.asked = Some(Asked::Unread { tracked: false });
        }
        let connection = self.network.connect();
        self.destination.greeting = Some(connection);
        self.begin_source_connection(connection);
        let _ = self.send(ToDestination::Offer {
            streams: self.scenario.streams,
        });
    }

    fn begin_source_connection(&mut self, connection: usize) {
        self.close_source_connection();
        self.source.number += 1;
        self.source.connection = Some(connection);
    }

    fn close_source_connection(&mut self) {
        let Some(connection) = self.source.connection.take() else {
            return;
        };
        self.source.number += 1;
        self.network.connections[connection].close_at_source();
        for mut sender in std::mem::take(&mut self.source.senders) {
            // A thread that wrote its last page reports it before it is joined.
            if sender.batch.as_ref().is_some_and(|(runs, _)| runs.is_empty()) {
                self.source_sent(&mut sender);
            }
        }
    }

    // Events and commands.

    /// Feeds events and carries out what follows, as the driver's loop does between two inputs.
    fn source_pump(&mut self, mut events: VecDeque<Event>) {
        while let Some(event) = events.pop_front() {
            let now = self.now;
            let Some(machine) = &mut self.source.machine else {
                return;
            };
            let commands = match machine.handle(now, event) {
                Ok(commands) => commands,
                Err(error) => {
                    self.checks.protocol_error("source", &error);
                    machine
                        .handle(now, Event::Failed(error.to_string()))
                        .expect("a failure is always taken in")
                }
            };
            self.source_executes(commands, &mut events);
        }
        self.source_ends_if_over();
    }

    fn source_executes(&mut self, commands: Vec<Command>, events: &mut VecDeque<Event>) {
        for command in commands {
            if self.chooser.fails(400) {
                self.crash_source();
            }
            if !self.source.alive {
                events.clear();
                return;
            }
            self.source_execute(command, events);
        }
    }

    /// The operator's request; answered at once.
    pub(crate) fn ask_source(&mut self, event: Event) -> Result<(), SourceError> {
        let now = self.now;
        let machine = self.source.machine.as_mut().expect("a migration to ask");
        let commands = machine.handle(now, event)?;
        let mut events = VecDeque::new();
        self.source_executes(commands, &mut events);
        self.source_pump(events);
        Ok(())
    }

    fn source_execute(&mut self, command: Command, events: &mut VecDeque<Event>) {
        let answer = match command {
            Command::CopyDisks => self.local_failure("mirror").map(|()| {
                self.source.disk.as_mut().expect("a disk moves").begin();
                None
            }),
            Command::SettleDisks => self.local_failure("settle").map(|()| {
                assert!(!self.source.running, "the disks settle while the guest runs");
                self.source.disk.as_mut().expect("a disk moves").settle();
                Some(Event::DisksSettled)
            }),
            Command::Arm => self.arm().map(Some),
            Command::Scan => self
                .local_failure("scan")
                .map(|()| Some(Event::Scanned(self.source.tracker.scan()))),
            Command::Enlighten => {
                self.source.asked = Some(Asked::Unread { tracked: true });
                Ok(None)
            }
            Command::Stop { scan, free } => self.stop(scan, free).map(Some),
            Command::Retract => self.local_failure("resume").map(|()| {
                self.resume_at_source();
                Some(Event::Resumed)
            }),
            Command::SendSwitch { pending } => {
                self.spoil_dropped();
                self.send(ToDestination::Switch(pending))
                    .and_then(|()| self.send(ToDestination::Ping))
                    .map(|()| None)
            }
            Command::SendState => {
                self.check_disks();
                self.local_failure("save")
                    .and_then(|()| self.send(ToDestination::State))
                    .map(|()| Some(Event::StateSent { bytes: 1000 }))
            }
            Command::ConfirmState => self.local_failure("confirm").map(|()| {
                self.source.confirmed = true;
                Some(Event::StateConfirmed)
            }),
            Command::SendHashes => {
                let mut hashes = self.source.memory.version.clone();
                for page in self.source.dropped.pages() {
                    hashes[page as usize] = 0;
                }
                self.send(ToDestination::Hashes(hashes)).map(|()| None)
            }
            Command::SendPrepare(epoch) => self.send(ToDestination::Prepare(epoch)).map(|()| None),
            Command::JournalHandedOver(epoch) => {
                assert!(self.source.confirmed, "a state that may be broken is handed over");
                let record = Record::HandedOver {
                    epoch,
                    to: "there".into(),
                    session: "1".into(),
                };
                Ok(Some(self.source_journals(record)))
            }
            Command::JournalOwner(epoch) => Ok(Some(self.source_journals(Record::Owner { epoch }))),
            Command::SendCommit(epoch) => {
                assert!(
                    matches!(self.source.journal.last(), Some(Record::HandedOver { .. })),
                    "commit unwritten"
                );
                assert!(!self.source.running, "commit of a running guest");
                self.check_disks();
                self.send(ToDestination::Commit(epoch)).map(|()| None)
            }
            Command::WakeStreams => {
                self.wake_senders();
                Ok(None)
            }
            Command::SendAllPushed => self.send(ToDestination::AllPushed).map(|()| None),
            Command::SendAbort(reason) => {
                let _ = self.send(ToDestination::Abort(reason));
                Ok(None)
            }
            Command::Rollback => {
                self.source.tracker.armed = false;
                if let Some(disk) = &mut self.source.disk {
                    disk.give_up();
                }
                if self.source.paused {
                    self.resume_at_source();
                }
                Ok(None)
            }
            Command::Reconnect => {
                self.close_source_connection();
                self.checks.reconnects += 1;
                self.source.dialling += 1;
                Ok(None)
            }
            Command::Release(epoch) => {
                self.check_release();
                self.source.released = true;
                self.source.journal.push(Record::Released { epoch });
                Ok(None)
            }
        };
        let event = match answer {
            Ok(None) => return,
            Ok(Some(event)) => event,
            Err(reason) => Event::Failed(reason),
        };
        // Hosts that do their work beside answer later, in order.
        let later = self.scenario.slow && (!self.source.answers.is_empty() || self.chooser.once_in(2));
        match later {
            true => self.source.answers.push_back(event),
            false => events.push_back(event),
        }
    }

    fn local_failure(&mut self, what: &str) -> Result<(), String> {
        match self.chooser.fails(150) {
            true => Err(format!("cannot {what}")),
            false => Ok(()),
        }
    }

    fn source_journals(&mut self, record: Record) -> Event {
        match append(&mut self.source.journal, record, &mut self.chooser) {
            Ok(()) => Event::Journaled,
            Err(reason) => Event::JournalFailed(reason),
        }
    }

    fn send(&mut self, message: ToDestination) -> Result<(), String> {
        let connection = self
            .source
            .connection
            .ok_or("there is no connection to the destination")?;
        self.network.connections[connection]
            .to_destination
            .write(message, &mut self.chooser)
    }

    // The guest.

    fn arm(&mut self) -> Result<Event, String> {
        self.local_failure("arm")?;
        drain_io(&mut self.guest, &mut self.source.memory, &mut self.chooser);
        self.source.tracker.armed = true;
        self.source.tracker.dirty.clear();
        // The guest goes on before anybody looks which pages hold data.
        for _ in 0..self.chooser.below(4) {
            self.guest_acts();
        }
        Ok(Event::Armed {
            data: self.source.memory.data.clone(),
            paused: Duration::from_micros(300),
        })
    }

    fn stop(&mut self, scan: bool, free: bool) -> Result<Event, String> {
        self.source.paused = true;
        self.local_failure("pause")?;
        let paused_at = self.now;
        drain_io(&mut self.guest, &mut self.source.memory, &mut self.chooser);
        self.source.running = false;
        let data = self.source.memory.data.clone();
        let free = if free { self.free_at_stop() } else { None };
        if !scan {
            return Ok(Event::Stopped {
                paused_at,
                pages: data,
                discarded: None,
                free,
            });
        }
        let discarded = self.scenario.habits.discards.then(|| {
            let mut holes = data;
            holes.invert();
            holes
        });
        Ok(Event::Stopped {
            paused_at,
            pages: self.source.tracker.scan(),
            discarded,
            free,
        })
    }

    fn resume_at_source(&mut self) {
        self.source.paused = false;
        self.source.running = true;
        self.check_one_runs();
    }

    // Threads of the connection.

    pub(crate) fn source_takes_input(&mut self) -> bool {
        let Some(input) = self.source.mailbox.pop_front() else {
            return false;
        };
        let mut events = VecDeque::new();
        match input {
            Input::Peer { connection, event } if connection == self.source.number => {
                let event = self.with_streams(event);
                events.push_back(event);
            }
            Input::Peer { .. } => {}
            Input::Local(event) => events.push_back(event),
            Input::Commands(commands) => self.source_executes(commands, &mut events),
            Input::Connected(connection) => {
                self.begin_source_connection(connection);
                let query = ToDestination::Query(EPOCH);
                if self.send(query).is_err() {
                    self.source_execute(Command::Reconnect, &mut events);
                }
            }
        }
        self.source_pump(events);
        true
    }

    pub(crate) fn source_answers(&mut self) -> bool {
        let Some(event) = self.source.answers.pop_front() else {
            return false;
        };
        self.source_pump([event].into());
        true
    }

    pub(crate) fn source_ticks(&mut self) -> bool {
        let now = self.now;
        let due = self
            .source
            .machine
            .as_ref()
            .and_then(Source::deadline)
            .is_some_and(|at| at <= now);
        if due {
            self.source_pump([Event::Tick].into());
        }
        due
    }

    /// The destination takes streams once it accepted the guest, or knows it again.
    fn with_streams(&mut self, event: Event) -> Event {
        let opens = match &event {
            Event::Accepted { .. }
            | Event::Reconnected {
                claim: Claim::Prepared,
                ..
            } => true,
            Event::Reconnected {
                claim: Claim::Owner,
                lacking: Some(lacking),
                ..
            } => !lacking.is_empty(),
            _ => false,
        };
        if !opens {
            return event;
        }
        let connection = self.source.connection;
        if self.network.down || !self.destination.takes_streams_of(connection) || self.chooser.fails(60) {
            return Event::Disconnected("cannot dial".into());
        }
        self.source.senders = (0..self.scenario.streams).map(|_| Sender::default()).collect();
        self.destination_takes_streams();
        // What the guest waits for is asked for again before the machine knows of the connection.
        for _ in 0..self.chooser.below(3) {
            self.source_serves_a_fault();
        }
        event
    }

    // Ends.

    fn source_ends_if_over(&mut self) {
        let ended = self
            .source
            .machine
            .as_ref()
            .and_then(|machine| machine.ended().map(|(o, e)| (o, e.map(str::to_owned))));
        let Some((outcome, error)) = ended else { return };
        self.close_source_connection();
        self.source.dialling = 0;
        self.source.mailbox.clear();
        self.source.answers.clear();
        self.source.asked = None;
        self.source.over = Some(Some(outcome));
        self.source.error = error;
        if let Some(machine) = self.source.machine.take() {
            let measured = machine.measured();
            self.check_report(&measured);
            self.checks.filtered |= measured.counts.filtered > 0
                && measured
                    .notes
                    .iter()
                    .any(|note| note.starts_with("data filter on"));
        }
        // What the daemon of `vmferry-cli` says of it: restart me.
        if outcome == Outcome::Unresolved {
            self.crash_source();
        }
    }

    pub(crate) fn crash_source(&mut self) {
        if let Some(connection) = self.source.connection.take() {
            self.network.connections[connection].close_at_source();
            self.network.connections[connection].cut(&mut self.chooser);
        }
        let source = &mut self.source;
        source.alive = false;
        source.machine = None;
        source.number += 1;
        source.dialling = 0;
        source.senders.clear();
        source.mailbox.clear();
        source.answers.clear();
        source.asked = None;
        source.tracker.armed = false;
        self.checks.source_restarts += 1;
    }

    /// A new daemon: its journal says what to do.
    pub(crate) fn restart_source(&mut self) {
        self.source.alive = true;
        match self.source.journal.last() {
            Some(Record::HandedOver { .. }) => {
                assert!(!self.source.running, "a guest that was handed over runs");
                let policy = self.scenario.policy();
                self.source.machine =
                    Some(Source::recovered(self.source_setup(), policy).within(&self.scenario.limits));
                self.source.over = None;
                self.source.paused = true;
                let mut events = VecDeque::new();
                self.source_execute(Command::Reconnect, &mut events);
                self.source_pump(events);
            }
            Some(Record::Owner { .. }) => {
                // A migration had paused it.
                self.source.over.get_or_insert(None);
                if !self.source.running {
                    self.resume_at_source();
                }
            }
            record => {
                assert!(matches!(record, Some(Record::Released { .. })), "{record:?}");
                self.source.over.get_or_insert(Some(Outcome::Completed));
            }
        }
    }
}
