//! Forecasts by simulation: the guest's trace is replayed by every strategy, again and again with its bursts drawn anew and the path
//! varied, and what came of it is what is expected.

use thiserror::Error;
use vmferry_core::forecast::{Expected, Forecast, Goal, StrategyForecast, TypicalRound};
use vmferry_core::report::{Outcome as Ended, RoundReport};
use vmferry_core::{MigrationRequest, Strategy};
use vmferry_sim::{Outcome, PathModel, SimError, Simulator};
use vmferry_trace::Trace;

use crate::experience::{Experience, end, quantile};
use crate::history::Beside;
use crate::model::CONFIDENCE;
use crate::recommend::recommend;

/// Simulations of each strategy where nothing else is asked for: the ends of the intervals rest on two or three of them.
pub const SIMULATIONS: usize = 40;

/// No interval of bytes is narrower than this share on either side. What pages hold is sampled, and how messages frame them is not
/// simulated: of 38 migrations of the scenario `forecasts` eleven were off by more than the simulations differed among themselves, eight of
/// these by less than this.
const LEAST_OF_BYTES: f64 = 0.03;

/// A forecast keeps no more rounds than these of a strategy: it crosses with the request, and stays in every report.
const MOST_ROUNDS: usize = 40;

/// What is to be forecast.
#[derive(Clone, Debug)]
pub struct Wish<'a, To> {
    /// The migration, but for its strategy.
    pub request: &'a MigrationRequest<To>,
    /// What it is to be good at.
    pub goal: Goal,
    /// The strategies to choose from.
    pub strategies: &'a [Strategy],
    /// Simulations of each.
    pub simulations: usize,
    /// The same seed gives the same forecast.
    pub seed: u64,
}

/// A forecast that cannot be made.
#[derive(Debug, Error)]
pub enum ForecastError {
    /// The trace or the path does not allow it.
    #[error("the migration cannot be simulated")]
    Simulation(#[from] SimError),
    /// Nothing to choose from.
    #[error("a forecast needs at least one strategy and one simulation")]
    Nothing,
}

/// Forecasts the migration of the guest of `trace` over `path`; `experience` is what earlier forecasts were worth. `begins` hears of
/// each strategy before its turn.
///
/// # Errors
/// See [`ForecastError`].
pub fn forecast<To: Clone>(
    trace: &Trace,
    path: &PathModel,
    wish: &Wish<'_, To>,
    experience: &Experience,
    mut begins: impl FnMut(Strategy),
) -> Result<Forecast, ForecastError> {
    if wish.strategies.is_empty() || wish.simulations == 0 {
        return Err(ForecastError::Nothing);
    }
    let simulator = Simulator::new(trace)?;
    let (mut strategies, mut simulated) = (Vec::new(), Vec::new());
    for &strategy in wish.strategies {
        begins(strategy);
        let request = MigrationRequest {
            strategy,
            goal: None,
            auto: false,
            forecast: None,
            ..wish.request.clone()
        };
        let outcomes = simulator.many(&request, path, wish.seed, wish.simulations)?;
        let mut expected = of_outcomes(strategy, &outcomes);
        simulated.push(StrategyForecast {
            typical_rounds: Vec::new(),
            ..expected.clone()
        });
        experience.apply(&mut expected);
        strategies.push(expected);
    }
    let (recommended, why) = recommend(wish.goal, &strategies).ok_or(ForecastError::Nothing)?;
    let experienced = match experience.migrations() {
        0 => ", no earlier forecasts to learn from".to_owned(),
        count => format!(", corrected by {count} earlier forecasts"),
    };
    let reservations = reservations(wish);
    Ok(Forecast {
        goal: wish.goal,
        recommended,
        why,
        strategies,
        simulated,
        simulations: u32::try_from(wish.simulations).unwrap_or(u32::MAX),
        basis: format!(
            "{:.1} s of {} in {} samples, link {:.0} Mbit/s, round trip {:.2} ms{experienced}{reservations}",
            trace.observed().as_secs_f64(),
            trace.header.vm,
            trace.samples.len(),
            path.link_bytes_per_s * 8.0 / 1e6,
            path.rtt_ms
        ),
    })
}

/// What the figures are without, and how sure their intervals are at most.
fn reservations<To>(wish: &Wish<'_, To>) -> String {
    let mut text = String::new();
    let beside = Beside::asked(wish.request);
    if !beside.is_nothing() {
        text += &format!("; {beside}");
    }
    if let Some(few) = few(wish.simulations) {
        text += &format!("; {few}");
    }
    text
}

fn of_outcomes(strategy: Strategy, outcomes: &[Outcome]) -> StrategyForecast {
    let completed: Vec<&Outcome> = outcomes
        .iter()
        .filter(|outcome| outcome.report.outcome == Ended::Completed)
        .collect();
    // Where none completes, what was reached is all there is to say.
    let shown: Vec<&Outcome> = match completed.is_empty() {
        true => outcomes.iter().collect(),
        false => completed.clone(),
    };
    let expected = |figure: &dyn Fn(&Outcome) -> f64| of_values(shown.iter().map(|outcome| figure(outcome)));
    StrategyForecast {
        strategy,
        total_ms: expected(&|outcome| outcome.report.total_ms),
        execution_transfer_ms: expected(&|outcome| outcome.report.execution_transfer_ms),
        downtime_ms: expected(&|outcome| outcome.report.downtime_ms),
        bytes_on_wire: at_least(
            expected(&|outcome| outcome.report.bytes_on_wire as f64),
            LEAST_OF_BYTES,
        ),
        slow_down_percent: expected(&|outcome| outcome.slow_down_percent),
        // The stop is the last of them.
        rounds: expected(&|outcome| outcome.report.rounds.len().saturating_sub(1) as f64),
        completes: completed.len() as f64 / outcomes.len() as f64,
        typical_rounds: typical_rounds(&shown),
    }
}

/// The median of what simulations gave, and the interval that holds nine of ten to come, as far as so many can tell; 0 of none.
pub fn of_values(values: impl Iterator<Item = f64>) -> Expected {
    let values: Vec<f64> = values.collect();
    let beyond = (1.0 - CONFIDENCE) / 2.0;
    Expected {
        likely: quantile(values.clone(), 0.5),
        low: end(values.clone(), beyond),
        high: end(values, 1.0 - beyond),
    }
}

/// How sure the intervals of `simulations` are, where they are less so than others: in words.
pub fn few(simulations: usize) -> Option<String> {
    // What is to come lies between the outermost of n equally likely values with this probability.
    let count = simulations as f64;
    let held = (count - 1.0) / (count + 1.0);
    (held < CONFIDENCE).then(|| {
        format!(
            "the intervals of so few simulations hold in {:.0}% of the cases, not in {:.0}%",
            100.0 * held,
            100.0 * CONFIDENCE
        )
    })
}

/// The rounds of the outcome in the middle, by its total time.
fn typical_rounds(outcomes: &[&Outcome]) -> Vec<TypicalRound> {
    let mut sorted = outcomes.to_vec();
    sorted.sort_by(|a, b| a.report.total_ms.total_cmp(&b.report.total_ms));
    let Some(typical) = sorted.get(sorted.len().saturating_sub(1) / 2) else {
        return Vec::new();
    };
    let rounds = typical.report.rounds.iter().take(MOST_ROUNDS);
    let round = |round: &RoundReport| TypicalRound {
        pages: round.pages_sent,
        bytes: round.bytes,
        ms: round.ms,
    };
    rounds.map(round).collect()
}

/// An interval that reaches `share` of the value up and down, or further.
fn at_least(expected: Expected, share: f64) -> Expected {
    Expected {
        low: expected.low.min(expected.likely * (1.0 - share)),
        high: expected.high.max(expected.likely * (1.0 + share)),
        ..expected
    }
}
