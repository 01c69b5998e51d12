//! Fits one form to measurements, by least squares of the logarithms.
//!
//! With its knees fixed, a flat or power form is linear in its parameters; an inverse form takes a few steps of Gauss and Newton.
//! Knees are searched for one after the other on a grid that becomes finer.

use serde::{Deserialize, Serialize};

use super::least_squares::{Matrix, quadratic, solve};
use super::{Axis, Curve, Form};

/// Steps of Gauss and Newton; they settle within a few.
const STEPS: usize = 12;
/// Times that all knees are searched for, each given the others.
const SWEEPS: usize = 2;
/// Places of a knee that are compared at once, and how often the grid is made finer around the best.
const GRID: usize = 12;
const ZOOMS: usize = 2;

/// A measurement: values on all axes (those that a form does not use may be anything), and the logarithm of what was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    pub(super) x: [f64; 3],
    pub(super) ln_y: f64,
}

/// A form with its numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fitted {
    /// Which form.
    pub form: Form,
    /// The constant a; of an inverse form that has none, 0.
    pub constant: f64,
    /// Its axes.
    pub axes: Vec<FittedAxis>,
    /// Share of the variance of the logarithms that it explains; 0 of a flat form.
    pub r2: f64,
    /// Standard deviation of what it leaves unexplained, relative to the value.
    pub sigma: f64,
    /// Degrees of freedom that this was estimated with.
    pub freedom: u32,
    /// Shape of the covariance of its linear parameters.
    covariance: Matrix,
}

/// An axis of a form with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FittedAxis {
    /// Which.
    pub axis: Axis,
    /// The power p, or the factor b of the inverse.
    pub factor: f64,
    /// From this value on it is flat.
    pub knee: Option<f64>,
}

impl Fitted {
    /// Fits `form`; none where the points do not determine it and leave a degree of freedom.
    pub(super) fn new(form: &Form, points: &[Point]) -> Option<Self> {
        let freedom = points
            .len()
            .checked_sub(form.parameters())
            .filter(|&free| free > 0)?;
        let knees = search_knees(form, points)?;
        let linear = fit_with_knees(form, &knees, points)?;
        let mean = points.iter().map(|point| point.ln_y).sum::<f64>() / points.len() as f64;
        let total: f64 = points.iter().map(|point| (point.ln_y - mean).powi(2)).sum();
        let explained = if total > 0.0 {
            1.0 - linear.squares / total
        } else {
            0.0
        };
        let constant = match (form.curve, linear.offset) {
            (Curve::Flat | Curve::Power, _) => linear.parameters[0].exp(),
            (Curve::Inverse, true) => linear.parameters[0],
            (Curve::Inverse, false) => 0.0,
        };
        let factors = &linear.parameters[usize::from(linear.offset)..];
        let axes = form.axes.iter().zip(factors).zip(&knees);
        Some(Self {
            form: form.clone(),
            constant,
            axes: axes
                .map(|((axis, &factor), &knee)| FittedAxis {
                    axis: axis.axis,
                    factor,
                    knee,
                })
                .collect(),
            r2: match form.curve {
                Curve::Flat => 0.0,
                _ => explained,
            },
            sigma: (linear.squares / freedom as f64).sqrt(),
            freedom: u32::try_from(freedom).unwrap_or(u32::MAX),
            covariance: linear.covariance,
        })
    }

    /// Logarithm of its value; not a number where an inverse form falls below 0.
    pub(super) fn ln_at(&self, x: &[f64; 3]) -> f64 {
        let parts = self.axes.iter().map(|axis| {
            let value = axis.value(x);
            match self.form.curve {
                Curve::Flat => 0.0,
                Curve::Power => axis.factor * value.ln(),
                Curve::Inverse => axis.factor / value,
            }
        });
        match self.form.curve {
            Curve::Flat | Curve::Power => self.constant.ln() + parts.sum::<f64>(),
            Curve::Inverse => (self.constant + parts.sum::<f64>()).ln(),
        }
    }

    /// Standard deviation of the logarithm of one more measurement there.
    pub(super) fn deviation_at(&self, x: &[f64; 3]) -> f64 {
        let offset = self.covariance.len() > self.axes.len();
        let value = self.ln_at(x).exp();
        let mut gradient: Vec<f64> = Vec::new();
        let by = match self.form.curve {
            Curve::Flat | Curve::Power => 1.0,
            Curve::Inverse => value,
        };
        if offset {
            gradient.push(1.0 / by);
        }
        gradient.extend(self.axes.iter().map(|axis| match self.form.curve {
            Curve::Flat | Curve::Power => axis.value(x).ln(),
            Curve::Inverse => 1.0 / axis.value(x) / by,
        }));
        self.sigma * (1.0 + quadratic(&gradient, &self.covariance)).sqrt()
    }

    /// As a formula, for people.
    pub fn formula(&self) -> String {
        let letter = |axis: Axis| match axis {
            Axis::SourceCpu => "s",
            Axis::DestinationCpu => "d",
            Axis::Bandwidth => "w",
        };
        let mut text = number(self.constant);
        for axis in &self.axes {
            let name = match axis.knee {
                Some(knee) => format!("min({}, {})", letter(axis.axis), number(knee)),
                None => letter(axis.axis).to_owned(),
            };
            text += &match self.form.curve {
                Curve::Flat => String::new(),
                Curve::Power => format!(" * {name}^{:.3}", axis.factor),
                Curve::Inverse => format!(" + {} / {name}", number(axis.factor)),
            };
        }
        text
    }
}

/// Four digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (0.01..1e6).contains(&size) => {
            let digits = (3.0 - size.log10().floor()).clamp(0.0, 5.0) as usize;
            format!("{value:.digits$}")
        }
        _ => format!("{value:.3e}"),
    }
}

impl FittedAxis {
    fn value(&self, x: &[f64; 3]) -> f64 {
        capped(x[self.axis as usize], self.knee)
    }
}

fn capped(value: f64, knee: Option<f64>) -> f64 {
    knee.map_or(value, |knee| value.min(knee))
}

/// A fit with given knees.
struct Linear {
    parameters: Vec<f64>,
    /// Whether the first of them is the constant.
    offset: bool,
    covariance: Matrix,
    /// Sum of the squared residuals of the logarithms.
    squares: f64,
}

fn fit_with_knees(form: &Form, knees: &[Option<f64>], points: &[Point]) -> Option<Linear> {
    let values = |point: &Point| -> Vec<f64> {
        let of =
            |(axis, &knee): (&super::form::FormAxis, &Option<f64>)| capped(point.x[axis.axis as usize], knee);
        form.axes.iter().zip(knees).map(of).collect()
    };
    match form.curve {
        Curve::Flat | Curve::Power => {
            let row = |point| [vec![1.0], values(point).iter().map(|value| value.ln()).collect()].concat();
            let rows: Vec<Vec<f64>> = points.iter().map(row).collect();
            let targets: Vec<f64> = points.iter().map(|point| point.ln_y).collect();
            let solution = solve(&rows, &targets)?;
            let squares = rows.iter().zip(&targets).map(|(row, target)| {
                (target - row.iter().zip(&solution.values).map(|(a, b)| a * b).sum::<f64>()).powi(2)
            });
            Some(Linear {
                squares: squares.sum(),
                parameters: solution.values,
                offset: true,
                covariance: solution.inverse,
            })
        }
        Curve::Inverse => {
            let inverses = |point| values(point).iter().map(|value| 1.0 / value).collect();
            let without: Vec<Vec<f64>> = points.iter().map(inverses).collect();
            let with: Vec<Vec<f64>> = without
                .iter()
                .map(|row| [vec![1.0], row.clone()].concat())
                .collect();
            match fit_inverse(&with, points) {
                Some(linear) if linear.parameters[0] >= 0.0 => Some(linear),
                // No time is less than none, however large the share.
                _ => fit_inverse(&without, points).map(|linear| Linear {
                    offset: false,
                    ..linear
                }),
            }
        }
    }
}

/// Gauss and Newton on the logarithms, from where weights that make errors relative lead.
fn fit_inverse(rows: &[Vec<f64>], points: &[Point]) -> Option<Linear> {
    let relative = |row: &Vec<f64>, value: f64| -> Vec<f64> { row.iter().map(|x| x / value).collect() };
    let start: Vec<_> = rows
        .iter()
        .zip(points)
        .map(|(row, point)| relative(row, point.ln_y.exp()))
        .collect();
    let mut parameters = solve(&start, &vec![1.0; rows.len()])?.values;
    let at = |parameters: &[f64], row: &[f64]| row.iter().zip(parameters).map(|(a, b)| a * b).sum::<f64>();
    let squares = |parameters: &[f64]| -> Option<f64> {
        let residual = |(row, point): (&Vec<f64>, &Point)| {
            let value = at(parameters, row);
            (value > 0.0).then(|| (point.ln_y - value.ln()).powi(2))
        };
        rows.iter().zip(points).map(residual).sum()
    };
    let mut best = squares(&parameters)?;
    let mut covariance = None;
    for _ in 0..STEPS {
        let values: Vec<f64> = rows.iter().map(|row| at(&parameters, row)).collect();
        let slopes: Vec<_> = rows
            .iter()
            .zip(&values)
            .map(|(row, &value)| relative(row, value))
            .collect();
        let left: Vec<f64> = points
            .iter()
            .zip(&values)
            .map(|(point, value)| point.ln_y - value.ln())
            .collect();
        let step = solve(&slopes, &left)?;
        covariance = Some(step.inverse);
        let shorter = [1.0, 0.5, 0.25, 0.125].into_iter().find_map(|part| {
            let moved: Vec<f64> = parameters
                .iter()
                .zip(&step.values)
                .map(|(a, b)| a + part * b)
                .collect();
            squares(&moved).filter(|&sum| sum < best).map(|sum| (moved, sum))
        });
        let Some((moved, sum)) = shorter else { break };
        let gained = best - sum;
        (parameters, best) = (moved, sum);
        if gained < 1e-12 * (1.0 + best) {
            break;
        }
    }
    Some(Linear {
        parameters,
        offset: true,
        covariance: covariance?,
        squares: best,
    })
}

/// Where the knees of a form are. A knee has at least two different values on either side, its own counted to both.
fn search_knees(form: &Form, points: &[Point]) -> Option<Vec<Option<f64>>> {
    let mut knees: Vec<Option<f64>> = vec![None; form.axes.len()];
    let mut ranges = Vec::new();
    for axis in &form.axes {
        let values = distinct(points.iter().map(|point| point.x[axis.axis as usize]));
        ranges.push(match axis.knee {
            true if values.len() >= 4 => Some((values[1], values[values.len() - 2])),
            true => return None,
            false => None,
        });
    }
    for _ in 0..SWEEPS {
        for index in 0..knees.len() {
            let Some(range) = ranges[index] else { continue };
            let squares = |knee: f64| {
                let mut knees = knees.clone();
                knees[index] = Some(knee);
                fit_with_knees(form, &knees, points).map_or(f64::INFINITY, |linear| linear.squares)
            };
            knees[index] = Some(lowest(range, squares));
        }
        if ranges.iter().flatten().count() < 2 {
            break;
        }
    }
    Some(knees)
}

/// Where a function is lowest between two values above 0.
fn lowest(range: (f64, f64), mut of: impl FnMut(f64) -> f64) -> f64 {
    let (mut low, mut high) = (range.0.ln(), range.1.ln());
    let mut best = (f64::INFINITY, low);
    for _ in 0..=ZOOMS {
        let step = (high - low) / (GRID - 1) as f64;
        for index in 0..GRID {
            let place = low + step * index as f64;
            let found = of(place.exp());
            if found < best.0 {
                best = (found, place);
            }
        }
        (low, high) = (
            (best.1 - step).max(range.0.ln()),
            (best.1 + step).min(range.1.ln()),
        );
    }
    best.1.exp()
}

/// Different values, in order.
pub(super) fn distinct(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.dedup_by(|a, b| (*a - *b).abs() <= 1e-9 * b.abs());
    values
}
