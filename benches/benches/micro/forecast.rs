//! The data filter: what a forecast costs, and taking a sample in. 1 GiB in 256 regions, and two guests: a loop over a quarter
//! of RAM, and one that writes eight regions at random, for which the model becomes as large as it can.

use std::hint::black_box;

use criterion::Criterion;
use vmferry_core::filter::Learner;
use vmferry_core::{PageBitmap, PageRun, Tuning};

use crate::{GIB_PAGES, is_trial};

/// Samples that a model is learned from: ten minutes of the paper's.
const SAMPLES: u64 = 12_000;
/// Steps that 1 GiB takes at 500 Mbit/s, the paper's link: 17 s.
const STEPS: u32 = 344;

/// The pages that a guest dirties in a sample.
type Guest = fn(u64) -> PageBitmap;
const GUESTS: [(&str, Guest); 2] = [("loop", sweeping), ("scattered", scattered)];

pub(crate) fn bench(criterion: &mut Criterion) {
    let samples = if is_trial() { SAMPLES / 100 } else { SAMPLES };
    let mut group = criterion.benchmark_group("data filter");
    for (name, guest) in GUESTS {
        let mut learner = Learner::new(GIB_PAGES, &Tuning::default());
        (0..samples).for_each(|at| {
            learner.sample(&guest(at));
        });
        for (ahead, steps) in [("17 s", STEPS), ("the longest, 51 s", u32::MAX)] {
            group.bench_function(format!("forecast of {ahead}, {name}"), |bencher| {
                bencher.iter(|| learner.forecast(black_box(steps)));
            });
        }
        let mut at = samples;
        group.bench_function(format!("a sample taken in, {name}"), |bencher| {
            let next = || {
                at += 1;
                guest(at)
            };
            bencher.iter_batched(
                next,
                |dirty| learner.sample(&dirty),
                criterion::BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

/// A loop over a quarter of RAM that takes five samples.
fn sweeping(sample: u64) -> PageBitmap {
    let mut dirty = PageBitmap::new(GIB_PAGES);
    let (region, step) = (GIB_PAGES / 4, GIB_PAGES / 20);
    (0..step).for_each(|page| {
        dirty.insert((sample * step + page) % region);
    });
    dirty
}

/// Eight of the default regions, all their pages but a few, at random.
pub(crate) fn scattered(sample: u64) -> PageBitmap {
    let mut dirty = PageBitmap::new(GIB_PAGES);
    let region = GIB_PAGES / 256;
    for index in 0..8 {
        let mixed = (sample * 8 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        dirty.insert_run(PageRun::new(mixed % 256 * region, region - index));
    }
    dirty
}
