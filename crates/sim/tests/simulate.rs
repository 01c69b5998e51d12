//! Migrations that are simulated.

mod common;

use common::{guest, looping, sampled};
use vmferry_core::report::Outcome as Ended;
use vmferry_core::{MigrationRequest, PageRun, Strategy};
use vmferry_sim::{Outcome, PathModel, simulate, simulate_many};
use vmferry_trace::Trace;

const MIB: u64 = 1 << 20;

fn request(strategy: Strategy) -> MigrationRequest<()> {
    MigrationRequest {
        encoding: vmferry_core::Encoding::RAW,
        streams: Some(1),
        ..MigrationRequest::new((), strategy)
    }
}

fn gigabit() -> PathModel {
    PathModel::typical(125e6, 0.2)
}

fn run(trace: &Trace, strategy: Strategy) -> Outcome {
    let began = std::time::Instant::now();
    let outcome = simulate(trace, &request(strategy), &gigabit(), 1).unwrap();
    println!("took {:?}", began.elapsed());
    assert_eq!(
        outcome.report.outcome,
        Ended::Completed,
        "{strategy}: {:?}",
        outcome.report
    );
    println!(
        "{strategy}: total {:.0} ms, over {:.0} ms, down {:.1} ms, {} MiB, rounds {:?}, {:?}",
        outcome.report.total_ms,
        outcome.report.execution_transfer_ms,
        outcome.report.downtime_ms,
        outcome.report.bytes_on_wire / MIB,
        outcome
            .report
            .rounds
            .iter()
            .map(|round| round.pages_sent)
            .collect::<Vec<_>>(),
        outcome.report.faults,
    );
    outcome
}

#[test]
fn an_idle_guest_takes_its_data_over_the_link() {
    let trace = sampled(guest(512 * MIB, 250 * MIB), 20, |_| Vec::new());
    for strategy in Strategy::ALL {
        let report = run(&trace, strategy).report;
        let wire_ms = 250.0 * MIB as f64 / 125e6 * 1e3;
        let idle_ms = 150.0
            + if strategy == Strategy::PostCopy {
                1000.0
            } else {
                0.0
            };
        let learning_ms = if strategy == Strategy::HybridLearning {
            1000.0
        } else {
            0.0
        };
        let expected_ms = wire_ms + idle_ms + learning_ms;
        assert!(
            (0.98..1.06).contains(&(report.total_ms / expected_ms)),
            "{strategy}: {} ms, expected {expected_ms}",
            report.total_ms
        );
        let bytes = report.bytes_on_wire as f64 / (250.0 * MIB as f64);
        assert!((1.0..1.02).contains(&bytes), "{strategy}: {bytes} of its data");
        assert_eq!(report.pages.sent, 250 * 256, "{strategy}");
        assert_eq!(report.pages.hole, 262 * 256, "{strategy}");
    }
}

#[test]
fn a_guest_that_writes_faster_than_the_link_goes_through_all_rounds_of_pre_copy() {
    let trace = looping(
        guest(512 * MIB, 250 * MIB),
        40,
        PageRun::new(1000, 100 * 256),
        100_000,
    );
    let pre_copy = run(&trace, Strategy::PreCopy).report;
    assert_eq!(pre_copy.rounds.len(), 31, "30 rounds and the stop");
    for round in &pre_copy.rounds[1..] {
        let share = round.pages_sent as f64 / (100.0 * 256.0);
        assert!((0.9..=1.0).contains(&share), "{round:?}");
    }
    let filter = run(&trace, Strategy::PreCopyFilter).report;
    assert!(
        filter.bytes_on_wire * 2 < pre_copy.bytes_on_wire,
        "the filter of core is at work"
    );
    for strategy in [Strategy::Hybrid, Strategy::HybridLearning, Strategy::PostCopyPush] {
        let report = run(&trace, strategy).report;
        assert!(report.downtime_ms < 30.0, "{strategy}: {} ms", report.downtime_ms);
        assert!(report.pages.sent <= 2 * 250 * 256);
        assert!(report.faults.count > 0, "{strategy}: the guest needs its pages");
    }
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    let trace = looping(
        guest(256 * MIB, 120 * MIB),
        30,
        PageRun::new(1000, 20 * 256),
        3_000,
    );
    for strategy in Strategy::ALL {
        let text = |outcome: &Outcome| serde_json::to_string(outcome).unwrap();
        let (one, other) = (run(&trace, strategy), run(&trace, strategy));
        assert_eq!(text(&one), text(&other), "{strategy}");
    }
    let many = |seed| simulate_many(&trace, &request(Strategy::PreCopy), &gigabit(), seed, 8).unwrap();
    let totals = |seed| many(seed).iter().map(|o| o.report.total_ms).collect::<Vec<_>>();
    assert_eq!(totals(5), totals(5));
    assert_ne!(totals(5), totals(6));
    let spread = totals(5);
    let (least, most) = (
        spread.iter().copied().fold(f64::INFINITY, f64::min),
        spread.iter().copied().fold(0.0, f64::max),
    );
    assert!(most > least * 1.01, "paths vary: {spread:?}");
}

#[test]
fn a_trace_without_samples_and_a_path_without_a_link_are_refused() {
    let empty = guest(64 * MIB, MIB);
    let why = simulate(&empty, &request(Strategy::PreCopy), &gigabit(), 1).unwrap_err();
    assert!(why.to_string().contains("holds no sample"), "{why}");
    let trace = sampled(guest(64 * MIB, MIB), 2, |_| Vec::new());
    let why = simulate(
        &trace,
        &request(Strategy::PreCopy),
        &PathModel::typical(0.0, 0.1),
        1,
    )
    .unwrap_err();
    assert!(why.to_string().contains("link rate"), "{why}");
    let mut nonsense = request(Strategy::PreCopy);
    nonsense.limits.rounds = 0;
    assert!(simulate(&trace, &nonsense, &gigabit(), 1).is_err());
}
