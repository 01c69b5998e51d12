//! Limits hold, and streams of different speed share the work.

mod common;

use std::time::{Duration, Instant};

use common::proxy::Link;
use common::{Pair, assert_healthy, busy, eventually};
use vmferry_core::report::{Outcome, Report};
use vmferry_core::{Encoding, Limits, Strategy};
use vmferry_guest_synth::{Fill, SynthConfig};
use vmferry_runtime::{Outgoing, Request, RuntimeError};

const MIB: u64 = 1 << 20;

/// 32 MiB of data that nobody writes.
fn still() -> SynthConfig {
    SynthConfig {
        loads: Vec::new(),
        fill: Fill {
            mib: 32,
            zero_percent: 0,
            uniform_percent: 0,
            compressible_percent: 0,
        },
        seed: 3,
        ..SynthConfig::new(64 * MIB)
    }
}

fn limited(pair: &Pair, strategy: Strategy, limits: Limits) -> Request {
    Request {
        limits,
        ..pair.request(strategy)
    }
}

fn completed(report: &Report) {
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.unwrap().mismatches, 0);
}

/// Milliseconds in phases of this name.
fn in_phase(report: &Report, name: &str) -> f64 {
    let phases = report.phases.iter().filter(|phase| phase.name == name);
    phases.map(|phase| phase.end_ms - phase.start_ms).sum()
}

#[test]
fn no_phase_is_faster_than_the_cap() {
    let cap = 64_000_000;
    for (strategy, phase) in [
        (Strategy::StopAndCopy, "stop-and-copy"),
        (Strategy::PostCopyPush, "pull and push"),
    ] {
        let pair = Pair::new();
        let (vm, dir) = pair.launch("vm", &busy());
        let limits = Limits {
            bandwidth_bytes_per_s: Some(cap),
            ..Limits::default()
        };
        let report = pair.migrate(vm, dir, limited(&pair, strategy, limits));
        completed(&report);
        // A machine that is busy may take longer; a burst, the device state and demanded pages do not wait.
        let demanded = report.faults.network * 4128;
        let bytes = report
            .bytes_on_wire
            .saturating_sub(report.device_state_bytes + demanded + MIB);
        let took_ms = in_phase(&report, phase);
        let rate = (bytes as f64 - cap as f64 / 50.0) / took_ms * 1e3;
        assert!(
            rate < cap as f64 * 1.05,
            "{strategy}: {rate} bytes/s in {took_ms} ms"
        );
        assert_eq!(report.limits.bandwidth_bytes_per_s, Some(cap));
        assert!(report.limits.bandwidth_waited_ms > 0.0, "{:?}", report.limits);
        assert!(report.limits.bandwidth_waited_ms <= report.total_ms);
        assert_healthy(&pair.destination, "vm");
    }
}

#[test]
fn the_stop_is_decided_by_the_capped_rate() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    // 40 MiB/s are written, 20 MB/s may cross: it cannot converge, and has to notice.
    let limits = Limits {
        bandwidth_bytes_per_s: Some(20_000_000),
        downtime: Duration::from_millis(30),
        rounds: 3,
        at_limit: vmferry_core::AtLimit::Abort,
        ..Limits::default()
    };
    let request = Request {
        encoding: Encoding::RAW,
        ..limited(&pair, Strategy::PreCopy, limits)
    };
    let report = pair.migrate(vm, dir, request);
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.error.unwrap().contains("dirties memory too fast"));
    assert_healthy(&pair.source, "vm");
}

#[test]
fn a_cap_makes_compression_pay() {
    let pair = Pair::new();
    let mut config = still();
    config.fill.compressible_percent = 100;
    let (vm, dir) = pair.launch("vm", &config);
    // Loopback is fast enough for raw pages; what the cap leaves of it is not.
    let limits = Limits {
        bandwidth_bytes_per_s: Some(12_500_000),
        ..Limits::default()
    };
    let report = pair.migrate(vm, dir, limited(&pair, Strategy::PostCopyPush, limits));
    completed(&report);
    assert!(
        report.pages.compressed > report.pages.sent / 2,
        "{:?}",
        report.pages
    );
}

#[test]
fn the_cap_is_changed_under_way() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &still());
    let limits = Limits {
        bandwidth_bytes_per_s: Some(1_000_000),
        ..Limits::default()
    };
    let outgoing = Outgoing::start(vm, dir, limited(&pair, Strategy::PreCopy, limits)).unwrap();
    eventually("some pages crossed", || {
        outgoing.progress().bytes_on_wire > 100_000
    });
    let progress = outgoing.progress();
    assert_eq!(progress.bandwidth_limit_bytes_per_s, Some(1_000_000));
    assert!(progress.bandwidth_waited_ms > 0.0);
    assert!(matches!(
        outgoing.limit_bandwidth(Some(1)),
        Err(RuntimeError::BadRequest(_))
    ));
    let before = Instant::now();
    outgoing.limit_bandwidth(None).unwrap();
    let report = outgoing.wait();
    completed(&report);
    // Half a minute at the old rate.
    assert!(
        before.elapsed() < Duration::from_secs(15),
        "{:?}",
        before.elapsed()
    );
    assert!(
        report.notes.iter().any(|note| note.contains("lifted")),
        "{:?}",
        report.notes
    );
    assert!(outgoing.limit_bandwidth(None).is_err(), "it is over");
}

#[test]
fn a_guest_that_waits_for_a_page_does_not_wait_for_the_cap() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    // The push alone would take half a minute, and a page of it 33 ms.
    let limits = Limits {
        bandwidth_bytes_per_s: Some(125_000),
        ..Limits::default()
    };
    let outgoing = Outgoing::start(vm, dir, limited(&pair, Strategy::PostCopyPush, limits)).unwrap();
    eventually("the guest arrived", || {
        !pair.destination.arrived.lock().unwrap().is_empty()
    });
    let guest = pair.destination.guest("vm");
    let before = guest.stats().operations;
    eventually("the guest makes progress", || {
        guest.stats().operations > before + 5_000
    });
    outgoing.limit_bandwidth(None).unwrap();
    let report = outgoing.wait();
    completed(&report);
    // A page of the cap's rate takes 33 ms; a crowded machine is no such queue.
    assert!(
        report.faults.network > 20 && report.faults.p50_us < 20_000.0,
        "{:?}",
        report.faults
    );
}

#[test]
fn page_streams_stay_within_their_cpu() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &still());
    let limits = Limits {
        cpu_percent: Some(5),
        ..Limits::default()
    };
    let report = pair.migrate(vm, dir, limited(&pair, Strategy::PostCopyPush, limits));
    completed(&report);
    assert_eq!(report.limits.cpu_percent, Some(5));
    assert!(report.limits.cpu_waited_ms > 0.0, "{:?}", report.limits);
    assert!(report.limits.cpu_by.as_deref().unwrap().contains("own pacing"));
    println!(
        "{:?}, source {} s in {} ms",
        report.limits, report.cpu_seconds.source, report.total_ms
    );
}

#[test]
fn the_destination_keeps_to_the_cpu_it_was_told() {
    let pair = Pair::new();
    for strategy in [Strategy::PreCopy, Strategy::PostCopyPush] {
        let name = strategy.name();
        let (vm, dir) = pair.launch(name, &still());
        let limits = Limits {
            cpu_destination_percent: Some(5),
            ..Limits::default()
        };
        let report = pair.migrate(vm, dir, limited(&pair, strategy, limits));
        completed(&report);
        assert_eq!(report.limits.cpu_destination_percent, Some(5));
        // Without the cap it would be no less: what all streams may use, a burst, and the rest of the migration beside them.
        let (used, wall) = (report.cpu_seconds.destination, report.total_ms / 1e3);
        println!("{name}: destination {used} s in {wall} s");
        assert!(wall > 2.0 * used, "{name}: {used} s in {wall} s");
    }
}

#[test]
fn a_migration_that_takes_too_long_is_given_up() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &busy());
    let limits = Limits {
        bandwidth_bytes_per_s: Some(1_000_000),
        timeout: Some(Duration::from_millis(300)),
        ..Limits::default()
    };
    let report = pair.migrate(
        vm.clone(),
        dir.clone(),
        limited(&pair, Strategy::StopAndCopy, limits),
    );
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(
        report.error.as_ref().unwrap().contains("time limit of 300 ms"),
        "{:?}",
        report.error
    );
    assert_eq!(report.limits.timeout_ms, Some(300.0));
    assert_healthy(&pair.source, "vm");
    eventually("the destination let go", || {
        pair.destination.discarded.lock().unwrap().len() == 1
    });
    // It can be tried again. After the handover the limit counts no more.
    let limits = Limits {
        bandwidth_bytes_per_s: Some(20_000_000),
        timeout: Some(Duration::from_millis(900)),
        ..Limits::default()
    };
    let report = pair.migrate(vm, dir, limited(&pair, Strategy::PostCopyPush, limits));
    completed(&report);
    assert!(report.total_ms > 900.0, "{}", report.total_ms);
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("can only be completed")),
        "{:?}",
        report.notes
    );
}

#[test]
fn limits_that_make_no_sense_are_refused_at_once() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &still());
    for (limits, named) in [
        (
            Limits {
                bandwidth_bytes_per_s: Some(0),
                ..Limits::default()
            },
            "a bandwidth of 0 bytes a second",
        ),
        (
            Limits {
                cpu_percent: Some(0),
                ..Limits::default()
            },
            "0% of a core",
        ),
        (
            Limits {
                timeout: Some(Duration::ZERO),
                ..Limits::default()
            },
            "a time limit of 0 ms",
        ),
    ] {
        let refused = Outgoing::start(vm.clone(), dir.clone(), limited(&pair, Strategy::PreCopy, limits));
        let why = refused.err().expect("it makes no sense").to_string();
        assert!(why.contains(named), "{why}");
    }
}

#[test]
fn more_streams_than_the_peer_takes_are_not_opened_and_said() {
    let pair = Pair::new();
    pair.incoming.limit_streams(2);
    let (vm, dir) = pair.launch("vm", &busy());
    let request = Request {
        streams: Some(5),
        ..pair.request(Strategy::PreCopy)
    };
    let report = pair.migrate(vm, dir, request);
    completed(&report);
    assert!(
        report
            .notes
            .iter()
            .any(|note| note.contains("takes 2 of the 5 page streams")),
        "{:?}",
        report.notes
    );
    assert_healthy(&pair.destination, "vm");
}

#[test]
fn a_slow_stream_does_its_part_and_holds_nobody_up() {
    for strategy in [Strategy::StopAndCopy, Strategy::PostCopyPush] {
        let pair = Pair::new();
        let link = Link::to(&pair.endpoint);
        // After the control stream come the page streams.
        link.slow_connection(2, 1_000_000);
        let (vm, dir) = pair.launch("vm", &still());
        let request = Request {
            to: link.endpoint().clone(),
            streams: Some(3),
            verify: false,
            ..pair.request(strategy)
        };
        let report = Outgoing::start(vm, dir, request).unwrap().wait();
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        // Batches of a fixed size and full send buffers held the end up by 2 MB and more.
        let (carried, alone) = link.bytes_alone(2, &[1, 3]);
        println!("{strategy}: {carried} bytes, {alone} after the others");
        assert!(carried > 0, "{strategy}: it does its part");
        assert!(alone < 1_000_000, "{strategy}: {alone} bytes held the end up");
    }
}
