//! What is expected of a migration before it begins: of every strategy, and which of them suits the operator's goal.
//!
//! Whoever makes a forecast fills these in (`vmferry forecast`: a trace of the guest, replayed); the report of the migration keeps
//! it, the policy `auto` follows it, and its score is what became of it. Nothing here is measured.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::strategy::Strategy;

/// What a migration is to be good at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Goal {
    /// The guest is stopped for no longer than this; among those that keep to it, the shortest total time.
    Downtime(Duration),
    /// The guest is away from the source as soon as possible: shortest execution transfer time.
    Evict,
    /// The fewest bytes on the wire.
    Bytes,
    /// The source is free as soon as possible: shortest total time.
    Total,
    /// Everything at once: each of total time, execution transfer time, downtime, bytes and slow-down of clients in relation to the
    /// best.
    #[default]
    Balanced,
}

/// No goal that is known.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no goal; choose downtime=TIME as in downtime=50ms (us, ms, s, m, h), evict, bytes, total or balanced"
)]
pub struct UnknownGoal(String);

impl FromStr for Goal {
    type Err = UnknownGoal;

    fn from_str(text: &str) -> Result<Self, UnknownGoal> {
        match text {
            "evict" => Ok(Self::Evict),
            "bytes" => Ok(Self::Bytes),
            "total" => Ok(Self::Total),
            "balanced" => Ok(Self::Balanced),
            _ => {
                let time = text.strip_prefix("downtime=").and_then(time);
                time.map(Self::Downtime)
                    .ok_or_else(|| UnknownGoal(text.to_owned()))
            }
        }
    }
}

/// `50ms`, `1.5s`, `2m`: in the units that every other time may have.
fn time(text: &str) -> Option<Duration> {
    // Units that end like a longer one come after it.
    let units = [
        ("us", 1e-6),
        ("ms", 1e-3),
        ("s", 1.0),
        ("min", 60.0),
        ("m", 60.0),
        ("h", 3600.0),
    ];
    let (number, unit) = units
        .iter()
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    let seconds = number.trim_end().parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Downtime(time) => write!(f, "downtime={}ms", time.as_secs_f64() * 1e3),
            Self::Evict => f.write_str("evict"),
            Self::Bytes => f.write_str("bytes"),
            Self::Total => f.write_str("total"),
            Self::Balanced => f.write_str("balanced"),
        }
    }
}

impl TryFrom<String> for Goal {
    type Error = UnknownGoal;

    fn try_from(text: String) -> Result<Self, UnknownGoal> {
        text.parse()
    }
}

impl From<Goal> for String {
    fn from(goal: Goal) -> Self {
        goal.to_string()
    }
}

/// A value, and between what it is expected in nine of ten cases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// As often above as below this.
    pub likely: f64,
    /// In one of twenty cases it is less.
    pub low: f64,
    /// In one of twenty cases it is more.
    pub high: f64,
}

impl Expected {
    /// Whether a value is within the interval.
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// What is expected of a strategy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StrategyForecast {
    /// Which.
    pub strategy: Strategy,
    /// See [`crate::report::Report::total_ms`].
    pub total_ms: Expected,
    /// See [`crate::report::Report::execution_transfer_ms`].
    pub execution_transfer_ms: Expected,
    /// See [`crate::report::Report::downtime_ms`].
    pub downtime_ms: Expected,
    /// See [`crate::report::Report::bytes_on_wire`].
    pub bytes_on_wire: Expected,
    /// How much less clients of the guest get done during the migration, percent of what they do without one; the downtime
    /// included.
    pub slow_down_percent: Expected,
    /// Rounds of pre-copy.
    pub rounds: Expected,
    /// Share of the simulations in which it completed, 0 to 1.
    pub completes: f64,
    /// The rounds of the simulation in the middle, by its total time, as they were simulated; the stop is the last of them. Empty
    /// where nobody kept them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub typical_rounds: Vec<TypicalRound>,
}

/// A round as it was simulated.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TypicalRound {
    /// Pages sent in it.
    pub pages: u64,
    /// Bytes it put on the wire.
    pub bytes: u64,
    /// How long it took.
    pub ms: f64,
}

/// A forecast, as it was made before the migration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forecast {
    /// What was asked for.
    pub goal: Goal,
    /// The strategy that suits it.
    pub recommended: Strategy,
    /// Why, in a line.
    pub why: String,
    /// What is expected of each strategy.
    pub strategies: Vec<StrategyForecast>,
    /// The same as the simulations said it, before what earlier forecasts were off corrected it: what the next forecast learns
    /// from. Without their rounds; nothing in forecasts that were made before this was kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub simulated: Vec<StrategyForecast>,
    /// Simulations for each.
    pub simulations: u32,
    /// From what it was made, in a line.
    pub basis: String,
}

impl Forecast {
    /// What is expected of a strategy.
    pub fn of(&self, strategy: Strategy) -> Option<&StrategyForecast> {
        self.strategies
            .iter()
            .find(|forecast| forecast.strategy == strategy)
    }

    /// What the simulations said of a strategy; of a forecast that did not keep it, what was expected.
    pub fn simulated_of(&self, strategy: Strategy) -> Option<&StrategyForecast> {
        let kept = self
            .simulated
            .iter()
            .find(|forecast| forecast.strategy == strategy);
        kept.or_else(|| self.of(strategy))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_read_as_they_are_written() {
        for text in [
            "downtime=50ms",
            "downtime=1500ms",
            "evict",
            "bytes",
            "total",
            "balanced",
        ] {
            assert_eq!(text.parse::<Goal>().unwrap().to_string(), text);
        }
        assert_eq!(
            "downtime=1.5s".parse(),
            Ok(Goal::Downtime(Duration::from_millis(1500)))
        );
        for (text, ms) in [
            ("downtime=2m", 120_000),
            ("downtime=2min", 120_000),
            ("downtime=0.5h", 1_800_000),
            ("downtime=5000us", 5),
        ] {
            let goal = text.parse::<Goal>().unwrap();
            assert_eq!(goal, Goal::Downtime(Duration::from_millis(ms)), "{text}");
            assert_eq!(goal.to_string().parse(), Ok(goal));
        }
        for text in [
            "downtime",
            "downtime=0ms",
            "downtime=-1s",
            "downtime=5",
            "downtime=nans",
            "fast",
            "",
        ] {
            let error = text.parse::<Goal>().unwrap_err().to_string();
            assert!(error.contains("downtime=50ms"), "{error}");
        }
    }
}
