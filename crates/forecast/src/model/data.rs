//! What a model learns from: which observations count, along which axes they vary, and how they are parted for a
//! cross-validation.
//!
//! An axis is in a model where it has at least three different values; on any other, only the largest group of observations with the
//! same value counts. Where more have no cap on an axis than have one, those without count: the model is of what most
//! migrations do. A question that names the axis turns that round, since only those with a cap can answer it.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::fit::{Point, distinct};
use super::{Axis, ModelError, Observation, Setting};

/// Parts of a cross-validation at most.
const MOST_PARTS: usize = 10;
/// Different values that an axis needs to be in a model.
const LEAST_VALUES: usize = 3;
/// Measurements that a model needs.
pub(super) const LEAST_POINTS: usize = 2;

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

/// Observations that a model did not learn from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LeftOut {
    /// How many.
    pub count: usize,
    /// The axis on which they differ from the others.
    pub axis: Axis,
    /// Why they do not count.
    pub why: Why,
    /// The value that the others have; none where it varies, or where they have no cap.
    pub kept: Option<f64>,
}

/// Why observations do not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// They had no cap on the axis, and those that count have.
    NoCap,
    /// They had a cap on the axis, and those that count, which are more, have none.
    Cap,
    /// They had another value, and the axis has too few of them.
    FewValues,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { count, axis, .. } = self;
        write!(f, "{count} left out: ")?;
        match (self.why, self.kept) {
            (Why::NoCap, _) => write!(f, "no cap on the {axis}"),
            (Why::Cap, _) => write!(f, "a cap on the {axis}, while most have none"),
            (Why::FewValues, kept) => {
                write!(f, "another {axis}")?;
                if let Some(kept) = kept {
                    write!(f, " than {}", axis.show(kept))?;
                }
                write!(f, ", and it takes {LEAST_VALUES} different values to compare")
            }
        }
    }
}

/// Observations, ready to be fitted to.
pub(super) struct Data {
    pub(super) points: Vec<Point>,
    pub(super) axes: Vec<DataAxis>,
    /// What all of them have in common.
    pub(super) common: Setting,
    pub(super) left_out: Vec<LeftOut>,
}

impl Data {
    /// Those observations that count where the axes `about` are asked about.
    pub(super) fn new(observations: &[Observation], about: &[Axis]) -> Result<Self, ModelError> {
        for observation in observations {
            check("a value", observation.value)?;
            for axis in Axis::ALL {
                observation
                    .setting
                    .get(axis)
                    .map_or(Ok(()), |value| check("a setting", value))?;
            }
        }
        let mut sieve = Sieve {
            left: observations.to_vec(),
            out: Vec::new(),
        };
        let mut axes = Vec::new();
        let mut common = Setting::default();
        for axis in Axis::ALL {
            match sieve.shake(axis, about.contains(&axis)) {
                Shaken::Varies(data) => axes.push(data),
                Shaken::Common(Some(value)) => common = common.with(axis, value),
                Shaken::Common(None) => {}
            }
        }
        if sieve.left.len() < LEAST_POINTS {
            return Err(ModelError::TooFew {
                found: sieve.left.len(),
                needed: LEAST_POINTS,
                left_out: sieve.out,
            });
        }
        let point = |observation: &Observation| Point {
            x: Axis::ALL.map(|axis| observation.setting.get(axis).unwrap_or(f64::NAN)),
            ln_y: observation.value.ln(),
        };
        Ok(Self {
            points: sieve.left.iter().map(point).collect(),
            axes,
            common,
            left_out: sieve.out,
        })
    }

    /// Indices of points, those of one setting in one part: what was measured twice does not tell about itself. Of a single
    /// setting, every tenth in one part.
    pub(super) fn parts(&self) -> Vec<Vec<usize>> {
        let mut settings: BTreeMap<Vec<u64>, Vec<usize>> = BTreeMap::new();
        for (index, point) in self.points.iter().enumerate() {
            let key = self.axes.iter().map(|axis| point.x[axis.axis as usize].to_bits());
            settings.entry(key.collect()).or_default().push(index);
        }
        let groups: Vec<Vec<usize>> = match settings.len() {
            1 => (0..self.points.len()).map(|index| vec![index]).collect(),
            _ => settings.into_values().collect(),
        };
        let mut parts = vec![Vec::new(); groups.len().min(MOST_PARTS)];
        for (index, mut points) in groups.into_iter().enumerate() {
            let part = index % parts.len();
            parts[part].append(&mut points);
        }
        parts
    }
}

/// Observations that still count, and those that do not.
struct Sieve {
    left: Vec<Observation>,
    out: Vec<LeftOut>,
}

/// What an axis is among those that still count.
enum Shaken {
    Varies(DataAxis),
    /// All have this value, or none has one.
    Common(Option<f64>),
}

impl Sieve {
    fn shake(&mut self, axis: Axis, asked: bool) -> Shaken {
        let capped = self.left.iter().filter_map(|it| it.setting.get(axis));
        let (count, values) = (capped.clone().count(), distinct(capped));
        let wanted = asked && count > 0;
        let varies = values.len() >= LEAST_VALUES && (wanted || 2 * count >= self.left.len());
        if wanted || varies {
            self.keep(axis, Why::NoCap, None, |value| value.is_some());
        }
        if varies {
            return Shaken::Varies(DataAxis {
                axis,
                low: values[0],
                high: values[values.len() - 1],
                values: values.len(),
            });
        }
        let common = most_common(&self.left, axis);
        match common {
            Some(_) => {
                self.keep(axis, Why::NoCap, common, |value| value.is_some());
                self.keep(axis, Why::FewValues, common, |value| value == common);
            }
            None => self.keep(axis, Why::Cap, None, |value| value.is_none()),
        }
        Shaken::Common(common)
    }

    fn keep(&mut self, axis: Axis, why: Why, kept: Option<f64>, counts: impl Fn(Option<f64>) -> bool) {
        let before = self.left.len();
        self.left.retain(|it| counts(it.setting.get(axis)));
        let count = before - self.left.len();
        if count > 0 {
            self.out.push(LeftOut {
                count,
                axis,
                why,
                kept,
            });
        }
    }
}

fn check(what: &'static str, value: f64) -> Result<(), ModelError> {
    match value.is_finite() && value > 0.0 {
        true => Ok(()),
        false => Err(ModelError::NotMeasured { what, value }),
    }
}

/// The value that most have; none where that is to have none.
fn most_common(observations: &[Observation], axis: Axis) -> Option<f64> {
    let mut counts: BTreeMap<Option<u64>, usize> = BTreeMap::new();
    for observation in observations {
        *counts
            .entry(observation.setting.get(axis).map(f64::to_bits))
            .or_default() += 1;
    }
    let (bits, _) = counts.into_iter().max_by_key(|(_, count)| *count)?;
    bits.map(f64::from_bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(percent: Option<f64>, value: f64) -> Observation {
        Observation {
            setting: Setting {
                source_percent: percent,
                ..Setting::default()
            },
            value,
        }
    }

    #[test]
    fn a_single_setting_is_parted_in_ten_and_each_point_is_left_out_once() {
        let data: Vec<_> = (0..1003).map(|index| at(None, 1.0 + f64::from(index))).collect();
        let parts = Data::new(&data, &[]).unwrap().parts();
        assert_eq!(parts.len(), MOST_PARTS);
        let mut all = parts.concat();
        all.sort_unstable();
        assert_eq!(all, (0..1003).collect::<Vec<_>>());
        assert!(parts.iter().all(|part| (100..=101).contains(&part.len())));
        assert_eq!(Data::new(&data[..3], &[]).unwrap().parts().len(), 3);
    }

    #[test]
    fn measurements_of_one_setting_are_in_one_part() {
        let data: Vec<_> = (0..24)
            .map(|index| at(Some(f64::from(1 + index % 12)), 1.0))
            .collect();
        let parts = Data::new(&data, &[]).unwrap().parts();
        assert_eq!(parts.len(), MOST_PARTS);
        for part in parts {
            assert!(
                part.iter().all(|index| part.contains(&((index + 12) % 24))),
                "{part:?}"
            );
        }
    }

    #[test]
    fn what_most_have_counts_unless_the_axis_is_asked_about() {
        let mut data = vec![at(None, 1.0); 6];
        data.extend([20.0, 40.0, 80.0].map(|percent| at(Some(percent), 2.0)));
        let most = Data::new(&data, &[]).unwrap();
        assert_eq!((most.points.len(), most.axes.len()), (6, 0));
        let words: Vec<_> = most.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(
            words,
            ["3 left out: a cap on the CPU share at the source, while most have none"]
        );
        let asked = Data::new(&data, &[Axis::SourceCpu]).unwrap();
        assert_eq!((asked.points.len(), asked.axes.len()), (3, 1));
        let words: Vec<_> = asked.left_out.iter().map(ToString::to_string).collect();
        assert_eq!(words, ["6 left out: no cap on the CPU share at the source"]);
        // As many with a cap as without: those that tell more.
        let even = Data::new(&data[3..], &[]).unwrap();
        assert_eq!((even.points.len(), even.axes.len()), (3, 1));
        // An axis that nobody capped is nothing that the question could turn round.
        assert_eq!(Data::new(&data, &[Axis::Bandwidth]).unwrap().points.len(), 6);
    }
}
