//! `pre-copy-filter`. Source: data-filter paper (Ruan, Cao, Wang, NPC 2014), section 4.2, figure 3: pre-copy whose
//! rounds leave out the pages forecast to be dirtied while the round is sent. The lines below are those of the
//! figure. Two things differ: the model is learned from samples in the first round, so that nothing has to run
//! beforehand; and the forecast is made again with every sample of a round, so that pages are held back and taken
//! back as the guest moves on, not only between rounds.

use std::time::Duration;

use super::pre_copy::PreCopy;
use super::{LiveStep, Needs, Policy, RoundChange, RoundPages, RoundPlan, StopPlan, View};
use crate::bitmap::PageBitmap;
use crate::filter::states::Sampler;
use crate::filter::{Learner, Tested};
use crate::strategy::Limits;
use crate::tuning::Tuning;

/// Tests that a model may fail before it is given up: the guest's writes follow no pattern that it can learn. Where
/// there are many states it gets more: half a sample a state.
const MOST_MISFITS: u32 = 10;
/// Tests in a row with the same result that switch the filter on, and that switch it off.
const IN_A_ROW: u32 = 2;

/// What the filter does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The model is not trusted yet: how many tests it failed, and how many it passed in a row.
    Learning { misfits: u32, passed: u32 },
    /// It is: rounds are filtered. How many tests it failed in a row since.
    Filtering { failed: u32 },
    /// The workload changed or has no pattern: "the data filter is disabled, and the original pre-copy algorithm is
    /// performed" (section 3.3).
    Off,
}

/// Pre-copy behind a data filter.
pub struct PreCopyFilter {
    pre_copy: PreCopy,
    tuning: Tuning,
    learner: Learner,
    sampler: Option<Sampler>,
    pages: u64,
    mode: Mode,
    /// Rounds that had nothing to send because all was forecast to be dirtied.
    empty_rounds: u32,
    notes: Vec<String>,
}

impl PreCopyFilter {
    /// For a guest of `pages` pages; `tuning` was checked.
    pub fn new(limits: Limits, tuning: &Tuning, pages: u64) -> Self {
        Self {
            pre_copy: PreCopy::new(limits),
            tuning: tuning.clone(),
            learner: Learner::new(pages, tuning),
            sampler: None,
            pages,
            mode: Mode::Learning {
                misfits: 0,
                passed: 0,
            },
            empty_rounds: 0,
            notes: Vec::new(),
        }
    }

    /// A scan came: it may complete a sample, and that a test.
    fn scanned(&mut self, view: &View<'_>) {
        let Some(sampler) = &mut self.sampler else {
            let interval = self.tuning.interval;
            self.sampler = Some(Sampler::new(self.pages, interval, view.now));
            return;
        };
        if self.mode == Mode::Off {
            return;
        }
        let sample = sampler.scanned(view.now, view.last_scan);
        if let Some(tested) = sample.and_then(|sample| self.learner.sample(&sample)) {
            self.tested(view, &tested);
        }
    }

    fn most_misfits(&self) -> u32 {
        let states = self.learner.model().states() as u32;
        MOST_MISFITS.max(states / (2 * self.tuning.samples))
    }

    fn tested(&mut self, view: &View<'_>, tested: &Tested) {
        let at_ms = view.now.as_millis();
        self.mode = match (self.mode, tested.fits()) {
            (Mode::Learning { misfits, passed }, true) if passed + 1 < IN_A_ROW => Mode::Learning {
                misfits,
                passed: passed + 1,
            },
            (Mode::Learning { .. }, true) => {
                self.notes.push(format!(
                    "data filter on after {at_ms} ms: its model fits the guest: {tested}"
                ));
                Mode::Filtering { failed: 0 }
            }
            (Mode::Learning { misfits, .. }, false) if misfits + 1 < self.most_misfits() => Mode::Learning {
                misfits: misfits + 1,
                passed: 0,
            },
            (Mode::Learning { .. }, false) => {
                self.notes.push(format!(
                    "data filter off after {at_ms} ms: the guest's writes follow no pattern it can learn: {tested}"
                ));
                Mode::Off
            }
            (Mode::Filtering { .. }, true) => Mode::Filtering { failed: 0 },
            (Mode::Filtering { failed }, false) if failed + 1 < IN_A_ROW => {
                Mode::Filtering { failed: failed + 1 }
            }
            (Mode::Filtering { .. }, false) => {
                self.notes.push(format!(
                    "data filter off after {at_ms} ms: the workload changed: {tested}"
                ));
                Mode::Off
            }
            (Mode::Off, _) => Mode::Off,
        };
    }

    /// Lines 16 to 21: the pages to be dirtied while all that is outstanding would be sent, held back or not.
    fn forecast(&self, view: &View<'_>) -> PageBitmap {
        // 16. let sendtime := length(sendlist) / netrate()
        let send_time = view.time_to_send_pending().or_else(|| first_round(view));
        let steps = send_time.unwrap_or_default().as_nanos() / self.tuning.interval.as_nanos().max(1);
        // 18. while sendtime >= duration do
        self.learner.forecast(steps.min(u128::from(u32::MAX)) as u32)
    }

    /// Lines 7 to 9.
    fn round(&mut self, view: &View<'_>) -> LiveStep {
        let held_back = match self.mode {
            Mode::Filtering { .. } => self.forecast(view),
            _ => PageBitmap::new(self.pages),
        };
        let mut sent = view.ledger.pending().clone();
        sent.subtract(&held_back);
        // Nothing to send now. The paper goes on with a sample's time and the next round.
        if sent.is_empty() && !view.ledger.pending().is_empty() {
            self.empty_rounds += 1;
            return LiveStep::Wait(self.tuning.interval);
        }
        LiveStep::Round(RoundPlan {
            pages: match self.mode {
                Mode::Filtering { .. } => RoundPages::PendingExcept(held_back),
                _ => RoundPages::Pending,
            },
            sample_every: (self.mode != Mode::Off).then_some(self.tuning.interval),
        })
    }
}

/// In the first round there is no rate yet but its own.
fn first_round(view: &View<'_>) -> Option<Duration> {
    let sent = view.ledger.sent().count();
    let left = view.ledger.pending().count();
    let seconds = view.now.as_secs_f64() * left as f64 / sent as f64;
    Duration::try_from_secs_f64(seconds).ok().filter(|_| sent > 0)
}

impl Policy for PreCopyFilter {
    fn needs(&self) -> Needs {
        self.pre_copy.needs()
    }

    /// Lines 6 to 11; rounds are counted with those that had nothing to send.
    fn live(&mut self, view: &View<'_>) -> LiveStep {
        self.scanned(view);
        match self.pre_copy.before_round(view, view.rounds + self.empty_rounds) {
            Some(step) => step,
            None => self.round(view),
        }
    }

    /// A sample within a round: "if the previously filtered pages should be re-added to the send list" (abstract).
    fn sampled(&mut self, view: &View<'_>) -> RoundChange {
        self.scanned(view);
        match self.mode {
            Mode::Learning { .. } => RoundChange::default(),
            Mode::Filtering { .. } => {
                let held_back = self.forecast(view);
                let mut rest = held_back.clone();
                rest.invert();
                RoundChange {
                    hold_back: Some(held_back),
                    take_back: Some(rest),
                }
            }
            Mode::Off => RoundChange {
                hold_back: None,
                take_back: Some(PageBitmap::full(self.pages)),
            },
        }
    }

    /// Line 12.
    fn stop(&mut self, view: &View<'_>) -> StopPlan {
        self.pre_copy.stop(view)
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}
