//! Which pages a sample looks at: all of them, or one chunk of each group of chunks.
//!
//! A page that is looked at costs its writer a fault a sample, one that is not costs nothing. Where looking at all of them
//! costs too much, RAM is cut into groups of `stride` chunks of 256 KiB, and one chunk of each, chosen by chance so
//! that no period of the guest's meets one of ours, stands for its group.

use serde::{Deserialize, Serialize};

use crate::pages::PageRun;

/// Pages of a chunk: long enough that looking at one costs a system call for many pages.
pub const CHUNK_PAGES: u64 = 64;
/// The fewest parts of RAM that are looked at: one chunk in so many groups at most.
pub const MAX_STRIDE: u32 = 64;
/// Chunks that have to be looked at, so that they say something about the others.
const LEAST_CHUNKS: u64 = 64;

/// Which pages are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    stride: u32,
    seed: u32,
}

impl Coverage {
    /// All pages.
    pub const ALL: Self = Self { stride: 1, seed: 0 };

    /// One chunk in `stride`, chosen by `seed`; a stride beyond [`MAX_STRIDE`] or of 0 is brought within bounds.
    pub const fn one_in(stride: u32, seed: u32) -> Self {
        let stride = match stride {
            0 => 1,
            1..=MAX_STRIDE => stride,
            _ => MAX_STRIDE,
        };
        Self { stride, seed }
    }

    /// The sparsest coverage that still says something about a guest of `pages` pages.
    pub fn sparsest_stride(pages: u64) -> u32 {
        let chunks = pages.div_ceil(CHUNK_PAGES);
        u32::try_from(chunks / LEAST_CHUNKS)
            .unwrap_or(MAX_STRIDE)
            .clamp(1, MAX_STRIDE)
    }

    /// How many pages one that is looked at stands for.
    pub const fn stride(self) -> u32 {
        self.stride
    }

    /// Whether all pages are looked at.
    pub const fn is_all(self) -> bool {
        self.stride <= 1
    }

    /// The pages looked at of a guest of `pages` pages, ascending.
    pub fn runs(self, pages: u64) -> impl Iterator<Item = PageRun> {
        let group_pages = self.group_pages();
        let groups = match self.is_all() {
            true => 1,
            false => pages.div_ceil(group_pages),
        };
        (0..groups).map(move |group| match self.is_all() {
            true => PageRun::new(0, pages),
            false => self.run_of(group, pages),
        })
    }

    /// How many pages of a guest of `pages` pages are looked at.
    pub fn pages(self, pages: u64) -> u64 {
        self.runs(pages).map(|run| run.count).sum()
    }

    /// The page that stands for `page` of a guest of `pages` pages; itself where it is looked at.
    pub fn stands_for(self, page: u64, pages: u64) -> u64 {
        if self.is_all() {
            return page;
        }
        let run = self.run_of(page / self.group_pages(), pages);
        run.first + (page % CHUNK_PAGES).min(run.count - 1)
    }

    /// The pages for which those of `run` stand: `run` has to lie in one chunk that is looked at.
    pub fn stood_for(self, run: PageRun, pages: u64) -> impl Iterator<Item = PageRun> {
        let group_first = run.first / self.group_pages() * self.group_pages();
        let within = run.first % CHUNK_PAGES;
        let chunks = if self.is_all() { 1 } else { u64::from(self.stride) };
        (0..chunks).filter_map(move |chunk| {
            let first = match self.is_all() {
                true => run.first,
                false => group_first + chunk * CHUNK_PAGES + within,
            };
            let end = (first + run.count).min(pages);
            (end > first).then(|| PageRun::new(first, end - first))
        })
    }

    fn group_pages(self) -> u64 {
        u64::from(self.stride.max(1)) * CHUNK_PAGES
    }

    fn run_of(self, group: u64, pages: u64) -> PageRun {
        let first_of_group = group * self.group_pages();
        // The last group may have fewer chunks.
        let chunks = (pages - first_of_group)
            .div_ceil(CHUNK_PAGES)
            .min(u64::from(self.stride));
        let chosen = mix(group ^ u64::from(self.seed) << 40) % chunks.max(1);
        let first = first_of_group + chosen * CHUNK_PAGES;
        PageRun::new(first, CHUNK_PAGES.min(pages - first))
    }
}

/// splitmix64.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn small_guests_are_looked_at_more_closely() {
        assert_eq!(Coverage::sparsest_stride(64 * 64), 1);
        assert_eq!(Coverage::sparsest_stride(1 << 16), 16, "256 MiB");
        assert_eq!(Coverage::sparsest_stride(1 << 28), MAX_STRIDE, "1 TiB");
        assert!(Coverage::one_in(0, 1).is_all());
    }

    proptest! {
        #[test]
        fn each_page_is_stood_for_once(pages in 1u64..20_000, stride in 1u32..80, seed in any::<u32>()) {
            let coverage = Coverage::one_in(stride, seed);
            let mut times = vec![0u8; pages as usize];
            let mut reached = 0;
            for run in coverage.runs(pages) {
                prop_assert!(run.first >= reached && run.count > 0);
                reached = run.end();
                for page in run.pages() {
                    prop_assert_eq!(coverage.stands_for(page, pages), page);
                    for stood in coverage.stood_for(PageRun::single(page), pages) {
                        times[stood.first as usize] += 1;
                    }
                }
            }
            // All but some of the last group, whose chunk may be a short one.
            let whole = pages / (u64::from(coverage.stride()) * CHUNK_PAGES) * u64::from(coverage.stride()) * CHUNK_PAGES;
            prop_assert!(times[..whole as usize].iter().all(|&times| times == 1));
            prop_assert!(times.iter().all(|&times| times <= 1));
            let looked = coverage.pages(pages);
            prop_assert!(looked * u64::from(coverage.stride()) + 64 * 64 * u64::from(coverage.stride()) >= pages);
        }
    }
}
