//! `auto`: it follows what the forecast picked, and leaves for post-copy at a local minimum of the dirty set when reality does not
//! keep to it.

use std::time::Duration;

use proptest::prelude::*;
use vmferry_core::forecast::{Expected, Forecast, Goal, StrategyForecast};
use vmferry_core::ledger::Ledger;
use vmferry_core::policy::{Faults, LiveStep, Policy, StopPlan, View};
use vmferry_core::rates::Rates;
use vmferry_core::{Limits, MigrationRequest, PageBitmap, PageRun, Strategy};

const PAGES: u64 = 4096;

fn up_to(high: f64) -> Expected {
    Expected {
        likely: 0.8 * high,
        low: 0.5 * high,
        high,
    }
}

fn expected(strategy: Strategy) -> StrategyForecast {
    StrategyForecast {
        strategy,
        total_ms: up_to(1100.0),
        execution_transfer_ms: up_to(1000.0),
        downtime_ms: up_to(10.0),
        bytes_on_wire: up_to(1e9),
        slow_down_percent: up_to(5.0),
        rounds: up_to(4.0),
        completes: 1.0,
        typical_rounds: Vec::new(),
    }
}

fn policy(strategy: Strategy) -> Box<dyn Policy> {
    let forecast = Forecast {
        goal: Goal::Total,
        recommended: strategy,
        why: "it is the shortest".into(),
        strategies: vec![expected(strategy)],
        simulated: Vec::new(),
        simulations: 1,
        basis: "a test".into(),
    };
    let limits = Limits {
        downtime: Duration::from_millis(1),
        ..Limits::default()
    };
    let request: MigrationRequest<()> = MigrationRequest {
        limits,
        goal: Some(Goal::Total),
        auto: true,
        forecast: Some(Box::new(forecast)),
        ..MigrationRequest::new((), strategy)
    };
    request.policy(PAGES, None)
}

/// Shows the policy `pending` pages after `rounds` rounds, at `ms`; the link carries 100 pages in a millisecond.
fn shown<T>(ms: u64, rounds: u32, pending: u64, look: impl FnOnce(&View<'_>) -> T) -> T {
    let mut data = PageBitmap::new(PAGES);
    if pending > 0 {
        data.insert_run(PageRun::new(0, pending));
    }
    let (ledger, none) = (Ledger::new(data), PageBitmap::new(PAGES));
    let mut rates = Rates::default();
    rates.round_received(1000, 4_096_000, Duration::from_millis(10));
    look(&View {
        now: Duration::from_millis(ms),
        ledger: &ledger,
        last_scan: &none,
        unsettled: &none,
        rounds,
        bytes_sent: u64::from(rounds) * 1000,
        rates: &rates,
    })
}

fn step(policy: &mut dyn Policy, ms: u64, rounds: u32, pending: u64) -> &'static str {
    match shown(ms, rounds, pending, |view| policy.live(view)) {
        LiveStep::Round(_) => "round",
        LiveStep::Wait(_) => "wait",
        LiveStep::SwitchOver => "switch over",
        LiveStep::Abort(_) => "abort",
    }
}

fn leaves(policy: &mut dyn Policy, pending: u64) -> bool {
    matches!(
        shown(5000, 9, pending, |view| policy.stop(view)),
        StopPlan::LeavePending { .. }
    )
}

#[test]
fn within_the_forecast_it_is_what_was_picked() {
    for strategy in Strategy::ALL {
        let mut auto = policy(strategy);
        let mut alone = strategy.policy(
            &Limits {
                downtime: Duration::from_millis(1),
                ..Limits::default()
            },
            &Default::default(),
            PAGES,
        );
        for (ms, rounds, pending) in [(0, 0, 4000), (400, 1, 2000), (600, 2, 900), (700, 3, 90)] {
            assert_eq!(
                step(&mut *auto, ms, rounds, pending),
                step(&mut *alone, ms, rounds, pending),
                "{strategy} at {ms} ms"
            );
        }
        assert_eq!(auto.notes(), alone.notes(), "{strategy}");
    }
    assert_eq!(policy(Strategy::PreCopy).needs().faults, Faults::MissingAndStale);
    assert_eq!(policy(Strategy::PostCopyPush).needs().faults, Faults::Missing);
}

#[test]
fn it_leaves_when_the_dirty_set_does_not_shrink_any_more() {
    let mut auto = policy(Strategy::PreCopy);
    assert_eq!(step(&mut *auto, 900, 3, 3000), "round", "the forecast holds");
    assert_eq!(
        step(&mut *auto, 1200, 4, 3000),
        "round",
        "it is void from here on"
    );
    assert_eq!(step(&mut *auto, 1300, 5, 2000), "round", "it shrinks");
    assert_eq!(
        step(&mut *auto, 1400, 6, 2500),
        "round",
        "it grows: the next minimum is awaited"
    );
    assert_eq!(step(&mut *auto, 1500, 7, 1500), "round", "it shrinks");
    assert_eq!(step(&mut *auto, 1600, 8, 1480), "switch over", "hardly any more");
    assert!(leaves(&mut *auto, 1480));
    let notes = auto.notes().join("; ");
    assert!(
        notes.contains("1000 ms") && notes.contains("1480 pages"),
        "{notes}"
    );
}

#[test]
fn what_fits_the_goal_is_done_by_the_picked_strategy_however_late() {
    let mut auto = policy(Strategy::PreCopy);
    assert_eq!(step(&mut *auto, 1500, 3, 90), "switch over");
    assert!(!leaves(&mut *auto, 90));
    assert!(auto.notes().is_empty());
}

#[test]
fn without_a_goal_a_forecast_is_only_kept() {
    let request: MigrationRequest<()> = MigrationRequest {
        forecast: policy_forecast(),
        ..MigrationRequest::new((), Strategy::PreCopy)
    };
    let plain = request.policy(PAGES, None);
    assert_eq!(plain.needs().faults, Faults::None);
}

fn policy_forecast() -> Option<Box<Forecast>> {
    Some(Box::new(Forecast {
        goal: Goal::Total,
        recommended: Strategy::PreCopy,
        why: String::new(),
        strategies: vec![expected(Strategy::PreCopy)],
        simulated: Vec::new(),
        simulations: 1,
        basis: String::new(),
    }))
}

proptest! {
    /// Whatever the guest writes, a void forecast leads to post-copy within a few rounds, or to the end before.
    #[test]
    fn it_never_goes_on_for_long_once_the_forecast_is_void(
        dirty in prop::collection::vec(200u64..4000, 40),
        strategy in prop::sample::select(vec![Strategy::PreCopy, Strategy::PreCopyFilter]),
        void_by in 0usize..3,
    ) {
        let mut auto = policy(strategy);
        let mut rounds_after = 0;
        for (round, &pending) in (0u32..).zip(&dirty) {
            let (ms, rounds) = match void_by {
                0 => (2000, round),
                1 => (10, round + 5),
                _ => (10 + u64::from(round) * 300, round),
            };
            let void = ms > 1000 || rounds > 4;
            if step(&mut *auto, ms, rounds, pending) == "switch over" {
                prop_assert!(void);
                prop_assert!(leaves(&mut *auto, pending));
                return Ok(());
            }
            rounds_after += u32::from(void);
            prop_assert!(rounds_after <= 6);
        }
        prop_assert!(false, "40 rounds");
    }
}
