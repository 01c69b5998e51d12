//! What a model says of a setting, and how sure it is.

use serde::Serialize;

use super::{Axis, Curve, DataAxis, Form, Model, ModelError, Setting};

/// Beyond the data, the power that the time follows may be another by so much, however well the data fit.
const BEND: f64 = 0.25;

/// What is expected at a setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The likeliest value.
    pub value: f64,
    /// Nine of ten are not below this, nor above [`Prediction::high`].
    pub low: f64,
    /// See [`Prediction::low`].
    pub high: f64,
    /// Where it was asked beyond its data. Then the interval is wider: by the distance, so that it holds what every form says
    /// that fits the data nearly as well, and so that from the end of the data on the time may be in inverse proportion to what
    /// is given.
    pub beyond: Vec<Beyond>,
}

/// A question beyond the data.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Beyond {
    /// On which axis.
    pub axis: Axis,
    /// What was asked for.
    pub asked: f64,
    /// Smallest value in the data.
    pub low: f64,
    /// Largest.
    pub high: f64,
}

/// A value that was not asked about and that an answer takes for given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Assumed {
    /// On which axis.
    pub axis: Axis,
    /// The value.
    pub value: f64,
    /// All that the model learned from had it; otherwise it is the largest in the data, on an axis that nothing is seen to depend on.
    pub common: bool,
}

impl Beyond {
    /// In words.
    pub fn line(&self) -> String {
        format!(
            "a {} of {} is beyond the data, which are between {} and {}: the interval is widened",
            self.axis,
            self.axis.show(self.asked),
            self.axis.show(self.low),
            self.axis.show(self.high)
        )
    }

    /// How far beyond: the logarithm of the ratio to the nearest value.
    fn distance(&self) -> f64 {
        (self.low / self.asked).max(self.asked / self.high).ln().max(0.0)
    }
}

impl Model {
    /// What is expected at `setting`, with an interval of [`CONFIDENCE`](super::CONFIDENCE) for one more measurement there.
    ///
    /// # Errors
    /// When the setting lacks what decides, or names what never varied.
    pub fn predict(&self, setting: &Setting) -> Result<Prediction, ModelError> {
        let (x, beyond) = self.place(setting)?;
        let far: f64 = beyond.iter().map(Beyond::distance).sum();
        let mut prediction = self.interval(&x, far);
        if !beyond.is_empty() {
            for rival in &self.rivals {
                let value = rival.ln_at(&x).exp();
                if value.is_finite() {
                    prediction.low = prediction.low.min(value);
                    prediction.high = prediction.high.max(value);
                }
            }
            // Data that are flat, or flat from a knee on, say nothing about where a share begins or ceases to be scarce. Where it
            // is, the same work takes longer by as much as there is less.
            let mut end = x;
            let (mut longer, mut shorter) = (1.0, 1.0);
            for place in &beyond {
                end[place.axis as usize] = place.asked.clamp(place.low, place.high);
                longer *= (place.low / place.asked).max(1.0);
                shorter *= (place.high / place.asked).min(1.0);
            }
            let end = self.interval(&end, 0.0);
            prediction.low = prediction.low.min(end.low * shorter);
            prediction.high = prediction.high.max(end.high * longer);
        }
        Ok(Prediction { beyond, ..prediction })
    }

    /// [`Prediction::value`] alone.
    pub(super) fn expected(&self, setting: &Setting) -> Result<f64, ModelError> {
        let (x, _) = self.place(setting)?;
        Ok(self.value(&x).unwrap_or(0.0))
    }

    /// What [`Model::predict`] takes for given where `setting` does not name it: what all measurements had in common, and, of axes that
    /// nothing is seen to depend on, the largest value in the data.
    pub fn assumed(&self, setting: &Setting) -> Vec<Assumed> {
        let assume = |axis: Axis| {
            let varied = self.axes.iter().find(|data| data.axis == axis);
            let (value, common) = match (self.common.get(axis), varied) {
                (Some(value), _) => (value, true),
                (None, Some(data)) if !self.depends_on(axis) => (data.high, false),
                (None, _) => return None,
            };
            Some(Assumed { axis, value, common })
        };
        let unnamed = Axis::ALL.into_iter().filter(|axis| setting.get(*axis).is_none());
        unnamed.filter_map(assume).collect()
    }

    /// Whether the value depends on an axis, as far as the data show.
    pub fn depends_on(&self, axis: Axis) -> bool {
        self.chosen.axes.iter().any(|fitted| fitted.axis == axis)
    }

    /// What the model says of each axis that varied, in words, and what it did not learn from.
    pub fn findings(&self) -> Vec<String> {
        let axes = self.axes.iter().map(|data| self.finding(data));
        axes.chain(self.why_left_out.iter().map(ToString::to_string))
            .collect()
    }

    fn finding(&self, data: &DataAxis) -> String {
        let (axis, low, high) = (data.axis, data.axis.show(data.low), data.axis.show(data.high));
        let fitted = self.chosen.axes.iter().find(|fitted| fitted.axis == axis);
        match (fitted, fitted.and_then(|fitted| fitted.knee)) {
            (None, _) if self.cannot_tell(data) => format!(
                "{} settings are too few to tell whether time depends on the {axis} (from {low} to {high})",
                data.values
            ),
            (None, _) if !self.compared => {
                format!("the form that was asked for leaves out the {axis} (from {low} to {high})")
            }
            (None, _) => format!("time does not depend on the {axis} (from {low} to {high})"),
            (Some(_), Some(knee)) => format!(
                "time depends on the {axis} up to {}, and not from there to {high}",
                axis.show(knee)
            ),
            (Some(_), None) => format!("time depends on the {axis} all the way from {low} to {high}"),
        }
    }

    /// Whether no form with this axis could be tried, so that nothing says that the value does not depend on it.
    pub(super) fn cannot_tell(&self, data: &DataAxis) -> bool {
        let has = |form: &Form| form.axes.iter().any(|axis| axis.axis == data.axis);
        self.compared && !self.candidates.iter().any(|candidate| has(&candidate.form))
    }

    pub(super) fn never_varied(&self, axis: Axis, asked: Option<f64>) -> ModelError {
        ModelError::NeverVaried {
            axis,
            asked,
            known: self.common.get(axis),
            left_out: self.why_left_out.clone(),
        }
    }

    /// A setting as the fit has it, and where it is beyond the data.
    fn place(&self, setting: &Setting) -> Result<([f64; 3], Vec<Beyond>), ModelError> {
        let mut x = [f64::NAN; 3];
        let mut beyond = Vec::new();
        for axis in Axis::ALL {
            let asked = setting.get(axis);
            let Some(data) = self.axes.iter().find(|data| data.axis == axis) else {
                if asked.is_some() && asked != self.common.get(axis) {
                    return Err(self.never_varied(axis, asked));
                }
                continue;
            };
            let (low, high) = (data.low, data.high);
            let value = match asked {
                Some(value) if value.is_finite() && value > 0.0 => value,
                Some(value) => {
                    return Err(ModelError::NotMeasured {
                        what: "a setting",
                        value,
                    });
                }
                None if self.depends_on(axis) => return Err(ModelError::Unnamed { axis, low, high }),
                None => high,
            };
            if value < low * (1.0 - 1e-9) || value > high * (1.0 + 1e-9) {
                beyond.push(Beyond {
                    axis,
                    asked: value,
                    low,
                    high,
                });
            }
            x[axis as usize] = value;
        }
        Ok((x, beyond))
    }

    /// The likeliest value; none where an inverse form falls below 0.
    fn value(&self, x: &[f64; 3]) -> Option<f64> {
        let ln = self.chosen.ln_at(x);
        debug_assert!(ln.is_finite() || self.chosen.form.curve == Curve::Inverse);
        (!ln.is_nan()).then(|| ln.exp())
    }

    /// An interval, so `far` beyond the data: the logarithm of the ratio to where they end.
    fn interval(&self, x: &[f64; 3], far: f64) -> Prediction {
        let half = || (1.0 + far) * self.quantile * self.chosen.deviation_at(x) + BEND * far;
        let (value, low, high) = match self.value(x) {
            // It says only that it is small.
            None => (0.0, 0.0, self.chosen.constant.abs()),
            Some(value) => {
                let factor = half().exp();
                (value, value / factor, value * factor)
            }
        };
        Prediction {
            value,
            low,
            high,
            beyond: Vec::new(),
        }
    }
}
