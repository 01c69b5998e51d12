//! The state of a sample. Source: data-filter paper, sections 3.1 and 3.3: "only the hottest region is used to
//! describe the corresponding state. Meanwhile, other hot spot regions are still recorded and associated to the
//! state."

use std::time::Duration;

use super::regions::Regions;
use crate::bitmap::PageBitmap;

/// A state: the number of the hottest region, or one more than the last region where nothing was written.
pub type State = u16;

/// What a sample shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// The state.
    pub state: State,
    /// The hot regions, the hottest among them, ascending.
    pub hot: Vec<u32>,
}

/// The state that `dirty` shows: the region with most dirty pages, of several the lowest. A region is hot that has
/// `hot_percent` of them.
pub fn observe(regions: &Regions, dirty: &PageBitmap, hot_percent: u32) -> Observed {
    let dirty_pages = regions.dirty_pages(dirty);
    let most = dirty_pages.iter().copied().max().unwrap_or(0);
    if most == 0 {
        return Observed {
            state: regions.count() as State,
            hot: Vec::new(),
        };
    }
    let is_hot = |dirty: u32| dirty > 0 && u64::from(dirty) * 100 >= u64::from(most) * u64::from(hot_percent);
    let hottest = dirty_pages.iter().position(|&dirty| dirty == most).unwrap_or(0);
    Observed {
        state: hottest as State,
        hot: (0..regions.count())
            .filter(|&region| is_hot(dirty_pages[region as usize]))
            .collect(),
    }
}

/// Puts scans together to samples of one length: rounds end, and scan, whenever they do.
#[derive(Clone, Debug)]
pub struct Sampler {
    interval: Duration,
    dirty: PageBitmap,
    begun: Duration,
}

impl Sampler {
    /// Samples of `interval`, the first from `now` on.
    pub fn new(pages: u64, interval: Duration, now: Duration) -> Self {
        Self {
            interval,
            dirty: PageBitmap::new(pages),
            begun: now,
        }
    }

    /// A scan came; answers the sample that it completes. A tenth of the interval may be missing: scans come when
    /// they come.
    pub fn scanned(&mut self, now: Duration, scan: &PageBitmap) -> Option<PageBitmap> {
        self.dirty.union_with(scan);
        if (now.saturating_sub(self.begun)) * 10 < self.interval * 9 {
            return None;
        }
        self.begun = now;
        let pages = self.dirty.len();
        Some(std::mem::replace(&mut self.dirty, PageBitmap::new(pages)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PageRun;
    use crate::tuning::Tuning;

    /// Ten regions of ten pages.
    fn regions() -> Regions {
        let tuning = Tuning {
            regions: Some(10),
            ..Tuning::default()
        };
        Regions::new(100, &tuning)
    }

    fn dirty(runs: &[(u64, u64)]) -> PageBitmap {
        let mut dirty = PageBitmap::new(100);
        runs.iter()
            .for_each(|&(first, count)| dirty.insert_run(PageRun::new(first, count)));
        dirty
    }

    #[test]
    fn the_hottest_region_is_the_state_and_others_are_kept() {
        let seen = observe(&regions(), &dirty(&[(32, 11), (70, 4), (99, 1)]), 50);
        assert_eq!(
            (seen.state, seen.hot),
            (3, vec![3, 7]),
            "region 4 has 3 pages, a half of 8 are 4"
        );
        let seen = observe(&regions(), &dirty(&[(32, 11), (70, 4), (99, 1)]), 12);
        assert_eq!((seen.state, seen.hot), (3, vec![3, 4, 7, 9]));
        let tie = observe(&regions(), &dirty(&[(50, 2), (20, 2)]), 100);
        assert_eq!((tie.state, tie.hot), (2, vec![2, 5]));
    }

    #[test]
    fn an_idle_guest_has_a_state_of_its_own() {
        let seen = observe(&regions(), &dirty(&[]), 1);
        assert_eq!((seen.state, seen.hot), (10, vec![]));
    }

    #[test]
    fn scans_add_up_to_samples_of_one_length() {
        let at = Duration::from_millis;
        let mut sampler = Sampler::new(100, at(50), at(1000));
        assert_eq!(sampler.scanned(at(1020), &dirty(&[(1, 1)])), None);
        assert_eq!(sampler.scanned(at(1044), &dirty(&[(5, 1)])), None);
        let whole = sampler.scanned(at(1046), &dirty(&[(9, 1)])).unwrap();
        assert_eq!(whole, dirty(&[(1, 1), (5, 1), (9, 1)]));
        assert_eq!(sampler.scanned(at(1090), &dirty(&[])), None);
        assert_eq!(sampler.scanned(at(1091), &dirty(&[])), Some(dirty(&[])));
    }
}
