//! A model, its samples and its tests together. Source: data-filter paper, section 3.3, "Build" and "Maintain the
//! Markov model".

use serde::{Deserialize, Serialize};

use super::fit::{self, ChiSquare};
use super::model::Model;
use super::report::StateCount;
use super::states::{State, observe};
use crate::bitmap::PageBitmap;
use crate::tuning::Tuning;

/// Samples after which a model that was learned earlier is tested for the first time: a quarter of a second by default. So
/// few say whether the guest is where the model knows it, if not how often it is where.
pub const FIRST_TEST: u32 = 5;

/// Builds a model from samples of one length and tests it, each time as many samples have come as it asks for,
/// against these. Transitions go into the model after the test of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Learner {
    tuning: Tuning,
    model: Model,
    current: Option<State>,
    /// Since the last test.
    steps: Vec<(State, State)>,
    /// Steps that the next test waits for.
    test_after: u32,
    learned: u64,
}

/// A test that was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    /// Of the distribution of states.
    pub states: ChiSquare,
    /// Of that of transitions.
    pub transitions: ChiSquare,
}

impl Tested {
    /// Whether the model fits.
    pub fn fits(&self) -> bool {
        self.states.fits() && self.transitions.fits()
    }
}

impl std::fmt::Display for Tested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (name, test) in [
            ("chi-square of states", &self.states),
            ("; of transitions", &self.transitions),
        ] {
            let (statistic, critical) = (test.statistic, test.critical());
            write!(
                f,
                "{name} {statistic:.1}, critical {critical:.1} at {} degrees of freedom",
                test.freedom
            )?;
        }
        Ok(())
    }
}

impl Learner {
    /// Nothing learned yet of a guest of `pages` pages; `tuning` was checked.
    pub fn new(pages: u64, tuning: &Tuning) -> Self {
        Self {
            model: Model::new(pages, tuning),
            tuning: tuning.clone(),
            current: None,
            steps: Vec::new(),
            test_after: tuning.samples,
            learned: 0,
        }
    }

    /// Takes a sample in. Answers the test that it completes; the first samples are only learned.
    pub fn sample(&mut self, dirty: &PageBitmap) -> Option<Tested> {
        let observed = observe(self.model.regions(), dirty, self.tuning.hot_percent);
        self.model.record_sample(&observed, dirty);
        let before = self.current.replace(observed.state);
        self.steps.push((before?, observed.state));
        if self.steps.len() < self.test_after as usize {
            return None;
        }
        self.test_after = self.tuning.samples;
        let tested = (self.learned > 0).then(|| Tested {
            states: fit::states(&self.model, &self.steps),
            transitions: fit::transitions(&self.model, &self.steps),
        });
        for (from, to) in self.steps.drain(..) {
            self.model.record_transition(from, to);
            self.learned += 1;
        }
        tested
    }

    /// The pages expected to be dirtied within `steps` samples from now on.
    pub fn forecast(&self, steps: u32) -> PageBitmap {
        match self.current {
            Some(state) => self.model.forecast(state, steps),
            None => PageBitmap::new(self.model.regions().pages()),
        }
    }

    /// The next sample does not follow the one before: nothing is learned of how the one became the other.
    pub fn interrupt(&mut self) {
        self.current = None;
    }

    /// The same model, for a guest that is to be tested at once: the first test comes after [`FIRST_TEST`] samples, the
    /// later ones as `tuning` says. Only the number of samples between tests may differ from what it was learned with
    /// ([`Learner::suits`]).
    pub fn to_be_tried(mut self, tuning: &Tuning) -> Self {
        self.interrupt();
        self.steps.clear();
        self.test_after = tuning.samples.min(FIRST_TEST);
        self.tuning = tuning.clone();
        self
    }

    /// Whether a model by `tuning` would be of the same kind: regions, interval and shares.
    pub fn suits(&self, tuning: &Tuning) -> bool {
        let pages = self.model.regions().pages();
        let of = |tuning: &Tuning| {
            let Tuning {
                interval,
                hot_percent,
                frequent_percent,
                ..
            } = *tuning;
            (
                tuning.region_pages(pages),
                interval,
                hot_percent,
                frequent_percent,
            )
        };
        of(&self.tuning) == of(tuning)
    }

    /// How often each state that occurred did, in order; also in samples whose transitions still wait for their test.
    pub fn occurrences(&self) -> Vec<StateCount> {
        let mut counts = self.model.arrivals();
        for &(_, to) in &self.steps {
            counts[usize::from(to)] += 1;
        }
        let seen = (0..).zip(counts).filter(|(_, samples)| *samples > 0);
        seen.map(|(state, samples)| StateCount { state, samples })
            .collect()
    }

    /// What it learns by.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Forgets everything: what was learned does not fit any more.
    pub fn rebuild(&mut self) {
        *self = Self::new(self.model.regions().pages(), &self.tuning);
    }

    /// What it learned.
    pub fn model(&self) -> &Model {
        &self.model
    }
}
