//! Whether a model is believed, by the tests it passed and failed. Source: data-filter paper, section 3.3, "Maintain the
//! Markov model": "if these examinations fail, the Markov model is considered to be out of date". One test in a row is
//! chance; two are not.

use serde::{Deserialize, Serialize};

use super::learner::Learner;

/// Tests in a row with the same result that make a model believed, and that end it.
const IN_A_ROW: u32 = 2;
/// Tests that a model may fail before it is given up: the guest's writes follow no pattern that it can learn. Where
/// there are many states it gets more: half a sample a state.
const MOST_MISFITS: u32 = 10;

/// What is thought of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// It has still to prove itself.
    Untried {
        /// Tests it failed.
        misfits: u32,
        /// Tests it passed in a row.
        passed: u32,
    },
    /// It fits the guest.
    Trusted {
        /// Tests it failed in a row since.
        failed: u32,
    },
}

/// What a test changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Unchanged,
    /// The model fits from now on.
    Gained,
    /// The model does not fit any more: the guest does something else.
    Lost,
    /// No model fits: the guest's writes follow no pattern that it can learn.
    Hopeless,
}

impl Default for Trust {
    fn default() -> Self {
        Self::Untried {
            misfits: 0,
            passed: 0,
        }
    }
}

impl Trust {
    /// In a model that was believed elsewhere: one test is enough.
    pub const ON_TRIAL: Self = Self::Untried {
        misfits: 0,
        passed: IN_A_ROW - 1,
    };

    /// Whether the model fits.
    pub fn is_given(self) -> bool {
        matches!(self, Self::Trusted { .. })
    }

    /// A test of `learner`'s model was passed, or not.
    pub fn tested(&mut self, passed_now: bool, learner: &Learner) -> Verdict {
        let (next, verdict) = match (*self, passed_now) {
            (Self::Untried { misfits, passed }, true) if passed + 1 < IN_A_ROW => {
                let passed = passed + 1;
                (Self::Untried { misfits, passed }, Verdict::Unchanged)
            }
            (Self::Untried { .. }, true) => (Self::Trusted { failed: 0 }, Verdict::Gained),
            (Self::Untried { misfits, .. }, false) => {
                let misfits = misfits + 1;
                let verdict = match misfits < most_misfits(learner) {
                    true => Verdict::Unchanged,
                    false => Verdict::Hopeless,
                };
                (Self::Untried { misfits, passed: 0 }, verdict)
            }
            (Self::Trusted { .. }, true) => (Self::Trusted { failed: 0 }, Verdict::Unchanged),
            (Self::Trusted { failed }, false) if failed + 1 < IN_A_ROW => {
                (Self::Trusted { failed: failed + 1 }, Verdict::Unchanged)
            }
            (Self::Trusted { .. }, false) => (Self::default(), Verdict::Lost),
        };
        *self = next;
        verdict
    }
}

fn most_misfits(learner: &Learner) -> u32 {
    let states = learner.model().states() as u32;
    MOST_MISFITS.max(states / (2 * learner.tuning().samples))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::Tuning;

    #[test]
    fn two_tests_in_a_row_decide() {
        let learner = Learner::new(64, &Tuning::default());
        let mut trust = Trust::default();
        let mut verdicts = |passed: &[bool]| -> Vec<_> {
            passed
                .iter()
                .map(|&passed| trust.tested(passed, &learner))
                .collect()
        };
        use Verdict::{Gained, Lost, Unchanged};
        assert_eq!(
            verdicts(&[true, false, true, true]),
            [Unchanged, Unchanged, Unchanged, Gained]
        );
        assert_eq!(
            verdicts(&[false, true, false, false]),
            [Unchanged, Unchanged, Unchanged, Lost]
        );
        assert!(!trust.is_given());
    }

    #[test]
    fn a_guest_that_never_fits_is_given_up_and_one_on_trial_needs_one_test() {
        let learner = Learner::new(64, &Tuning::default());
        let mut trust = Trust::default();
        let verdicts: Vec<_> = (0..10).map(|_| trust.tested(false, &learner)).collect();
        assert_eq!(verdicts[8..], [Verdict::Unchanged, Verdict::Hopeless]);
        let mut trust = Trust::ON_TRIAL;
        assert_eq!(trust.tested(true, &learner), Verdict::Gained);
    }
}
