//! A guest that runs is recorded: what a trace says of it is what it does, within the budget, and it is let go afterwards.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Pair, assert_healthy, eventually};
use vmferry_core::Strategy;
use vmferry_core::report::Outcome;
use vmferry_guest::Vm;
use vmferry_guest_synth::{Fill, LoadConfig, SynthConfig};
use vmferry_runtime::recorder::{RecordError, record};
use vmferry_runtime::{RecordControl, RecordPlan};
use vmferry_trace::{Plan, Trace};

const MIB: f64 = (1 << 20) as f64;
const HALF: Plan = Plan::Within { budget_percent: 50.0 };

/// Writes 8 MiB again and again, beside 24 MiB that nobody touches, of which a half compresses.
fn looping(rate_mib_per_s: Option<u64>) -> SynthConfig {
    SynthConfig {
        loads: vec![LoadConfig::Write {
            region_mib: 8,
            rate_mib_per_s,
        }],
        fill: Fill {
            mib: 24,
            zero_percent: 25,
            compressible_percent: 50,
            ..Fill::default()
        },
        ..SynthConfig::new(64 << 20)
    }
}

fn plan(length_ms: u64, plan: Plan) -> RecordPlan {
    RecordPlan {
        length: Duration::from_millis(length_ms),
        interval: Duration::from_millis(40),
        plan,
    }
}

fn recorded(vm: &Arc<dyn Vm>, plan: &RecordPlan) -> Trace {
    record(vm, plan, None, &RecordControl::default()).unwrap()
}

#[test]
fn a_full_trace_shows_what_the_guest_writes() {
    let pair = Pair::new();
    let (vm, dir) = pair.launch("vm", &looping(Some(40)));
    let trace = recorded(&vm, &plan(2000, Plan::Full));
    let summary = trace.summary();
    let rate = summary.dirty_bytes_per_s / MIB;
    // Each page is written five times a second and once at most in a sample.
    assert!((25.0..=45.0).contains(&rate), "{rate} MiB/s");
    let written = summary.written_bytes as f64 / MIB;
    assert!((7.9..=8.3).contains(&written), "{written} MiB");
    assert_eq!(summary.data_bytes, (32 << 20) + 4096);
    assert_eq!(summary.full_samples, summary.samples);
    assert!(summary.observed_ms > 0.9 * summary.length_ms, "{summary:?}");
    let content = &summary.content;
    assert!(content.looked_at > 300 && content.uniform > 30, "{content:?}");
    assert!(content.lz4 < 0.95 && content.zstd < 0.95, "{content:?}");
    assert_healthy(&pair.source, "vm");
    // It is let go: a migration can track it.
    let report = pair.migrate(vm, dir, pair.request(Strategy::PreCopy));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
}

#[test]
fn a_guest_that_writes_much_is_recorded_within_the_budget() {
    let pair = Pair::new();
    let (vm, _) = pair.launch("vm", &looping(None));
    let trace = recorded(&vm, &plan(3000, Plan::Within { budget_percent: 3.0 }));
    let summary = trace.summary();
    // The last sample may go beyond it.
    assert!(summary.cost_percent.unwrap() < 4.0, "{summary:?}");
    assert!(summary.sparsest > 1, "{summary:?}");
    let written = summary.written_bytes as f64 / MIB;
    assert!(
        (4.0..=14.0).contains(&written),
        "8 MiB by a part of them: {written} MiB"
    );
    assert_healthy(&pair.source, "vm");
}

#[test]
fn a_recording_that_is_ended_keeps_what_it_has() {
    let pair = Pair::new();
    let (vm, _) = pair.launch("vm", &looping(Some(40)));
    let control = Arc::new(RecordControl::default());
    let recording = {
        let (vm, control) = (vm.clone(), control.clone());
        thread::spawn(move || record(&vm, &plan(3_600_000, HALF), Some(Box::new(|| Some(7))), &control))
    };
    eventually("there are samples", || control.progress().samples >= 8);
    assert!(vm.dirty_tracker().is_err(), "it has the guest's one tracker");
    control.stop();
    let trace = recording.join().unwrap().unwrap();
    assert!(trace.samples.len() >= 8 && trace.cost.is_some());
    assert_eq!(trace.loads[0].operations, Some(7));
    assert!(vm.dirty_tracker().is_ok(), "and lets go of it");
}

#[test]
fn what_makes_no_sense_is_refused_with_the_reason() {
    let pair = Pair::new();
    let (vm, _) = pair.launch("vm", &looping(Some(1)));
    let refused = |plan: RecordPlan| {
        let why = record(&vm, &plan, None, &RecordControl::default()).unwrap_err();
        assert!(matches!(why, RecordError::BadPlan(_)), "{why}");
        why.to_string()
    };
    assert!(refused(plan(1, HALF)).contains("at least the interval"));
    let never = RecordPlan {
        interval: Duration::ZERO,
        ..plan(1000, HALF)
    };
    assert!(refused(never).contains("choose 1 to"));
    assert!(refused(plan(1000, Plan::Within { budget_percent: 0.0 })).contains("more than 0"));
    vm.pause().unwrap();
    let why = record(&vm, &plan(1000, HALF), None, &RecordControl::default()).unwrap_err();
    assert_eq!(why, RecordError::NotRunning("vm".into()));
}
