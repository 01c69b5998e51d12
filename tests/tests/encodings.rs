//! Every encoding moves a real Linux guest under load on real QEMU, and every page is compared.

use std::time::Duration;

use vmferry_core::report::{Outcome, Report};
use vmferry_core::{Limits, Strategy};
use vmferry_guest::GuestState;
use vmferry_runtime::Request;
use vmferry_tests::{Link, Pair, TestGuest, need, shared_turn};

/// One guest goes to and fro, in one encoding after the other, and checks what it wrote all the time.
fn moves(strategy: Strategy, encodings: &[&str]) -> Vec<Report> {
    let _turn = shared_turn();
    let mut pair = Pair::new();
    let dir = tempfile::tempdir().unwrap();
    let guest = TestGuest::new("vm", dir.path(), 192, "write:16:20", &[]);
    let mut vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    let mut reports = Vec::new();
    for (number, encoding) in encodings.iter().enumerate() {
        if number > 0 {
            pair.turn_round("vm");
            vm = pair.source.guest("vm");
        }
        let link = Link::to(&pair.endpoint);
        if *encoding == "auto" {
            link.limit(60 << 20);
        }
        let request = Request {
            to: link.endpoint().clone(),
            encoding: encoding.parse().unwrap(),
            delta_cache_bytes: Some(64 << 20),
            limits: Limits {
                downtime: Duration::from_millis(1),
                rounds: 4,
                ..Limits::default()
            },
            ..pair.request(strategy)
        };
        let report = pair.migrate(&vm, request);
        assert_eq!(
            report.outcome,
            Outcome::Completed,
            "{encoding}: {:?}",
            report.error
        );
        let verified = report.verified.expect("it was asked for");
        assert_eq!((verified.pages, verified.mismatches), (49152, 0), "{encoding}");
        assert_eq!(pair.destination.guest("vm").state(), GuestState::Running);
        guest.console.assert_healthy(1);
        println!(
            "{encoding}: {:.0} ms, {} MiB on the wire, {:?}",
            report.total_ms,
            report.bytes_on_wire >> 20,
            report.encoding
        );
        reports.push(report);
    }
    reports
}

#[test]
fn pre_copy_under_a_write_load() {
    need!(Qemu, Root, Userfaultfd);
    let reports = moves(Strategy::PreCopy, &["raw", "lz4", "zstd:3", "lz4+delta", "auto"]);
    let [raw, lz4, zstd, delta, auto] = &reports[..] else {
        panic!("{} reports", reports.len())
    };
    assert_eq!((raw.pages.compressed, raw.pages.delta), (0, 0));
    assert!(lz4.encoding.pages.lz4 > 1000, "{:?}", lz4.encoding.pages);
    assert!(zstd.encoding.pages.zstd > 1000, "{:?}", zstd.encoding.pages);
    assert!(
        delta.pages.delta > 0 && delta.encoding.pages.lz4 > 1000,
        "{:?}",
        delta.encoding.pages
    );
    assert!(auto.pages.compressed > 0, "{:?}", auto.encoding);
    // The first round of a guest is the same in each: a kernel, its programs and data.
    let first = |report: &Report| report.rounds[0].bytes as f64 / report.rounds[0].pages_sent as f64;
    assert!(
        first(lz4) < 0.9 * first(raw) && first(zstd) < first(lz4),
        "{reports:#?}"
    );
}

#[test]
fn post_copy_push() {
    need!(Qemu, Root, Userfaultfd);
    let reports = moves(Strategy::PostCopyPush, &["lz4", "zstd", "delta"]);
    for report in &reports {
        assert_eq!(report.pages.resent, 0, "each page crosses once");
        assert_eq!(report.pages.delta, 0, "no page has an earlier version");
    }
    assert!(reports[0].encoding.pages.lz4 > 1000 && reports[1].encoding.pages.zstd > 1000);
}
