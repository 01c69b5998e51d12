//! The paper's trial of a model (performance-model paper, section 4.E, Table 1): five training points evenly picked from the whole
//! range of shares, and the errors on all the others.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fit::distinct;
use super::{Axis, Form, Model, ModelError, Observation, fit, fit_form};

/// Training points of the paper.
pub const TRAINING_POINTS: usize = 5;

/// How a model that learned from a few settings does on the others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Values of the axis that it learned from.
    pub training: Vec<f64>,
    /// The model.
    pub model: Model,
    /// What was expected and what was measured, by value of the axis.
    pub tests: Vec<Test>,
    /// Share of the variance of the test data's logarithms that is explained.
    pub test_r2: Option<f64>,
}

/// A value of the axis that was not learned from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Test {
    /// The value of the axis.
    pub at: f64,
    /// Median of what was measured.
    pub measured: f64,
    /// What was expected.
    pub expected: f64,
    /// Interval of that.
    pub low: f64,
    /// See [`Test::low`].
    pub high: f64,
}

impl Test {
    /// How far off the expectation was, relative to what was measured.
    pub fn error(&self) -> f64 {
        (self.expected - self.measured) / self.measured
    }
}

impl Trial {
    /// Tries the form that cross-validation chooses, or `form`.
    ///
    /// # Errors
    /// [`ModelError::TooFew`] where no setting is left to test on.
    pub fn run(observations: &[Observation], axis: Axis, form: Option<&Form>) -> Result<Self, ModelError> {
        let values = distinct(
            observations
                .iter()
                .filter_map(|observation| observation.setting.get(axis)),
        );
        if values.len() <= TRAINING_POINTS {
            return Err(ModelError::TooFew {
                found: values.len(),
                needed: TRAINING_POINTS + 1,
                left_out: Vec::new(),
            });
        }
        let training: Vec<f64> = (0..TRAINING_POINTS)
            .map(|index| values[index * (values.len() - 1) / (TRAINING_POINTS - 1)])
            .collect();
        let learns = |observation: &&Observation| {
            let value = observation.setting.get(axis);
            value.is_some_and(|value| training.iter().any(|known| (known - value).abs() <= 1e-9 * known))
        };
        let learned: Vec<Observation> = observations.iter().filter(learns).copied().collect();
        let model = match form {
            Some(form) => fit_form(&learned, form)?,
            None => fit(&learned)?,
        };
        let mut others: BTreeMap<u64, Vec<&Observation>> = BTreeMap::new();
        for observation in observations.iter().filter(|observation| !learns(observation)) {
            if let Some(value) = observation.setting.get(axis) {
                others.entry(value.to_bits()).or_default().push(observation);
            }
        }
        let mut tests = Vec::new();
        for group in others.values() {
            let Ok(expected) = model.predict(&group[0].setting) else {
                continue;
            };
            let mut measured: Vec<f64> = group.iter().map(|observation| observation.value).collect();
            measured.sort_by(f64::total_cmp);
            tests.push(Test {
                at: group[0].setting.get(axis).unwrap_or_default(),
                measured: measured[measured.len() / 2],
                expected: expected.value,
                low: expected.low,
                high: expected.high,
            });
        }
        tests.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(Self {
            test_r2: explained(&tests),
            training,
            model,
            tests,
        })
    }

    /// Median of the sizes of the relative errors; none without tests.
    pub fn median_error(&self) -> Option<f64> {
        let mut errors: Vec<f64> = self.tests.iter().map(|test| test.error().abs()).collect();
        errors.sort_by(f64::total_cmp);
        errors.get(errors.len() / 2).copied()
    }
}

fn explained(tests: &[Test]) -> Option<f64> {
    let mean = tests.iter().map(|test| test.measured.ln()).sum::<f64>() / tests.len() as f64;
    let total: f64 = tests.iter().map(|test| (test.measured.ln() - mean).powi(2)).sum();
    let left: f64 = tests
        .iter()
        .map(|test| (test.measured / test.expected).ln().powi(2))
        .sum();
    (tests.len() > 1 && total > 0.0).then(|| 1.0 - left / total)
}
