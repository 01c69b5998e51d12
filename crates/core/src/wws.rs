//! Learning the writable working set (WWS) from samples of dirty pages.
//!
//! Source: hybrid-learning paper (Gangadhar et al. 2018), section IV, algorithm 1, "estimating WWS using adaptive
//! histograms".

use serde::{Deserialize, Serialize};

use crate::bitmap::PageBitmap;
use crate::pages::PageRun;

/// Levels that [`HotFirst`] tells apart: each holds pages of half the heat of the one before.
const LEVELS: u32 = 8;

/// The adaptive histogram: how hot each page is.
///
/// Memory: one `f32` a page, which is 1 MiB per GiB of guest RAM (0.1 %), and no more while the order of pages is
/// read off it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heat {
    alpha: f32,
    of_page: Vec<f32>,
    samples: u32,
}

impl Heat {
    /// Nothing learned yet of `pages` pages; `alpha` (0 to 1) is the weight of the newest sample.
    pub fn new(pages: u64, alpha: f64) -> Self {
        Self {
            alpha: alpha as f32,
            of_page: vec![0.0; pages as usize],
            samples: 0,
        }
    }

    /// Takes a sample in: the pages dirtied since the one before.
    pub fn sample(&mut self, dirty: &PageBitmap) {
        let Self { alpha, of_page, .. } = self;
        for (pages, &word) in of_page.chunks_mut(64).zip(dirty.words()) {
            for (bit, heat) in pages.iter_mut().enumerate() {
                // h = alpha * dirty + (1 - alpha) * h
                let dirty = (word >> bit & 1) as f32;
                *heat = *alpha * dirty + (1.0 - *alpha) * *heat;
            }
        }
        self.samples += 1;
    }

    /// The weight of the newest sample.
    pub fn alpha(&self) -> f64 {
        f64::from(self.alpha)
    }

    /// Samples taken in.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// How hot `page` is, 0 to 1; 0 for a page beyond RAM.
    pub fn of(&self, page: u64) -> f32 {
        self.of_page.get(page as usize).copied().unwrap_or(0.0)
    }

    /// Mean over all pages.
    pub fn mean(&self) -> f64 {
        let sum: f64 = self.of_page.iter().map(|&heat| f64::from(heat)).sum();
        sum / self.of_page.len().max(1) as f64
    }

    /// The writable working set: the pages at least as hot as the mean. Pages that were never dirty are not in it,
    /// also where the mean is 0.
    pub fn working_set(&self) -> PageBitmap {
        let mean = self.mean();
        let mut set = PageBitmap::new(self.of_page.len() as u64);
        for (index, pages) in self.of_page.chunks(64).enumerate() {
            let word = pages.iter().enumerate().fold(0u64, |word, (bit, &heat)| {
                let within = heat > 0.0 && f64::from(heat) >= mean;
                word | u64::from(within) << bit
            });
            set.insert_word(index, word);
        }
        set
    }

    /// The level of a page: 0 for the hottest, [`LEVELS`] for what was never dirty or hardly.
    fn level(&self, page: u64) -> u32 {
        let heat = self.of(page);
        if heat <= 0.0 {
            return LEVELS;
        }
        (-heat.log2()).max(0.0).min((LEVELS - 1) as f32) as u32
    }
}

/// Goes through pages from the hottest to the coldest, a level of heat at a time and by address within it. It holds
/// no list: it reads the order off a [`Heat`] as it goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct HotFirst {
    level: u32,
    from: u64,
}

impl HotFirst {
    /// The next of the pages `left`, at most `max_pages`; none once it went through all levels. Pages that come
    /// back to `left` behind it are not seen again.
    pub fn next(&mut self, heat: &Heat, left: &PageBitmap, max_pages: u64) -> Option<PageRun> {
        while self.level <= LEVELS {
            while let Some(run) = left.next_run(self.from, u64::MAX) {
                let of_level = |page: &u64| heat.level(*page) == self.level;
                let Some(first) = run.pages().find(of_level) else {
                    self.from = run.end();
                    continue;
                };
                let count = (first..run.end())
                    .take(max_pages as usize)
                    .take_while(of_level)
                    .count();
                self.from = first + count as u64;
                return Some(PageRun::new(first, count as u64));
            }
            self.level += 1;
            self.from = 0;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pages: &[u64], len: u64) -> PageBitmap {
        let mut set = PageBitmap::new(len);
        pages.iter().for_each(|&page| {
            set.insert(page);
        });
        set
    }

    #[test]
    fn heat_follows_the_formula() {
        let mut heat = Heat::new(100, 0.25);
        heat.sample(&set(&[0, 99], 100));
        heat.sample(&set(&[0], 100));
        assert!((heat.of(0) - 0.4375).abs() < 1e-6);
        assert!((heat.of(99) - 0.1875).abs() < 1e-6);
        assert_eq!((heat.of(1), heat.of(100), heat.samples()), (0.0, 0.0, 2));
        assert!((heat.mean() - 0.00625).abs() < 1e-9);
    }

    #[test]
    fn pages_at_the_mean_are_in_the_working_set_and_idle_guests_have_none() {
        let mut heat = Heat::new(130, 0.5);
        assert!(heat.working_set().is_empty(), "nothing was written");
        heat.sample(&PageBitmap::full(130));
        assert_eq!(
            heat.working_set(),
            PageBitmap::full(130),
            "all are as hot as the mean"
        );
        let hot = set(&[3, 64, 129], 130);
        (0..4).for_each(|_| heat.sample(&hot));
        assert_eq!(heat.working_set(), hot, "the rest cooled down below the mean");
    }

    #[test]
    fn alpha_at_its_ends_learns_nothing_or_the_last_sample() {
        let mut deaf = Heat::new(8, 0.0);
        deaf.sample(&PageBitmap::full(8));
        assert!(deaf.working_set().is_empty());
        let mut forgetful = Heat::new(8, 1.0);
        forgetful.sample(&set(&[1], 8));
        forgetful.sample(&set(&[2], 8));
        assert_eq!(forgetful.working_set(), set(&[2], 8));
    }

    proptest! {
        #[test]
        fn the_working_set_is_the_papers(
            samples in prop::collection::vec(prop::collection::btree_set(0u64..200, 0..80), 0..12),
            alpha in 0.0f64..=1.0,
        ) {
            let mut heat = Heat::new(200, alpha);
            let mut histogram = [0f64; 200];
            for sample in &samples {
                heat.sample(&set(&sample.iter().copied().collect::<Vec<_>>(), 200));
                for (page, value) in histogram.iter_mut().enumerate() {
                    let dirty = f64::from(u8::from(sample.contains(&(page as u64))));
                    *value = alpha * dirty + (1.0 - alpha) * *value;
                }
            }
            let average = histogram.iter().sum::<f64>() / 200.0;
            let found = heat.working_set();
            for (page, &value) in histogram.iter().enumerate() {
                prop_assert!((value - f64::from(heat.of(page as u64))).abs() < 1e-5);
                // Where rounding decides, either is right.
                if value > 0.0 && (value - average).abs() > 1e-5 {
                    prop_assert_eq!(found.contains(page as u64), value >= average, "page {}", page);
                }
            }
        }

        #[test]
        fn every_page_comes_once_and_none_before_a_much_hotter_one(
            samples in prop::collection::vec(prop::collection::btree_set(0u64..200, 0..80), 1..8),
            left in prop::collection::btree_set(0u64..200, 0..200),
            max_pages in 1u64..50,
        ) {
            let mut heat = Heat::new(200, 0.5);
            for sample in &samples {
                heat.sample(&set(&sample.iter().copied().collect::<Vec<_>>(), 200));
            }
            let mut left = set(&left.iter().copied().collect::<Vec<_>>(), 200);
            let (mut order, mut seen) = (HotFirst::default(), 1.0f32);
            while let Some(run) = order.next(&heat, &left, max_pages) {
                prop_assert!(run.count > 0 && run.count <= max_pages);
                prop_assert_eq!(left.count_in(run), run.count);
                for page in run.pages() {
                    prop_assert!(heat.of(page) <= 2.0 * seen + 1e-6);
                    seen = seen.min(heat.of(page));
                }
                left.remove_run(run);
            }
            prop_assert!(left.is_empty());
        }
    }
}
