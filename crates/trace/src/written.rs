//! How much of its memory a guest writes: all in all, and again and again.
//!
//! Where samples look at a part of memory, what they look at changes now and then ([`vmferry_core::sampling::Recording`]). Samples in
//! a row of the same pages are a *stretch*: within one the heat of pages can be compared, and several together have seen more of
//! memory than each.

use std::collections::BTreeMap;

use vmferry_core::wws::Heat;
use vmferry_core::{PageBitmap, Tuning};

use crate::sample::Sample;
use crate::trace::Trace;
use crate::units::Units;

/// Stretches that the working set is taken from at most, spread over the trace.
const MOST_STRETCHES: usize = 16;
/// Samples of a stretch that are taken into account, the last ones: what lies before weighs 2^-160, which is no number any more.
const MOST_SAMPLES: usize = 160;

impl Trace {
    /// The size of the writable working set ([`vmferry_core::wws`]), in pages: an estimate where parts were looked at, and of guests of
    /// more than 16 GiB. It is the mean over stretches of those samples that look at as much as most do.
    pub fn working_set_pages(&self) -> u64 {
        let usual: Vec<&Sample> = self.usual_samples().collect();
        let mut by_stride: BTreeMap<u32, Vec<&[&Sample]>> = BTreeMap::new();
        for stretch in usual.chunk_by(|one, next| one.coverage == next.coverage) {
            let stride = stretch[0].coverage.stride();
            by_stride.entry(stride).or_default().push(stretch);
        }
        let samples = |stretches: &[&[&Sample]]| stretches.iter().map(|stretch| stretch.len()).sum::<usize>();
        let most = by_stride
            .into_iter()
            .max_by_key(|(_, stretches)| samples(stretches));
        let Some((stride, stretches)) = most else {
            return 0;
        };
        let units = Units::new(self.pages());
        let chosen = stretches.iter().step_by(stretches.len().div_ceil(MOST_STRETCHES));
        let (mut weighted, mut weights) = (0.0, 0.0);
        for stretch in chosen {
            let weight = stretch.len() as f64;
            weighted += hot_units(units, stretch) as f64 * weight;
            weights += weight;
        }
        let pages = weighted / weights * f64::from(stride) * units.per() as f64;
        (pages.round() as u64).min(self.pages())
    }

    /// Pages dirtied at any time: counted where all were looked at, else estimated. Of the samples that look at all of memory, at a half,
    /// a quarter and so on, those count that tell of most.
    pub(crate) fn written_pages(&self) -> u64 {
        let units = Units::new(self.pages());
        let mut by_stride: BTreeMap<u32, (PageBitmap, i32)> = BTreeMap::new();
        for stretch in self.samples.chunk_by(|one, next| one.coverage == next.coverage) {
            let (dirty, stretches) = by_stride
                .entry(stretch[0].coverage.stride())
                .or_insert_with(|| (PageBitmap::new(units.count()), 0));
            stretch.iter().for_each(|sample| units.add(&sample.dirty, dirty));
            *stretches = stretches.saturating_add(1);
        }
        let pages = |(stride, (dirty, stretches)): (&u32, &(PageBitmap, i32))| {
            // Each stretch looks at one in so many chunks, drawn anew: this is the share that one of them has looked at.
            let seen = 1.0 - (1.0 - 1.0 / f64::from(*stride)).powi(*stretches);
            ((dirty.count() * units.per()) as f64 / seen).round() as u64
        };
        let most = by_stride.iter().map(pages).max().unwrap_or(0);
        most.min(self.pages())
    }
}

/// Units that are at least as hot as the mean.
fn hot_units(units: Units, stretch: &[&Sample]) -> u64 {
    let mut heat = Heat::new(units.count(), Tuning::default().alpha);
    let mut dirty = PageBitmap::new(units.count());
    for sample in &stretch[stretch.len().saturating_sub(MOST_SAMPLES)..] {
        dirty.clear();
        units.add(&sample.dirty, &mut dirty);
        heat.sample(&dirty);
    }
    heat.working_set().count()
}
