//! Regression models: how long a migration takes, by what it may use.
//!
//! Source: performance-model paper, section 4. There a migration's time follows a power of the CPU share of the host that
//! processes it (log-log least squares), down to a share beyond which more of it changes nothing. So a [`Form`] here is a
//! curve and, where it has one, the [knee](FittedAxis::knee) at which it becomes flat:
//!
//! | curve | time at share x |
//! |---|---|
//! | flat | a |
//! | power | a * x^p |
//! | inverse | a + b / x |
//!
//! Several [axes](Axis) multiply (power) or add (inverse), since both hosts and the link between them matter (paper, Fig. 3). All
//! are fitted to the logarithm of the time, so that errors are relative ones and a prediction is never negative. Which form
//! is used, cross-validation decides: see [`fit`]. What is said of a time is a [`Prediction`] with its interval.

mod data;
mod fit;
mod form;
mod invert;
mod least_squares;
pub mod parallel;
mod predict;
mod select;
mod student;
pub mod trial;

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use data::{DataAxis, LeftOut, Why};
pub use fit::{Fitted, FittedAxis};
pub use form::{Curve, Form};
pub use invert::{Inversion, Limit};
pub use predict::{Assumed, Beyond, Prediction};
pub use select::{Candidate, Model, fit, fit_about, fit_form};

/// Share of outcomes that an interval is to hold.
pub const CONFIDENCE: f64 = 0.9;

/// What a migration may use, and models know about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Axis {
    /// CPU time of the page streams at the source, percent of one core.
    SourceCpu,
    /// The same at the destination.
    DestinationCpu,
    /// Bandwidth of all page streams together, bytes a second.
    Bandwidth,
}

impl Axis {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SourceCpu, Self::DestinationCpu, Self::Bandwidth];

    /// A value of it, with its unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Self::SourceCpu | Self::DestinationCpu => format!("{value:.0}%"),
            Self::Bandwidth => format!("{:.0} Mbit/s", value * 8.0 / 1e6),
        }
    }
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceCpu => "CPU share at the source",
            Self::DestinationCpu => "CPU share at the destination",
            Self::Bandwidth => "bandwidth",
        })
    }
}

/// What a migration may use. What is absent has no cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// See [`Axis::SourceCpu`].
    pub source_percent: Option<f64>,
    /// See [`Axis::DestinationCpu`].
    pub destination_percent: Option<f64>,
    /// See [`Axis::Bandwidth`].
    pub bandwidth_bytes_per_s: Option<f64>,
}

impl Setting {
    /// Its value on an axis.
    pub fn get(&self, axis: Axis) -> Option<f64> {
        match axis {
            Axis::SourceCpu => self.source_percent,
            Axis::DestinationCpu => self.destination_percent,
            Axis::Bandwidth => self.bandwidth_bytes_per_s,
        }
    }

    /// The same with another value on an axis.
    pub fn with(mut self, axis: Axis, value: f64) -> Self {
        let place = match axis {
            Axis::SourceCpu => &mut self.source_percent,
            Axis::DestinationCpu => &mut self.destination_percent,
            Axis::Bandwidth => &mut self.bandwidth_bytes_per_s,
        };
        *place = Some(value);
        self
    }
}

/// What was measured at a setting: a time, or anything else above 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Where.
    pub setting: Setting,
    /// What.
    pub value: f64,
}

/// Why there is no model, or no answer from one.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum ModelError {
    /// Nothing to learn from.
    #[error(
        "a model needs at least {needed} migrations of a kind to learn from, and there are {found}{}",
        besides(.left_out)
    )]
    TooFew {
        /// How many there are.
        found: usize,
        /// How many it takes.
        needed: usize,
        /// Others that do not count, and why.
        left_out: Vec<LeftOut>,
    },
    /// Something that cannot have been measured.
    #[error("{what} of {value} cannot have been measured: numbers above 0 can")]
    NotMeasured {
        /// What.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// The form cannot be fitted to so little, or to data that do not vary.
    #[error("these measurements do not determine the form {0}")]
    Undetermined(Form),
    /// A question without a value that it needs.
    #[error("the {axis} decides here: name it, between {low} and {high} where the data are", low = .axis.show(*.low), high = .axis.show(*.high))]
    Unnamed {
        /// Which axis.
        axis: Axis,
        /// Smallest value in the data.
        low: f64,
        /// Largest.
        high: f64,
    },
    /// A question about something that never varied.
    #[error("{}{}", never_varied(*.axis, *.asked, *.known), besides(.left_out))]
    NeverVaried {
        /// Which axis.
        axis: Axis,
        /// The value that was asked about; none where the question was how much of it is needed.
        asked: Option<f64>,
        /// What all had.
        known: Option<f64>,
        /// Others that do not count, and why.
        left_out: Vec<LeftOut>,
    },
    /// A goal that is none.
    #[error("a goal has to be a time above 0, and {0} is none")]
    NoGoal(f64),
    /// A goal beyond what there is.
    #[error(
        "a goal of {target:.0} ms cannot be met by the {axis} alone: {}",
        reached(*.limit, *.axis, *.value)
    )]
    Unreachable {
        /// The goal.
        target: f64,
        /// Of what more was to be given.
        axis: Axis,
        /// What is expected with the most of it that there are data about, in the unit of the goal.
        value: f64,
        /// Why it is not less.
        limit: Limit,
    },
}

fn never_varied(axis: Axis, asked: Option<f64>, known: Option<f64>) -> String {
    let known = known.map_or_else(|| "no cap".to_owned(), |value| axis.show(value));
    let all = format!("all migrations that this model learned from had {known}");
    match asked {
        Some(asked) => format!(
            "{all}, so it knows nothing about a {axis} of {}",
            axis.show(asked)
        ),
        None => format!("the {axis} was never varied: {all}"),
    }
}

/// What else there would be to learn from.
fn besides(left_out: &[LeftOut]) -> String {
    match left_out.is_empty() {
        true => String::new(),
        false => {
            let parts: Vec<_> = left_out.iter().map(ToString::to_string).collect();
            format!(" ({})", parts.join("; "))
        }
    }
}

fn reached(limit: Limit, axis: Axis, value_ms: f64) -> String {
    limit.words(axis, &format!("{value_ms:.0} ms"))
}
