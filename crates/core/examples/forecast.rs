//! How long the data filter takes on a guest of 1 GiB: a forecast over 4 s, and taking a sample in.
//!
//! ```text
//! cargo run --release -p vmferry-core --example forecast
//! ```

use std::hint::black_box;
use std::time::{Duration, Instant};

use vmferry_core::filter::Learner;
use vmferry_core::{PageBitmap, PageRun, Tuning};

/// 1 GiB.
const PAGES: u64 = 1 << 18;
const RUNS: u32 = 200;

/// Median time of `act`.
fn median(mut act: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..RUNS)
        .map(|_| {
            let begun = Instant::now();
            act();
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    // A loop over 256 MiB that writes a fifth of it in each sample; and a guest that writes 8 regions at random.
    let sweeping = |sample: u64| {
        let mut dirty = PageBitmap::new(PAGES);
        (0..13_107).for_each(|page| {
            dirty.insert((sample * 13_107 + page) % 65_536);
        });
        dirty
    };
    let scattered = |sample: u64| {
        let mut dirty = PageBitmap::new(PAGES);
        for region in 0..8 {
            let mixed = (sample * 8 + region).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            dirty.insert_run(PageRun::new(mixed % 256 * 1024, 1000 - region));
        }
        dirty
    };
    let guests: [(&str, &dyn Fn(u64) -> PageBitmap); 2] = [("loop", &sweeping), ("scattered", &scattered)];
    for (name, sample) in guests {
        let mut learner = Learner::new(PAGES, &Tuning::default());
        for at in 0..12_000 {
            learner.sample(&sample(at));
        }
        let mut at = 12_000;
        let taken_in = median(|| {
            at += 1;
            let dirty = sample(at);
            black_box(learner.sample(&dirty));
        });
        let near = median(|| drop(black_box(learner.forecast(86))));
        let far = median(|| drop(black_box(learner.forecast(u32::MAX))));
        println!(
            "{name}: forecast of 4.3 s {near:?}, of 51 s {far:?} ({} pages); a sample {taken_in:?}; model {} KiB",
            learner.forecast(u32::MAX).count(),
            learner.model().memory_bytes() / 1024,
        );
    }
}
