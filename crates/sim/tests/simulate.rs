//! Migrations that are simulated.

mod common;

use std::time::Duration;

use common::{guest, looping, sampled};
use vmferry_core::hints::{Class, Hints};
use vmferry_core::report::Outcome as Ended;
use vmferry_core::{MigrationRequest, PageRun, Strategy};
use vmferry_sim::{CodecCosts, Outcome, PathModel, Simulator, simulate, simulate_many};
use vmferry_trace::{GuestHints, Trace};

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

#[test]
fn a_timeout_that_comes_while_the_driver_is_busy_is_heard_of_when_it_is_done() {
    let trace = sampled(guest(512 * MIB, 250 * MIB), 20, |_| Vec::new());
    let mut asked = request(Strategy::PreCopy);
    // Tracking is armed from 151.0 to 160.1 ms.
    asked.limits.timeout = Some(Duration::from_millis(155));
    let report = simulate(&trace, &asked, &gigabit(), 1).unwrap().report;
    assert_eq!(report.outcome, Ended::Failed, "{report:?}");
    assert!(
        (155.0..165.0).contains(&report.total_ms),
        "{} ms",
        report.total_ms
    );
}

#[test]
fn a_stream_does_one_thing_at_a_time() {
    let trace = sampled(guest(128 * MIB, 64 * MIB), 20, |_| Vec::new());
    let path = PathModel {
        codecs: CodecCosts {
            lz4: 100.0,
            ..CodecCosts::default()
        },
        ..gigabit()
    };
    for streams in [1, 2] {
        let asked = MigrationRequest {
            encoding: "lz4".parse().unwrap(),
            streams: Some(streams),
            ..request(Strategy::StopAndCopy)
        };
        let report = simulate(&trace, &asked, &path, 1).unwrap().report;
        let there_was_s = report.total_ms / 1e3 * f64::from(streams);
        assert!(
            report.cpu_seconds.source <= there_was_s * 1.01,
            "{streams} streams used {} s of {there_was_s} s",
            report.cpu_seconds.source
        );
    }
}

#[test]
fn the_destinations_processors_are_capped_too() {
    let trace = sampled(guest(128 * MIB, 64 * MIB), 20, |_| Vec::new());
    // 43 % of a core take pages in at that rate.
    let path = PathModel::typical(1.25e9, 0.2);
    let total_ms = |strategy, percent| {
        let mut asked = request(strategy);
        asked.limits.cpu_destination_percent = percent;
        simulate(&trace, &asked, &path, 1).unwrap().report.total_ms - path.prepare_ms
    };
    let free = total_ms(Strategy::PreCopy, None);
    for (percent, times) in [(5, 5.0..10.0), (1000, 0.99..1.01)] {
        let capped = total_ms(Strategy::PreCopy, Some(percent));
        assert!(
            times.contains(&(capped / free)),
            "{percent} %: {capped} ms, else {free}"
        );
    }
    let pushed = total_ms(Strategy::PostCopyPush, Some(5)) / total_ms(Strategy::PostCopyPush, None);
    assert!(pushed > 4.0, "also after the resume: {pushed} times");
}

/// Writes from page 1000 on: all of a region in order, and one page in eight of as large a region in no order.
fn dense_and_scattered(sample: u64) -> Vec<PageRun> {
    let dense = PageRun::new(1000 + sample * 800 % 16_000, 800);
    let scattered = (0..400).map(|at| PageRun::single(20_000 + (sample * 400 + at) * 7919 % 32_000));
    std::iter::once(dense).chain(scattered).collect()
}

#[test]
fn coarser_units_have_as_many_faults_and_wait_as_long_for_them() {
    let trace = sampled(guest(512 * MIB, 250 * MIB), 100, dense_and_scattered);
    let fine = Simulator::new(&trace).unwrap();
    let coarse = Simulator::with_units(&trace, 512 * 256 / 8).unwrap();
    assert_eq!((fine.pages_per_unit(), coarse.pages_per_unit()), (1, 8));
    // Demand paging alone is simulated as it is page by page. Who pushes does so in larger pieces, so that the guest finds what it waits
    // for on its way more or less often.
    for (strategy, near) in [
        (Strategy::PostCopy, 0.95..1.05),
        (Strategy::PostCopyPush, 0.6..1.6),
        (Strategy::Hybrid, 0.6..1.6),
        (Strategy::HybridLearning, 0.6..1.6),
    ] {
        for rtt_ms in [0.2, 5.0] {
            let path = PathModel { rtt_ms, ..gigabit() };
            let [fine, coarse] =
                [&fine, &coarse].map(|simulator| simulator.run(&request(strategy), &path, 1).unwrap());
            let waited = coarse.waited_for_pages_ms / fine.waited_for_pages_ms;
            assert!(near.contains(&waited), "{strategy}, {rtt_ms} ms: {waited} times");
            let [fine, coarse] = [fine, coarse].map(|outcome| outcome.report.faults);
            let faults = coarse.count as f64 / fine.count as f64;
            if strategy == Strategy::PostCopy {
                assert!(near.contains(&faults), "{rtt_ms} ms: {faults} times as many");
                assert!((coarse.p50_us / fine.p50_us - 1.0).abs() < 0.05, "{coarse:?}");
            }
            assert!(
                (0.5..4.0).contains(&faults),
                "{strategy}, {rtt_ms} ms: {faults} times as many"
            );
        }
    }
}

#[test]
fn a_guest_that_the_host_samples_is_not_learned_first() {
    let trace = looping(
        guest(512 * MIB, 250 * MIB),
        40,
        PageRun::new(1000, 100 * 256),
        20_000,
    );
    let unknown = gigabit();
    let known = PathModel {
        sampled: true,
        ..gigabit()
    };
    let run = |strategy, path| simulate(&trace, &request(strategy), path, 1).unwrap().report;
    let notes = |report: &vmferry_core::report::Report| report.notes.join("; ");

    let [learns, knows] = [&unknown, &known].map(|path| run(Strategy::HybridLearning, path));
    let saved_ms = learns.total_ms - knows.total_ms;
    assert!((700.0..1300.0).contains(&saved_ms), "{saved_ms} ms");
    assert!(
        notes(&knows).contains("by the host's sampler"),
        "{}",
        notes(&knows)
    );

    let [anew, tried] = [&unknown, &known].map(|path| run(Strategy::PreCopyFilter, path));
    assert!(!notes(&anew).contains("sampler"), "{}", notes(&anew));
    assert!(notes(&tried).contains("tries the model of"), "{}", notes(&tried));

    let [one, other] = [&unknown, &known].map(|path| run(Strategy::PreCopy, path));
    assert_eq!(one.total_ms, other.total_ms, "the others have no use for it");
}

/// What its agent says is free does not cross, but for what the guest takes of it before the stop; what it lists only is without what
/// it writes meanwhile.
#[test]
fn a_guest_that_says_what_is_free_moves_without_it() {
    const DATA: u64 = 256 * MIB / 4096;
    // It writes 1000 pages a second of those that are free, one after the other.
    let mut trace = looping(
        guest(512 * MIB, 256 * MIB),
        100,
        PageRun::new(DATA / 2, 10_000),
        1000,
    );
    let outcome = |trace: &Trace, strategy| run(trace, strategy).report;
    let push = outcome(&trace, Strategy::PostCopyPush);
    let untold = outcome(&trace, Strategy::Enlightened);
    assert!(
        untold.notes.iter().any(|note| note.contains("said nothing")),
        "{:?}",
        untold.notes
    );
    assert!((untold.bytes_on_wire as f64 / push.bytes_on_wire as f64 - 1.0).abs() < 0.05);
    for exact in [true, false] {
        let mut hints = Hints::new(trace.pages());
        hints.set(PageRun::new(DATA / 2, DATA / 2), Class::Free);
        hints.set(PageRun::new(0, 100), Class::KernelCode);
        trace.hints = GuestHints::new(&hints, 40_000, exact);
        let told = outcome(&trace, Strategy::Enlightened);
        let pages = told.bytes_on_wire / 4096;
        assert!(
            (DATA / 2 + 200..DATA / 2 + 1500).contains(&pages),
            "exact {exact}: {pages} of {DATA} pages"
        );
        assert!(told.pages.free > DATA / 2 - 1500, "{}", told.pages.free);
        assert!(
            told.total_ms < 0.6 * push.total_ms,
            "exact {exact}: {}",
            told.total_ms
        );
    }
}
