//! Pages that go ahead of the resume, in plans that leave pages for later.
//!
//! The loading of the device state reads some of the guest's pages, and each that is not there yet is demanded over the
//! network while nobody runs the guest. So the few that are known to be read ([`Source::read_by_load`]), and those next to one
//! that is demanded all the same, cross while the device state is saved and loaded. All others wait for the resume: on a
//! link that queues they would delay the device state, and every page that is demanded meanwhile.
//!
//! The first of them goes when the destination has taken the switch in: what came before that would count as sent by the
//! running guest, and be out of date. It says so itself ([`Event::SwitchTaken`](super::Event::SwitchTaken)), and nobody
//! there demands a page before. Until the commit the guest can go on here: what crossed is a copy.

use std::collections::VecDeque;
use std::time::Duration;

use super::batch::MOST_PAGES;
use super::event::{Batch, Command};
use super::state::State;
use super::{Source, SourceError};
use crate::pages::PageRun;
use crate::tracking::ScanPoint;

/// Pages behind a demanded one that follow it: devices read what lies in a row, such as the parts of a ring.
const BEHIND_DEMAND: u64 = 8;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Pages that may go, whether they still have to cross or not; those to go first at the front.
    runs: VecDeque<PageRun>,
    /// The destination has taken the switch in.
    switch_taken: bool,
}

impl Source {
    /// The destination will read these pages when it loads the device state, as far as anybody knows. Wrong ones cost their
    /// transfer; those beyond RAM are ignored.
    pub fn read_by_load(&mut self, runs: impl IntoIterator<Item = PageRun>) {
        self.ahead.runs = runs.into_iter().collect();
    }

    /// The destination takes pages as they come from now on.
    pub(super) fn switch_taken(&mut self) -> Result<Vec<Command>, SourceError> {
        match self.state {
            _ if self.state.awaits_resume() => {
                self.ahead.switch_taken = true;
                Ok(vec![Command::WakeStreams])
            }
            // It said more before that was looked at.
            State::HandingOver { .. }
            | State::Pushing { .. }
            | State::Severed { .. }
            | State::TakingBack { .. }
            | State::Ended { .. } => Ok(Vec::new()),
            _ => Err(self.unexpected("the answer to the switch", "it after the switch")),
        }
    }

    /// `page` was demanded before the resume: what lies behind it follows.
    pub(super) fn follow_demand(&mut self, page: u64) {
        self.ahead.switch_taken = true;
        self.ahead.runs.push_front(PageRun::new(page + 1, BEHIND_DEMAND));
    }

    /// A batch of the pages that go ahead.
    pub(super) fn batch_ahead(&mut self, now: Duration) -> Batch {
        let runs = match self.ahead.switch_taken && self.policy.sends_ahead() {
            true => self.claim_ahead(),
            false => Vec::new(),
        };
        if runs.is_empty() {
            self.pace.nothing_to_send(now);
            return Batch::Idle(None);
        }
        let pages = runs.iter().map(|run| run.count).sum();
        self.pace.owe_pages(pages);
        self.recorder.counts.ahead += pages;
        Batch::Pages {
            runs,
            round: self.rounds + 1,
            point: ScanPoint::Stopped,
        }
    }

    fn claim_ahead(&mut self) -> Vec<PageRun> {
        let (mut claimed, mut room) = (Vec::new(), MOST_PAGES);
        while room > 0
            && let Some(run) = self.ahead.runs.pop_front()
        {
            let pending = self.ledger.pending();
            let found = pending
                .next_run(run.first, room)
                .filter(|found| found.first < run.end());
            let Some(found) = found else { continue };
            let end = found.end().min(run.end());
            let taken = PageRun::new(found.first, end - found.first);
            self.recorder.counts.resent += self.ledger.claim(taken);
            room -= taken.count;
            claimed.push(taken);
            if end < run.end() {
                self.ahead.runs.push_front(PageRun::new(end, run.end() - end));
            }
        }
        claimed
    }
}
