//! Fault service times in post-copy over loopback, from the reports: pages on demand alone and with the push beside them, of
//! a synthetic guest that reads and writes all over its memory and of a QEMU guest.

use std::time::Duration;

use anyhow::Result;
use vmferry_benches::{Figures, Output, completed, plain, runs};
use vmferry_core::report::Report;
use vmferry_core::{Limits, Strategy};
use vmferry_guest_synth::{LoadConfig, SynthBackend, SynthConfig};
use vmferry_runtime::Request;
use vmferry_tests::{Pair, TestGuest, need};

const STRATEGIES: [Strategy; 2] = [Strategy::PostCopy, Strategy::PostCopyPush];
/// How long pages are only sent on demand, before the rest is pushed.
const DRAIN_AFTER: Duration = Duration::from_secs(1);

/// Of one strategy: p50, p99 and longest of each run, and how many faults.
type Times = [Figures; 4];

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<()> {
    let mut output = Output::from_args()?;
    synthetic(&mut output)?;
    qemu(&mut output)?;
    output.finish()
}

fn synthetic(output: &mut Output) -> Result<()> {
    let config = SynthConfig {
        loads: vec![LoadConfig::KeyValue {
            region_mib: 256,
            get_percent: 90,
            zipf_exponent: 0.5,
            value_bytes: 512,
            operations_per_s: Some(20_000),
        }],
        ..SynthConfig::new(384 << 20)
    };
    let mut times: [Times; 2] = Default::default();
    for _ in 0..runs(5)? {
        for (strategy, times) in STRATEGIES.into_iter().zip(&mut times) {
            let pair = Pair::with(|| Box::new(SynthBackend::new()));
            let vm = pair.launch(&SynthBackend::spec("faults", &config));
            let request = with_drain(plain(pair.request(strategy)));
            note(times, &completed(pair.migrate(&vm, request))?);
        }
    }
    print(output, "synthetic", &times);
    Ok(())
}

fn qemu(output: &mut Output) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let guest = TestGuest::new("vm", dir.path(), 256, "write:64:20", &[]);
    let mut pair = Pair::new();
    pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    let mut times: [Times; 2] = Default::default();
    for _ in 0..runs(5)? {
        for (strategy, times) in STRATEGIES.into_iter().zip(&mut times) {
            let request = with_drain(Request {
                verify: false,
                ..pair.request(strategy)
            });
            let report = pair.migrate(&pair.source.guest("vm"), request);
            note(times, &completed(report)?);
            pair.turn_round("vm");
        }
    }
    print(output, "QEMU", &times);
    Ok(())
}

fn with_drain(request: Request) -> Request {
    Request {
        streams: Some(1),
        limits: Limits {
            drain_after: DRAIN_AFTER,
            ..Limits::default()
        },
        ..request
    }
}

fn note(times: &mut Times, report: &Report) {
    let faults = &report.faults;
    let values = [faults.p50_us, faults.p99_us, faults.max_us, faults.network as f64];
    times
        .iter_mut()
        .zip(values)
        .for_each(|(figures, value)| figures.push(value));
}

fn print(output: &mut Output, guest: &str, times: &[Times; 2]) {
    let named = ["p50", "p99", "longest", "faults over the network"];
    for (strategy, times) in STRATEGIES.iter().zip(times) {
        for (name, figures) in named.into_iter().zip(times) {
            let unit = if name.starts_with("faults") {
                "faults"
            } else {
                "us"
            };
            output.figures(&format!("{guest}: {strategy}: {name}"), unit, figures);
        }
        let ratio = times[0].median() / 150.0;
        output.ratio(&format!("{guest}: {strategy}: p50 / 150 us"), ratio, "at most 1");
    }
    let ratio = times[1][0].median() / times[0][0].median();
    output.ratio(
        &format!("{guest}: p50 beside a push / on demand alone"),
        ratio,
        "near 1",
    );
}
