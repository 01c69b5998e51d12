//! What the data filter costs in memory, by the size of the guest and of the state space, beside its bound; what it costs in
//! time is in `micro`. Two guests: a loop over a quarter of RAM, and one that writes eight regions at random, for which states
//! tell little and the model becomes as large as it can.

use anyhow::Result;
use vmferry_benches::{Figures, Output};
use vmferry_core::filter::Learner;
use vmferry_core::{PageBitmap, PageRun, Tuning};

/// Pages of a GiB.
const GIB: u64 = 1 << 18;

fn main() -> Result<()> {
    let mut output = Output::from_args()?;
    memory(&mut output);
    output.finish()
}

/// A loop over a quarter of RAM that takes five samples.
fn sweeping(pages: u64, sample: u64) -> PageBitmap {
    let mut dirty = PageBitmap::new(pages);
    let (region, step) = (pages / 4, pages / 20);
    (0..step).for_each(|page| {
        dirty.insert((sample * step + page) % region);
    });
    dirty
}

/// Eight of the default regions, all their pages but a few, at random.
fn scattered(pages: u64, sample: u64) -> PageBitmap {
    let mut dirty = PageBitmap::new(pages);
    let region = pages / 256;
    for index in 0..8 {
        let mixed = (sample * 8 + index).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        dirty.insert_run(PageRun::new(mixed % 256 * region, region - index));
    }
    dirty
}

type Guest = fn(u64, u64) -> PageBitmap;
const GUESTS: [(&str, Guest); 2] = [("loop", sweeping), ("scattered", scattered)];

fn learned(pages: u64, tuning: &Tuning, samples: u64, guest: Guest) -> Learner {
    let mut learner = Learner::new(pages, tuning);
    for at in 0..samples {
        learner.sample(&guest(pages, at));
    }
    learner
}

/// The bound is what `vmferry_core::filter` says: 18 bytes a page and 4 a pair of states, and the lists' own.
fn memory(output: &mut Output) {
    for (name, guest) in GUESTS {
        for (pages, regions) in [(GIB / 4, 256), (GIB, 64), (GIB, 256), (GIB, 1024), (4 * GIB, 256)] {
            let tuning = Tuning {
                regions: Some(regions),
                ..Tuning::default()
            };
            let bytes = learned(pages, &tuning, 1000, guest).model().memory_bytes();
            let states = u64::from(regions) + 1;
            let bound = 18 * pages + 4 * states * states + 16 * 96 * states;
            let mut figures = Figures::default();
            figures.push(bytes as f64 / 1024.0);
            let what = format!("{name}: model of {} MiB in {regions} regions", pages / 256);
            output.figures(&what, "KiB", &figures);
            output.ratio(
                &format!("{what} / bound"),
                bytes as f64 / bound as f64,
                "at most 1",
            );
        }
    }
}
