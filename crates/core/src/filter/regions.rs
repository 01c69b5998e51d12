//! RAM cut into regions of equal length. Source: data-filter paper, section 3.1.

use serde::{Deserialize, Serialize};

use crate::bitmap::PageBitmap;
use crate::pages::PageRun;
use crate::tuning::Tuning;

/// The regions of a guest's RAM; the last one may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regions {
    pages: u64,
    region_pages: u64,
}

impl Regions {
    /// Regions of a guest of `pages` pages, as many as `tuning` says.
    pub fn new(pages: u64, tuning: &Tuning) -> Self {
        Self {
            pages,
            region_pages: tuning.region_pages(pages),
        }
    }

    /// Pages of RAM.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.pages.div_ceil(self.region_pages) as u32
    }

    /// The pages of region `index`.
    pub fn run(&self, index: u32) -> PageRun {
        let first = u64::from(index) * self.region_pages;
        PageRun::new(first, self.region_pages.min(self.pages - first))
    }

    /// How many of the pages `dirty` lie in each region.
    pub fn dirty_pages(&self, dirty: &PageBitmap) -> Vec<u32> {
        (0..self.count())
            .map(|index| dirty.count_in(self.run(index)) as u32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_page_is_in_one_region(pages in 1u64..5000, regions in prop::option::of(1u32..300)) {
            let regions = Regions::new(pages, &Tuning { regions, ..Tuning::default() });
            let mut end = 0;
            for index in 0..regions.count() {
                let run = regions.run(index);
                prop_assert_eq!(run.first, end);
                prop_assert!(run.count > 0);
                end = run.end();
            }
            prop_assert_eq!(end, pages);
            let all = regions.dirty_pages(&PageBitmap::full(pages));
            prop_assert_eq!(all.iter().map(|&dirty| u64::from(dirty)).sum::<u64>(), pages);
        }
    }
}
