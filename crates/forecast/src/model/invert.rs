//! The other way round: what a migration has to be given so that it meets a goal. Source: performance-model paper, section 3: "the
//! models can be used to predict the necessary resource allocation".

use serde::Serialize;

use super::{Axis, DataAxis, Model, ModelError, Prediction, Setting};

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

/// Why more of something does not help.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limit {
    /// The value does not depend on it.
    Independent,
    /// So few different values are too few to tell.
    Untold(usize),
    /// From here on more of it changes nothing.
    Knee(f64),
    /// This is the most there are data about.
    Most(f64),
}

impl Limit {
    /// In words; `time` is what is reached.
    pub fn words(self, axis: Axis, time: &str) -> String {
        match self {
            Self::Independent => format!("time does not depend on it, and is {time}"),
            Self::Untold(values) => {
                format!("{values} settings are too few to tell whether time depends on it, and it is {time}")
            }
            Self::Knee(knee) => {
                let knee = axis.show(knee);
                format!("from {knee} on more of it changes nothing, and the time is {time}")
            }
            Self::Most(most) => format!("with {}, the most in the data, it takes {time}", axis.show(most)),
        }
    }
}

impl Model {
    /// The least of `axis`, within the data, with which the value is at most `target`; what else there is of `setting` is
    /// kept.
    ///
    /// # Errors
    /// [`ModelError::Unreachable`] where nothing within the data meets it; [`ModelError::NeverVaried`] where the axis is not in
    /// the data; [`ModelError::NoGoal`]; and as [`Model::predict`].
    pub fn invert(&self, axis: Axis, target: f64, setting: &Setting) -> Result<Inversion, ModelError> {
        let likely = self.need(axis, target, |value| self.expected(&setting.with(axis, value)))?;
        let data = self.varied(axis)?;
        let at = |value: f64| self.predict(&setting.with(axis, value));
        Ok(Inversion {
            axis,
            likely,
            sure: least(data, target, |value| Ok(at(value)?.high))?,
            or_less: likely <= data.low * (1.0 + 1e-9),
            prediction: at(likely)?,
        })
    }

    /// What it takes at the very least: with less, the value is above `target` in 19 of 20 cases.
    pub(super) fn need_at_least(
        &self,
        axis: Axis,
        target: f64,
        setting: &Setting,
    ) -> Result<f64, ModelError> {
        self.need(axis, target, |value| {
            Ok(self.predict(&setting.with(axis, value))?.low)
        })
    }

    /// The least of `axis`, within the data, for which `figure` is at most `target`.
    fn need(
        &self,
        axis: Axis,
        target: f64,
        figure: impl Fn(f64) -> Result<f64, ModelError>,
    ) -> Result<f64, ModelError> {
        if !(target.is_finite() && target > 0.0) {
            return Err(ModelError::NoGoal(target));
        }
        let data = self.varied(axis)?;
        match least(data, target, &figure)? {
            Some(needed) => Ok(needed),
            None => Err(ModelError::Unreachable {
                target,
                axis,
                value: figure(data.high)?,
                limit: self.limit(data),
            }),
        }
    }

    fn varied(&self, axis: Axis) -> Result<&DataAxis, ModelError> {
        let data = self.axes.iter().find(|data| data.axis == axis);
        data.ok_or_else(|| self.never_varied(axis, None))
    }

    fn limit(&self, data: &DataAxis) -> Limit {
        match self.chosen.axes.iter().find(|fitted| fitted.axis == data.axis) {
            None if self.cannot_tell(data) => Limit::Untold(data.values),
            None => Limit::Independent,
            Some(fitted) => fitted.knee.map_or(Limit::Most(data.high), Limit::Knee),
        }
    }
}

/// The least within the data for which `figure` is at most `target`; none where it is above it even at the most.
fn least(
    data: &DataAxis,
    target: f64,
    figure: impl Fn(f64) -> Result<f64, ModelError>,
) -> Result<Option<f64>, ModelError> {
    // The last place that misses the goal, seen from the largest share.
    let place = |index: usize| data.low * (data.high / data.low).powf(index as f64 / PLACES as f64);
    let mut meets = None;
    for index in (0..=PLACES).rev() {
        let value = if index == PLACES { data.high } else { place(index) };
        if figure(value)? > target {
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
            match figure(middle)? <= target {
                true => high = middle,
                false => low = middle,
            }
        }
    }
    Ok(Some(high))
}

#[cfg(test)]
mod tests {
    use super::super::{Observation, fit};
    use super::*;

    #[test]
    fn what_is_needed_at_least_is_a_little_less_than_what_is_likely() {
        let data: Vec<_> = [5.0, 10.0, 20.0, 40.0, 60.0, 100.0, 5.5, 22.0, 90.0]
            .map(|percent: f64| Observation {
                setting: Setting::default().with(Axis::SourceCpu, percent),
                value: (300.0 + 1e5 / percent.min(50.0)) * (1.0 + 0.02 * percent.sin()),
            })
            .to_vec();
        let model = fit(&data).unwrap();
        let none = Setting::default();
        for target in [2_700.0, 6_000.0, 15_000.0] {
            let least = model.need_at_least(Axis::SourceCpu, target, &none).unwrap();
            let likely = model.invert(Axis::SourceCpu, target, &none).unwrap().likely;
            assert!(
                least < likely && least > 0.8 * likely,
                "{target}: {least} and {likely}"
            );
        }
        // Both refuse the same.
        for target in [0.0, 1.0] {
            let least = model.need_at_least(Axis::SourceCpu, target, &none);
            let likely = model.invert(Axis::SourceCpu, target, &none);
            assert!(least.is_err() && likely.is_err(), "{target}: {least:?}");
        }
    }
}
