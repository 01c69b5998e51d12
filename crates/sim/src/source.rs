//! The host that a guest leaves: the machine of `core`, its driver, its page streams.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::destination::Event as DestinationEvent;
use vmferry_core::encoding::{Chooser, SentWith};
use vmferry_core::policy::Faults;
use vmferry_core::source::{Batch, Command, Demand, Event, SentBatch, Setup, Source};
use vmferry_core::{Codec, Epoch, MigrationRequest, PAGE_SIZE, PageBitmap};

use crate::error::SimError;
use crate::link::{Stream, ms, ns};
use crate::path::PathModel;
use crate::replay::Recorded;
use crate::sizes::Sizes;
use crate::units::Units;
use crate::world::{Agenda, Encoding, Guest, What, Wires};

/// A message without data.
const MESSAGE_BYTES: f64 = 96.0;
/// A page that answers a fault.
const ANSWER_BYTES: f64 = PAGE_SIZE as f64 + 32.0;
const EPOCH: Epoch = Epoch(2);
/// Demands of further pages of a unit that are simulated at most.
const MOST_DEMANDS_AGAIN: f64 = 16.0;
/// Streams where nothing is said, at most.
const MOST_DEFAULT_STREAMS: f64 = 4.0;

pub(crate) struct SourceHost<'a> {
    pub(crate) machine: Source,
    pub(crate) units: Units,
    pub(crate) recorded: &'a Recorded,
    path: &'a PathModel,
    streams: Vec<Stream>,
    open: bool,
    chooser: Chooser,
    /// The destination has just what was sent.
    deltas: bool,
    sizes: Sizes<'a>,
    commands: VecDeque<Command>,
    events: VecDeque<Event>,
    inputs: VecDeque<Event>,
    /// What the driver does now, for its answer.
    doing: Option<Command>,
    /// When the last message on the control stream is there.
    control: Duration,
    /// When the guest's pages were scanned last, in its own time.
    scanned: Duration,
    pub(crate) paused_at: Duration,
    next_tick: Option<Duration>,
    /// The pages of a switch, on their way.
    pub(crate) switched: Option<PageBitmap>,
    pub(crate) cpu: Duration,
    pub(crate) tracking_cost: Duration,
    /// Share of a processor that each stream gets by the cap.
    cap: f64,
    /// The same at the destination.
    destination_cap: f64,
    /// After this time without a demand the rest may be pushed.
    drain_after: Duration,
}

impl<'a> SourceHost<'a> {
    pub(crate) fn new<To>(
        recorded: &'a Recorded,
        request: &MigrationRequest<To>,
        path: &'a PathModel,
    ) -> Self {
        let units = recorded.units();
        let by_default = (path.processors / 2.0).floor().clamp(1.0, MOST_DEFAULT_STREAMS) as u16;
        let streams = usize::from(request.streams.unwrap_or(by_default).max(1));
        let setup = Setup {
            pages: units.count(),
            streams,
            pinned_io: recorded.pinned_io,
            verify: false,
            epoch: EPOCH,
        };
        let ready = match path.sampled {
            true => recorded.learned(),
            false => None,
        };
        let machine = Source::new(setup, request.policy(units.count(), ready)).within(&request.limits);
        let ram_bytes = units.pages() * PAGE_SIZE;
        let cache = match request.encoding.uses_delta() {
            true => request.delta_cache_bytes(ram_bytes),
            false => 0,
        };
        Self {
            machine,
            units,
            recorded,
            path,
            streams: (0..streams).map(|_| Stream::new()).collect(),
            open: false,
            chooser: Chooser::new(request.encoding, path.processors as usize),
            deltas: cache > 0,
            sizes: Sizes::new(&recorded.content, path.codecs, units, cache),
            commands: VecDeque::new(),
            events: VecDeque::new(),
            inputs: VecDeque::new(),
            doing: None,
            control: Duration::ZERO,
            scanned: Duration::ZERO,
            paused_at: Duration::ZERO,
            next_tick: None,
            switched: None,
            cpu: Duration::ZERO,
            tracking_cost: Duration::ZERO,
            cap: share_of_each(request.limits.cpu_percent, streams),
            destination_cap: share_of_each(request.limits.cpu_destination_percent, streams),
            drain_after: request.limits.drain_after,
        }
    }

    pub(crate) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Dials, offers, and waits for the destination to create the guest.
    pub(crate) fn begin(&mut self, agenda: &mut Agenda, wires: &mut Wires) -> Result<(), SimError> {
        if self.machine.wants_hints().is_some() {
            self.ask_guest(agenda);
        }
        // Connect and greet, then the offer; after its acceptance the other streams connect and greet at once.
        let rtt = ms(self.path.rtt_ms);
        let streams = self.streams.len();
        let mut needed = rtt * 2;
        if self.machine.needs().faults != Faults::None {
            needed += rtt * 2;
        }
        needed += rtt * 2 * streams as u32;
        let there = wires.there.message(Duration::ZERO, 16.0 * MESSAGE_BYTES);
        agenda.at(
            there + needed + ms(self.path.prepare_ms + self.path.rtt_ms / 2.0),
            What::ToSource(Event::Accepted { streams }),
        );
        Ok(())
    }

    pub(crate) fn input(&mut self, event: Event) {
        self.open |= matches!(event, Event::Accepted { .. });
        self.inputs.push_back(event);
    }

    /// The time has come, unless the driver is busy: it looks at the clock again when it is done.
    pub(crate) fn tick(&mut self, now: Duration) {
        self.next_tick = None;
        if self.doing.is_none() && self.machine.deadline().is_some_and(|at| at <= now) {
            self.inputs.push_back(Event::Tick);
        }
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
                .handle(agenda.now, event)
                .map_err(|error| SimError::Broken(error.to_string()))?;
            self.commands.extend(commands);
            if self.open {
                self.wake(agenda);
            }
        }
        self.wait_for_deadline(agenda);
        Ok(())
    }

    fn wait_for_deadline(&mut self, agenda: &mut Agenda) {
        if self.doing.is_some() {
            return;
        }
        if let Some(at) = self.machine.deadline()
            && self.next_tick.is_none_or(|next| at < next)
        {
            self.next_tick = Some(at);
            agenda.at(at, What::Tick);
        }
    }

    fn execute(&mut self, command: Command, agenda: &mut Agenda, wires: &mut Wires, guest: &mut Guest<'_>) {
        let now = agenda.now;
        let pages = self.units.pages() as f64;
        let takes = match &command {
            Command::Arm => {
                guest.stop(now);
                ms(self.path.stop_ms) + ns(self.path.arm_ns_per_page, pages)
            }
            Command::Scan => self.scan_time(now, guest),
            Command::Stop { scan, free } => {
                self.paused_at = now + ms(self.path.flush_ms);
                let looks = match scan {
                    true => self.scan_time(self.paused_at, guest),
                    false => ns(self.path.scan_ns_per_page, pages),
                };
                let finding = if *free { self.finding_free() } else { Duration::ZERO };
                ms(self.path.flush_ms + self.path.stop_ms) + looks + finding
            }
            Command::Retract => ms(self.path.resume_ms),
            Command::SendState => {
                let bytes = self.device_state_bytes();
                let saved = now + ms(self.path.save_ms);
                self.say(saved, bytes, DestinationEvent::StateArrived, agenda, wires);
                ms(self.path.save_ms)
            }
            Command::JournalHandedOver(_) | Command::JournalOwner(_) => ms(self.path.journal_ms),
            Command::SendSwitch { pending } => {
                self.deltas = false;
                self.switched = Some(pending.clone());
                let bytes = MESSAGE_BYTES + pages / 64.0;
                let there = self.say(now, bytes, DestinationEvent::Switch, agenda, wires);
                let answered = there.max(now) + ms(self.path.rtt_ms / 2.0);
                agenda.at(answered, What::ToSource(Event::SwitchTaken));
                Duration::ZERO
            }
            Command::SendPrepare(epoch) => {
                let prepare = DestinationEvent::Prepare(*epoch);
                self.say(now, MESSAGE_BYTES, prepare, agenda, wires);
                Duration::ZERO
            }
            Command::SendCommit(epoch) => {
                let commit = DestinationEvent::Commit(*epoch);
                self.say(now, MESSAGE_BYTES, commit, agenda, wires);
                Duration::ZERO
            }
            Command::SendAllPushed => {
                self.say(now, MESSAGE_BYTES, DestinationEvent::AllPushed, agenda, wires);
                Duration::ZERO
            }
            Command::WakeStreams => {
                self.wake(agenda);
                Duration::ZERO
            }
            Command::Rollback => {
                guest.start(now);
                Duration::ZERO
            }
            Command::Enlighten => {
                self.guest_lists(agenda, guest);
                Duration::ZERO
            }
            // Nothing that anybody waits for, or nothing that happens here.
            Command::ConfirmState
            // No simulated guest moves its disks.
            | Command::CopyDisks
            | Command::SettleDisks
            | Command::SendHashes
            | Command::SendAbort(_)
            | Command::Reconnect
            | Command::Release(_) => Duration::ZERO,
        };
        self.doing = Some(command);
        match takes.is_zero() {
            true => self.done(agenda, guest),
            false => agenda.at(now + takes, What::SourceDone),
        }
    }

    /// The driver did what it was told to: the answer.
    pub(crate) fn done(&mut self, agenda: &mut Agenda, guest: &mut Guest<'_>) {
        let now = agenda.now;
        let answer = match self.doing.take() {
            Some(Command::Arm) => {
                guest.start(now);
                self.scanned = guest.own_time(now);
                let mut data = self.recorded.data.clone();
                data.union_with(&self.recorded.data);
                let paused = ms(self.path.stop_ms) + ns(self.path.arm_ns_per_page, self.units.pages() as f64);
                Event::Armed { data, paused }
            }
            Some(Command::Scan) => Event::Scanned(self.scan(now, guest)),
            Some(Command::Stop { scan, free }) => {
                let free = free.then(|| self.free_pages(guest)).flatten();
                // It stood still from the moment it was paused.
                let pages = match scan {
                    true => self.scan(self.paused_at, guest),
                    false => self.recorded.data.clone(),
                };
                guest.stop(self.paused_at);
                Event::Stopped {
                    paused_at: self.paused_at,
                    pages,
                    discarded: None,
                    free,
                }
            }
            Some(Command::Retract) => {
                guest.start(now);
                Event::Resumed
            }
            Some(Command::SendState) => Event::StateSent {
                bytes: self.device_state_bytes() as u64,
            },
            Some(Command::ConfirmState) => Event::StateConfirmed,
            Some(Command::JournalHandedOver(_) | Command::JournalOwner(_)) => Event::Journaled,
            _ => return,
        };
        self.events.push_back(answer);
    }

    /// A page stream looks for its next batch.
    pub(crate) fn stream_asks(&mut self, stream: usize, agenda: &mut Agenda, wires: &mut Wires) {
        let now = agenda.now;
        if !std::mem::replace(&mut self.streams[stream].idle, false) {
            return;
        }
        match self.machine.next_batch(now, stream) {
            Batch::Finished => {}
            Batch::Idle(until) => {
                self.streams[stream].idle = true;
                if let Some(at) = until.filter(|&at| at > now)
                    && self.streams[stream].timer.replace(at) != Some(at)
                {
                    agenda.at(at, What::StreamTimer(stream));
                }
            }
            Batch::RoundEnd(round) => {
                let there = wires.there.message(now, MESSAGE_BYTES);
                let taken_in = self.streams[stream].taken_in.max(there);
                agenda.at(taken_in, What::RoundEnd(stream, round));
                self.streams[stream].idle = true;
                agenda.at(now, What::StreamAsks(stream));
            }
            Batch::Pages { runs, round, .. } => {
                let plan = self.chooser.plan(now);
                let plan = vmferry_core::encoding::Plan {
                    delta: plan.delta && self.deltas,
                    ..plan
                };
                let batch = self.sizes.batch(&runs, round, &plan);
                let cpu = match plan.codec == Codec::Raw && !plan.delta {
                    true => self.sizes.look(&batch),
                    false => batch.encode,
                };
                let sample = plan
                    .sample
                    .and_then(|codec| Some((codec, self.sizes.sample(&runs, codec)?)))
                    .map(|(codec, encoded)| (codec, encoded, self.stretched(encoded.cpu)));
                let wall = self.stretched(cpu);
                self.cpu += cpu + sample.map_or(Duration::ZERO, |(_, encoded, _)| encoded.cpu);
                let sampling = sample.map_or(Duration::ZERO, |(_, _, wall)| wall);
                let encoding = Encoding {
                    runs,
                    batch,
                    codec: plan.codec,
                    sample,
                    wall,
                };
                agenda.at(now + wall + sampling, What::Encoded(stream, Box::new(encoding)));
            }
        }
    }

    /// What a stream waits for is over, unless it waits for something later by now.
    pub(crate) fn stream_timer(&mut self, stream: usize, agenda: &mut Agenda, wires: &mut Wires) {
        if self.streams[stream].timer == Some(agenda.now) {
            self.streams[stream].timer = None;
            self.stream_asks(stream, agenda, wires);
        }
    }

    /// A batch goes to its socket.
    pub(crate) fn encoded(
        &mut self,
        stream: usize,
        encoding: Box<Encoding>,
        agenda: &mut Agenda,
        wires: &mut Wires,
    ) {
        let now = agenda.now;
        let batch = &encoding.batch;
        let arrives = wires.there.pages(now, batch.bytes);
        let pages: u64 = encoding.runs.iter().map(|run| run.count).sum();
        let placing = match self.machine.progress(now).phase == "pull and push" {
            true => self.path.install_ns_per_page,
            false => self.path.receive_ns_per_page,
        };
        let takes = batch.decode + ns(placing, (pages * self.units.per()) as f64);
        let takes = takes.div_f64(self.path.destination_cpu_share.min(self.destination_cap));
        let buffers = self.path.socket_buffer_bytes.max(batch.bytes / 2.0);
        let line = &mut self.streams[stream];
        let taken_in = line.sends(arrives, takes, batch.bytes);
        agenda.at(taken_in, What::TakenIn(encoding.runs.clone()));
        let write_cpu = ns(self.path.write_ns_per_byte, batch.bytes);
        let done = line.written(now, buffers).max(now + self.stretched(write_cpu));
        self.cpu += write_cpu;
        let sent = SentWith {
            codec: encoding.codec,
            stream,
            plain: batch.plain,
            delta: batch.delta,
            encode_wall: encoding.wall,
            wire_bytes: batch.bytes as u64,
            write_cpu,
            write_wall: done - now,
        };
        agenda.at(done, What::Written(Box::new(sent), encoding));
    }

    /// A batch is in its socket.
    pub(crate) fn written(&mut self, sent: &SentWith, encoding: &Encoding, agenda: &mut Agenda) {
        let now = agenda.now;
        self.chooser.sent(now, sent);
        if let Some((codec, encoded, wall)) = &encoding.sample {
            self.chooser.sampled(*codec, encoded, *wall);
        }
        self.machine.sent(encoding.batch.sent);
        self.commands.extend(self.machine.check_all_pushed());
        self.streams[sent.stream].idle = true;
        agenda.at(now, What::StreamAsks(sent.stream));
    }

    /// The guest at the destination demands a unit.
    pub(crate) fn demanded(&mut self, unit: u64, agenda: &mut Agenda, wires: &mut Wires) {
        let now = agenda.now;
        if self.machine.demanded(now, unit) == Demand::Send {
            let bytes = ANSWER_BYTES * self.units.per() as f64;
            self.machine.sent(SentBatch {
                raw: 1,
                bytes: bytes as u64,
                ..SentBatch::default()
            });
            let there = wires.there.message(now, bytes);
            let installed = there + ns(self.path.install_ns_per_page, self.units.per() as f64);
            let further = self.further_faults();
            let answered = installed + ms(self.path.fault_ms / 2.0) + further;
            agenda.at(answered, What::Answer(unit));
            self.demands_again(unit, further, agenda);
        }
        self.wake(agenda);
        self.commands.extend(self.machine.check_all_pushed());
    }

    /// What the faults at the other pages of a unit take beside their bytes ([`crate::units`]).
    fn further_faults(&self) -> Duration {
        let others = (self.units.per() - 1) as f64;
        ms(self.path.rtt_ms + self.path.fault_ms).mul_f64(others)
    }

    /// The guest demands these pages too, in time that nobody takes it for silent.
    fn demands_again(&self, unit: u64, further: Duration, agenda: &mut Agenda) {
        if further.is_zero() {
            return;
        }
        let silences = further.as_secs_f64() / self.drain_after.as_secs_f64().max(1e-9);
        let again = (2.0 * silences).ceil().min(MOST_DEMANDS_AGAIN) as u32;
        for demand in 1..=again {
            agenda.at(agenda.now + further * demand / again, What::Demand(unit));
        }
    }

    /// Streams that have nothing to do look again.
    fn wake(&mut self, agenda: &mut Agenda) {
        if !self.open {
            return;
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].idle {
                agenda.at(agenda.now, What::StreamAsks(stream));
            }
        }
    }

    /// Sends a message on the control stream, in order: when it is there.
    fn say(
        &mut self,
        now: Duration,
        bytes: f64,
        event: DestinationEvent,
        agenda: &mut Agenda,
        wires: &mut Wires,
    ) -> Duration {
        self.control = self.control.max(wires.there.message(now, bytes));
        agenda.at(self.control, What::ToDestination(event));
        self.control
    }

    fn scan_time(&mut self, until: Duration, guest: &mut Guest<'_>) -> Duration {
        let mut dirty = PageBitmap::new(self.units.count());
        guest
            .replay
            .add_dirty(self.scanned, guest.own_time(until), &mut dirty);
        let found = (dirty.count() * self.units.per()) as f64;
        ns(self.path.scan_ns_per_page, self.units.pages() as f64)
            + ns(self.path.scan_ns_per_dirty_page, found)
    }

    fn scan(&mut self, at: Duration, guest: &mut Guest<'_>) -> PageBitmap {
        let mut dirty = PageBitmap::new(self.units.count());
        let own = guest.own_time(at);
        guest.replay.add_dirty(self.scanned, own, &mut dirty);
        self.scanned = own;
        let found = (dirty.count() * self.units.per()) as f64;
        self.tracking_cost += ns(self.path.write_fault_ns, found);
        dirty
    }

    fn device_state_bytes(&self) -> f64 {
        self.recorded
            .device_state_bytes
            .map_or(self.path.device_state_bytes, |bytes| bytes as f64)
    }

    /// Processor time as it takes by the clock, where others have the processors too. A cap takes nothing from a stream that
    /// gets less than it allows.
    fn stretched(&self, cpu: Duration) -> Duration {
        let crowded = (self.streams.len() as f64 / self.path.processors).max(1.0);
        cpu.div_f64((self.path.cpu_share / crowded).min(self.cap))
    }
}

/// The share of a processor that a cap, in percent of one, leaves each of `streams` page streams; 1 where there is none.
fn share_of_each(percent: Option<u32>, streams: usize) -> f64 {
    percent.map_or(1.0, |percent| {
        (f64::from(percent) / 100.0 / streams as f64).min(1.0)
    })
}
