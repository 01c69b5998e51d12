//! What earlier forecasts were worth, applied to the next one.
//!
//! A simulation knows only what varies in it. So where migrations with forecasts were made, a forecast is moved by the median of
//! what they were off, and its interval is as wide as nine of ten of them would have needed (split conformal prediction, Papadopoulos et
//! al. 2002, with the simulated width as the measure of difficulty), and no wider than by what nine of ten were off at all: a narrow
//! interval that was missed by many times its width does not make a wide one endless. Of few migrations, little is taken over; where there
//! are hardly any, intervals are no narrower than hosts that nothing is known of make likely ([`Quantity::untaught`]).

use vmferry_core::Strategy;
use vmferry_core::forecast::{Expected, StrategyForecast};

use crate::history::Record;
use crate::model::CONFIDENCE;

/// Migrations with a forecast that it takes before any of it counts.
const LEAST: usize = 5;
/// So many migrations count as much as the belief that a forecast is right.
const BELIEF: f64 = 4.0;
/// A simulated interval is taken for at least this wide, as a share of the value, on either side.
const LEAST_WIDTH: f64 = 0.01;

/// Without experience no interval of total time is narrower than this share on either side, nor one of the downtime than so many
/// milliseconds: what connections, devices and journals take on these hosts is only typical then. In an earlier measurement of the scenario `forecasts`, before
/// anything was learned, 70 % and 55 % of the intervals held that the simulations made by themselves.
const UNTAUGHT_TOTAL: f64 = 0.10;
const UNTAUGHT_DOWNTIME_MS: f64 = 3.0;

/// A figure that is forecast and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantity {
    /// Total time.
    TotalMs,
    /// Execution transfer time.
    ExecutionTransferMs,
    /// Downtime.
    DowntimeMs,
    /// Bytes on the wire.
    BytesOnWire,
}

impl Quantity {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self::TotalMs,
        Self::ExecutionTransferMs,
        Self::DowntimeMs,
        Self::BytesOnWire,
    ];

    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TotalMs => "total time",
            Self::ExecutionTransferMs => "execution transfer time",
            Self::DowntimeMs => "downtime",
            Self::BytesOnWire => "bytes",
        }
    }

    /// What was expected of it.
    pub fn expected(self, forecast: &StrategyForecast) -> Expected {
        match self {
            Self::TotalMs => forecast.total_ms,
            Self::ExecutionTransferMs => forecast.execution_transfer_ms,
            Self::DowntimeMs => forecast.downtime_ms,
            Self::BytesOnWire => forecast.bytes_on_wire,
        }
    }

    /// What it was.
    pub fn measured(self, record: &Record) -> f64 {
        match self {
            Self::TotalMs => record.total_ms,
            Self::ExecutionTransferMs => record.execution_transfer_ms,
            Self::DowntimeMs => record.downtime_ms,
            Self::BytesOnWire => record.bytes_on_wire as f64,
        }
    }

    /// What simulations expect, as it is said where there is no experience.
    pub fn untaught(self, expected: Expected) -> Expected {
        let aside = match self {
            Self::TotalMs => UNTAUGHT_TOTAL * expected.likely,
            Self::DowntimeMs if expected.likely > 0.0 => UNTAUGHT_DOWNTIME_MS,
            Self::DowntimeMs | Self::ExecutionTransferMs | Self::BytesOnWire => 0.0,
        };
        Expected {
            low: expected.low.min((expected.likely - aside).max(0.0)),
            high: expected.high.max(expected.likely + aside),
            ..expected
        }
    }

    fn place(self, forecast: &mut StrategyForecast) -> &mut Expected {
        match self {
            Self::TotalMs => &mut forecast.total_ms,
            Self::ExecutionTransferMs => &mut forecast.execution_transfer_ms,
            Self::DowntimeMs => &mut forecast.downtime_ms,
            Self::BytesOnWire => &mut forecast.bytes_on_wire,
        }
    }
}

/// Migrations that had a forecast.
#[derive(Clone, Debug, Default)]
pub struct Experience {
    past: Vec<Past>,
}

#[derive(Clone, Debug)]
struct Past {
    strategy: Strategy,
    quantity: Quantity,
    /// Logarithm of measured over expected.
    off: f64,
    expected: Expected,
}

impl Experience {
    /// What these migrations, of any kind, had for forecasts.
    pub fn of(records: &[Record]) -> Self {
        let mut past = Vec::new();
        for record in records {
            // What was corrected already would be corrected by half of what it takes.
            let Some((strategy, forecast)) = record.simulated() else {
                continue;
            };
            for quantity in Quantity::ALL {
                let (expected, measured) = (quantity.expected(forecast), quantity.measured(record));
                if expected.likely > 0.0 && measured > 0.0 {
                    past.push(Past {
                        strategy,
                        quantity,
                        off: (measured / expected.likely).ln(),
                        expected,
                    });
                }
            }
        }
        Self { past }
    }

    /// How many migrations it is of.
    pub fn migrations(&self) -> usize {
        self.past
            .iter()
            .filter(|past| past.quantity == Quantity::TotalMs)
            .count()
    }

    /// Moves and widens a forecast by what earlier ones of its strategy were off, or of all strategies where it has few.
    pub fn apply(&self, forecast: &mut StrategyForecast) {
        for quantity in Quantity::ALL {
            let strategy = forecast.strategy;
            let of = |any: bool| -> Vec<&Past> {
                let takes = |past: &&Past| past.quantity == quantity && (any || past.strategy == strategy);
                self.past.iter().filter(takes).collect()
            };
            let own = of(false);
            let past = if own.len() >= LEAST { own } else { of(true) };
            let place = quantity.place(forecast);
            *place = match past.len() >= LEAST {
                true => corrected(*place, &past),
                false => quantity.untaught(*place),
            };
        }
    }
}

fn corrected(expected: Expected, past: &[&Past]) -> Expected {
    if expected.likely <= 0.0 {
        return expected;
    }
    let count = past.len() as f64;
    let off = quantile(past.iter().map(|past| past.off).collect(), 0.5) * count / (count + BELIEF);
    let left = || past.iter().map(|past| (past.off - off, widths(past.expected)));
    // In widths of its interval on the side to which it was off.
    let needed = left().map(|(left, (down, up))| (left / if left < 0.0 { -down } else { up }).abs());
    let share = (CONFIDENCE * (count + 1.0) / count).min(1.0);
    let factor = quantile(needed.collect(), share).max(0.5);
    let most = quantile(left().map(|(left, _)| left.abs()).collect(), share);
    let reach = |width: f64| (width * factor).min(width + most);
    let (down, up) = widths(expected);
    let likely = expected.likely * off.exp();
    Expected {
        likely,
        low: likely * (-reach(down)).exp(),
        high: likely * reach(up).exp(),
    }
}

/// How far an interval reaches down and up, in logarithms.
fn widths(expected: Expected) -> (f64, f64) {
    let reach = |a: f64, b: f64| if b > 0.0 { (a / b).ln() } else { 1.0 };
    (
        reach(expected.likely, expected.low).max(LEAST_WIDTH),
        reach(expected.high, expected.likely).max(LEAST_WIDTH),
    )
}

/// A quantile of numbers, between neighbours by their distance; 0 of none.
pub(crate) fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let last = values.len().saturating_sub(1);
    between(&values, share.clamp(0.0, 1.0) * last as f64)
}

/// The value below which another one of the same kind lies with the probability `share`: of n, the k-th has k / (n + 1) of what is
/// to come below it. The outermost where so few have no such value; 0 of none.
pub(crate) fn end(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let count = values.len() as f64;
    between(&values, share * (count + 1.0) - 1.0)
}

/// The value at a place of sorted ones, counted from 0, between neighbours by their distance; 0 of none.
fn between(values: &[f64], place: f64) -> f64 {
    let Some(last) = values.len().checked_sub(1) else {
        return 0.0;
    };
    let place = place.clamp(0.0, last as f64);
    let (below, part) = (place.floor() as usize, place.fract());
    let above = values[(below + 1).min(last)];
    values[below] + part * (above - values[below])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_an_interval_leave_as_much_outside_as_they_say() {
        let values: Vec<f64> = (1..=40).map(f64::from).collect();
        let (low, high) = (end(values.clone(), 0.05), end(values.clone(), 0.95));
        assert!(low <= 2.1 && high >= 38.9, "{low} to {high}");
        assert!((quantile(values, 0.5) - 20.5).abs() < 1e-9);
        // Of a few, the outermost are all there is.
        let few = vec![3.0, 1.0, 2.0];
        assert_eq!((end(few.clone(), 0.05), end(few, 0.95)), (1.0, 3.0));
        assert_eq!((end(Vec::new(), 0.05), end(vec![7.0], 0.95)), (0.0, 7.0));
    }

    /// Drawn again and again: how often one more value lies between the ends of forty.
    #[test]
    fn nine_of_ten_values_to_come_lie_between_the_ends() {
        let mut state = 1u64;
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 11) as f64
        };
        let mut held = 0;
        for _ in 0..4000 {
            let values: Vec<f64> = (0..40).map(|_| draw()).collect();
            let next = draw();
            held += u32::from((end(values.clone(), 0.05)..=end(values, 0.95)).contains(&next));
        }
        assert!((3500..3700).contains(&held), "{held} of 4000");
    }
}
