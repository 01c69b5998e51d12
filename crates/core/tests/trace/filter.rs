//! `pre-copy-filter` against `pre-copy`: the data-filter paper's memory-write loops, and guests that no model fits.

use std::time::Duration;

use vmferry_core::{Limits, PageRun, Strategy, Tuning};

use crate::replay::{Replayed, Setting, replay};
use crate::traces::Trace;

/// Section 5.1: 1024 MiB, 500 Mbit/s, Xen's 30 rounds.
const PAGES: u64 = 1 << 18;
const PAGES_PER_S: u64 = 15_259;

fn limits() -> Limits {
    Limits {
        downtime: Duration::from_millis(300),
        rounds: 30,
        ..Limits::default()
    }
}

fn migrated(strategy: Strategy, trace: Trace, tuning: &Tuning) -> Replayed {
    let setting = Setting {
        pages: PAGES,
        pages_per_s: PAGES_PER_S,
        trace,
    };
    replay(setting, strategy, &limits(), tuning)
}

/// Both, with what the filter cut of the pages sent, in percent.
fn compared(trace: Trace, tuning: &Tuning) -> (Replayed, Replayed, f64) {
    let plain = migrated(Strategy::PreCopy, trace, tuning);
    let filtered = migrated(Strategy::PreCopyFilter, trace, tuning);
    let cut = 100.0 * (1.0 - filtered.sent() as f64 / plain.sent() as f64);
    println!(
        "{trace:?}: pre-copy {} pages, down {:?}, in {:?}; pre-copy-filter {} pages, down {:?}, in {:?}; cut {cut:.1} %; {:?}",
        plain.sent(),
        plain.downtime(),
        plain.measured.total,
        filtered.sent(),
        filtered.downtime(),
        filtered.measured.total,
        filtered.measured.notes,
    );
    (plain, filtered, cut)
}

/// Within a tenth of pre-copy's downtime.
fn assert_no_longer_down(plain: &Replayed, filtered: &Replayed) {
    let (longest, down) = (plain.downtime().mul_f64(1.1), filtered.downtime());
    assert!(
        down <= longest,
        "down for {down:?}, pre-copy for {:?}",
        plain.downtime()
    );
}

#[test]
fn memory_write_loops_send_less_than_two_fifths() {
    for (mib, mib_per_s) in [(256, 500), (256, 1000), (256, 4000), (512, 1000)] {
        let trace = Trace::Loop {
            region: PageRun::new(100_000, mib * 256),
            pages_per_ms: mib_per_s * 256 / 1000,
        };
        let (plain, filtered, cut) = compared(trace, &Tuning::default());
        assert!(cut >= 60.0, "{trace:?}: cut by {cut:.1} %");
        assert_no_longer_down(&plain, &filtered);
        let first = &filtered.measured.rounds[0];
        assert!(
            first.filter_precision > Some(0.95) && first.filter_recall > Some(0.3),
            "{first:?}"
        );
        let held_back = first.pages_filtered.unwrap();
        assert!(
            first.bytes_saved > Some(held_back * 4096 * 95 / 100) && held_back > 10_000,
            "{first:?}"
        );
        assert!(first.pages_dirtied >= mib * 256, "{first:?}");
    }
}

#[test]
fn a_guest_that_writes_at_random_switches_the_filter_off() {
    for writes_per_ms in [2, 40] {
        let trace = Trace::Uniform { writes_per_ms };
        let (plain, filtered, _) = compared(trace, &Tuning::default());
        let measured = &filtered.measured;
        assert!(
            measured.notes.len() == 1 && measured.notes[0].contains("data filter off"),
            "{:?}",
            measured.notes
        );
        assert_eq!(measured.counts.filtered, 0, "nothing was ever held back");
        let (sent, with) = (plain.sent(), filtered.sent());
        assert!(with * 100 <= sent * 101, "{with} pages, pre-copy sent {sent}");
        assert_no_longer_down(&plain, &filtered);
    }
}

#[test]
fn a_workload_that_changes_under_way_switches_the_filter_off_and_loses_nothing() {
    let trace = Trace::Turns {
        region: PageRun::new(PAGES - (1 << 16), 1 << 16),
        pages_per_ms: 256,
        at_ms: 8_000,
        writes_per_ms: 5,
    };
    let (plain, filtered, _) = compared(trace, &Tuning::default());
    let notes = filtered.measured.notes.join("\n");
    assert!(
        notes.contains("data filter on") && notes.contains("the workload changed: chi-square of states"),
        "{notes}"
    );
    let first = &filtered.measured.rounds[0];
    assert!(
        first.pages_taken_back > Some(50_000),
        "what was held back is sent after all: {first:?}"
    );
    assert_no_longer_down(&plain, &filtered);
}

#[test]
fn a_workload_that_goes_on_elsewhere_is_learned_anew() {
    let region = |first| PageRun::new(first, 256 * 128);
    let trace = Trace::Phases {
        regions: [region(0), region(PAGES / 3), region(2 * PAGES / 3)],
        stay_ms: 12_000,
        pages_per_ms: 256,
    };
    let (plain, filtered, cut) = compared(trace, &Tuning::default());
    let notes = &filtered.measured.notes;
    let switched = |how: &str| {
        notes
            .iter()
            .filter(|note| note.starts_with(&format!("data filter {how}")))
            .count()
    };
    assert!(switched("on") >= 2 && switched("off") >= 1, "{notes:?}");
    assert!(cut > 50.0, "{cut:.1} % of the pages");
    assert_no_longer_down(&plain, &filtered);
}

#[test]
fn an_idle_guest_is_moved_in_one_round() {
    let (plain, filtered, _) = compared(Trace::Idle, &Tuning::default());
    assert_eq!((plain.sent(), filtered.sent()), (PAGES, PAGES));
}

#[test]
fn every_size_of_the_state_space_cuts_a_loop() {
    for regions in [64, 128, 256, 512, 1024] {
        let trace = Trace::Loop {
            region: PageRun::new(0, 1 << 16),
            pages_per_ms: 256,
        };
        let tuning = Tuning {
            regions: Some(regions),
            ..Tuning::default()
        };
        let (plain, filtered, cut) = compared(trace, &tuning);
        assert!(cut >= 60.0, "{regions} regions: {cut:.1} %");
        assert_no_longer_down(&plain, &filtered);
    }
}
