//! A model, its samples and its tests together. Source: data-filter paper, section 3.3, "Build" and "Maintain the
//! Markov model".

use super::fit::{self, ChiSquare};
use super::model::Model;
use super::states::{State, observe};
use crate::bitmap::PageBitmap;
use crate::tuning::Tuning;

/// Builds a model from samples of one length and tests it, each time as many samples have come as it asks for,
/// against these. Transitions go into the model after the test of them.
#[derive(Clone, Debug)]
pub struct Learner {
    tuning: Tuning,
    model: Model,
    current: Option<State>,
    /// Since the last test.
    steps: Vec<(State, State)>,
    learned: u64,
}

/// A test that was made.
#[derive(Clone, Copy, Debug, PartialEq)]
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
            learned: 0,
        }
    }

    /// Takes a sample in. Answers the test that it completes; the first samples are only learned.
    pub fn sample(&mut self, dirty: &PageBitmap) -> Option<Tested> {
        let observed = observe(self.model.regions(), dirty, self.tuning.hot_percent);
        self.model.record_sample(&observed, dirty);
        let before = self.current.replace(observed.state);
        self.steps.push((before?, observed.state));
        if self.steps.len() < self.tuning.samples as usize {
            return None;
        }
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

    /// Forgets everything: what was learned does not fit any more.
    pub fn rebuild(&mut self) {
        *self = Self::new(self.model.regions().pages(), &self.tuning);
    }

    /// What it learned.
    pub fn model(&self) -> &Model {
        &self.model
    }
}
