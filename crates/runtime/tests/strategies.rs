//! Every strategy moves a busy synthetic guest, and every page is compared.

mod common;

use std::time::Duration;

use common::{Pair, assert_healthy, busy};
use vmferry_core::forecast::Forecast;
use vmferry_core::report::Outcome;
use vmferry_core::{AtLimit, Limits, Strategy};
use vmferry_guest::GuestState;
use vmferry_guest_synth::{LoadConfig, SynthConfig};

fn moves(strategy: Strategy, limits: Limits) -> vmferry_core::report::Report {
    moves_tuned(strategy, limits, vmferry_core::Tuning::default())
}

fn moves_tuned(
    strategy: Strategy,
    limits: Limits,
    tuning: vmferry_core::Tuning,
) -> vmferry_core::report::Report {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let request = vmferry_runtime::Request {
        limits,
        tuning,
        ..pair.request(strategy)
    };
    let report = pair.migrate(vm.clone(), dir, request);
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let verified = report.verified.expect("it was asked for");
    assert_eq!((verified.pages, verified.mismatches), (16384, 0));
    assert_healthy(&pair.destination, "vm");
    assert_eq!(vm.state(), GuestState::Gone, "the source let go");
    report
}

#[test]
fn stop_and_copy() {
    let report = moves(Strategy::StopAndCopy, Limits::default());
    assert_eq!(report.rounds.len(), 1, "the stop is the only round");
    assert_eq!(report.pages.resent, 0);
}

#[test]
fn pre_copy() {
    let report = moves(
        Strategy::PreCopy,
        Limits {
            downtime: Duration::from_millis(50),
            ..Limits::default()
        },
    );
    assert!(report.rounds.len() >= 2, "{:?}", report.rounds);
    assert!(
        report.pages.hole > 0 && report.pages.uniform > 0,
        "{:?}",
        report.pages
    );
}

#[test]
fn post_copy() {
    let limits = Limits {
        drain_after: Duration::from_millis(100),
        ..Limits::default()
    };
    let report = moves(Strategy::PostCopy, limits);
    assert!(report.faults.network > 0, "{:?}", report.faults);
    assert_eq!(report.pages.resent, 0, "each page crosses once");
}

#[test]
fn post_copy_push() {
    let report = moves(Strategy::PostCopyPush, Limits::default());
    assert_eq!(report.pages.resent, 0, "each page crosses once");
    assert!(report.rounds.is_empty(), "no page crosses during the stop");
}

/// A synthetic guest has no agent.
#[test]
fn enlightened_without_an_agent_goes_on_as_post_copy_push() {
    let report = moves(Strategy::Enlightened, Limits::default());
    assert_eq!((report.pages.resent, report.pages.free), (0, 0));
    let note = report.notes.iter().find(|note| note.contains("post-copy-push"));
    assert!(
        note.is_some_and(|note| note.contains("vmferry run --agent")),
        "{:?}",
        report.notes
    );
}

#[test]
fn pre_copy_filter() {
    let limits = Limits {
        downtime: Duration::from_micros(1),
        rounds: 30,
        ..Limits::default()
    };
    let tuning = vmferry_core::Tuning {
        samples: 4,
        interval: Duration::from_millis(1),
        ..Default::default()
    };
    let report = moves_tuned(Strategy::PreCopyFilter, limits, tuning);
    // Loopback may be too fast for the model to be learned; every page is right in any case.
    assert!(report.rounds.len() >= 2, "{:?}", report.rounds);
    println!("{:?} {:?} {:?}", report.pages, report.notes, report.rounds);
}

#[test]
fn hybrid() {
    let report = moves(Strategy::Hybrid, Limits::default());
    assert_eq!(report.rounds.len(), 1, "one round and no page at the stop");
    assert!(
        report.pages.resent > 0 && report.pages.resent <= report.pages.sent / 2,
        "what was dirtied crosses twice, nothing more often: {:?}",
        report.pages
    );
}

#[test]
fn hybrid_learning() {
    let report = moves(Strategy::HybridLearning, Limits::default());
    assert_eq!(report.rounds.len(), 1, "one round and no page at the stop");
    assert!(
        report.pages.filtered > 0,
        "the working set stays out of the round: {:?}",
        report.pages
    );
    assert!(
        report.notes.iter().any(|note| note.contains("working set")),
        "{:?}",
        report.notes
    );
}

#[test]
fn parameters_that_make_no_sense_are_refused_at_once() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let request = vmferry_runtime::Request {
        tuning: vmferry_core::Tuning {
            regions: Some(300),
            ..Default::default()
        },
        ..pair.request(Strategy::HybridLearning)
    };
    let Err(error) = vmferry_runtime::Outgoing::start(vm, dir, request) else {
        panic!("16384 pages have no 300 regions")
    };
    assert!(
        error
            .to_string()
            .contains("300 regions do not divide RAM of 16384 pages"),
        "{error}"
    );
    assert_healthy(&pair.source, "vm");
}

#[test]
fn pre_copy_that_cannot_converge_goes_on_as_post_copy() {
    let limits = Limits {
        downtime: Duration::from_micros(1),
        rounds: 2,
        at_limit: AtLimit::PostCopy,
        ..Limits::default()
    };
    let report = moves(Strategy::PreCopy, limits);
    assert!(
        report.pages.resent > 0,
        "pages dirtied in the rounds cross again after the resume"
    );
}

/// A forecast of pre-copy that no migration keeps to.
fn far_too_little() -> Forecast {
    let least = serde_json::json!({"likely": 0.0, "low": 0.0, "high": 0.0});
    let expected = serde_json::json!({
        "strategy": "pre-copy", "total_ms": least, "execution_transfer_ms": least, "downtime_ms": least,
        "bytes_on_wire": least, "slow_down_percent": least, "rounds": least, "completes": 1.0,
    });
    serde_json::from_value(serde_json::json!({
        "goal": "balanced", "recommended": "pre-copy", "why": "a test wants it", "strategies": [expected], "simulations": 1,
        "basis": "nothing",
    }))
    .unwrap()
}

#[test]
fn auto_leaves_pre_copy_for_post_copy_once_reality_left_the_forecast() {
    let pair = Pair::new();
    // As fast as it can, so that no round leaves less than the one before for long.
    let writes = LoadConfig::Write {
        region_mib: 16,
        rate_mib_per_s: None,
    };
    let config = SynthConfig {
        loads: vec![writes],
        ..busy()
    };
    let (vm, dir) = pair.launch("vm", &config);
    let request = vmferry_runtime::Request {
        auto: true,
        forecast: Some(Box::new(far_too_little())),
        limits: Limits {
            // Never within reach of a guest that writes all the time.
            downtime: Duration::from_micros(1),
            // Rounds long enough that the guest gets to run in each, on a machine with other things to do.
            bandwidth_bytes_per_s: Some(100_000_000),
            ..Limits::default()
        },
        ..pair.request(Strategy::PreCopy)
    };
    let report = pair.migrate(vm, dir, request);
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let noted = |words: &str| report.notes.iter().any(|note| note.contains(words));
    assert!(noted("reality left the forecast after"), "{:?}", report.notes);
    assert!(noted("switched to post-copy after round"), "{:?}", report.notes);
    let rounds = report.rounds.len();
    assert!((2..=8).contains(&rounds), "{:?}", report.rounds);
    assert!(
        report.pages.resent > 0,
        "what was dirtied in the last round crosses after the resume: {:?}",
        report.pages
    );
    let verified = report.verified.expect("it was asked for");
    assert_eq!((verified.pages, verified.mismatches), (16384, 0));
    assert_healthy(&pair.destination, "vm");
}

#[test]
fn pre_copy_that_cannot_converge_gives_up_when_asked_to() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let limits = Limits {
        downtime: Duration::from_micros(1),
        rounds: 2,
        at_limit: AtLimit::Abort,
        ..Limits::default()
    };
    let request = vmferry_runtime::Request {
        limits,
        ..pair.request(Strategy::PreCopy)
    };
    let report = pair.migrate(vm, dir, request);
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.error.unwrap().contains("dirties memory too fast"));
    assert_healthy(&pair.source, "vm");
    common::eventually("the destination let go", || {
        pair.destination.backend.find("vm").is_none()
    });
}
