//! `pre-copy-filter`. Source: data-filter paper (Ruan, Cao, Wang, NPC 2014), section 4.2, figure 3: pre-copy whose
//! rounds leave out the pages forecast to be dirtied while the round is sent. The lines below are those of the
//! figure. The model is the one that the host's sampler built before (section 3.3; [`crate::sampling`]), once it passed a
//! test against the first samples of the migration. Three things differ: where there is no such model, one is learned from
//! samples in the first round; the forecast is made again with every sample of a round, so that pages are held back
//! and taken back as the guest moves on, not only between rounds; and where the model fails under way, "the data filter is
//! disabled, and the original pre-copy algorithm is performed" (section 3.3) only until a new one fits.

use std::time::Duration;

use super::pre_copy::PreCopy;
use super::{LiveStep, Needs, Policy, RoundChange, RoundPages, RoundPlan, StopPlan, View};
use crate::bitmap::PageBitmap;
use crate::filter::states::Sampler;
use crate::filter::{FilterReport, Learner, Tested, Trust, Verdict};
use crate::sampling::Ready;
use crate::strategy::Limits;
use crate::tuning::Tuning;

/// Pre-copy behind a data filter.
pub struct PreCopyFilter {
    pre_copy: PreCopy,
    tuning: Tuning,
    learner: Learner,
    /// Rounds are filtered while it is given.
    trust: Trust,
    /// The model is the sampler's and was not tested yet.
    on_trial: bool,
    /// No model was found that fits: for the rest of the migration none is looked for.
    off: bool,
    sampler: Option<Sampler>,
    pages: u64,
    /// Rounds that had nothing to send because all was forecast to be dirtied.
    empty_rounds: u32,
    notes: Vec<String>,
    /// Forecasts and tests of this migration, for its report.
    done: FilterReport,
}

impl PreCopyFilter {
    /// For a guest of `pages` pages; `tuning` was checked.
    pub fn new(limits: Limits, tuning: &Tuning, pages: u64) -> Self {
        Self {
            pre_copy: PreCopy::new(limits),
            tuning: tuning.clone(),
            learner: Learner::new(pages, tuning),
            trust: Trust::default(),
            on_trial: false,
            off: false,
            sampler: None,
            pages,
            empty_rounds: 0,
            notes: Vec::new(),
            done: FilterReport::default(),
        }
    }

    /// The same, with what was learned of the guest before.
    pub fn knowing(limits: Limits, tuning: &Tuning, pages: u64, ready: Ready) -> Self {
        let mut policy = Self::new(limits, tuning, pages);
        let from = ready.from.clone();
        match ready.model(tuning, pages) {
            Ok(model) => {
                policy
                    .notes
                    .push(format!("data filter: tries the model of {from}"));
                policy.learner = model.to_be_tried(tuning);
                policy.trust = Trust::ON_TRIAL;
                policy.on_trial = true;
            }
            Err(why) => policy
                .notes
                .push(format!("data filter: does without the model of {from}: {why}")),
        }
        policy
    }

    fn is_filtering(&self) -> bool {
        self.trust.is_given() && !self.off
    }

    fn learn_anew(&mut self) {
        self.done.rebuilt += 1;
        self.learner = Learner::new(self.pages, &self.tuning);
        self.trust = Trust::default();
    }

    /// A scan came: it may complete a sample, and that a test.
    fn scanned(&mut self, view: &View<'_>) {
        let Some(sampler) = &mut self.sampler else {
            let interval = self.tuning.interval;
            self.sampler = Some(Sampler::new(self.pages, interval, view.now));
            return;
        };
        if self.off {
            return;
        }
        let sample = sampler.scanned(view.now, view.last_scan);
        if let Some(tested) = sample.and_then(|sample| self.learner.sample(&sample)) {
            self.tested(view, &tested);
        }
    }

    fn tested(&mut self, view: &View<'_>, tested: &Tested) {
        self.done.tests += 1;
        self.done.tests_failed += u64::from(!tested.fits());
        self.done.last_test = Some(*tested);
        let verdict = self.trust.tested(tested.fits(), &self.learner);
        let at_ms = view.now.as_millis();
        if std::mem::take(&mut self.on_trial) && !tested.fits() {
            self.notes.push(format!(
                "data filter: learns anew after {at_ms} ms: the guest writes elsewhere now: {tested}"
            ));
            self.learn_anew();
            return;
        }
        let (switched, why) = match verdict {
            Verdict::Unchanged => return,
            Verdict::Gained => ("on", "its model fits the guest"),
            Verdict::Lost => ("off", "it learns anew, the workload changed"),
            Verdict::Hopeless => ("off", "the guest's writes follow no pattern it can learn"),
        };
        self.notes.push(format!(
            "data filter {switched} after {at_ms} ms: {why}: {tested}"
        ));
        match verdict {
            Verdict::Lost => self.learn_anew(),
            Verdict::Hopeless => self.off = true,
            Verdict::Gained | Verdict::Unchanged => {}
        }
    }

    /// Lines 16 to 21: the pages to be dirtied while all that is outstanding would be sent, held back or not.
    fn forecast(&mut self, view: &View<'_>) -> PageBitmap {
        self.done.forecasts += 1;
        // 16. let sendtime := length(sendlist) / netrate()
        let send_time = view.time_to_send_pending().or_else(|| first_round(view));
        let steps = send_time.unwrap_or_default().as_nanos() / self.tuning.interval.as_nanos().max(1);
        // 18. while sendtime >= duration do
        self.learner.forecast(steps.min(u128::from(u32::MAX)) as u32)
    }

    /// Lines 7 to 9.
    fn round(&mut self, view: &View<'_>) -> LiveStep {
        let held_back = match self.is_filtering() {
            true => self.forecast(view),
            false => PageBitmap::new(self.pages),
        };
        let mut sent = view.ledger.pending().clone();
        sent.subtract(&held_back);
        // Nothing to send now. The paper goes on with a sample's time and the next round.
        if sent.is_empty() && !view.ledger.pending().is_empty() {
            self.empty_rounds += 1;
            return LiveStep::Wait(self.tuning.interval);
        }
        LiveStep::Round(RoundPlan {
            pages: match self.is_filtering() {
                true => RoundPages::PendingExcept(held_back),
                false => RoundPages::Pending,
            },
            sample_every: (!self.off).then_some(self.tuning.interval),
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
        if !self.is_filtering() {
            return RoundChange {
                hold_back: None,
                take_back: Some(PageBitmap::full(self.pages)),
            };
        }
        let held_back = self.forecast(view);
        let mut rest = held_back.clone();
        rest.invert();
        RoundChange {
            hold_back: Some(held_back),
            take_back: Some(rest),
        }
    }

    /// Line 12.
    fn stop(&mut self, view: &View<'_>) -> StopPlan {
        self.pre_copy.stop(view)
    }

    fn filter_report(&self) -> Option<FilterReport> {
        let FilterReport {
            tests,
            tests_failed,
            last_test,
            rebuilt,
            forecasts,
            ..
        } = self.done;
        Some(FilterReport {
            fits: self.is_filtering(),
            tests,
            tests_failed,
            last_test,
            rebuilt,
            forecasts,
            ..FilterReport::of(&self.learner)
        })
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}
