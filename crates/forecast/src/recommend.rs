//! Which strategy suits a goal.

use std::cmp::Ordering;

use vmferry_core::Strategy;
use vmferry_core::forecast::{Goal, StrategyForecast};

/// A strategy that completes less often than this in simulations is recommended for nothing where another one does not.
const LEAST_COMPLETED: f64 = 0.95;
/// Times of switching over that differ by less are alike: migrations of the same guest by the same strategy differ by as much. Where
/// everything counts, execution transfer times and downtimes below it are as good as none.
pub(crate) const ALIKE_MS: f64 = 10.0;
/// And so are those within this part of each other.
pub(crate) const ALIKE: f64 = 1.05;
/// A slow-down below this is as good as none, where everything counts.
const NO_SLOW_DOWN_PERCENT: f64 = 2.0;

/// The figures that goals are about: expected ones, or those of a migration that was made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figures {
    /// Total time, ms.
    pub total_ms: f64,
    /// Execution transfer time, ms.
    pub execution_transfer_ms: f64,
    /// Downtime, ms.
    pub downtime_ms: f64,
    /// Bytes on the wire.
    pub bytes_on_wire: f64,
    /// Slow-down of clients, percent; where it is known.
    pub slow_down_percent: Option<f64>,
}

impl Figures {
    /// The likeliest ones of a forecast.
    pub fn likely(forecast: &StrategyForecast) -> Self {
        Self {
            total_ms: forecast.total_ms.likely,
            execution_transfer_ms: forecast.execution_transfer_ms.likely,
            downtime_ms: forecast.downtime_ms.likely,
            bytes_on_wire: forecast.bytes_on_wire.likely,
            slow_down_percent: Some(forecast.slow_down_percent.likely),
        }
    }

    /// By how much, in logarithms, it is worse than the best of everything.
    fn balance(&self, best: &Self) -> f64 {
        let worse = |it: f64, best: f64, least: f64| (it.max(least) / best.max(least)).ln();
        let slow_down = self.slow_down_percent.zip(best.slow_down_percent);
        worse(self.total_ms, best.total_ms, 1.0)
            + worse(self.execution_transfer_ms, best.execution_transfer_ms, ALIKE_MS)
            + worse(self.downtime_ms, best.downtime_ms, ALIKE_MS)
            + worse(self.bytes_on_wire, best.bytes_on_wire, 1.0)
            + slow_down.map_or(0.0, |(it, best)| worse(it, best, NO_SLOW_DOWN_PERCENT))
    }

    fn best_of(all: impl Iterator<Item = Self>) -> Option<Self> {
        all.reduce(|a, b| Self {
            total_ms: a.total_ms.min(b.total_ms),
            execution_transfer_ms: a.execution_transfer_ms.min(b.execution_transfer_ms),
            downtime_ms: a.downtime_ms.min(b.downtime_ms),
            bytes_on_wire: a.bytes_on_wire.min(b.bytes_on_wire),
            slow_down_percent: a
                .slow_down_percent
                .zip(b.slow_down_percent)
                .map(|(a, b)| a.min(b)),
        })
    }
}

/// How good each is for a goal: the smaller the better. Of a downtime goal, those that do not keep to it come after all that do.
pub fn costs(goal: Goal, figures: &[Figures]) -> Vec<f64> {
    let best = Figures::best_of(figures.iter().copied());
    let cost = |it: &Figures| match goal {
        Goal::Downtime(most) => {
            let most_ms = most.as_secs_f64() * 1e3;
            match it.downtime_ms <= most_ms {
                true => it.total_ms,
                false => 1e12 * it.downtime_ms / most_ms,
            }
        }
        Goal::Evict => it.execution_transfer_ms,
        Goal::Bytes => it.bytes_on_wire,
        Goal::Total => it.total_ms,
        Goal::Balanced => best.map_or(0.0, |best| it.balance(&best)),
    };
    figures.iter().map(cost).collect()
}

/// The strategy that suits the goal best, and why in a line. None where there is none at all. Where none is sure to complete, it is
/// one of those that do so most often, and the line says so.
pub fn recommend(goal: Goal, strategies: &[StrategyForecast]) -> Option<(Strategy, String)> {
    let most = strategies
        .iter()
        .map(|forecast| forecast.completes)
        .fold(0.0, f64::max);
    let able: Vec<&StrategyForecast> = strategies
        .iter()
        .filter(|forecast| forecast.completes >= most.min(LEAST_COMPLETED))
        .collect();
    let (chosen, why) = match goal {
        Goal::Downtime(most) => within_downtime(most.as_secs_f64() * 1e3, &able),
        _ => cheapest(goal, &able),
    }?;
    let why = if most >= LEAST_COMPLETED {
        why
    } else if most > 0.0 {
        format!(
            "no strategy completes in more than {:.0}% of the simulations, and of those that do so most often {why}",
            100.0 * most
        )
    } else {
        // Figures of what never got there say nothing.
        "no strategy completed in any simulation, so that nothing is known to suit: the limits may be too tight".into()
    };
    Some((chosen, why))
}

/// The one that costs least; of those that are away as soon as each other, the one that is over soonest.
fn cheapest(goal: Goal, able: &[&StrategyForecast]) -> Option<(Strategy, String)> {
    let figures: Vec<Figures> = able.iter().map(|forecast| Figures::likely(forecast)).collect();
    let costs = costs(goal, &figures);
    let mut index = smallest(&costs)?;
    if goal == Goal::Evict {
        let alike = (0..able.len()).filter(|&other| costs[other] <= alike_to(costs[index]));
        index = alike.min_by(|&a, &b| order(figures[a].total_ms, figures[b].total_ms))?;
    }
    let (chosen, next) = (
        able[index],
        runner_up(&costs, index).map(|index| able[index].strategy),
    );
    let what = match goal {
        Goal::Evict if costs.iter().any(|cost| *cost < costs[index]) => format!(
            "it is away as soon as any, after {:.0} ms, and over soonest of those",
            chosen.execution_transfer_ms.likely
        ),
        Goal::Evict => format!(
            "it is away soonest, after {:.0} ms",
            chosen.execution_transfer_ms.likely
        ),
        Goal::Bytes => format!(
            "it sends least, {:.1} MiB",
            chosen.bytes_on_wire.likely / f64::from(1 << 20)
        ),
        Goal::Total => format!("it is over soonest, after {:.0} ms", chosen.total_ms.likely),
        Goal::Balanced | Goal::Downtime(_) => "it is the best in everything together".to_owned(),
    };
    let why = next.map_or(what.clone(), |next| format!("{what}; {next} comes next"));
    Some((chosen.strategy, why))
}

/// Among those that keep to it in 19 of 20 cases the one that is over soonest; else what comes nearest to it.
fn within_downtime(most_ms: f64, able: &[&StrategyForecast]) -> Option<(Strategy, String)> {
    let soonest = |keeps: &dyn Fn(&StrategyForecast) -> bool| {
        let kept = able.iter().filter(|forecast| keeps(forecast));
        kept.min_by(|a, b| a.total_ms.likely.total_cmp(&b.total_ms.likely))
            .copied()
    };
    if let Some(sure) = soonest(&|forecast| forecast.downtime_ms.high <= most_ms) {
        let why = format!(
            "it is over soonest of those that stop the guest for no more than {:.1} ms in 19 of 20 cases",
            sure.downtime_ms.high
        );
        return Some((sure.strategy, why));
    }
    if let Some(likely) = soonest(&|forecast| forecast.downtime_ms.likely <= most_ms) {
        let why = format!(
            "it likely stops the guest for {:.1} ms, though {:.1} ms may happen: nothing is sure to keep to {most_ms:.0} ms",
            likely.downtime_ms.likely, likely.downtime_ms.high
        );
        return Some((likely.strategy, why));
    }
    let nearest = able
        .iter()
        .min_by(|a, b| a.downtime_ms.likely.total_cmp(&b.downtime_ms.likely))?;
    let why = format!(
        "no strategy is expected to keep to {most_ms:.0} ms: the shortest downtime is about {:.1} ms",
        nearest.downtime_ms.likely
    );
    Some((nearest.strategy, why))
}

/// The longest execution transfer time that is as good as `best_ms`.
pub(crate) fn alike_to(best_ms: f64) -> f64 {
    (best_ms * ALIKE).max(best_ms + ALIKE_MS)
}

fn smallest(costs: &[f64]) -> Option<usize> {
    // The first of equals: the strategies are in the order of their simplicity.
    (0..costs.len()).min_by(|&a, &b| order(costs[a], costs[b]))
}

fn runner_up(costs: &[f64], best: usize) -> Option<usize> {
    (0..costs.len())
        .filter(|&index| index != best)
        .min_by(|&a, &b| order(costs[a], costs[b]))
}

fn order(a: f64, b: f64) -> Ordering {
    a.total_cmp(&b)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmferry_core::forecast::Expected;

    use super::*;

    fn forecast(
        strategy: Strategy,
        total: f64,
        transfer: f64,
        downtime: (f64, f64),
        mib: f64,
    ) -> StrategyForecast {
        let about = |likely: f64| Expected {
            likely,
            low: 0.9 * likely,
            high: 1.1 * likely,
        };
        StrategyForecast {
            strategy,
            total_ms: about(total),
            execution_transfer_ms: about(transfer),
            downtime_ms: Expected {
                high: downtime.1,
                ..about(downtime.0)
            },
            bytes_on_wire: about(mib * f64::from(1 << 20)),
            slow_down_percent: about(5.0),
            rounds: about(1.0),
            completes: 1.0,
            typical_rounds: Vec::new(),
        }
    }

    fn three() -> Vec<StrategyForecast> {
        vec![
            forecast(Strategy::PreCopy, 9000.0, 8900.0, (30.0, 60.0), 900.0),
            forecast(Strategy::PostCopyPush, 5000.0, 200.0, (12.0, 20.0), 500.0),
            forecast(Strategy::Hybrid, 6000.0, 4500.0, (15.0, 40.0), 480.0),
        ]
    }

    fn recommended(goal: Goal) -> (Strategy, String) {
        recommend(goal, &three()).unwrap()
    }

    #[test]
    fn each_goal_has_its_strategy() {
        assert_eq!(recommended(Goal::Evict).0, Strategy::PostCopyPush);
        assert_eq!(recommended(Goal::Total).0, Strategy::PostCopyPush);
        assert_eq!(recommended(Goal::Bytes).0, Strategy::Hybrid);
        assert_eq!(recommended(Goal::Balanced).0, Strategy::PostCopyPush);
        assert!(recommended(Goal::Bytes).1.contains("480.0 MiB"));
        assert_eq!(recommend(Goal::Total, &[]), None);
    }

    /// A plain post-copy is away as soon as one that pushes, and may need its source for ever.
    #[test]
    fn of_those_that_are_away_as_soon_the_one_that_is_over_soonest_is_recommended() {
        let mut all = three();
        for (transfer_ms, named) in [
            (195.0, Strategy::PostCopyPush),
            (190.5, Strategy::PostCopyPush),
            (180.0, Strategy::PostCopy),
        ] {
            let plain = forecast(Strategy::PostCopy, 50_000.0, transfer_ms, (12.0, 20.0), 500.0);
            all.insert(0, plain);
            let (strategy, why) = recommend(Goal::Evict, &all).unwrap();
            assert_eq!(strategy, named, "{transfer_ms}");
            assert_eq!(
                why.contains("as soon as any"),
                named == Strategy::PostCopyPush,
                "{why}"
            );
            all.remove(0);
        }
    }

    #[test]
    fn a_downtime_goal_is_kept_or_it_is_said_that_it_cannot_be() {
        let goal = |ms| recommended(Goal::Downtime(Duration::from_millis(ms)));
        assert_eq!(goal(50).0, Strategy::PostCopyPush);
        let (strategy, why) = goal(13);
        assert!(
            strategy == Strategy::PostCopyPush && why.contains("nothing is sure"),
            "{why}"
        );
        let (strategy, why) = goal(5);
        assert!(
            strategy == Strategy::PostCopyPush && why.contains("no strategy is expected"),
            "{why}"
        );
    }

    #[test]
    fn what_does_not_complete_is_not_recommended() {
        let mut all = three();
        all[1].completes = 0.5;
        assert_eq!(recommend(Goal::Evict, &all).unwrap().0, Strategy::Hybrid);
        all.iter_mut().for_each(|it| it.completes = 0.0);
        let (strategy, why) = recommend(Goal::Evict, &all).unwrap();
        assert_eq!(strategy, Strategy::PostCopyPush);
        assert!(why.contains("no strategy completed"), "{why}");
    }

    #[test]
    fn where_nothing_is_sure_to_complete_what_never_does_is_not_recommended() {
        let mut all = three();
        // What never gets to its handover has no downtime and no execution transfer time.
        all[0] = StrategyForecast {
            completes: 0.0,
            ..forecast(Strategy::PreCopy, 100.0, 0.0, (0.0, 0.0), 0.0)
        };
        all[1].completes = 0.9;
        all[2].completes = 0.9;
        for goal in [
            Goal::Evict,
            Goal::Bytes,
            Goal::Total,
            Goal::Balanced,
            Goal::Downtime(Duration::from_millis(50)),
        ] {
            let (strategy, why) = recommend(goal, &all).unwrap();
            assert_ne!(strategy, Strategy::PreCopy, "{goal}");
            assert!(why.contains("more than 90% of the simulations"), "{why}");
        }
        all[2].completes = 0.5;
        let (strategy, _) = recommend(Goal::Bytes, &all).unwrap();
        assert_eq!(
            strategy,
            Strategy::PostCopyPush,
            "the hybrid completes less often"
        );
    }
}
