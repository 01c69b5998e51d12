//! The threads that serve the source's end of a connection: the reader of the control stream, the page streams,
//! the fault stream, and those that dial again.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::policy::Faults;
use vmferry_core::report::{FaultReport, Verified};
use vmferry_core::source::{Batch, Demand, Event, SentBatch, Summary};
use vmferry_core::tracking::ScanPoint;
use vmferry_core::{PAGE_SIZE, PageRun};

use crate::network::{PageMessage, Read, ToSource};
use crate::source_host::Input;
use crate::world::World;

/// Pages in one message.
const MESSAGE_PAGES: u64 = 48;
/// Bytes of a message's header.
const HEADER_BYTES: u64 = 40;

/// The thread of a page stream.
#[derive(Default)]
pub(crate) struct Sender {
    /// The batch under way.
    pub(crate) batch: Option<(VecDeque<PageRun>, ScanPoint)>,
    pub(crate) sent: SentBatch,
    /// Until when it sleeps, where it does.
    pub(crate) asleep: Option<Option<Duration>>,
    pub(crate) dead: bool,
}

impl World {
    /// The reader of the control stream.
    pub(crate) fn source_reads(&mut self) -> bool {
        let Some(connection) = self.source.connection else {
            return false;
        };
        let event = match self.network.connections[connection].to_source.read() {
            Read::Nothing => return false,
            Read::Message(message) => event(message, self.scenario.pages),
            Read::End => Event::Disconnected("the peer is gone".into()),
        };
        self.source.mailbox.push_back(Input::Peer {
            connection: self.source.number,
            event,
        });
        true
    }

    /// One of the threads that keep dialling.
    pub(crate) fn source_dials(&mut self) -> bool {
        let reachable = self.destination.alive && !self.network.down;
        if self.source.dialling == 0 || !reachable {
            return false;
        }
        self.source.dialling -= 1;
        let connection = self.network.connect();
        self.source.mailbox.push_back(Input::Connected(connection));
        self.destination_greets_again(connection);
        true
    }

    pub(crate) fn wake_senders(&mut self) {
        self.source
            .senders
            .iter_mut()
            .for_each(|sender| sender.asleep = None);
    }

    /// A page stream goes on: asks, writes some pages, or reports what it wrote.
    pub(crate) fn source_streams(&mut self, index: usize) -> bool {
        let (now, number) = (self.now, self.source.number);
        let Some(mut sender) = self.source.senders.get_mut(index).map(std::mem::take) else {
            return false;
        };
        let awake = sender
            .asleep
            .is_none_or(|until| until.is_some_and(|at| at <= now));
        let mut acted = !sender.dead && awake && self.source.machine.is_some();
        if acted {
            sender.asleep = None;
            match &mut sender.batch {
                None => acted = self.source_asks_for_batch(index, &mut sender),
                Some((runs, _)) if runs.is_empty() => self.source_sent(&mut sender),
                Some((runs, point)) => {
                    let (run, point) = (cut_front(runs), *point);
                    let written = self.source_writes(index, run, point, &mut sender.sent);
                    if let Err(reason) = written {
                        sender.dead = true;
                        let event = Event::Disconnected(reason);
                        self.source.mailbox.push_back(Input::Peer {
                            connection: number,
                            event,
                        });
                    }
                }
            }
        }
        if let Some(place) = self.source.senders.get_mut(index) {
            *place = sender;
        }
        acted
    }

    fn source_asks_for_batch(&mut self, index: usize, sender: &mut Sender) -> bool {
        let (now, number) = (self.now, self.source.number);
        let machine = self.source.machine.as_mut().expect("looked at before");
        match machine.next_batch(now, index) {
            Batch::Pages { runs, point, .. } => {
                assert!(!runs.is_empty(), "a batch of nothing");
                let phase = machine.progress(now).phase;
                let ahead = self.checks.batch(&self.scenario, &runs, &phase);
                assert!(
                    !ahead || self.destination.pages_in(),
                    "pages ahead of the switch: {}",
                    self.describe()
                );
                sender.batch = Some((runs.into(), point));
            }
            Batch::RoundEnd(round) => {
                let connection = self.source.connection.expect("senders have one");
                let pipe = &mut self.network.connections[connection].pages[index];
                if pipe
                    .write(PageMessage::RoundEnd(round), &mut self.chooser)
                    .is_err()
                {
                    sender.dead = true;
                    let event = Event::Disconnected("broken pipe".into());
                    self.source.mailbox.push_back(Input::Peer {
                        connection: number,
                        event,
                    });
                }
            }
            Batch::Idle(until) => {
                sender.asleep = Some(until);
                return false;
            }
            Batch::Finished => sender.dead = true,
        }
        true
    }

    fn source_writes(
        &mut self,
        index: usize,
        run: PageRun,
        point: ScanPoint,
        sent: &mut SentBatch,
    ) -> Result<(), String> {
        assert!(
            point == ScanPoint::Live
                || !self.source.running
                || self.source.machine.as_ref().is_none_or(|m| m.ended().is_some()),
            "pages of a running guest with checksums"
        );
        let pages: Vec<_> = run
            .pages()
            .map(|page| (page, self.source.memory.read(page)))
            .collect();
        for (page, version) in &pages {
            self.checks.crossed[*page as usize] += 1;
            match version % 3 {
                0 => sent.uniform += 1,
                _ => {
                    sent.raw += 1;
                    sent.bytes += PAGE_SIZE;
                }
            }
        }
        sent.bytes += HEADER_BYTES;
        let connection = self.source.connection.expect("streams have one");
        self.network.connections[connection].pages[index].write(PageMessage::Pages(pages), &mut self.chooser)
    }

    /// A batch is written: the machine hears of it.
    pub(crate) fn source_sent(&mut self, sender: &mut Sender) {
        sender.batch = None;
        let sent = std::mem::take(&mut sender.sent);
        self.checks.reported(sent);
        let Some(machine) = &mut self.source.machine else {
            return;
        };
        machine.sent(sent);
        let commands = machine.check_all_pushed();
        if !commands.is_empty() {
            self.source.mailbox.push_back(Input::Commands(commands));
        }
    }

    /// The thread of the fault stream answers one request.
    pub(crate) fn source_serves_a_fault(&mut self) -> bool {
        let Some(connection) = self.source.connection else {
            return false;
        };
        let link = &mut self.network.connections[connection];
        let now = self.now;
        let Some(machine) = &mut self.source.machine else {
            return false;
        };
        if !link.open || machine.needs().faults == Faults::None {
            return false;
        }
        let page = match link.faults.read() {
            Read::Message(page) => page,
            Read::Nothing => return false,
            Read::End => {
                let event = Event::Disconnected("the fault stream is gone".into());
                self.source.mailbox.push_back(Input::Peer {
                    connection: self.source.number,
                    event,
                });
                return true;
            }
        };
        let demand = machine.demanded(now, page);
        if demand == Demand::Send {
            let mut sent = SentBatch::default();
            let answers = self.scenario.streams;
            let written = self.source_writes(answers, PageRun::single(page), ScanPoint::Stopped, &mut sent);
            if written.is_ok() {
                self.source_sent(&mut Sender {
                    sent,
                    ..Sender::default()
                });
            }
        }
        self.wake_senders();
        if let Some(machine) = &mut self.source.machine {
            let commands = machine.check_all_pushed();
            if !commands.is_empty() {
                self.source.mailbox.push_back(Input::Commands(commands));
            }
        }
        true
    }
}

fn cut_front(runs: &mut VecDeque<PageRun>) -> PageRun {
    let run = runs.pop_front().expect("looked at before");
    let (front, rest) = run.split_at(MESSAGE_PAGES);
    if let Some(rest) = rest {
        runs.push_front(rest);
    }
    front
}

fn event(message: ToSource, pages: u64) -> Event {
    match message {
        ToSource::Accept { streams } => Event::Accepted { streams },
        ToSource::Refuse => Event::Failed("the destination refused".into()),
        ToSource::Failed(reason) => Event::Failed(reason),
        ToSource::RoundReceived { round } => Event::RoundReceived { round },
        ToSource::Pong => Event::SwitchTaken,
        ToSource::Ready(epoch) => Event::Ready(epoch),
        ToSource::Running(epoch) => Event::Running(epoch),
        ToSource::Owner(epoch, claim, have) => {
            let lacking = have.map(|mut have| {
                assert_eq!(have.len(), pages);
                have.invert();
                have
            });
            Event::Reconnected {
                epoch,
                claim,
                lacking,
            }
        }
        ToSource::Unknown => Event::Disconnected("the destination knows nothing of this session".into()),
        ToSource::Complete { mismatches } => Event::Complete(Summary {
            faults: FaultReport::default(),
            cpu_seconds: 0.0,
            memory_bytes: 0,
            verified: mismatches.map(|mismatches| Verified { pages, mismatches }),
        }),
    }
}
