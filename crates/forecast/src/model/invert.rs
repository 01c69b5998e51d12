//! The other way round: what a migration has to be given so that it meets a goal. Source: performance-model paper, section 3: "the
//! models can be used to predict the necessary resource allocation".

use serde::Serialize;

use super::{Axis, Model, ModelError, Prediction, Setting};

/// Places between the ends of the data that are looked at before the answer is narrowed down.
const PLACES: usize = 200;

/// What it takes to meet a goal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Inversion {
    /// Of what.
    pub axis: Axis,
    /// So much meets the goal as often as not.
    pub likely: f64,
    /// So much meets it in 19 of 20 cases; none where nothing within the data does.
    pub sure: Option<f64>,
    /// Less than `likely` may do: it is the least that there are data about.
    pub or_less: bool,
    /// What is expected with `likely`.
    pub prediction: Prediction,
}

impl Model {
    /// The least of `axis`, within the data, with which the value is at most `target`; what else there is of `setting` is
    /// kept.
    ///
    /// # Errors
    /// [`ModelError::Unreachable`] where nothing within the data meets it; [`ModelError::NeverVaried`] where the axis is not in
    /// the data; and as [`Model::predict`].
    pub fn invert(&self, axis: Axis, target: f64, setting: &Setting) -> Result<Inversion, ModelError> {
        if !(target.is_finite() && target > 0.0) {
            return Err(ModelError::NotMeasured {
                what: "a goal",
                value: target,
            });
        }
        let Some(data) = self.axes.iter().find(|data| data.axis == axis) else {
            let (asked, known) = (None, self.common.get(axis));
            return Err(ModelError::NeverVaried { axis, asked, known });
        };
        let at = |value: f64| self.predict(&setting.with(axis, value));
        let find = |figure: fn(&Prediction) -> f64| -> Result<Option<f64>, ModelError> {
            // The last place that misses the goal, seen from the largest share.
            let place = |index: usize| data.low * (data.high / data.low).powf(index as f64 / PLACES as f64);
            let mut meets = None;
            for index in (0..=PLACES).rev() {
                let value = if index == PLACES { data.high } else { place(index) };
                if figure(&at(value)?) > target {
                    break;
                }
                meets = Some((index, value));
            }
            let Some((index, mut high)) = meets else {
                return Ok(None);
            };
            if index > 0 {
                let mut low = place(index - 1);
                for _ in 0..30 {
                    let middle = (low * high).sqrt();
                    match figure(&at(middle)?) <= target {
                        true => high = middle,
                        false => low = middle,
                    }
                }
            }
            Ok(Some(high))
        };
        let Some(likely) = find(|prediction| prediction.value)? else {
            let most = at(data.high)?;
            let why = match self.chosen.axes.iter().find(|fitted| fitted.axis == axis) {
                None => format!("time does not depend on it, and is {:.0} ms", most.value),
                Some(fitted) => match fitted.knee {
                    Some(knee) => format!(
                        "from {} on more of it changes nothing, and the time is {:.0} ms",
                        axis.show(knee),
                        most.value
                    ),
                    None => format!(
                        "with {}, the most in the data, it takes {:.0} ms",
                        axis.show(data.high),
                        most.value
                    ),
                },
            };
            return Err(ModelError::Unreachable { target, axis, why });
        };
        Ok(Inversion {
            axis,
            likely,
            sure: find(|prediction| prediction.high)?,
            or_less: likely <= data.low * (1.0 + 1e-9),
            prediction: at(likely)?,
        })
    }
}
