//! Chooses the form by cross-validation.
//!
//! Settings are left out one after the other (ten parts where there are more), the form is fitted to the rest and asked for
//! them. The form with the smallest error is the best; a simpler one is taken instead where the two errors do not differ by
//! more than their standard error. So a flat form is chosen where time does not depend on a share, and a knee only where the data
//! show one.

use std::collections::BTreeMap;

use serde::Serialize;

use super::fit::{Fitted, Point, distinct};
use super::{Axis, Form, ModelError, Observation, Setting};

/// Parts of a cross-validation at most.
const MOST_PARTS: usize = 10;
/// Different values that an axis needs to be in a model.
const LEAST_VALUES: usize = 3;
/// Measurements that a model needs.
const LEAST_POINTS: usize = 2;
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
    /// Axes that varied.
    pub axes: Vec<DataAxis>,
    /// What all measurements had in common.
    pub common: Setting,
    /// Measurements it was fitted to.
    pub points: usize,
    /// Measurements that were left out, because they differ on an axis that hardly varies.
    pub left_out: usize,
}

/// An axis on which the data vary.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct DataAxis {
    /// Which.
    pub axis: Axis,
    /// Smallest value.
    pub low: f64,
    /// Largest value.
    pub high: f64,
    /// Different values.
    pub values: usize,
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
/// observations with the same value counts.
///
/// # Errors
/// [`ModelError::TooFew`], [`ModelError::NotMeasured`].
pub fn fit(observations: &[Observation]) -> Result<Model, ModelError> {
    let data = Data::new(observations)?;
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
        })?;
        tried.push((fitted, vec![f64::INFINITY; data.points.len()]));
    }
    Ok(choose(data, &tried))
}

/// Fits one form, whatever others would say.
///
/// # Errors
/// As [`fit`], and [`ModelError::Undetermined`].
pub fn fit_form(observations: &[Observation], form: &Form) -> Result<Model, ModelError> {
    let data = Data::new(observations)?;
    let fitted = Fitted::new(form, &data.points).ok_or_else(|| ModelError::Undetermined(form.clone()))?;
    let parts = data.parts();
    let errors = cross_validate(form, &data.points, &parts);
    let errors = errors.unwrap_or_else(|| vec![f64::INFINITY; data.points.len()]);
    Ok(choose(data, &[(fitted, errors)]))
}

fn choose(data: Data, tried: &[(Fitted, Vec<f64>)]) -> Model {
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
    Model {
        chosen: tried[chosen].0.clone(),
        rivals,
        candidates,
        axes: data.axes,
        common: data.common,
        points: data.points.len(),
        left_out: data.left_out,
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
        let rest: Vec<Point> = (0..points.len())
            .filter(|index| !part.contains(index))
            .map(|index| points[index])
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

/// Observations, ready to be fitted to.
struct Data {
    points: Vec<Point>,
    axes: Vec<DataAxis>,
    common: Setting,
    left_out: usize,
}

impl Data {
    fn new(observations: &[Observation]) -> Result<Self, ModelError> {
        for observation in observations {
            check("a value", observation.value)?;
            for axis in Axis::ALL {
                observation
                    .setting
                    .get(axis)
                    .map_or(Ok(()), |value| check("a setting", value))?;
            }
        }
        let mut left: Vec<Observation> = observations.to_vec();
        let mut axes = Vec::new();
        let mut common = Setting::default();
        for axis in Axis::ALL {
            let values = distinct(
                left.iter()
                    .filter_map(|observation| observation.setting.get(axis)),
            );
            if values.len() >= LEAST_VALUES {
                left.retain(|observation| observation.setting.get(axis).is_some());
                axes.push(DataAxis {
                    axis,
                    low: values[0],
                    high: values[values.len() - 1],
                    values: values.len(),
                });
            } else if let Some(value) = most_common(&left, axis) {
                left.retain(|observation| observation.setting.get(axis) == value);
                common = value.map_or(common, |value| common.with(axis, value));
            }
        }
        if left.len() < LEAST_POINTS {
            return Err(ModelError::TooFew {
                found: left.len(),
                needed: LEAST_POINTS,
            });
        }
        let point = |observation: &Observation| Point {
            x: Axis::ALL.map(|axis| observation.setting.get(axis).unwrap_or(f64::NAN)),
            ln_y: observation.value.ln(),
        };
        Ok(Self {
            points: left.iter().map(point).collect(),
            axes,
            common,
            left_out: observations.len() - left.len(),
        })
    }

    /// Indices of points, those of one setting in one part: what was measured twice does not tell about itself.
    fn parts(&self) -> Vec<Vec<usize>> {
        let mut settings: BTreeMap<Vec<u64>, Vec<usize>> = BTreeMap::new();
        for (index, point) in self.points.iter().enumerate() {
            let key = self.axes.iter().map(|axis| point.x[axis.axis as usize].to_bits());
            settings.entry(key.collect()).or_default().push(index);
        }
        if settings.len() == 1 {
            return (0..self.points.len()).map(|index| vec![index]).collect();
        }
        let mut parts = vec![Vec::new(); settings.len().min(MOST_PARTS)];
        for (index, mut points) in settings.into_values().enumerate() {
            let part = index % parts.len();
            parts[part].append(&mut points);
        }
        parts
    }
}

fn check(what: &'static str, value: f64) -> Result<(), ModelError> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(ModelError::NotMeasured { what, value }),
    }
}

/// The value that most have, or none of it.
fn most_common(observations: &[Observation], axis: Axis) -> Option<Option<f64>> {
    let mut counts: BTreeMap<Option<u64>, usize> = BTreeMap::new();
    for observation in observations {
        *counts
            .entry(observation.setting.get(axis).map(f64::to_bits))
            .or_default() += 1;
    }
    let (bits, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    Some(bits.map(f64::from_bits))
}
