//! The host that a guest comes to: the machine of `core`, its driver, its pager, and the guest once it runs there.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::destination::{Command, Destination, Event, Setup};
use vmferry_core::report::FaultReport;
use vmferry_core::source::{Event as SourceEvent, Summary};
use vmferry_core::{Epoch, PageBitmap, PageRun};

use crate::error::SimError;
use crate::link::{ms, ns};
use crate::path::PathModel;
use crate::replay::{Access, Recorded};
use crate::units::Units;
use crate::world::{Agenda, Guest, What, Wires, fault_report};

const MESSAGE_BYTES: f64 = 96.0;
const EPOCH: Epoch = Epoch(2);

pub(crate) struct DestinationHost<'a> {
    machine: Destination,
    path: &'a PathModel,
    units: Units,
    commands: VecDeque<Command>,
    events: VecDeque<Event>,
    inputs: VecDeque<Event>,
    doing: Option<Command>,
    /// Units that still have to come.
    missing: PageBitmap,
    /// They were announced.
    switched: bool,
    /// The guest stands still for this unit, since when.
    waits_for: Option<(u64, Duration)>,
    /// What the guest will access next, in its own time, and up to when that is known.
    accesses: VecDeque<Access>,
    known_until: Duration,
    /// What faults took each, and how many took that.
    service_us: Vec<(f64, u64)>,
    waited: Duration,
    pub(crate) cpu: Duration,
}

impl<'a> DestinationHost<'a> {
    pub(crate) fn new(recorded: &'a Recorded, path: &'a PathModel, streams: usize) -> Self {
        let units = recorded.units();
        Self {
            machine: Destination::new(Setup {
                streams,
                verify: false,
                epoch: EPOCH,
            }),
            path,
            units,
            commands: VecDeque::new(),
            events: VecDeque::new(),
            inputs: VecDeque::new(),
            doing: None,
            missing: PageBitmap::new(units.count()),
            switched: false,
            waits_for: None,
            accesses: VecDeque::new(),
            known_until: Duration::ZERO,
            service_us: Vec::new(),
            waited: Duration::ZERO,
            cpu: Duration::ZERO,
        }
    }

    pub(crate) fn guest_waited(&self) -> Duration {
        self.waited
    }

    pub(crate) fn fault_report(&self) -> FaultReport {
        fault_report(self.service_us.clone())
    }

    pub(crate) fn input(&mut self, event: Event) {
        self.inputs.push_back(event);
    }

    /// These units will come after the resume.
    pub(crate) fn switch(&mut self, pending: PageBitmap) {
        self.missing = pending;
        self.switched = true;
    }

    /// Does what there is to do, unless it is busy.
    pub(crate) fn work(
        &mut self,
        agenda: &mut Agenda,
        wires: &mut Wires,
        guest: &mut Guest<'_>,
    ) -> Result<(), SimError> {
        while self.doing.is_none() {
            if let Some(command) = self.commands.pop_front() {
                self.execute(command, agenda, wires, guest);
                continue;
            }
            let Some(event) = self.events.pop_front().or_else(|| self.inputs.pop_front()) else {
                break;
            };
            let commands = self
                .machine
                .handle(event)
                .map_err(|error| SimError::Broken(error.to_string()))?;
            self.commands.extend(commands);
        }
        Ok(())
    }

    fn execute(&mut self, command: Command, agenda: &mut Agenda, wires: &mut Wires, guest: &mut Guest<'_>) {
        let now = agenda.now;
        let mut say = |event| agenda.at(wires.back.message(now, MESSAGE_BYTES), What::ToSource(event));
        let takes = match &command {
            Command::SendRoundReceived { round } => {
                say(SourceEvent::RoundReceived { round: *round });
                Duration::ZERO
            }
            Command::SendReady(epoch) => {
                say(SourceEvent::Ready(*epoch));
                Duration::ZERO
            }
            Command::SendRunning(epoch) => {
                say(SourceEvent::Running(*epoch));
                Duration::ZERO
            }
            Command::SendComplete => {
                say(SourceEvent::Complete(Summary::default()));
                Duration::ZERO
            }
            Command::SendFailed(why) => {
                say(SourceEvent::Failed(why.clone()));
                Duration::ZERO
            }
            // The states of all pages are gone through.
            Command::ExpectPages => ns(1.0, self.units.pages() as f64),
            Command::Load => ms(self.path.load_ms),
            Command::JournalOwner(_) | Command::JournalDeclined(_) => ms(self.path.journal_ms),
            Command::Run => ms(self.path.resume_ms),
            Command::Compare
            | Command::CompareArrived
            | Command::Announce
            | Command::ReleaseFaults
            | Command::Discard
            | Command::AwaitReconnect
            | Command::SendClaim { .. } => Duration::ZERO,
        };
        self.doing = Some(command);
        match takes.is_zero() {
            true => self.done(agenda, guest),
            false => agenda.at(now + takes, What::DestinationDone),
        }
    }

    /// The driver did what it was told to.
    pub(crate) fn done(&mut self, agenda: &mut Agenda, guest: &mut Guest<'_>) {
        let answer = match self.doing.take() {
            Some(Command::Load) => Event::Loaded,
            Some(Command::JournalOwner(_) | Command::JournalDeclined(_)) => Event::Journaled,
            Some(Command::Compare | Command::CompareArrived) => Event::Compared { mismatches: 0 },
            Some(Command::Run) => {
                guest.start(agenda.now);
                self.known_until = guest.own_time(agenda.now);
                if !self.missing.is_empty() {
                    agenda.at(agenda.now, What::Access);
                }
                Event::Started
            }
            Some(Command::ExpectPages) if self.missing.is_empty() => Event::AllArrived,
            _ => return,
        };
        self.events.push_back(answer);
    }

    /// Units that were pushed are in place.
    pub(crate) fn taken_in(&mut self, runs: &[PageRun], agenda: &mut Agenda, guest: &mut Guest<'_>) {
        self.in_place(runs, 1, agenda, guest);
    }

    /// A unit that was demanded is in place: there was a fault at each of its pages, one after the other.
    pub(crate) fn answered(&mut self, unit: u64, agenda: &mut Agenda, guest: &mut Guest<'_>) {
        self.in_place(&[PageRun::single(unit)], self.units.per(), agenda, guest);
    }

    /// These units are; if the guest waited for one of them, at `faults` faults.
    fn in_place(&mut self, runs: &[PageRun], faults: u64, agenda: &mut Agenda, guest: &mut Guest<'_>) {
        let pages: u64 = runs.iter().map(|run| run.count).sum::<u64>() * self.units.per();
        self.cpu += ns(self.path.receive_ns_per_page, pages as f64);
        if !self.switched || self.missing.is_empty() {
            return;
        }
        for run in runs {
            self.missing.remove_run(*run);
        }
        if let Some((unit, since)) = self.waits_for
            && !self.missing.contains(unit)
        {
            let took = agenda.now.saturating_sub(since);
            self.service_us
                .push((took.as_secs_f64() * 1e6 / faults as f64, faults));
            self.waited += took;
            self.waits_for = None;
            guest.start(agenda.now);
            agenda.at(agenda.now, What::Access);
        }
        if self.missing.is_empty() {
            self.inputs.push_back(Event::AllArrived);
        }
    }

    /// The guest goes on to its next access of a unit that is missing.
    pub(crate) fn access(&mut self, agenda: &mut Agenda, wires: &mut Wires, guest: &mut Guest<'_>) {
        let now = agenda.now;
        if self.waits_for.is_some() || self.missing.is_empty() || !guest.is_running() {
            return;
        }
        let own = guest.own_time(now);
        loop {
            while let Some(next) = self.accesses.front() {
                if !self.missing.contains(next.unit) {
                    self.accesses.pop_front();
                    continue;
                }
                if next.at > own {
                    agenda.at(now + (next.at - own), What::Access);
                    return;
                }
                let unit = next.unit;
                self.accesses.pop_front();
                guest.stop(now);
                self.waits_for = Some((unit, now));
                let asked = now + ms(self.path.fault_ms / 2.0);
                agenda.at(wires.back.message(asked, MESSAGE_BYTES), What::Demand(unit));
                return;
            }
            if self.known_until > own {
                agenda.at(now + (self.known_until - own), What::Access);
                return;
            }
            let (accesses, until) = guest
                .replay
                .accesses(own, &self.missing, self.path.reads_per_write);
            self.accesses = accesses.into();
            self.known_until = until;
        }
    }
}
