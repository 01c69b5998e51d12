//! The stop: rest and device state cross, the destination loads, the guest is handed over.

use std::time::Duration;

use super::event::{Command, Event};
use super::state::{Round, State, StopCopy};
use super::{Source, SourceError};
use crate::bitmap::PageBitmap;
use crate::handover::Epoch;
use crate::ledger::Ledger;
use crate::policy::StopPlan;
use crate::report::Outcome;
use crate::tracking::ScanPoint;

impl Source {
    pub(super) fn stop_event(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        match (&mut self.state, event) {
            (
                State::Stopping,
                Event::Stopped {
                    paused_at,
                    pages,
                    discarded,
                    free,
                },
            ) => Ok(self.stopped(now, paused_at, pages, discarded, free)),
            (State::StopCopy(stop), Event::StateSent { bytes }) => {
                stop.state_outstanding = false;
                self.recorder.device_state_bytes = bytes;
                self.pace.owe(bytes);
                Ok(self.prepare_if_all_sent())
            }
            (State::Round(_) | State::StopCopy(_), Event::RoundReceived { round }) => {
                self.round_received(now, round)
            }
            (State::Preparing { ready: false, .. }, Event::Ready(epoch)) => {
                self.expect_epoch(epoch)?;
                Ok(self.hand_over_if_prepared(true))
            }
            (State::Preparing { confirmed: false, .. }, Event::StateConfirmed) => {
                Ok(self.hand_over_if_prepared(false))
            }
            // THE COMMIT POINT: the journal says that the guest belongs to the destination. From here on it
            // runs at the source again only if the destination proves that it never took it.
            (
                &mut State::HandingOver {
                    post_copy,
                    connected: true,
                },
                Event::Journaled,
            ) => {
                self.state = State::Committing { post_copy };
                Ok(vec![Command::SendCommit(self.setup.epoch)])
            }
            (
                &mut State::HandingOver {
                    post_copy,
                    connected: false,
                },
                Event::Journaled,
            ) => {
                self.state = State::Severed { post_copy };
                Ok(vec![Command::Reconnect])
            }
            (&mut State::Committing { post_copy }, Event::Running(epoch)) => {
                self.expect_epoch(epoch)?;
                Ok(self.runs_at_destination(now, post_copy))
            }
            // Said already, in answer to the question after a reconnect.
            (State::Pushing { .. } | State::Severed { .. }, Event::Running(epoch)) => {
                self.expect_epoch(epoch)?;
                Ok(Vec::new())
            }
            (State::TakingBack { .. }, Event::Journaled) => Ok(self.taken_back(now)),
            (State::Ended { .. }, _) => Ok(Vec::new()),
            (_, event) => Err(self.unexpected(
                match event {
                    Event::Stopped { .. } => "the news that the guest stopped",
                    Event::StateSent { .. } => "the device state",
                    Event::StateConfirmed => "the news that the device state is whole",
                    Event::Ready(_) => "`Ready`",
                    Event::Running(_) => "`Running`",
                    Event::RoundReceived { .. } => "the end of a round",
                    _ => "a journal entry",
                },
                "an event of the stop in its turn",
            )),
        }
    }

    fn stopped(
        &mut self,
        now: Duration,
        paused_at: Duration,
        pages: PageBitmap,
        discarded: Option<PageBitmap>,
        free: Option<PageBitmap>,
    ) -> Vec<Command> {
        self.recorder.paused_at = Some(paused_at);
        if self.tracked {
            self.record_scan(now, pages, ScanPoint::Stopped);
        } else {
            self.recorder.data_found(&pages);
            self.ledger = Ledger::new(pages);
        }
        if let Some(discarded) = discarded {
            self.ledger.discarded(&discarded);
        }
        self.found_free(free);
        let view = super::view(
            now.saturating_sub(self.memory_began),
            &self.ledger,
            &self.last_scan,
            &self.tracking,
            self.rounds,
            &self.rates,
            &self.recorder,
        );
        match self.policy.stop(&view) {
            StopPlan::SendPending => self.stop_and_send(now),
            StopPlan::LeavePending { free } => {
                if let Some(free) = free {
                    let dropped = self.ledger.drop_free(&free);
                    self.recorder.counts.free += dropped.count();
                    self.dropped = Some(dropped);
                }
                self.stop_and_leave(now)
            }
            StopPlan::Retract => {
                self.recorder.micro_stop(now.saturating_sub(paused_at));
                self.recorder.paused_at = None;
                self.state = State::Retracting;
                vec![Command::Retract]
            }
        }
    }

    /// Pre-copy: the rest crosses while the device state is saved.
    fn stop_and_send(&mut self, now: Duration) -> Vec<Command> {
        let pending = self.ledger.pending().clone();
        let rest = Round::new(self.rounds + 1, pending, self.setup.streams, now);
        self.state = State::StopCopy(StopCopy {
            rest: Some(rest),
            state_outstanding: true,
            post_copy: false,
        });
        let saved_after = self.settle_disks(now).unwrap_or(Command::SendState);
        vec![Command::WakeStreams, saved_after]
    }

    /// Post-copy: the destination learns which pages follow.
    fn stop_and_leave(&mut self, now: Duration) -> Vec<Command> {
        self.state = State::StopCopy(StopCopy {
            rest: None,
            state_outstanding: true,
            post_copy: true,
        });
        vec![
            Command::SendSwitch {
                pending: self.ledger.pending().clone(),
            },
            self.settle_disks(now).unwrap_or(Command::SendState),
        ]
    }

    pub(super) fn prepare_if_all_sent(&mut self) -> Vec<Command> {
        let &mut State::StopCopy(StopCopy {
            ref rest,
            state_outstanding,
            post_copy,
        }) = &mut self.state
        else {
            return Vec::new();
        };
        if rest.is_some() || state_outstanding {
            return Vec::new();
        }
        self.state = State::Preparing {
            post_copy,
            ready: false,
            confirmed: false,
        };
        let prepare = [Command::SendPrepare(self.setup.epoch), Command::ConfirmState];
        // What crossed before the resume is compared before the commit, so that a difference costs nothing.
        if self.setup.verify && !post_copy {
            let note = "all pages were compared while the guest stood still: the downtime contains that";
            self.recorder.note(note.into());
            [Command::SendHashes].into_iter().chain(prepare).collect()
        } else {
            prepare.into()
        }
    }

    /// The destination is ready, or else the state is whole: hands over when both hold.
    fn hand_over_if_prepared(&mut self, now_ready: bool) -> Vec<Command> {
        let State::Preparing {
            post_copy,
            ready,
            confirmed,
        } = &mut self.state
        else {
            return Vec::new();
        };
        *ready |= now_ready;
        *confirmed |= !now_ready;
        if !(*ready && *confirmed) {
            return Vec::new();
        }
        self.state = State::HandingOver {
            post_copy: *post_copy,
            connected: true,
        };
        vec![Command::JournalHandedOver(self.setup.epoch)]
    }

    pub(super) fn runs_at_destination(&mut self, now: Duration, post_copy: bool) -> Vec<Command> {
        self.recorder.runs_at_destination(now);
        self.state = State::Pushing {
            post_copy,
            all_sent: false,
        };
        let mut commands = self.check_all_pushed();
        commands.push(Command::WakeStreams);
        commands
    }

    fn taken_back(&mut self, now: Duration) -> Vec<Command> {
        let State::TakingBack { reason } = &self.state else {
            return Vec::new();
        };
        let reason = reason.clone();
        let mut commands = self.end(now, Outcome::Failed, Some(reason));
        commands.push(Command::Rollback);
        commands
    }

    fn expect_epoch(&self, epoch: Epoch) -> Result<(), SourceError> {
        if epoch == self.setup.epoch {
            return Ok(());
        }
        Err(self.unexpected(
            &format!("an answer for epoch {epoch}"),
            "one for the epoch of this migration",
        ))
    }
}
