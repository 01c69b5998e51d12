//! Every strategy moves a real Linux guest under load on real QEMU, and every page is compared.

use std::time::Duration;

use vmferry_core::report::{Outcome, Report};
use vmferry_core::{AtLimit, Limits, Strategy};
use vmferry_guest::GuestState;
use vmferry_runtime::Request;
use vmferry_tests::{Pair, TestGuest, need, shared_turn};

/// Moves a guest that writes memory all the time and checks what it wrote.
fn moves(strategy: Strategy, limits: Limits) -> Report {
    let _turn = shared_turn();
    let pair = Pair::new();
    let dir = tempfile::tempdir().unwrap();
    let guest = TestGuest::new(
        "vm",
        dir.path(),
        256,
        "write:24:40",
        &["-device", "virtio-rng-pci"],
    );
    let vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    let report = pair.migrate(
        &vm,
        Request {
            limits,
            ..pair.request(strategy)
        },
    );
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let verified = report.verified.expect("it was asked for");
    assert_eq!((verified.pages, verified.mismatches), (65536, 0));
    assert_eq!(pair.destination.guest("vm").state(), GuestState::Running);
    assert_eq!(vm.state(), GuestState::Gone, "the source let go");
    guest.console.assert_healthy(2);
    println!(
        "{strategy}: total {:.0} ms, down {:.1} ms, {} rounds, {:?}, {:?}",
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
