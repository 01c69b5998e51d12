//! What was learned of a guest, and in which form a migration takes it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bitmap::PageBitmap;
use crate::filter::{Learner, Tested, Trust, Verdict};
use crate::tuning::Tuning;
use crate::wws::Heat;

/// After this long without a sample nobody knows what the guest does now.
const STALE: Duration = Duration::from_secs(600);

/// Everything learned of one guest. Times count from any moment that is the same for all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    pub(super) learner: Learner,
    pub(super) heat: Heat,
    pub(super) trust: Trust,
    /// Samples, bursts and tests of this model.
    pub(super) samples: u64,
    pub(super) bursts: u64,
    pub(super) tests: u64,
    pub(super) tests_failed: u64,
    /// Models before this one, which stopped to fit or never did.
    pub(super) rebuilt: u64,
    /// When this model was begun.
    pub(super) begun: Duration,
    pub(super) last_sample: Option<Duration>,
    pub(super) last_test: Option<Tested>,
    /// Tests in a row show that no model fits.
    pub(super) hopeless: bool,
}

impl Learned {
    /// Nothing, of a guest of `pages` pages; `tuning` was checked for them.
    pub fn new(pages: u64, tuning: &Tuning, now: Duration) -> Self {
        Self {
            learner: Learner::new(pages, tuning),
            heat: Heat::new(pages, tuning.alpha),
            trust: Trust::default(),
            samples: 0,
            bursts: 0,
            tests: 0,
            tests_failed: 0,
            rebuilt: 0,
            begun: now,
            last_sample: None,
            last_test: None,
            hopeless: false,
        }
    }

    /// Whether it can be added to for a guest of `pages` pages that is sampled by `tuning`.
    pub fn is_of(&self, pages: u64, tuning: &Tuning) -> bool {
        self.learner.model().regions().pages() == pages
            && self.learner.tuning() == tuning
            && self.heat.alpha() == f64::from(tuning.alpha as f32)
    }

    /// It comes from an earlier time: where it was believed, one test more is asked of it.
    pub fn on_trial(mut self) -> Self {
        if self.trust.is_given() {
            self.trust = Trust::ON_TRIAL;
        }
        self
    }

    /// Takes a sample in; what the test that it may complete changed.
    pub(super) fn sample(&mut self, now: Duration, dirty: &PageBitmap) -> Verdict {
        self.samples += 1;
        self.last_sample = Some(now);
        self.heat.sample(dirty);
        let Some(tested) = self.learner.sample(dirty) else {
            return Verdict::Unchanged;
        };
        self.tests += 1;
        self.tests_failed += u64::from(!tested.fits());
        self.last_test = Some(tested);
        let verdict = self.trust.tested(tested.fits(), &self.learner);
        match verdict {
            Verdict::Unchanged => {}
            Verdict::Gained => self.hopeless = false,
            Verdict::Lost | Verdict::Hopeless => self.rebuild(now, verdict == Verdict::Hopeless),
        }
        verdict
    }

    /// "If these examinations fail, the Markov model is considered to be out of date and is rebuilt." The heat goes on: it
    /// forgets by itself.
    fn rebuild(&mut self, now: Duration, hopeless: bool) {
        self.learner.rebuild();
        *self = Self {
            learner: self.learner.clone(),
            heat: self.heat.clone(),
            trust: Trust::default(),
            rebuilt: self.rebuilt + 1,
            last_sample: self.last_sample,
            last_test: self.last_test,
            begun: now,
            samples: 0,
            bursts: 0,
            tests: 0,
            tests_failed: 0,
            hopeless,
        };
    }

    /// What a migration that begins at `now` can have of it; none before there was a whole burst.
    pub fn ready(&self, now: Duration) -> Option<Ready> {
        let age = now.saturating_sub(self.last_sample?);
        let tuning = self.learner.tuning();
        let from = format!(
            "the host's sampler ({} samples of {} ms in {} bursts over {:.0} s, the last {:.1} s ago)",
            self.samples,
            tuning.interval.as_secs_f64() * 1e3,
            self.bursts,
            now.saturating_sub(self.begun).as_secs_f64(),
            age.as_secs_f64(),
        );
        (self.bursts > 0).then(|| Ready {
            from,
            age,
            fits: self.trust.is_given(),
            learner: self.learner.clone(),
            heat: self.heat.clone(),
        })
    }
}

/// What a migration is told of its guest.
#[derive(Clone, Debug)]
pub struct Ready {
    /// Where it comes from, for the report: how many samples, how they were taken, how old.
    pub from: String,
    /// Since the last sample.
    age: Duration,
    fits: bool,
    learner: Learner,
    heat: Heat,
}

/// Why a migration does not go by what was learned before.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum NotReady {
    /// The last tests failed, or there were too few.
    #[error("it does not fit the guest yet")]
    Unfit,
    /// The guest may do anything by now.
    #[error("its last sample is {} s old", .0.as_secs())]
    Stale(Duration),
    /// The operator asked for other parameters.
    #[error("it was learned with other parameters than this migration's")]
    OtherTuning,
    /// The guest's RAM has another size.
    #[error("it is of a guest of {0} pages")]
    OtherGuest(u64),
}

impl Ready {
    /// The data filter's model.
    ///
    /// # Errors
    /// When it is not to be used, or is of no use to a migration with `tuning` of a guest of `pages` pages.
    pub fn model(self, tuning: &Tuning, pages: u64) -> Result<Learner, NotReady> {
        self.check(pages)?;
        match self.learner.suits(tuning) {
            true => Ok(self.learner),
            false => Err(NotReady::OtherTuning),
        }
    }

    /// How hot each page is.
    ///
    /// # Errors
    /// As [`Ready::model`].
    pub fn heat(self, tuning: &Tuning, pages: u64) -> Result<Heat, NotReady> {
        self.check(pages)?;
        let learned_by = self.learner.tuning();
        match learned_by.interval == tuning.interval && learned_by.alpha == tuning.alpha {
            true => Ok(self.heat),
            false => Err(NotReady::OtherTuning),
        }
    }

    fn check(&self, pages: u64) -> Result<(), NotReady> {
        let learned_of = self.learner.model().regions().pages();
        if learned_of != pages {
            return Err(NotReady::OtherGuest(learned_of));
        }
        if !self.fits {
            return Err(NotReady::Unfit);
        }
        match self.age > STALE {
            true => Err(NotReady::Stale(self.age)),
            false => Ok(()),
        }
    }
}
