//! What a model says of a setting, and how sure it is.

use serde::Serialize;

use super::fit::Fitted;
use super::{Axis, CONFIDENCE, Curve, Model, ModelError, Setting, student};

/// What is expected at a setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// The likeliest value.
    pub value: f64,
    /// Nine of ten are not below this, nor above [`Prediction::high`].
    pub low: f64,
    /// See [`Prediction::low`].
    pub high: f64,
    /// Where it was asked beyond its data. Then the interval is wider: by the distance, and so that it holds what every form
    /// says that fits the data nearly as well.
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
    /// What is expected at `setting`, with an interval of [`CONFIDENCE`] for one more measurement there.
    ///
    /// # Errors
    /// When the setting lacks what decides, or names what never varied.
    pub fn predict(&self, setting: &Setting) -> Result<Prediction, ModelError> {
        let (x, beyond) = self.place(setting)?;
        let mut prediction = interval(&self.chosen, &x, 1.0);
        if !beyond.is_empty() {
            let wider = 1.0 + beyond.iter().map(Beyond::distance).sum::<f64>();
            prediction = interval(&self.chosen, &x, wider);
            for rival in &self.rivals {
                let value = rival.ln_at(&x).exp();
                if value.is_finite() {
                    prediction.low = prediction.low.min(value);
                    prediction.high = prediction.high.max(value);
                }
            }
        }
        Ok(Prediction { beyond, ..prediction })
    }

    /// Whether the value depends on an axis, as far as the data show.
    pub fn depends_on(&self, axis: Axis) -> bool {
        self.chosen.axes.iter().any(|fitted| fitted.axis == axis)
    }

    /// What the model says of each axis that varied, in words.
    pub fn findings(&self) -> Vec<String> {
        let describe = |data: &super::select::DataAxis| {
            let (axis, low, high) = (data.axis, data.axis.show(data.low), data.axis.show(data.high));
            let fitted = self.chosen.axes.iter().find(|fitted| fitted.axis == axis);
            match (fitted, fitted.and_then(|fitted| fitted.knee)) {
                (None, _) => format!("time does not depend on the {axis} (from {low} to {high})"),
                (Some(_), Some(knee)) => format!(
                    "time depends on the {axis} up to {}, and not from there to {high}",
                    axis.show(knee)
                ),
                (Some(_), None) => format!("time depends on the {axis} all the way from {low} to {high}"),
            }
        };
        self.axes.iter().map(describe).collect()
    }

    /// A setting as the fit has it, and where it is beyond the data.
    fn place(&self, setting: &Setting) -> Result<([f64; 3], Vec<Beyond>), ModelError> {
        let mut x = [f64::NAN; 3];
        let mut beyond = Vec::new();
        for axis in Axis::ALL {
            let asked = setting.get(axis);
            let known = self.common.get(axis);
            let Some(data) = self.axes.iter().find(|data| data.axis == axis) else {
                if asked.is_some() && asked != known {
                    return Err(ModelError::NeverVaried { axis, asked, known });
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
}

fn interval(fitted: &Fitted, x: &[f64; 3], wider: f64) -> Prediction {
    let ln = fitted.ln_at(x);
    let quantile = student::quantile(0.5 + CONFIDENCE / 2.0, fitted.freedom);
    let half = wider * quantile * fitted.deviation_at(x);
    let (value, low, high) = match ln.is_nan() {
        // An inverse form that falls below 0 says only that it is small.
        true => (0.0, 0.0, fitted.constant.abs()),
        false => (ln.exp(), (ln - half).exp(), (ln + half).exp()),
    };
    debug_assert!(ln.is_finite() || fitted.form.curve == Curve::Inverse);
    Prediction {
        value,
        low,
        high,
        beyond: Vec::new(),
    }
}
