//! Limits of a migration on real QEMU: the bandwidth cap holds, is raised under way, and does not stand between the guest and
//! the pages it waits for.

use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::report::Outcome;
use vmferry_core::{Encoding, Limits, Strategy};
use vmferry_runtime::{Outgoing, Request};
use vmferry_tests::{Pair, TestGuest, need, shared_turn};

/// 24 MiB at 40 MiB/s.
const STEADY: &str = "write:24:40";
/// Ends a hang.
const LONG: Duration = Duration::from_secs(120);

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LONG, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Bytes a second over the next while, by the migration's own clock.
fn rate(outgoing: &Outgoing, time: Duration) -> f64 {
    let from = outgoing.progress();
    thread::sleep(time);
    let to = outgoing.progress();
    (to.bytes_on_wire - from.bytes_on_wire) as f64 / (to.elapsed_ms - from.elapsed_ms) * 1e3
}

#[test]
fn the_bandwidth_cap_holds_and_is_raised_under_way() {
    need!(Qemu, Root, Userfaultfd);
    for strategy in [Strategy::PreCopy, Strategy::PostCopyPush] {
        let _turn = shared_turn();
        let pair = Pair::new();
        let dir = tempfile::tempdir().unwrap();
        let guest = TestGuest::new("vm", dir.path(), 256, STEADY, &["-device", "virtio-rng-pci"]);
        let vm = pair.launch(&guest.spec);
        guest.console.wait_for("guest-load: ok");
        let (low, high) = (10_000_000, 20_000_000);
        let request = Request {
            limits: Limits {
                bandwidth_bytes_per_s: Some(low),
                ..Limits::default()
            },
            encoding: Encoding::RAW,
            streams: Some(2),
            ..pair.request(strategy)
        };
        let outgoing = pair.begin(&vm, request);
        eventually("pages cross", || outgoing.progress().bytes_on_wire > 2_000_000);
        let at_low = rate(&outgoing, Duration::from_millis(1500));
        outgoing.limit_bandwidth(Some(high)).unwrap();
        let at_high = rate(&outgoing, Duration::from_millis(1000));
        outgoing.limit_bandwidth(None).unwrap();
        let report = outgoing.wait();
        println!(
            "{strategy}: {at_low:.0} of {low}, {at_high:.0} of {high}, {:?}, {:?}",
            report.limits, report.faults
        );
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        assert_eq!(report.verified.unwrap().mismatches, 0);
        assert!(report.limits.bandwidth_waited_ms > 0.0);
        guest.console.assert_healthy(2);
        if strategy == Strategy::PostCopyPush {
            // What the guest demands does not wait, even where that is more than the cap; the push waits for it.
            let faults = report.faults;
            assert!(faults.network > 100 && faults.p50_us < 100_000.0, "{faults:?}");
            continue;
        }
        assert!(at_low < 1.1 * low as f64, "{at_low} bytes/s, {low} allowed");
        assert!(at_high < 1.1 * high as f64, "{at_high} bytes/s, {high} allowed");
        // A crowded machine may be slower than the cap.
        assert!(
            at_low > 0.3 * low as f64 && at_high > at_low,
            "{at_low}, {at_high}"
        );
    }
}
