//! Every strategy moves a real Linux guest under load on real QEMU, and every page is compared.

use std::time::Duration;

use vmferry_core::report::{Outcome, Report};
use vmferry_core::{AtLimit, Limits, Strategy, Tuning};
use vmferry_guest::GuestState;
use vmferry_runtime::Request;
use vmferry_tests::{Link, Pair, TestGuest, need, shared_turn};

/// 24 MiB at 40 MiB/s.
const STEADY: &str = "write:24:40";

/// Moves a guest that writes memory all the time and checks what it wrote.
fn moves(strategy: Strategy, limits: Limits) -> Report {
    moves_as(STEADY, |pair| Request {
        limits,
        ..pair.request(strategy)
    })
}

/// The same with another load and request.
fn moves_as(load: &str, request: impl FnOnce(&Pair) -> Request) -> Report {
    let _turn = shared_turn();
    let pair = Pair::new();
    let dir = tempfile::tempdir().unwrap();
    let guest = TestGuest::new("vm", dir.path(), 256, load, &["-device", "virtio-rng-pci"]);
    let vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    let report = pair.migrate(&vm, request(&pair));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let verified = report.verified.expect("it was asked for");
    assert_eq!((verified.pages, verified.mismatches), (65536, 0));
    assert_eq!(pair.destination.guest("vm").state(), GuestState::Running);
    assert_eq!(vm.state(), GuestState::Gone, "the source let go");
    guest.console.assert_healthy(2);
    println!(
        "{}: total {:.0} ms, down {:.1} ms, {} rounds, {:?}, {:?}",
        report.strategy,
        report.total_ms,
        report.downtime_ms,
        report.rounds.len(),
        report.faults,
        report.pages,
    );
    report
}

#[test]
fn stop_and_copy() {
    need!(Qemu, Root, Userfaultfd);
    let report = moves(Strategy::StopAndCopy, Limits::default());
    assert_eq!(report.pages.resent, 0);
}

#[test]
fn pre_copy() {
    need!(Qemu, Root, Userfaultfd);
    let report = moves(
        Strategy::PreCopy,
        Limits {
            downtime: Duration::from_millis(50),
            ..Limits::default()
        },
    );
    assert!(report.rounds.len() >= 2, "{:?}", report.rounds);
}

#[test]
fn post_copy() {
    need!(Qemu, Root, Userfaultfd);
    let limits = Limits {
        drain_after: Duration::from_millis(300),
        ..Limits::default()
    };
    let report = moves(Strategy::PostCopy, limits);
    assert!(report.faults.network > 0, "{:?}", report.faults);
    assert_eq!(report.pages.resent, 0, "each page crosses once");
}

#[test]
fn post_copy_push() {
    need!(Qemu, Root, Userfaultfd);
    let report = moves(Strategy::PostCopyPush, Limits::default());
    assert_eq!(report.pages.resent, 0, "each page crosses once");
}

#[test]
fn pre_copy_that_cannot_converge_goes_on_as_post_copy() {
    need!(Qemu, Root, Userfaultfd);
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

/// What is true of both hybrids, by the figures of a report.
fn assert_hybrid(report: &Report) {
    let round = match &report.rounds[..] {
        [round] => round,
        rounds => panic!("one round, and no page during the stop: {rounds:?}"),
    };
    let pages = report.pages;
    assert!(
        pages.resent <= pages.sent / 2 && pages.sent <= 2 * (65536 - pages.hole),
        "a page crossed more than twice: {pages:?}"
    );
    assert!(
        round.pages_sent + pages.resent <= pages.sent,
        "what crosses again does so after the resume: {pages:?}, {round:?}"
    );
}

#[test]
fn hybrid() {
    need!(Qemu, Root, Userfaultfd);
    let report = moves(Strategy::Hybrid, Limits::default());
    assert_hybrid(&report);
    assert!(report.pages.resent > 0, "what was dirtied crosses twice");
}

#[test]
fn hybrid_learning() {
    need!(Qemu, Root, Userfaultfd);
    let report = moves(Strategy::HybridLearning, Limits::default());
    assert_hybrid(&report);
    let (learned, round) = (&report.notes.join("\n"), &report.rounds[0]);
    assert!(learned.contains("learned a writable working set of"), "{learned}");
    assert!(
        round.pages_filtered > Some(0) && round.filter_precision > Some(0.0),
        "the working set stays out of the round: {round:?}"
    );
}

/// A loop over little memory as fast as it goes: each sample shows all of it.
#[test]
fn pre_copy_filter() {
    need!(Qemu, Root, Userfaultfd);
    let report = moves_as("write:8:0", |pair| {
        let link = Link::to(&pair.endpoint);
        link.limit(30 << 20);
        Request {
            to: link.endpoint().clone(),
            limits: Limits {
                downtime: Duration::from_millis(1),
                rounds: 8,
                ..Limits::default()
            },
            tuning: Tuning {
                samples: 5,
                interval: Duration::from_millis(100),
                ..Tuning::default()
            },
            streams: Some(1),
            ..pair.request(Strategy::PreCopyFilter)
        }
    });
    let notes = report.notes.join("\n");
    assert!(notes.contains("data filter on"), "{notes}");
    let filtered: Vec<_> = report
        .rounds
        .iter()
        .filter(|round| round.pages_filtered > Some(0))
        .collect();
    // How much of it depends on how much of the processor the guest got meanwhile.
    assert!(
        filtered.iter().any(|round| round.bytes_saved > Some(0)),
        "the guest writes what it wrote before: {filtered:?}"
    );
    for round in filtered {
        assert!(round.filter_precision.is_some(), "{round:?}");
        // Of nothing there is no share: a short round may see the guest write nothing.
        assert_eq!(
            round.filter_recall.is_some(),
            round.pages_dirtied > 0,
            "{round:?}"
        );
        assert!(
            round.bytes_saved.is_some() && round.pages_taken_back.is_some(),
            "{round:?}"
        );
    }
}
