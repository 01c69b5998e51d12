//! After the resume at the destination: pushing, demand fetches, broken connections, the end.

use std::time::Duration;

use super::batch::{MOST_PAGES, many};
use super::event::{Batch, Command, Demand, Event, Side, Summary};
use super::state::State;
use super::{Source, SourceError, view};
use crate::bitmap::PageBitmap;
use crate::handover::{Claim, Epoch, Resolution, reconcile};
use crate::pages::PageRun;
use crate::report::Outcome;
use crate::tracking::ScanPoint;

impl Source {
    /// The guest at the destination, or the loading of its device state, demands `page`. Pages of the stopped
    /// guest can be demanded from the switch on.
    pub fn demanded(&mut self, now: Duration, page: u64) -> Demand {
        let view = view(
            now.saturating_sub(self.memory_began),
            &self.ledger,
            &self.last_scan,
            &self.tracking,
            self.rounds,
            &self.rates,
            &self.recorder,
        );
        self.policy.faulted(&view, page);
        self.recorder.demands += 1;
        if page < self.demanded.len() {
            self.demanded.insert(page);
        }
        // The book is not the destination's before its answer to the reconnect is in it.
        if matches!(self.state, State::Severed { .. }) {
            return Demand::UnderWay;
        }
        let pending = self.ledger.pending().contains(page);
        if !self.dereference(page) && !pending {
            return Demand::UnderWay;
        }
        let resent = self.ledger.claim(PageRun::single(page));
        self.recorder.counts.resent += resent;
        self.pace.owe_pages(1);
        if self.state.awaits_resume() {
            self.follow_demand(page);
        }
        Demand::Send
    }

    pub(super) fn push_batch(&mut self, now: Duration, stream: usize) -> Batch {
        let urgent = self.claim_urgent();
        let (runs, retry_at) = match (
            urgent.is_empty(),
            self.ledger.pending().count_up_to(many(self.setup.streams)),
        ) {
            (false, _) => {
                self.pace.owe_pages(urgent.iter().map(|run| run.count).sum());
                (urgent, None)
            }
            (true, 0) => {
                self.pace.nothing_to_send(now);
                (urgent, None)
            }
            (true, left) => self.claim_batch(now, stream, left),
        };
        if runs.is_empty() {
            return Batch::Idle(retry_at);
        }
        Batch::Pages {
            runs,
            round: self.rounds + 1,
            point: ScanPoint::Stopped,
        }
    }

    /// A batch of the pages that the guest waited for when the connection broke.
    fn claim_urgent(&mut self) -> Vec<PageRun> {
        if self.urgent.is_empty() {
            return Vec::new();
        }
        self.urgent.intersect_with(self.ledger.pending());
        let (mut runs, mut room) = (Vec::new(), MOST_PAGES);
        while let Some(run) = self.urgent.next_run(0, room).filter(|_| room > 0) {
            self.recorder.counts.resent += self.ledger.claim(run);
            self.urgent.remove_run(run);
            room -= run.count;
            runs.push(run);
        }
        runs
    }

    /// To call after a batch or a demanded page was sent: if that was the last one, says so.
    pub fn check_all_pushed(&mut self) -> Vec<Command> {
        let State::Pushing {
            post_copy,
            all_sent: false,
        } = self.state
        else {
            return Vec::new();
        };
        if !self.ledger.pending().is_empty() {
            return Vec::new();
        }
        self.state = State::Pushing {
            post_copy,
            all_sent: true,
        };
        // What crossed before the resume was compared before the commit. After a restart nobody knows any more which
        // pages were dropped, and so have to be zero.
        let comparable = self.wants_hints().is_none() || !self.recovered;
        let hashes = (self.setup.verify && post_copy && comparable).then_some(Command::SendHashes);
        hashes.into_iter().chain([Command::SendAllPushed]).collect()
    }

    pub(super) fn pushing_event(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        match (&self.state, event) {
            // Possibly before the answer to the question after a reconnect.
            (State::Pushing { all_sent: true, .. } | State::Severed { .. }, Event::Complete(summary)) => {
                Ok(self.complete(now, summary))
            }
            (
                // Where two reconnects crossed, the second answer finds the migration going on already.
                &(State::Severed { post_copy }
                | State::Committing { post_copy }
                | State::Pushing { post_copy, .. }),
                Event::Reconnected {
                    epoch,
                    claim,
                    lacking,
                },
            ) => self.reconnected(now, post_copy, epoch, claim, lacking),
            (State::Ended { .. }, _) => Ok(Vec::new()),
            (_, Event::Complete(_)) => Err(self.unexpected("`Complete`", "it after every page was sent")),
            (_, _) => Err(self.unexpected("a reconnect", "it after a broken connection")),
        }
    }

    fn complete(&mut self, now: Duration, summary: Summary) -> Vec<Command> {
        self.recorder.summary = summary;
        if let Some(timeout) = self.timeout.filter(|&timeout| now > timeout) {
            self.recorder.note(format!(
                "the time limit of {} ms passed after the handover: from then on a migration can only be completed",
                timeout.as_millis()
            ));
        }
        let mut commands = self.end(now, Outcome::Completed, None);
        commands.push(Command::Release(self.setup.epoch));
        commands
    }

    fn reconnected(
        &mut self,
        now: Duration,
        post_copy: bool,
        epoch: Epoch,
        claim: Claim,
        lacking: Option<PageBitmap>,
    ) -> Result<Vec<Command>, SourceError> {
        let resolution = reconcile(self.setup.epoch, epoch, claim)?;
        if self.recorder.ran_at_destination() && resolution != Resolution::Serve {
            return Err(SourceError::Denied);
        }
        match resolution {
            Resolution::Serve => {
                self.reset_pending(lacking);
                Ok(self.runs_at_destination(now, post_copy))
            }
            Resolution::CommitAgain => {
                self.reset_pending(lacking);
                self.state = State::Committing { post_copy };
                Ok(vec![Command::SendCommit(self.setup.epoch)])
            }
            Resolution::TakeBack(epoch) => {
                let reason = "the destination lost the guest before it ran there; the source took it back";
                self.state = State::TakingBack {
                    reason: reason.into(),
                };
                Ok(vec![Command::JournalOwner(epoch)])
            }
        }
    }

    /// What was claimed but not received is pending again; and a source that was restarted knows of no page.
    fn reset_pending(&mut self, lacking: Option<PageBitmap>) {
        self.ledger
            .reset_pending(lacking.unwrap_or_else(|| PageBitmap::new(self.setup.pages)));
        self.referenced.clear();
        self.demanded.intersect_with(self.ledger.pending());
        self.urgent = self.demanded.clone();
    }

    /// The operator decides where the peer cannot be asked.
    pub(super) fn resolve(&mut self, now: Duration, side: Side) -> Result<Vec<Command>, SourceError> {
        match (&self.state, side) {
            (State::Severed { .. }, Side::Source) => {
                let reason = "taken back by the operator while the destination was unreachable";
                self.state = State::TakingBack {
                    reason: reason.into(),
                };
                Ok(vec![Command::JournalOwner(self.setup.epoch.next())])
            }
            (State::Severed { post_copy: false }, Side::Destination) => {
                let mut commands = self.end(now, Outcome::Completed, None);
                commands.push(Command::Release(self.setup.epoch));
                Ok(commands)
            }
            (State::Severed { post_copy: true }, Side::Destination) => Err(SourceError::TooLate(
                "the destination still needs pages that only this host has; bring the connection back, or give the guest up there and resolve to the source",
            )),
            _ => Err(SourceError::TooLate(
                "nothing to resolve: the migration is not waiting for its peer",
            )),
        }
    }
}
