//! What forecasts were worth: expected beside measured.

use std::collections::BTreeMap;

use serde::Serialize;
use vmferry_core::Strategy;
use vmferry_core::forecast::{Expected, Forecast, Goal, StrategyForecast};
use vmferry_core::report::Outcome;

use crate::experience::{Quantity, quantile};
use crate::history::Record;
use crate::recommend::{ALIKE, Figures, alike_to, costs, recommend};

/// Strategies that have to be run of a setting before one can say which is the best.
const LEAST_STRATEGIES: usize = 3;

/// What counts neither for nor against a strategy.
const NOT_MEASURED: Expected = Expected {
    likely: 0.0,
    low: 0.0,
    high: 0.0,
};

/// The score of forecasts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Completed migrations that had a forecast.
    pub migrations: usize,
    /// For each quantity.
    pub quantities: Vec<QuantityScore>,
    /// How often the strategy that the forecast recommends was the best, for each goal.
    pub recommended: Vec<GoalScore>,
    /// Every pair of expected and measured.
    pub points: Vec<Point>,
}

/// How forecasts of a quantity did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct QuantityScore {
    /// Which.
    pub quantity: Quantity,
    /// Median of how much more was measured than expected, as a share of what was expected.
    pub bias: f64,
    /// Median size of the error, as a share of what was measured.
    pub median_error: f64,
    /// Median size of the error itself: milliseconds or bytes.
    pub median_absolute_error: f64,
    /// Share of the 90 % intervals that held what was measured.
    pub coverage: f64,
    /// The same of the intervals that a host without earlier forecasts would have said.
    pub untaught_coverage: f64,
    /// Share of the forecasts within 10 ms or 25 % of what was measured, of the downtime; within 15 % of the others.
    pub near: f64,
}

/// How often the recommended strategy was the best.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GoalScore {
    /// For which goal.
    pub goal: Goal,
    /// Settings of which several strategies were run, one of them to its end.
    pub settings: usize,
    /// Forecasts that were made of them.
    pub forecasts: usize,
    /// The recommended one was the best of them.
    pub best: usize,
    /// It was the best, or as good: within 5 % of it, and of execution transfer times within 10 ms.
    pub as_good: usize,
}

/// A forecast of a quantity, and what came.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Of which migration.
    pub id: String,
    /// By which strategy.
    pub strategy: Strategy,
    /// Of what.
    pub quantity: Quantity,
    /// What was expected.
    pub expected: Expected,
    /// What would have been without earlier forecasts.
    pub untaught: Expected,
    /// What was measured.
    pub measured: f64,
}

impl Score {
    /// The score of all migrations that completed and had a forecast of their strategy; none where there are none. Those that
    /// failed count where strategies are compared.
    pub fn of(records: &[Record]) -> Option<Self> {
        let scored: Vec<&Record> = records
            .iter()
            .filter(|record| record.expected().is_some())
            .collect();
        let points = points(&scored);
        (!scored.is_empty()).then(|| Self {
            migrations: scored.len(),
            quantities: Quantity::ALL
                .iter()
                .filter_map(|&of| quantity_score(of, &points))
                .collect(),
            recommended: recommended(records),
            points,
        })
    }
}

fn points(records: &[&Record]) -> Vec<Point> {
    let mut points = Vec::new();
    for record in records {
        let (Some((strategy, forecast)), Some((_, simulated))) = (record.expected(), record.simulated())
        else {
            continue;
        };
        points.extend(Quantity::ALL.map(|quantity| Point {
            id: record.id.clone(),
            strategy,
            quantity,
            expected: quantity.expected(forecast),
            untaught: quantity.untaught(quantity.expected(simulated)),
            measured: quantity.measured(record),
        }));
    }
    points
}

fn quantity_score(quantity: Quantity, points: &[Point]) -> Option<QuantityScore> {
    let points: Vec<&Point> = points
        .iter()
        .filter(|point| point.quantity == quantity && point.expected.likely > 0.0 && point.measured > 0.0)
        .collect();
    let count = points.len() as f64;
    let error = |point: &&Point| point.expected.likely - point.measured;
    let share =
        |holds: &dyn Fn(&Point) -> bool| points.iter().filter(|point| holds(point)).count() as f64 / count;
    let median = |of: &dyn Fn(&&Point) -> f64| quantile(points.iter().map(of).collect(), 0.5);
    let near = |point: &Point| {
        let off = (point.expected.likely - point.measured).abs();
        match quantity {
            Quantity::DowntimeMs => off <= 10.0 || off <= 0.25 * point.measured,
            _ => off <= 0.15 * point.measured,
        }
    };
    (!points.is_empty()).then(|| QuantityScore {
        quantity,
        bias: median(&|point| point.measured / point.expected.likely - 1.0),
        median_error: median(&|point| error(point).abs() / point.measured),
        median_absolute_error: median(&|point| error(point).abs()),
        coverage: share(&|point| point.expected.holds(point.measured)),
        untaught_coverage: share(&|point| point.untaught.holds(point.measured)),
        near: share(&near),
    })
}

/// A setting: migrations that are alike in everything but their strategy. Those that failed are among them: that is what their
/// strategy was worth.
type SettingOf<'a> = BTreeMap<&'static str, Vec<&'a Record>>;

/// What tells settings apart. Where nobody saw to it, migrations of a guest of the same size by the same way under the same limits
/// are taken for alike.
fn setting_of(record: &Record) -> String {
    let circumstances = || {
        format!(
            "{} to {}, {} of {} bytes, {}, {:?}, {:?}, {} at once",
            record.vm,
            record.to,
            record.backend,
            record.ram_bytes,
            record.encoding,
            record.setting,
            record.workload,
            record.together
        )
    };
    record.same.clone().unwrap_or_else(circumstances)
}

fn recommended(records: &[Record]) -> Vec<GoalScore> {
    let mut settings: BTreeMap<String, SettingOf<'_>> = BTreeMap::new();
    for record in records {
        // One that was cancelled says nothing of its strategy.
        if let Some((strategy, _)) = record
            .forecast_of_it()
            .filter(|_| record.outcome != Outcome::Cancelled)
        {
            let strategies = settings.entry(setting_of(record)).or_default();
            strategies.entry(strategy.name()).or_default().push(record);
        }
    }
    settings.retain(|_, strategies| {
        let mut run = strategies.values().flatten();
        strategies.len() >= LEAST_STRATEGIES && run.any(|record| record.outcome == Outcome::Completed)
    });
    let downtime = Goal::Downtime(std::time::Duration::from_millis(50));
    let goals = [downtime, Goal::Evict, Goal::Bytes, Goal::Total, Goal::Balanced];
    let scores = goals.map(|goal| {
        let judged: Vec<_> = settings
            .values()
            .flat_map(|strategies| judge(goal, strategies))
            .collect();
        GoalScore {
            goal,
            settings: settings.len(),
            forecasts: judged.len(),
            best: judged.iter().filter(|(best, _)| *best).count(),
            as_good: judged.iter().filter(|(best, as_good)| *best || *as_good).count(),
        }
    });
    scores.into_iter().filter(|score| score.forecasts > 0).collect()
}

/// For each forecast that was made of a setting: whether what it recommends, of the strategies that were run, was the best, or as
/// good.
fn judge(goal: Goal, strategies: &SettingOf<'_>) -> Vec<(bool, bool)> {
    let mut forecasts: Vec<&Forecast> = Vec::new();
    for forecast in strategies
        .values()
        .flatten()
        .filter_map(|record| record.forecast.as_ref())
    {
        if !forecasts.contains(&forecast) {
            forecasts.push(forecast);
        }
    }
    let of_forecast = |forecast: &&Forecast| {
        let run: Vec<_> = forecast
            .strategies
            .iter()
            .filter(|forecast| strategies.contains_key(forecast.strategy.name()))
            // Of the slow-down of clients nothing was measured: what is recommended by the rest is judged by the rest.
            .map(|forecast| StrategyForecast {
                slow_down_percent: NOT_MEASURED,
                ..forecast.clone()
            })
            .collect();
        let (chosen, _) = recommend(goal, &run)?;
        let figures = run
            .iter()
            .map(|forecast| measured(strategies.get(forecast.strategy.name())?));
        let costs = costs_of_run(goal, &figures.collect::<Vec<_>>());
        let best = costs.iter().copied().fold(f64::INFINITY, f64::min);
        if best.is_infinite() {
            return None;
        }
        let cost = costs[run.iter().position(|forecast| forecast.strategy == chosen)?];
        // Costs of a balance are logarithms already.
        let as_good = match goal {
            Goal::Balanced => cost <= best + ALIKE.ln(),
            Goal::Evict => cost <= alike_to(best),
            _ => cost <= best * ALIKE,
        };
        Some((cost <= best, as_good))
    };
    forecasts.iter().filter_map(of_forecast).collect()
}

/// What strategies cost that were run; without an end where none of a strategy's runs completed.
fn costs_of_run(goal: Goal, measured: &[Option<Figures>]) -> Vec<f64> {
    let completed: Vec<Figures> = measured.iter().copied().flatten().collect();
    let mut costs = costs(goal, &completed).into_iter();
    let cost = |figures: &Option<Figures>| figures.and_then(|_| costs.next()).unwrap_or(f64::INFINITY);
    measured.iter().map(cost).collect()
}

/// Medians of what was measured of those that completed; none where none did.
fn measured(records: &[&Record]) -> Option<Figures> {
    let completed = records
        .iter()
        .filter(|record| record.outcome == Outcome::Completed);
    let completed: Vec<&Record> = completed.copied().collect();
    let median =
        |of: &dyn Fn(&Record) -> f64| quantile(completed.iter().map(|record| of(record)).collect(), 0.5);
    (!completed.is_empty()).then(|| Figures {
        total_ms: median(&|record| record.total_ms),
        execution_transfer_ms: median(&|record| record.execution_transfer_ms),
        downtime_ms: median(&|record| record.downtime_ms),
        bytes_on_wire: median(&|record| record.bytes_on_wire as f64),
        slow_down_percent: None,
    })
}

impl Record {
    /// What was expected of it: of the strategy that it went by, where it completed, had a forecast of that and moved nothing but
    /// memory, of which forecasts are.
    pub fn expected(&self) -> Option<(Strategy, &StrategyForecast)> {
        let (strategy, forecast) = self.forecast_of_it()?;
        let expected = forecast.of(strategy)?;
        (self.outcome == Outcome::Completed).then_some((strategy, expected))
    }

    /// What the simulations had said of it, before earlier forecasts corrected that; else as [`Record::expected`].
    pub fn simulated(&self) -> Option<(Strategy, &StrategyForecast)> {
        let (strategy, _) = self.expected()?;
        Some((strategy, self.forecast.as_ref()?.simulated_of(strategy)?))
    }

    /// Its strategy and the forecast that names it, however it ended, where it moved nothing but memory.
    fn forecast_of_it(&self) -> Option<(Strategy, &Forecast)> {
        let strategy: Strategy = self.strategy.parse().ok()?;
        let forecast = self.forecast.as_ref()?;
        let named = self.beside.is_nothing() && forecast.of(strategy).is_some();
        named.then_some((strategy, forecast))
    }
}
