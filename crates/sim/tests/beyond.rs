//! How a guest goes on beyond its recording, against a recording that is long enough.

mod common;

use common::{guest, sampled};
use vmferry_core::{MigrationRequest, PageRun, Strategy};
use vmferry_sim::{PathModel, simulate, simulate_many};
use vmferry_trace::Trace;

const MIB: u64 = 1 << 20;
/// Pages of the store.
const KEYS: u64 = 40_000;

fn chance(value: u64) -> f64 {
    let mut z = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

/// A store whose keys are written as often as Zipf's law with exponent `s` says, `writes` a sample.
fn store(samples: u64, s: f64, writes: u64) -> Trace {
    let mut sums = vec![0.0];
    for rank in 1..=KEYS {
        sums.push(sums[rank as usize - 1] + (rank as f64).powf(-s));
    }
    let total = sums[KEYS as usize];
    let write = |sample: u64, write: u64| {
        let at = chance(sample << 20 | write) * total;
        let rank = sums.partition_point(|&sum| sum <= at) as u64;
        PageRun::single(2000 + rank * 7919 % KEYS)
    };
    sampled(guest(512 * MIB, 250 * MIB), samples, |sample| {
        (0..writes).map(|at| write(sample, at)).collect()
    })
}

#[test]
fn first_touches_beyond_the_recording_are_as_many_as_a_longer_one_has() {
    // Without reads: how much is read a trace does not say, however long it is.
    let path = PathModel {
        reads_per_write: 0.0,
        ..PathModel::typical(125e6, 0.2)
    };
    let request: MigrationRequest<()> = MigrationRequest {
        encoding: vmferry_core::Encoding::RAW,
        streams: Some(1),
        ..MigrationRequest::new((), Strategy::PostCopy)
    };
    for s in [0.0, 0.8] {
        // 10 s of it, and what lasts until the guest finds all its pages in place.
        let (recorded, all) = (store(200, s, 1000), store(2000, s, 1000));
        let found = simulate(&all, &request, &path, 1).unwrap();
        assert_eq!(found.extended_ms, 0.0);
        let outcomes = simulate_many(&recorded, &request, &path, 1, 10).unwrap();
        let mut times: Vec<f64> = outcomes
            .iter()
            .map(|outcome| outcome.report.total_ms / found.report.total_ms)
            .collect();
        times.sort_by(f64::total_cmp);
        assert!((0.8..1.25).contains(&times[5]), "exponent {s}: {times:.2?}");
        assert!(times[0] > 0.65 && times[9] < 1.5, "exponent {s}: {times:.2?}");
    }
}

/// A store that is read four times as often as it is written: all its pages are touched that much sooner, and no others.
#[test]
fn what_is_read_is_what_is_written_another_time() {
    let request: MigrationRequest<()> = MigrationRequest {
        encoding: vmferry_core::Encoding::RAW,
        streams: Some(1),
        ..MigrationRequest::new((), Strategy::PostCopy)
    };
    let recorded = store(200, 0.0, 100);
    let outcomes = |reads_per_write: f64| {
        let mut path = PathModel {
            reads_per_write,
            ..PathModel::typical(125e6, 0.2)
        };
        path.variation.reads = 0.0;
        simulate_many(&recorded, &request, &path, 1, 10).unwrap()
    };
    let median = |outcomes: &[vmferry_sim::Outcome]| {
        let mut times: Vec<f64> = outcomes.iter().map(|outcome| outcome.report.total_ms).collect();
        times.sort_by(f64::total_cmp);
        times[5]
    };
    let (written, read) = (outcomes(0.0), outcomes(4.0));
    let ratio = median(&written) / median(&read);
    // What faults take is in both.
    assert!((2.0..5.5).contains(&ratio), "{ratio}");
    for outcome in read {
        // Blocks that are not drawn leave some out.
        let faults = outcome.report.faults.count;
        assert!((KEYS * 8 / 10..KEYS * 11 / 10).contains(&faults), "{faults}");
    }
}
