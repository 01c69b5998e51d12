//! Chooses the form by cross-validation.
//!
//! Settings are left out one after the other (ten parts where there are more, and of a single setting), the form is fitted to the rest and
//! asked for them. The form with the smallest error is the best; a simpler one is taken instead where the two errors do not differ by
//! more than their standard error. So a flat form is chosen where time does not depend on a share, and a knee only where the data
//! show one.

use serde::Serialize;

use super::data::{Data, DataAxis, LEAST_POINTS, LeftOut};
use super::fit::{Fitted, Point};
use super::{Axis, CONFIDENCE, Form, ModelError, Observation, Setting, student};

/// Forms whose error is within this factor of the chosen one's may be right as well.
const RIVAL: f64 = 2.0;

/// A model: the form that was chosen, and what it was chosen from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// The form in use.
    pub chosen: Fitted,
    /// Forms that fit nearly as well: where there are no data, any of them may be right.
    pub rivals: Vec<Fitted>,
    /// All forms that were tried.
    pub candidates: Vec<Candidate>,
    /// Whether forms were compared; otherwise one was asked for.
    pub compared: bool,
    /// Axes that varied.
    pub axes: Vec<DataAxis>,
    /// What all measurements had in common.
    pub common: Setting,
    /// Measurements it was fitted to.
    pub points: usize,
    /// Measurements that were left out.
    pub left_out: usize,
    /// Which, and why.
    pub why_left_out: Vec<LeftOut>,
    /// Student's quantile for the chosen form: so many deviations to either side are an interval.
    #[serde(skip)]
    pub(super) quantile: f64,
}

/// A form that was tried.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Candidate {
    /// Which form.
    pub form: Form,
    /// Its error on what it was not fitted to: root of the mean square, relative.
    pub error: f64,
    /// See [`Fitted::r2`].
    pub r2: f64,
}

/// Fits every form to the observations, and chooses.
///
/// An axis is in the model where it has at least three different values; on the others, only the largest group of
/// observations with the same value counts. Where more observations have no cap on an axis than have one, only those without count:
/// see [`fit_about`].
///
/// # Errors
/// [`ModelError::TooFew`], [`ModelError::NotMeasured`].
pub fn fit(observations: &[Observation]) -> Result<Model, ModelError> {
    fit_about(observations, &[])
}

/// As [`fit`], for a question that names these axes: on them, observations with a cap count even where most have none.
///
/// # Errors
/// As [`fit`].
pub fn fit_about(observations: &[Observation], axes: &[Axis]) -> Result<Model, ModelError> {
    let data = Data::new(observations, axes)?;
    let forms = Form::all(&data.axes.iter().map(|axis| axis.axis).collect::<Vec<_>>());
    let parts = data.parts();
    let mut tried: Vec<(Fitted, Vec<f64>)> = Vec::new();
    for form in forms {
        let errors = cross_validate(&form, &data.points, &parts);
        if let (Some(errors), Some(fitted)) = (errors, Fitted::new(&form, &data.points)) {
            tried.push((fitted, errors));
        }
    }
    if tried.is_empty() {
        // Too few for a cross-validation: what does not depend on anything is left.
        let fitted = Fitted::new(&Form::flat(), &data.points);
        let fitted = fitted.ok_or(ModelError::TooFew {
            found: data.points.len(),
            needed: LEAST_POINTS,
            left_out: data.left_out.clone(),
        })?;
        tried.push((fitted, vec![f64::INFINITY; data.points.len()]));
    }
    Ok(choose(data, &tried, true))
}

/// Fits one form, whatever others would say. On the axes it depends on, observations with a cap count even where most have none.
///
/// # Errors
/// As [`fit`], and [`ModelError::Undetermined`].
pub fn fit_form(observations: &[Observation], form: &Form) -> Result<Model, ModelError> {
    let about: Vec<Axis> = form.axes.iter().map(|axis| axis.axis).collect();
    let data = Data::new(observations, &about)?;
    let fitted = Fitted::new(form, &data.points).ok_or_else(|| ModelError::Undetermined(form.clone()))?;
    let parts = data.parts();
    let errors = cross_validate(form, &data.points, &parts);
    let errors = errors.unwrap_or_else(|| vec![f64::INFINITY; data.points.len()]);
    Ok(choose(data, &[(fitted, errors)], false))
}

fn choose(data: Data, tried: &[(Fitted, Vec<f64>)], compared: bool) -> Model {
    let mean = |errors: &[f64]| errors.iter().sum::<f64>() / errors.len() as f64;
    let best = (0..tried.len())
        .min_by(|&a, &b| mean(&tried[a].1).total_cmp(&mean(&tried[b].1)))
        .unwrap_or(0);
    // They are in order: the first that is as good is the simplest.
    let chosen = (0..tried.len())
        .find(|&index| {
            tried[index].0.form.parameters() <= tried[best].0.form.parameters()
                && as_good(&tried[index].1, &tried[best].1)
        })
        .unwrap_or(best);
    let limit = mean(&tried[chosen].1) * RIVAL * RIVAL;
    let candidates = tried
        .iter()
        .map(|(fitted, errors)| Candidate {
            form: fitted.form.clone(),
            error: mean(errors).sqrt(),
            r2: fitted.r2,
        })
        .collect();
    let rivals = tried
        .iter()
        .enumerate()
        .filter(|(index, (_, errors))| *index != chosen && mean(errors) <= limit)
        .map(|(_, (fitted, _))| fitted.clone())
        .collect();
    let chosen = tried[chosen].0.clone();
    Model {
        quantile: student::quantile(0.5 + CONFIDENCE / 2.0, chosen.freedom),
        chosen,
        rivals,
        candidates,
        compared,
        axes: data.axes,
        common: data.common,
        points: data.points.len(),
        left_out: data.left_out.iter().map(|out| out.count).sum(),
        why_left_out: data.left_out,
    }
}

/// Whether squared errors are no larger than the best ones, as far as one can tell.
fn as_good(errors: &[f64], best: &[f64]) -> bool {
    let count = errors.len() as f64;
    let differences: Vec<f64> = errors.iter().zip(best).map(|(a, b)| a - b).collect();
    let mean = differences.iter().sum::<f64>() / count;
    if mean <= 0.0 {
        return true;
    }
    let variance = differences.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    mean <= (variance / count).sqrt()
}

/// Squared errors of the logarithms on what was left out; none where a part of the data does not determine the form.
fn cross_validate(form: &Form, points: &[Point], parts: &[Vec<usize>]) -> Option<Vec<f64>> {
    if parts.len() < 2 {
        return None;
    }
    let mut errors = vec![0.0; points.len()];
    for part in parts {
        let mut held_back = vec![false; points.len()];
        part.iter().for_each(|&index| held_back[index] = true);
        let rest: Vec<Point> = points
            .iter()
            .zip(held_back)
            .filter(|(_, held_back)| !held_back)
            .map(|(point, _)| *point)
            .collect();
        let fitted = Fitted::new(form, &rest)?;
        for &index in part {
            let found = fitted.ln_at(&points[index].x);
            // An inverse form may fall below 0 beyond its data.
            let error = if found.is_nan() {
                f64::INFINITY
            } else {
                found - points[index].ln_y
            };
            errors[index] = error * error;
        }
    }
    Some(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_error_is_of_a_fit_to_all_but_its_part() {
        let point = |ln_y| Point {
            x: [f64::NAN; 3],
            ln_y,
        };
        let points = [1.0, 2.0, 4.0, 9.0, 3.0].map(point);
        let parts = [vec![0, 3], vec![1, 4], vec![2]];
        let errors = cross_validate(&Form::flat(), &points, &parts).unwrap();
        let means = [3.0, 14.0 / 3.0, 15.0 / 4.0, 3.0, 14.0 / 3.0];
        for ((error, point), mean) in errors.iter().zip(&points).zip(means) {
            assert!((error - (mean - point.ln_y).powi(2)).abs() < 1e-9, "{errors:?}");
        }
    }
}
