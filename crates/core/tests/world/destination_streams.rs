//! The destination's end of connections: who is let in, what is answered from the log, and the threads that take
//! messages and pages.

use vmferry_core::PageBitmap;
use vmferry_core::destination::{Destination, Event, Setup};
use vmferry_core::handover::Claim;
use vmferry_core::policy::Faults;

use crate::destination_host::{Became, DestinationHost, Input, Intake, Session};
use crate::network::{PageMessage, PagePipe, Read, ToDestination, ToSource};
use crate::pager::Pager;
use crate::source_host::EPOCH;
use crate::world::World;

impl World {
    /// The offer of a fresh connection.
    pub(crate) fn destination_admits(&mut self) -> bool {
        let Some(connection) = self.destination.greeting else {
            return false;
        };
        match self.network.connections[connection].to_destination.read() {
            Read::Nothing => return false,
            Read::Message(ToDestination::Offer { streams }) => {
                self.destination.greeting = None;
                if !self.destination.alive {
                    self.network.connections[connection].close_at_destination();
                    return true;
                }
                if self.chooser.fails(40) {
                    let link = &mut self.network.connections[connection];
                    let _ = link.to_source.write(ToSource::Refuse, &mut self.chooser);
                    link.close_at_destination();
                    return true;
                }
                self.destination.exists = true;
                self.destination.log = Some(Became::Admitted);
                if self.scenario.faults() != Faults::None {
                    self.destination.pager = Some(Pager::new(self.scenario.pages));
                }
                let setup = Setup {
                    streams,
                    verify: self.scenario.verify,
                    epoch: EPOCH,
                };
                let machine = Destination::new(setup);
                let session = Session::new(machine, self.scenario.pages, Some(connection), setup.verify);
                self.destination.session = Some(session);
                if self.answer(ToSource::Accept { streams }).is_err() {
                    self.destination_pump([Event::Broken("no connection".into())].into());
                }
            }
            Read::Message(other) => panic!("{other:?} before an offer"),
            Read::End => self.destination.greeting = None,
        }
        true
    }

    /// A source that comes back.
    pub(crate) fn destination_greets_again(&mut self, connection: usize) {
        match &mut self.destination.session {
            Some(session) => session.mailbox.push_back(Input::Connected(connection)),
            None => self.destination.responding = Some(connection),
        }
    }

    /// What to tell about a session that lives no more.
    pub(crate) fn destination_responds_from_log(&mut self) -> bool {
        let Some(connection) = self.destination.responding else {
            return false;
        };
        let answer = match self.network.connections[connection].to_destination.read() {
            Read::Nothing => return false,
            Read::End => {
                self.destination.responding = None;
                return true;
            }
            Read::Message(ToDestination::Query(epoch)) => match self.destination.log {
                None => ToSource::Unknown,
                Some(Became::Owner) => {
                    ToSource::Owner(epoch, Claim::Owner, Some(PageBitmap::full(self.scenario.pages)))
                }
                Some(Became::Admitted | Became::Declined) => {
                    self.destination.log = Some(Became::Declined);
                    ToSource::Owner(epoch, Claim::Declined, None)
                }
            },
            Read::Message(ToDestination::AllPushed) => ToSource::Complete { mismatches: None },
            Read::Message(_) => return true,
        };
        let _ = self.network.connections[connection]
            .to_source
            .write(answer, &mut self.chooser);
        true
    }

    pub(crate) fn destination_takes_streams(&mut self) {
        let (destination, pages) = (&mut self.destination, self.scenario.streams + 1);
        let Some(connection) = destination
            .session
            .as_ref()
            .and_then(|session| session.connection)
        else {
            return;
        };
        let link = &mut self.network.connections[connection];
        link.open = true;
        link.pages = (0..pages).map(|_| PagePipe::default()).collect();
        if link.is_cut() {
            link.cut(&mut self.chooser);
        }
        for &page in destination.pager.iter().flat_map(|pager| &pager.demanded) {
            let _ = link.faults.write(page, &mut self.chooser);
        }
    }

    pub(crate) fn close_destination_connection(&mut self) {
        let Some(session) = &mut self.destination.session else {
            return;
        };
        session.number += 1;
        if let Some(connection) = session.connection.take() {
            self.network.connections[connection].close_at_destination();
        }
    }

    pub(crate) fn answer(&mut self, message: ToSource) -> Result<(), String> {
        let session = self.destination.session.as_ref().ok_or("no session")?;
        let connection = session.connection.ok_or("there is no connection to the source")?;
        self.network.connections[connection]
            .to_source
            .write(message, &mut self.chooser)
    }

    /// The reader of the control stream.
    pub(crate) fn destination_reads(&mut self) -> bool {
        let Some(session) = &mut self.destination.session else {
            return false;
        };
        let Some(connection) = session.connection else {
            return false;
        };
        let input = match self.network.connections[connection].to_destination.read() {
            Read::Nothing => return false,
            Read::Message(message) => Input::Message {
                connection: session.number,
                message,
            },
            Read::End => Input::Peer {
                connection: session.number,
                event: Event::Broken("the source is gone".into()),
            },
        };
        session.mailbox.push_back(input);
        true
    }

    /// A page stream, or the answers on the fault stream.
    pub(crate) fn destination_receives(&mut self, index: usize) -> bool {
        let Some(session) = &mut self.destination.session else {
            return false;
        };
        let Some(connection) = session.connection else {
            return false;
        };
        let link = &mut self.network.connections[connection];
        let Some(pipe) = link.pages.get_mut(index) else {
            return false;
        };
        let message = match pipe.read() {
            Read::Nothing => return false,
            Read::Message(message) => message,
            Read::End => {
                let event = Event::Broken("a page stream is gone".into());
                session.mailbox.push_back(Input::Peer {
                    connection: session.number,
                    event,
                });
                return true;
            }
        };
        let event = match message {
            PageMessage::RoundEnd(round) => Some(Event::RoundEnd { stream: index, round }),
            PageMessage::Pages(pages) => self.place(pages),
        };
        if let (Some(event), Some(session)) = (event, &mut self.destination.session) {
            session.mailbox.push_back(Input::Peer {
                connection: session.number,
                event,
            });
        }
        true
    }

    fn place(&mut self, pages: Vec<(u64, u32)>) -> Option<Event> {
        let DestinationHost {
            session,
            pager,
            memory,
            ..
        } = &mut self.destination;
        match session.as_ref()?.intake {
            Intake::Direct => {
                for (page, version) in pages {
                    memory.write(page, version);
                    if let Some(pager) = pager {
                        pager.received(page);
                    }
                }
                None
            }
            Intake::Paged => {
                let pager = pager.as_mut().expect("pages after the resume need a pager");
                let mut last = false;
                for (page, version) in pages {
                    last |= pager.arrived(page, version, memory);
                }
                last.then_some(Event::AllArrived)
            }
            Intake::Closed => Some(Event::Broken("pages when all were here".into())),
        }
    }
}
