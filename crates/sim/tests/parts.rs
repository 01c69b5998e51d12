//! Recordings of parts of memory: what was not seen is in the intervals.

mod common;

use vmferry_core::sampling::Coverage;
use vmferry_core::{MigrationRequest, PageBitmap, PageRun, Strategy};
use vmferry_sim::{PathModel, Simulator};
use vmferry_trace::{PageSet, Trace};

/// 512 MiB.
const PAGES: u64 = 1 << 17;
const SAMPLES: u64 = 40;
const RUNS: usize = 20;

fn mix(value: u64) -> u64 {
    let z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20
}

/// A guest that writes a fifth of the pages of every eighth chunk, all over its memory, in each sample; seen by these looks.
fn seen(coverage: Coverage) -> Trace {
    let mut trace = common::sampled(common::guest(PAGES * 4096, PAGES * 4096), SAMPLES, |_| Vec::new());
    for (sample, index) in trace.samples.iter_mut().zip(1..) {
        let mut dirty = PageBitmap::new(PAGES);
        for page in coverage.runs(PAGES).flat_map(PageRun::pages) {
            if is_hot(page) && mix(page ^ index << 32).is_multiple_of(5) {
                dirty.insert(page);
            }
        }
        sample.coverage = coverage;
        sample.dirty = PageSet::from_bitmap(&dirty);
    }
    trace
}

fn is_hot(page: u64) -> bool {
    mix(page / 64).is_multiple_of(8)
}

/// MiB on the wire, from the least to the most.
fn simulated(trace: &Trace) -> Vec<f64> {
    let request = MigrationRequest::<()>::new((), Strategy::Hybrid);
    let simulator = Simulator::new(trace).unwrap();
    let outcomes = simulator
        .many(&request, &PathModel::typical(250e6, 0.2), 3, RUNS)
        .unwrap();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut bytes: Vec<f64> = outcomes
        .iter()
        .map(|outcome| mib(outcome.report.bytes_on_wire))
        .collect();
    bytes.sort_by(f64::total_cmp);
    bytes
}

#[test]
fn what_was_not_seen_is_in_the_intervals_and_moves_nothing() {
    let all = simulated(&seen(Coverage::ALL));
    let expected = all[RUNS / 2];
    let looks: Vec<Vec<f64>> = (1..=8)
        .map(|seed| simulated(&seen(Coverage::one_in(16, seed))))
        .collect();
    let within = looks
        .iter()
        .filter(|bytes| (bytes[0]..=bytes[RUNS - 1]).contains(&expected));
    assert!(within.count() >= 6, "{expected} MiB, by parts {looks:?}");
    let mean = looks.iter().map(|bytes| bytes[RUNS / 2]).sum::<f64>() / looks.len() as f64;
    assert!((mean / expected - 1.0).abs() < 0.03, "{mean} of {expected} MiB");
}

/// A guest whose every write is to a page that was never written before, somewhere in memory.
fn wandering(coverage: Coverage) -> Trace {
    let mut trace = common::sampled(common::guest(PAGES * 4096, PAGES * 4096), SAMPLES, |_| Vec::new());
    for (sample, index) in trace.samples.iter_mut().zip(0..) {
        let mut dirty = PageBitmap::new(PAGES);
        // A page of each 2 MiB.
        for page in coverage.runs(PAGES).flat_map(PageRun::pages) {
            if page % 512 == mix(index) % 512 {
                dirty.insert(page);
            }
        }
        sample.coverage = coverage;
        sample.dirty = PageSet::from_bitmap(&dirty);
    }
    trace
}

/// What wanders goes on to do so where it was not looked at: each group is another one's like, whose pages were seen once.
#[test]
fn what_wanders_wanders_in_all_of_memory() {
    let touched = |coverage: Coverage| {
        let trace = wandering(coverage);
        let request = MigrationRequest::<()> {
            streams: Some(1),
            ..MigrationRequest::new((), Strategy::PostCopy)
        };
        let path = PathModel {
            reads_per_write: 0.0,
            ..PathModel::typical(250e6, 0.2)
        };
        let outcomes = Simulator::new(&trace)
            .unwrap()
            .many(&request, &path, 3, 5)
            .unwrap();
        let mut faults: Vec<u64> = outcomes
            .iter()
            .map(|outcome| outcome.report.faults.count)
            .collect();
        faults.sort_unstable();
        faults[2] as f64
    };
    let all = touched(Coverage::ALL);
    let part = touched(Coverage::one_in(16, 1));
    assert!(
        (0.8..1.25).contains(&(part / all)),
        "{part} pages by parts, {all} by all"
    );
}
