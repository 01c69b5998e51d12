//! Forecasts by simulation, and what becomes of them.

use std::time::Duration;

use vmferry_core::forecast::{Expected, Forecast, Goal, StrategyForecast};
use vmferry_core::report::{CpuSeconds, Outcome};
use vmferry_core::sampling::Coverage;
use vmferry_core::{
    DiskRequest, Encoding, MigrationRequest, PageBitmap, PageRun, RamBlock, RamLayout, Strategy,
};
use vmferry_forecast::experience::{Experience, Quantity};
use vmferry_forecast::history::{Beside, Record};
use vmferry_forecast::model::Setting;
use vmferry_forecast::score::Score;
use vmferry_forecast::simulated::{ForecastError, Wish, forecast};
use vmferry_sim::PathModel;
use vmferry_trace::{Header, PageSet, Plan, Sample, Trace};

const MIB_PAGES: u64 = 256;

/// A guest of 256 MiB, of which 64 MiB hold data and the first `hot` are written in every sample.
fn trace(hot: u64) -> Trace {
    let pages = 256 * MIB_PAGES;
    let block = RamBlock {
        name: "ram".into(),
        pages,
    };
    let header = Header {
        vm: "web".into(),
        backend: "synth".into(),
        layout: RamLayout::new(vec![block]).unwrap(),
        started_unix_ms: 0,
        interval_us: 50_000,
        plan: Plan::Full,
        page_cost_ns: 1000,
        processors: 1,
        pinned_io: false,
        device_state_bytes: None,
    };
    let set = |count: u64| {
        let mut set = PageBitmap::new(pages);
        if count > 0 {
            set.insert_run(PageRun::new(0, count));
        }
        PageSet::from_bitmap(&set)
    };
    let mut trace = Trace::new(header, set(64 * MIB_PAGES));
    for index in 0..40 {
        trace.samples.push(Sample {
            start_us: index * 50_000,
            end_us: (index + 1) * 50_000,
            burst: 0,
            coverage: Coverage::ALL,
            dirty: set(hot * MIB_PAGES),
            cpu_us: None,
        });
    }
    trace
}

fn request() -> MigrationRequest<()> {
    MigrationRequest {
        encoding: Encoding::RAW,
        ..MigrationRequest::new((), Strategy::PreCopy)
    }
}

fn forecast_of(hot: u64, goal: Goal, experience: &Experience) -> Forecast {
    let request = request();
    let wish = Wish {
        request: &request,
        goal,
        strategies: &[
            Strategy::StopAndCopy,
            Strategy::PreCopy,
            Strategy::PostCopyPush,
            Strategy::Hybrid,
        ],
        simulations: 12,
        seed: 3,
    };
    forecast(
        &trace(hot),
        &PathModel::typical(125e6, 0.2),
        &wish,
        experience,
        |_| (),
    )
    .unwrap()
}

#[test]
fn a_guest_that_writes_much_is_better_moved_by_post_copy_and_one_that_does_not_need_not_be() {
    let busy = forecast_of(
        32,
        Goal::Downtime(Duration::from_millis(50)),
        &Experience::default(),
    );
    assert!(
        matches!(busy.recommended, Strategy::PostCopyPush | Strategy::Hybrid),
        "{}",
        busy.why
    );
    let of = |strategy| busy.of(strategy).unwrap();
    let pre_copy = of(Strategy::PreCopy);
    assert!(pre_copy.downtime_ms.likely > 100.0, "{pre_copy:?}");
    let data = 64.0 * f64::from(1 << 20);
    let stop = of(Strategy::StopAndCopy);
    assert!((stop.bytes_on_wire.likely / data - 1.0).abs() < 0.05, "{stop:?}");
    assert!(stop.total_ms.low < stop.total_ms.likely && stop.total_ms.likely < stop.total_ms.high);
    assert!(pre_copy.bytes_on_wire.likely > 1.4 * data, "{pre_copy:?}");
    let rounds = &pre_copy.typical_rounds;
    assert!(
        pre_copy.rounds.holds(rounds.len() as f64 - 1.0) && rounds[0].pages > rounds[1].pages,
        "{rounds:?}"
    );
    let of_rounds: u64 = rounds.iter().map(|round| round.bytes).sum();
    assert!(
        (of_rounds as f64 / pre_copy.bytes_on_wire.likely - 1.0).abs() < 0.2,
        "{rounds:?}"
    );
    let still = forecast_of(
        0,
        Goal::Downtime(Duration::from_millis(50)),
        &Experience::default(),
    );
    assert!(still.of(Strategy::PreCopy).unwrap().downtime_ms.likely < 50.0);
    assert!(
        still.basis.contains("2.0 s of web") && still.basis.contains("1000 Mbit/s"),
        "{}",
        still.basis
    );
}

#[test]
fn the_same_seed_gives_the_same_forecast() {
    let make = || forecast_of(8, Goal::Total, &Experience::default());
    assert_eq!(make(), make());
}

#[test]
fn what_cannot_be_simulated_is_an_error_with_its_cause() {
    let request = request();
    let wish = Wish {
        request: &request,
        goal: Goal::Total,
        strategies: &Strategy::ALL,
        simulations: 2,
        seed: 1,
    };
    let none = Experience::default();
    let no_link = PathModel::typical(0.0, 0.2);
    let error = forecast(&trace(1), &no_link, &wish, &none, |_| ()).unwrap_err();
    assert!(matches!(error, ForecastError::Simulation(_)));
    let mut empty = trace(1);
    empty.samples.clear();
    assert!(forecast(&empty, &PathModel::typical(1e8, 0.2), &wish, &none, |_| ()).is_err());
    let wish = Wish {
        strategies: &[],
        ..wish
    };
    let error = forecast(&trace(1), &PathModel::typical(1e8, 0.2), &wish, &none, |_| ()).unwrap_err();
    assert!(matches!(error, ForecastError::Nothing));
}

fn expected(strategy: Strategy, total_ms: f64) -> StrategyForecast {
    let about = |likely: f64| Expected {
        likely,
        low: likely * 0.98,
        high: likely * 1.02,
    };
    StrategyForecast {
        strategy,
        total_ms: about(total_ms),
        execution_transfer_ms: about(total_ms / 2.0),
        downtime_ms: about(20.0),
        bytes_on_wire: about(1e8),
        slow_down_percent: about(3.0),
        rounds: about(3.0),
        completes: 1.0,
        typical_rounds: Vec::new(),
    }
}

/// A migration that took `factor` times what was expected, of setting `setting`.
fn record(setting: u64, strategy: Strategy, factor: f64) -> Record {
    let base = 1000.0 + setting as f64;
    let strategies = vec![
        expected(Strategy::StopAndCopy, base * 1.5),
        expected(Strategy::PreCopy, base * 2.0),
        expected(Strategy::PostCopyPush, base),
    ];
    let forecast = Forecast {
        goal: Goal::Total,
        recommended: Strategy::PostCopyPush,
        why: String::new(),
        strategies,
        simulated: Vec::new(),
        simulations: 40,
        basis: format!("setting {setting}"),
    };
    let of = forecast.of(strategy).unwrap().clone();
    Record {
        id: format!("{setting}-{strategy}"),
        vm: "web".into(),
        to: format!("b{setting}"),
        ended_unix_ms: setting,
        backend: "synth".into(),
        strategy: strategy.name().into(),
        encoding: "raw".into(),
        workload: None,
        setting: Setting::default(),
        together: 1,
        outcome: Outcome::Completed,
        ram_bytes: 1 << 30,
        data_bytes: 1 << 29,
        bytes_on_wire: 100_000_000,
        total_ms: of.total_ms.likely * factor,
        execution_transfer_ms: of.execution_transfer_ms.likely * factor,
        downtime_ms: 20.0 * factor,
        cpu_seconds: CpuSeconds::default(),
        same: None,
        beside: Beside::default(),
        forecast: Some(forecast),
    }
}

#[test]
fn a_score_says_what_forecasts_were_worth() {
    assert_eq!(Score::of(&[]), None);
    let mut records = Vec::new();
    for setting in 0..10 {
        records.push(record(setting, Strategy::StopAndCopy, 1.01));
        records.push(record(setting, Strategy::PreCopy, 1.1));
        // In two of the settings the recommended strategy took much longer than the others.
        records.push(record(
            setting,
            Strategy::PostCopyPush,
            if setting < 2 { 2.0 } else { 1.0 },
        ));
    }
    records.push(Record {
        outcome: Outcome::Failed,
        ..record(11, Strategy::PreCopy, 1.0)
    });
    records.push(Record {
        forecast: None,
        ..record(11, Strategy::PreCopy, 1.0)
    });
    let score = Score::of(&records).unwrap();
    assert_eq!((score.migrations, score.points.len()), (30, 120));
    let of = |quantity| {
        score
            .quantities
            .iter()
            .find(|score| score.quantity == quantity)
            .unwrap()
    };
    let total = of(Quantity::TotalMs);
    assert!(
        (total.bias - 0.01).abs() < 1e-9 && (total.coverage - 18.0 / 30.0).abs() < 1e-9,
        "{total:?}"
    );
    assert!((total.near - 28.0 / 30.0).abs() < 1e-9);
    assert_eq!(of(Quantity::BytesOnWire).coverage, 1.0);
    // Downtimes of 20 ms are never more than 10 ms off, but where they are twice as long.
    assert!((of(Quantity::DowntimeMs).near - 28.0 / 30.0).abs() < 0.07);
    let goal = score
        .recommended
        .iter()
        .find(|score| score.goal == Goal::Total)
        .unwrap();
    assert_eq!((goal.settings, goal.best, goal.as_good), (10, 8, 8));
}

#[test]
fn experience_moves_and_widens_the_next_forecast_and_little_of_it_changes_nothing() {
    let past = |count: u64, factor: fn(u64) -> f64| -> Vec<Record> {
        (0..count)
            .map(|n| record(n, Strategy::PreCopy, factor(n)))
            .collect()
    };
    let apply = |records: &[Record]| {
        let mut next = expected(Strategy::PreCopy, 1000.0);
        Experience::of(records).apply(&mut next);
        next.total_ms
    };
    let before = expected(Strategy::PreCopy, 1000.0).total_ms;
    let untaught = Quantity::TotalMs.untaught(before);
    assert_eq!((untaught.low, untaught.high), (900.0, 1100.0));
    assert_eq!(apply(&past(4, |_| 1.2)), untaught, "four are too few");
    let after = apply(&past(40, |_| 1.2));
    assert!(
        after.likely > 1150.0 && after.likely < 1200.0 && after.holds(1180.0),
        "{after:?}"
    );
    // Right in the middle, but ten times as far off as it thought.
    let spread = apply(&past(40, |n| 1.0 + 0.2 * ((n % 5) as f64 - 2.0) / 2.0));
    assert!(spread.low < 850.0 && spread.high > 1150.0, "{spread:?}");
    // A forecast that was always right becomes surer, but not without end.
    let sure = apply(&past(40, |_| 1.0));
    assert!(sure.low > before.low && sure.low < 1000.0, "{sure:?}");
}

/// Forecasts that thought themselves sure to 1 % were off by 15 %: one that already says "200 ms to 5 s" is not off by its hundredfold.
#[test]
fn narrow_intervals_that_were_missed_do_not_make_a_wide_one_endless() {
    let records: Vec<Record> = (0..40)
        .map(|n| record(n, Strategy::PreCopy, 1.0 + 0.15 * ((n % 5) as f64 - 2.0) / 2.0))
        .map(|mut record| {
            for forecast in &mut record.forecast.as_mut().unwrap().strategies {
                let likely = forecast.total_ms.likely;
                (forecast.total_ms.low, forecast.total_ms.high) = (0.99 * likely, 1.01 * likely);
            }
            record
        })
        .collect();
    let experience = Experience::of(&records);
    let applied = |low: f64, high: f64| {
        let mut next = expected(Strategy::PreCopy, 1000.0);
        (next.total_ms.low, next.total_ms.high) = (low, high);
        experience.apply(&mut next);
        next.total_ms
    };
    let narrow = applied(990.0, 1010.0);
    assert!(narrow.low < 870.0 && narrow.high > 1130.0, "{narrow:?}");
    let wide = applied(200.0, 5000.0);
    assert!(wide.low > 150.0 && wide.high < 6500.0, "{wide:?}");
    assert!(wide.low < 200.0 && wide.high > 5000.0, "{wide:?}");
}

/// What is always simulated as 1000 ms and always takes 1200: what was corrected once is not learned from as if it were simulated.
#[test]
fn experience_of_corrected_forecasts_goes_on_to_correct_the_simulation() {
    let mut records: Vec<Record> = Vec::new();
    let mut likely = 0.0;
    let mut held = Vec::new();
    for turn in 0..60u64 {
        // Noise of 2 %, from one end to the other in an order that looks like none.
        let noise = ((turn * 37 % 60) as f64 / 59.0 - 0.5) * 0.04;
        let measured = 1200.0 * (1.0 + noise);
        let simulated = expected(Strategy::PreCopy, 1000.0);
        let mut corrected = simulated.clone();
        Experience::of(&records).apply(&mut corrected);
        likely = corrected.total_ms.likely;
        held.push(corrected.total_ms.holds(1200.0));
        let plain = record(turn, Strategy::PreCopy, 1.0);
        records.push(Record {
            total_ms: measured,
            forecast: Some(Forecast {
                strategies: vec![corrected],
                simulated: vec![simulated],
                ..plain.forecast.unwrap()
            }),
            ..plain
        });
    }
    assert!((1150.0..1210.0).contains(&likely), "{likely}");
    let held = held[20..].iter().filter(|held| **held).count();
    assert!(held >= 32, "{held} of 40");
    // The score is of what was said, not of what was simulated.
    let bias = Score::of(&records[20..]).unwrap().quantities[0].bias;
    assert!(bias.abs() < 0.05, "{bias}");
}

#[test]
fn a_forecast_keeps_what_was_simulated_beside_what_it_was_corrected_to() {
    let past: Vec<Record> = (0..20).map(|n| record(n, Strategy::PreCopy, 1.5)).collect();
    let raw = forecast_of(8, Goal::Total, &Experience::default());
    let corrected = forecast_of(8, Goal::Total, &Experience::of(&past));
    assert_eq!(corrected.simulated, raw.simulated);
    let of = |forecast: &Forecast| forecast.of(Strategy::PreCopy).unwrap().total_ms.likely;
    assert!(of(&corrected) > 1.3 * of(&raw));
    let simulated = corrected.simulated_of(Strategy::PreCopy).unwrap();
    assert_eq!(simulated.total_ms.likely, of(&raw));
    let mut value = serde_json::to_value(&corrected).unwrap();
    value.as_object_mut().unwrap().remove("simulated");
    let old: Forecast = serde_json::from_value(value).unwrap();
    assert_eq!(
        old.simulated_of(Strategy::PreCopy),
        corrected.of(Strategy::PreCopy)
    );
}

#[test]
fn what_moved_more_than_memory_teaches_forecasts_nothing_and_is_no_test_of_them() {
    let beside = [
        Beside {
            disks: true,
            ..Beside::default()
        },
        Beside {
            reuse: true,
            ..Beside::default()
        },
        Beside {
            verify: true,
            ..Beside::default()
        },
    ];
    for beside in beside {
        let records: Vec<Record> = (0..20)
            .map(|n| Record {
                beside,
                ..record(n, Strategy::PreCopy, 50.0)
            })
            .collect();
        assert_eq!(Experience::of(&records).migrations(), 0);
        assert_eq!(Score::of(&records), None);
    }
}

#[test]
fn a_forecast_says_what_it_is_without_and_of_how_few_simulations_it_is() {
    let of = |request: &MigrationRequest<()>, simulations| {
        let wish = Wish {
            request,
            goal: Goal::Total,
            strategies: &[Strategy::StopAndCopy],
            simulations,
            seed: 1,
        };
        let path = PathModel::typical(125e6, 0.2);
        forecast(&trace(1), &path, &wish, &Experience::default(), |_| ())
            .unwrap()
            .basis
    };
    let with_disks = MigrationRequest {
        disks: Some(DiskRequest::default()),
        ..request()
    };
    let basis = of(&with_disks, 19);
    assert!(
        basis.ends_with("; memory only; disks are not included"),
        "{basis}"
    );
    let basis = of(&request(), 12);
    assert!(basis.contains("85% of the cases"), "{basis}");
    let basis = of(&request(), 19);
    assert!(!basis.contains("cases") && !basis.contains("memory"), "{basis}");
}

fn goal_of(score: &Score, goal: Goal) -> &vmferry_forecast::score::GoalScore {
    score.recommended.iter().find(|score| score.goal == goal).unwrap()
}

/// A daemon gives its records no setting, and each of its migrations has a forecast of its own.
#[test]
fn a_recommended_strategy_that_failed_was_run_and_was_the_worst() {
    let mut records = Vec::new();
    for (index, strategy) in [
        Strategy::StopAndCopy,
        Strategy::PreCopy,
        Strategy::Hybrid,
        Strategy::PostCopyPush,
    ]
    .into_iter()
    .enumerate()
    {
        let mut forecast = record(0, Strategy::PreCopy, 1.0).forecast.unwrap();
        forecast.strategies.push(expected(Strategy::Hybrid, 1800.0));
        forecast.basis = format!("migration {index}");
        records.push(Record {
            strategy: strategy.name().into(),
            forecast: Some(forecast),
            ..record(0, Strategy::PreCopy, 1.0)
        });
    }
    let score = Score::of(&records).unwrap();
    let total = goal_of(&score, Goal::Total);
    assert_eq!((total.settings, total.forecasts), (1, 4));
    records[3].outcome = Outcome::Failed;
    let score = Score::of(&records).unwrap();
    let total = goal_of(&score, Goal::Total);
    assert_eq!(
        (total.settings, total.forecasts, total.best, total.as_good),
        (1, 4, 0, 0)
    );
    // What the operator cancelled was not run, and of a setting in which all failed there is no best.
    records[3].outcome = Outcome::Cancelled;
    let score = Score::of(&records).unwrap();
    assert_eq!(goal_of(&score, Goal::Total).forecasts, 3);
    for record in &mut records {
        record.outcome = Outcome::Failed;
    }
    records.push(record(7, Strategy::PreCopy, 1.0));
    assert_eq!(Score::of(&records).unwrap().recommended, []);
}

#[test]
fn migrations_of_other_guests_destinations_or_limits_are_of_other_settings() {
    let three = || {
        [Strategy::StopAndCopy, Strategy::PreCopy, Strategy::PostCopyPush]
            .map(|strategy| record(1, strategy, 1.0))
    };
    assert_eq!(Score::of(&three()).unwrap().recommended.len(), 5);
    let changes: [fn(&mut Record); 4] = [
        |record| record.vm = "other".into(),
        |record| record.to = "other".into(),
        |record| record.encoding = "lz4".into(),
        |record| record.setting.source_percent = Some(20.0),
    ];
    for change in changes {
        let mut records = three();
        change(&mut records[1]);
        assert_eq!(Score::of(&records).unwrap().recommended, []);
    }
}
