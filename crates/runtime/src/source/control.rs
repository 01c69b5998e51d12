//! The control stream of a source: what the destination says becomes events.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use crossbeam_channel::Sender;
use vmferry_core::PageBitmap;
use vmferry_core::handover::{Claim, Epoch};
use vmferry_core::source::{Command, Event, Summary};
use vmferry_transport::BoxedStream;
use vmferry_wire::{DestinationSummary, OwnerState, PageSetParts, ToSource, WireError, read_control};

use super::Shared;
use super::disks::places;
use super::driver::Input;
use crate::link::chain;

/// The question that goes out behind the switch. Control messages are taken in their order, so the answer to it says that the
/// destination has taken the switch in.
pub(super) const AFTER_SWITCH: u64 = 1;

/// How a thread of a connection reaches the driver.
#[derive(Clone)]
pub(super) struct Peer {
    pub inputs: Sender<Input>,
    pub connection: u64,
    /// The driver ends the connection: errors are no news.
    pub closing: Arc<AtomicBool>,
    /// Where the other end is, for messages.
    pub destination: Arc<str>,
}

impl Peer {
    pub(super) fn tell(&self, event: Event) {
        // The driver may have ended.
        let _ = self.inputs.send(Input::Peer {
            connection: self.connection,
            event,
        });
    }

    /// A stream sent the last page: these commands follow, if any.
    pub(super) fn follow_up(&self, commands: Vec<Command>) {
        if !commands.is_empty() {
            let _ = self.inputs.send(Input::Commands {
                connection: self.connection,
                commands,
            });
        }
    }

    pub(super) fn broken(&self, reason: &str) {
        if !self.closing.load(Ordering::Relaxed) {
            self.tell(Event::Disconnected(format!(
                "destination {}: {reason}",
                self.destination
            )));
        }
    }
}

/// Reads until the connection ends.
pub(super) fn read(mut stream: BoxedStream, shared: &Shared, peer: &Peer) {
    let _usage = shared.usage.thread();
    let mut gathered = Gathered::default();
    loop {
        match read_control::<ToSource>(&mut stream) {
            Ok(message) => match gathered.event(message, shared) {
                Ok(Some(event)) => peer.tell(event),
                Ok(None) => {}
                Err(error) => return peer.broken(&chain(&error)),
            },
            Err(error) => return peer.broken(&chain(&error)),
        }
    }
}

/// Messages that make one event together.
#[derive(Default)]
struct Gathered {
    owner: Option<(Epoch, Claim)>,
    received: Option<PageSetParts>,
    /// Waits for what the destination has.
    accepted: Option<Event>,
}

impl Gathered {
    /// The event in a message; none where more belongs to it.
    fn event(&mut self, message: ToSource, shared: &Shared) -> Result<Option<Event>, WireError> {
        Ok(Some(match message {
            ToSource::Accept { streams } => {
                let accepted = Event::Accepted {
                    streams: usize::from(streams),
                };
                // What the destination has is known before the first page crosses.
                if shared.reuse.awaited() {
                    self.accepted = Some(accepted);
                    return Ok(None);
                }
                accepted
            }
            ToSource::Held { fingerprints, last } => {
                let pages = shared.ram.layout().pages();
                let told = shared.reuse.told(&fingerprints, last, pages);
                told.map_err(|came| WireError::Unexpected {
                    what: "the number of pages that the destination may have",
                    came,
                    expected: format!("at most {pages}, once, when it was asked"),
                })?;
                return Ok(if last { self.accepted.take() } else { None });
            }
            ToSource::Missed { pages: part } => {
                let mut missed = PageBitmap::new(shared.ram.layout().pages());
                part.add_to(&mut missed)?;
                shared.reuse.missed(&missed);
                Event::Missed(missed)
            }
            ToSource::Refuse { reason } => Event::Failed(format!("the destination refused: {reason}")),
            ToSource::Failed { reason } => Event::Failed(format!("the destination failed: {reason}")),
            ToSource::RoundReceived { round, .. } => Event::RoundReceived { round },
            ToSource::Ready { epoch } => Event::Ready(Epoch(epoch)),
            ToSource::Running { epoch } => Event::Running(Epoch(epoch)),
            ToSource::Owner { epoch, state } => {
                let epoch = Epoch(epoch);
                match state {
                    OwnerState::Declined => reconnected(epoch, Claim::Declined, None),
                    OwnerState::Owner | OwnerState::Prepared => {
                        // The pages it has follow.
                        let claim = match state {
                            OwnerState::Prepared => Claim::Prepared,
                            _ => Claim::Owner,
                        };
                        self.owner = Some((epoch, claim));
                        self.received = Some(PageSetParts::new(shared.ram.layout()));
                        return Ok(None);
                    }
                    OwnerState::Unknown => Event::Disconnected(
                        "the destination knows nothing of this session; if it is the right host, use `vmferry resolve`".into(),
                    ),
                }
            }
            ToSource::Received { pages: part, last } => {
                let Some(mut set) = self.received.take() else {
                    return Ok(None);
                };
                set.add(&part)?;
                if !last {
                    self.received = Some(set);
                    return Ok(None);
                }
                let mut lacking = set.finish()?;
                lacking.invert();
                let (epoch, claim) = self.owner.take().unwrap_or((Epoch::default(), Claim::Owner));
                reconnected(epoch, claim, Some(lacking))
            }
            ToSource::DisksPlaced { places_json } => match places(&places_json) {
                Ok(places) => {
                    *shared.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
                    return Ok(None);
                }
                Err(reason) => Event::Failed(reason),
            },
            ToSource::Complete { summary } => Event::Complete(to_summary(summary)),
            ToSource::Pong { nonce: AFTER_SWITCH } => Event::SwitchTaken,
            ToSource::Progress { .. } | ToSource::Pong { .. } => return Ok(None),
        }))
    }
}

fn reconnected(epoch: Epoch, claim: Claim, lacking: Option<PageBitmap>) -> Event {
    Event::Reconnected {
        epoch,
        claim,
        lacking,
    }
}

fn to_summary(summary: DestinationSummary) -> Summary {
    Summary {
        faults: summary.faults.into(),
        cpu_seconds: summary.cpu_seconds,
        memory_bytes: summary.memory_bytes,
        verified: summary.verified.map(Into::into),
    }
}
