//! The host of the destination: carries commands out as the driver of `vmferry-runtime` does, answers from its
//! log where a session lives no more.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::destination::{Command, Destination, Event, Setup};
use vmferry_core::handover::{Claim, Epoch, Record};
use vmferry_core::report::Outcome;
use vmferry_core::{PageBitmap, Strategy};

use crate::guest::Memory;
use crate::network::{ToDestination, ToSource};
use crate::pager::{PageState, Pager};
use crate::source_host::{EPOCH, append};
use crate::world::World;

/// How long a guest that was not committed is kept for a source that is gone.
const GRACE: Duration = Duration::from_secs(60);
/// How long the connection of a session that ended is kept open.
const LINGER: Duration = Duration::from_secs(5);
const VCPUS: usize = 3;

/// What the log of sessions says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    Admitted,
    Owner,
    Declined,
}

pub(crate) enum Input {
    Peer { connection: u64, event: Event },
    Message { connection: u64, message: ToDestination },
    Connected(usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Intake {
    Direct,
    Paged,
    Closed,
}

pub(crate) struct Session {
    pub machine: Destination,
    pub mailbox: VecDeque<Input>,
    pub answers: VecDeque<Event>,
    pub connection: Option<usize>,
    pub number: u64,
    pub intake: Intake,
    pub pending: PageBitmap,
    pub expected: Option<Vec<u32>>,
    pub mismatches: Option<u64>,
    /// Loading touches these pages.
    pub loading: Option<Vec<u64>>,
    pub give_up_at: Option<Duration>,
    pub verify: bool,
}

pub(crate) struct DestinationHost {
    /// The daemon runs.
    pub alive: bool,
    pub session: Option<Session>,
    /// A connection with an offer.
    pub greeting: Option<usize>,
    /// A connection that is answered from the log.
    pub responding: Option<usize>,
    /// The connection of a session that ended.
    lingering: Option<(usize, Duration)>,
    pub journal: Vec<Record>,
    pub log: Option<Became>,
    /// The guest's process is there.
    pub exists: bool,
    pub running: bool,
    pub memory: Memory,
    pub pager: Option<Pager>,
    /// What each CPU of the guest waits for.
    vcpus: [Option<u64>; VCPUS],
}

impl DestinationHost {
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            alive: true,
            session: None,
            greeting: None,
            responding: None,
            lingering: None,
            journal: Vec::new(),
            log: None,
            exists: false,
            running: false,
            memory: Memory::hole(pages),
            pager: None,
            vcpus: [None; VCPUS],
        }
    }

    pub(crate) fn takes_streams_of(&self, connection: Option<usize>) -> bool {
        self.alive
            && connection.is_some()
            && self.session.as_ref().is_some_and(|s| s.connection == connection)
    }

    /// Pages go through the pager, where anybody still wants them.
    pub(crate) fn pages_in(&self) -> bool {
        let gave_up = |session: &Session| session.machine.phase() == "declining";
        self.session
            .as_ref()
            .is_none_or(|session| session.intake == Intake::Paged || gave_up(session))
    }

    pub(crate) fn owns(&self) -> bool {
        matches!(self.journal.last(), Some(Record::Owner { .. }))
    }

    pub(crate) fn timer(&self) -> Option<Duration> {
        let give_up = self.session.as_ref().and_then(|session| session.give_up_at);
        give_up.into_iter().chain(self.lingering.map(|(_, at)| at)).min()
    }

    /// The current content of a page, where it has it.
    pub(crate) fn has(&self, page: u64) -> Option<u32> {
        let lacks = self
            .pager
            .as_ref()
            .is_some_and(|pager| matches!(pager.states[page as usize], PageState::Absent | PageState::Stale));
        (!lacks).then(|| self.memory.read(page))
    }
}

impl Session {
    pub(crate) fn new(machine: Destination, pages: u64, connection: Option<usize>, verify: bool) -> Self {
        Self {
            machine,
            mailbox: VecDeque::new(),
            answers: VecDeque::new(),
            connection,
            number: 1,
            intake: Intake::Direct,
            pending: PageBitmap::new(pages),
            expected: None,
            mismatches: None,
            loading: None,
            give_up_at: None,
            verify,
        }
    }
}

impl World {
    pub(crate) fn destination_takes_input(&mut self) -> bool {
        let Some(session) = &mut self.destination.session else {
            return false;
        };
        // Loading keeps the driver busy; hosts that load beside take what comes.
        if session.loading.is_some() && !self.scenario.slow {
            return false;
        }
        let Some(input) = session.mailbox.pop_front() else {
            return false;
        };
        let current = session.number;
        let mut events = VecDeque::new();
        match input {
            Input::Peer { connection, event } if connection == current => events.push_back(event),
            Input::Message { connection, message } if connection == current => {
                events.extend(self.message(message));
            }
            // The last page may come over a connection that has just ended.
            Input::Peer {
                event: Event::AllArrived,
                ..
            } => events.push_back(Event::AllArrived),
            Input::Peer { .. } | Input::Message { .. } => {}
            Input::Connected(connection) => {
                session.give_up_at = None;
                self.close_destination_connection();
                if let Some(session) = &mut self.destination.session {
                    session.connection = Some(connection);
                }
            }
        }
        self.destination_pump(events);
        true
    }

    fn message(&mut self, message: ToDestination) -> Option<Event> {
        let session = self.destination.session.as_mut()?;
        Some(match message {
            ToDestination::Offer { .. } => Event::Failed("a second offer".into()),
            ToDestination::Switch(pending) => {
                session.pending = pending;
                Event::Switch
            }
            ToDestination::Ping => return self.answer(ToSource::Pong).err().map(Event::Failed),
            ToDestination::State => Event::StateArrived,
            ToDestination::Hashes(hashes) => {
                session.expected = session.verify.then_some(hashes);
                return None;
            }
            ToDestination::Prepare(epoch) => Event::Prepare(epoch),
            ToDestination::Commit(epoch) => Event::Commit(epoch),
            ToDestination::AllPushed => Event::AllPushed,
            ToDestination::Abort(reason) => Event::Abort(reason),
            ToDestination::Query(epoch) => Event::Asked(epoch),
        })
    }

    // Events and commands.

    pub(crate) fn destination_pump(&mut self, mut events: VecDeque<Event>) {
        while let Some(event) = events.pop_front() {
            let Some(session) = &mut self.destination.session else {
                return;
            };
            let commands = match session.machine.handle(event) {
                Ok(commands) => commands,
                Err(error) => {
                    self.checks.protocol_error("destination", &error);
                    let _ = self.answer(ToSource::Failed(error.to_string()));
                    let session = self.destination.session.as_mut().expect("it was just there");
                    session
                        .machine
                        .handle(Event::Failed(error.to_string()))
                        .expect("a failure is always taken in")
                }
            };
            for command in commands {
                if self.chooser.fails(400) {
                    self.crash_destination();
                    return;
                }
                self.destination_execute(command, &mut events);
            }
        }
        self.destination_ends_if_over();
    }

    fn destination_execute(&mut self, command: Command, events: &mut VecDeque<Event>) {
        let failing = self.chooser.fails(100);
        let Some(session) = &mut self.destination.session else {
            return;
        };
        let answer = match command {
            Command::SendRoundReceived { round } => {
                self.answer(ToSource::RoundReceived { round }).map(|()| None)
            }
            Command::ExpectPages => Ok(self.expect_pages()),
            Command::Load if failing => Err("device state of another machine".into()),
            Command::Load => {
                self.begin_load();
                Ok(None)
            }
            Command::Compare => {
                let expected = session.expected.take().expect("hashes come before `Prepare`");
                let mismatches = self.compare(&expected, |host, page| Some(host.memory.read(page)));
                Ok(Some(Event::Compared { mismatches }))
            }
            Command::CompareArrived => {
                let expected = session.expected.take();
                // A source that was restarted does not know any more which pages it dropped.
                assert!(
                    expected.is_some()
                        || self.scenario.algorithm == Strategy::Enlightened
                            && self.checks.source_restarts > 0
                );
                let mismatches = expected.map_or(0, |expected| {
                    self.compare(&expected, |host, page| {
                        host.pager.as_ref().and_then(|pager| pager.arrived[page as usize])
                    })
                });
                self.destination.pager = None;
                Ok(Some(Event::Compared { mismatches }))
            }
            Command::SendReady(epoch) => Ok(self.answer(ToSource::Ready(epoch)).err().map(Event::Broken)),
            Command::SendRunning(epoch) => Ok(self.answer(ToSource::Running(epoch)).err().map(Event::Broken)),
            Command::JournalOwner(epoch) => {
                let written = append(
                    &mut self.destination.journal,
                    Record::Owner { epoch },
                    &mut self.chooser,
                );
                Ok(Some(
                    written.map_or_else(Event::JournalFailed, |()| Event::Journaled),
                ))
            }
            Command::JournalDeclined(epoch) => {
                let written = append(
                    &mut self.destination.journal,
                    Record::Declined { epoch },
                    &mut self.chooser,
                );
                if written.is_ok() {
                    self.destination.log = Some(Became::Declined);
                }
                Ok(Some(
                    written.map_or_else(Event::JournalFailed, |()| Event::Journaled),
                ))
            }
            Command::Run if failing => Err("cannot resume".into()),
            Command::Run => {
                self.run_at_destination();
                Ok(Some(Event::Started))
            }
            Command::Announce => {
                self.destination.log = Some(Became::Owner);
                Ok(None)
            }
            Command::ReleaseFaults => {
                session.intake = Intake::Closed;
                // Kept for a comparison that follows.
                if !self.scenario.verify {
                    self.destination.pager = None;
                }
                Ok(None)
            }
            Command::SendComplete => {
                let mismatches = session.mismatches;
                let _ = self.answer(ToSource::Complete { mismatches });
                Ok(None)
            }
            Command::SendFailed(reason) => {
                let _ = self.answer(ToSource::Failed(reason));
                Ok(None)
            }
            Command::Discard => {
                assert!(!self.destination.running, "a running guest is discarded");
                self.destination.exists = false;
                Ok(None)
            }
            Command::AwaitReconnect => {
                let owns = session.machine.owns();
                session.give_up_at = (!owns).then(|| self.now + GRACE);
                self.close_destination_connection();
                Ok(None)
            }
            Command::SendClaim { epoch, claim } => self.claim(epoch, claim).map(|()| None),
        };
        let event = match answer {
            Ok(None) => return,
            Ok(Some(event)) => event,
            Err(reason) => Event::Failed(reason),
        };
        let Some(session) = &mut self.destination.session else {
            return;
        };
        let later = self.scenario.slow && (!session.answers.is_empty() || self.chooser.once_in(2));
        match later {
            true => session.answers.push_back(event),
            false => events.push_back(event),
        }
    }

    pub(crate) fn destination_answers(&mut self) -> bool {
        let Some(session) = &mut self.destination.session else {
            return false;
        };
        let Some(event) = session.answers.pop_front() else {
            return false;
        };
        self.destination_pump([event].into());
        true
    }

    fn expect_pages(&mut self) -> Option<Event> {
        let DestinationHost {
            session,
            pager,
            memory,
            ..
        } = &mut self.destination;
        let (session, pager) = (
            session.as_mut()?,
            pager.as_mut().expect("a policy that says so needs faults"),
        );
        session.intake = Intake::Paged;
        (pager.switch(&session.pending, memory) == 0).then_some(Event::AllArrived)
    }

    fn begin_load(&mut self) {
        let pages = self.scenario.pages;
        let known: Vec<_> = self
            .scenario
            .read_by_load
            .iter()
            .flat_map(|run| run.pages())
            .collect();
        let touched = (0..self.chooser.below(4))
            .map(|_| match known.is_empty() || self.chooser.once_in(2) {
                true => self.chooser.below(pages),
                false => known[self.chooser.below(known.len() as u64) as usize].min(pages - 1),
            })
            .collect();
        let DestinationHost {
            session,
            pager,
            memory,
            ..
        } = &mut self.destination;
        let Some(session) = session else { return };
        if session.intake == Intake::Direct {
            session.intake = Intake::Closed;
            if let Some(pager) = pager {
                pager.switch(&PageBitmap::new(pages), memory);
            }
        }
        session.loading = Some(touched);
    }

    /// Loading goes on, once the pages it touches are here.
    pub(crate) fn destination_loads(&mut self) -> bool {
        let Some(touched) = self
            .destination
            .session
            .as_mut()
            .and_then(|session| session.loading.take())
        else {
            return false;
        };
        let (waits, asked): (Vec<_>, Vec<_>) = touched.iter().map(|&page| self.accesses(page)).unzip();
        let Some(session) = &mut self.destination.session else {
            return false;
        };
        let cut = session
            .connection
            .is_none_or(|connection| self.network.connections[connection].is_cut());
        let event = match waits.contains(&false) {
            false => Event::Loaded,
            true if cut => Event::Failed("loading was given up".into()),
            true => {
                session.loading = Some(touched);
                return asked.contains(&true);
            }
        };
        self.destination_pump([event].into());
        true
    }

    fn compare(&mut self, expected: &[u32], found: impl Fn(&DestinationHost, u64) -> Option<u32>) -> u64 {
        let differs =
            |(page, version): &(usize, &u32)| found(&self.destination, *page as u64) != Some(**version);
        let mismatches = expected.iter().enumerate().filter(differs).count() as u64;
        if let Some(session) = &mut self.destination.session {
            session.mismatches = Some(mismatches);
        }
        assert_eq!(mismatches, 0, "pages differ");
        mismatches
    }

    fn claim(&mut self, epoch: Epoch, claim: Claim) -> Result<(), String> {
        let have = (claim != Claim::Declined).then(|| match &self.destination.pager {
            Some(pager) => pager.have(),
            None => PageBitmap::full(self.scenario.pages),
        });
        self.answer(ToSource::Owner(epoch, claim, have))
    }

    // The guest.

    /// Somebody at the destination accesses a page: whether it is there, and whether the source was asked now.
    fn accesses(&mut self, page: u64) -> (bool, bool) {
        let DestinationHost { session, pager, .. } = &mut self.destination;
        let Some(pager) = pager else { return (true, false) };
        let (there, ask) = pager.access(page);
        if ask && let Some(connection) = session.as_ref().and_then(|session| session.connection) {
            let link = &mut self.network.connections[connection];
            if link.open {
                let _ = link.faults.write(page, &mut self.chooser);
            }
        }
        (there, ask)
    }

    fn run_at_destination(&mut self) {
        assert!(
            self.destination.exists && self.destination.owns(),
            "it runs without being the owner"
        );
        self.destination.running = true;
        self.check_one_runs();
    }

    /// A CPU of the guest goes on, if it can.
    pub(crate) fn guest_acts_at_destination(&mut self) {
        let cpu = self.chooser.below(VCPUS as u64) as usize;
        let page = match self.destination.vcpus[cpu] {
            Some(page) => page,
            None => self.guest.pick(&mut self.chooser),
        };
        self.destination.vcpus[cpu] = (!self.accesses(page).0).then_some(page);
        if self.destination.vcpus[cpu].is_some() {
            return;
        }
        if !self.guest.free.contains(page) {
            let (found, wrote) = (
                self.destination.memory.read(page),
                self.guest.truth[page as usize],
            );
            assert_eq!(
                found, wrote,
                "the guest reads another version of page {page} than it wrote"
            );
        }
        if self.chooser.once_in(2) {
            self.guest.allocate(page);
            let version = self.guest.new_version();
            self.guest.truth[page as usize] = version;
            self.destination.memory.write(page, version);
        }
    }

    /// A device of a guest that is loaded touches a page before the guest runs.
    pub(crate) fn device_touches(&mut self) {
        if self
            .destination
            .session
            .as_ref()
            .is_some_and(|s| s.machine.phase() == "waiting for the commit")
        {
            let page = self.guest.pick(&mut self.chooser);
            let cpu = self.chooser.below(VCPUS as u64) as usize;
            if self.destination.vcpus[cpu].is_none() && !self.accesses(page).0 {
                self.destination.vcpus[cpu] = Some(page);
            }
        }
    }

    // Ends.

    pub(crate) fn destination_times_out(&mut self) -> bool {
        if let Some((connection, at)) = self.destination.lingering
            && at <= self.now
        {
            self.network.connections[connection].close_at_destination();
            self.destination.lingering = None;
            return true;
        }
        let now = self.now;
        let Some(session) = &mut self.destination.session else {
            return false;
        };
        if session.give_up_at.is_none_or(|at| at > now) {
            return false;
        }
        session.give_up_at = None;
        self.destination_pump([Event::Failed("the source did not come back".into())].into());
        true
    }

    /// The operator of the destination gives an incoming guest up.
    pub(crate) fn destination_cancels(&mut self) {
        if self
            .destination
            .session
            .as_ref()
            .is_some_and(|session| !session.machine.owns())
        {
            self.destination_pump(
                [Event::Failed(
                    "given up by the operator of the destination".into(),
                )]
                .into(),
            );
        }
    }

    fn destination_ends_if_over(&mut self) {
        let Some(outcome) = self
            .destination
            .session
            .as_ref()
            .and_then(|s| Some(s.machine.ended()?.0))
        else {
            return;
        };
        let Some(session) = self.destination.session.take() else {
            return;
        };
        self.destination.lingering = session
            .connection
            .map(|connection| (connection, self.now + LINGER));
        self.destination.pager = None;
        if outcome != Outcome::Completed {
            self.destination.exists = false;
        }
        for input in session.mailbox {
            if let Input::Connected(connection) = input {
                self.network.connections[connection].close_at_destination();
            }
        }
    }

    pub(crate) fn crash_destination(&mut self) {
        if let Some(session) = self.destination.session.take() {
            let waiting = session.mailbox.iter().filter_map(|input| match input {
                Input::Connected(connection) => Some(*connection),
                _ => None,
            });
            for connection in waiting.chain(session.connection) {
                self.network.connections[connection].close_at_destination();
            }
        }
        let destination = &mut self.destination;
        let others = [destination.responding.take(), destination.greeting.take()];
        for connection in others
            .into_iter()
            .flatten()
            .chain(destination.lingering.take().map(|(c, _)| c))
        {
            self.network.connections[connection].close_at_destination();
        }
        destination.alive = false;
    }

    /// A new daemon: its journal says what to do.
    pub(crate) fn restart_destination(&mut self) {
        let destination = &mut self.destination;
        destination.alive = true;
        if !destination.exists {
            return;
        }
        if !destination.owns() {
            assert!(!destination.running, "a guest that is not ours runs");
            destination.exists = false;
            destination.pager = None;
            return;
        }
        destination.log = Some(Became::Owner);
        destination.vcpus = [None; VCPUS];
        if let Some(pager) = &mut destination.pager {
            pager.recover();
            let setup = Setup {
                streams: self.scenario.streams,
                verify: false,
                epoch: EPOCH,
            };
            let machine = Destination::recovered(setup, pager.outstanding > 0);
            let mut session = Session::new(machine, self.scenario.pages, None, false);
            session.intake = Intake::Paged;
            destination.session = Some(session);
        }
        if !destination.running {
            self.run_at_destination();
        }
    }
}
