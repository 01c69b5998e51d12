//! Near faults first: what lies around a page the guest just demanded is likely to be demanded next. Source: Hines
//! and Gopalan, "Post-copy based live virtual machine migration using adaptive pre-paging and dynamic
//! self-ballooning" (VEE 2009), section 3.2; unlike `post-copy-push` each fault lifts only a bounded neighbourhood,
//! so that an order by heat goes on after it.

use crate::bitmap::PageBitmap;
use crate::pages::PageRun;

/// Pages to either side of a fault that go first: 128 KiB, a read-ahead.
const REACH_PAGES: u64 = 32;
/// Faults whose neighbourhood waits at most; older ones are stale.
const MOST: usize = 7;

/// The neighbourhoods of the last faults, the newest first.
#[derive(Debug, Default)]
pub(crate) struct NearFaults {
    pivots: Vec<u64>,
}

impl NearFaults {
    /// The guest demanded `page`.
    pub(crate) fn faulted(&mut self, page: u64) {
        self.pivots.retain(|&pivot| pivot != page);
        self.pivots.truncate(MOST - 1);
        self.pivots.insert(0, page);
    }

    /// The next pages left near the newest fault that has any: first those after it, for most accesses ascend.
    pub(crate) fn next(&mut self, left: &PageBitmap, max_pages: u64) -> Option<PageRun> {
        while let Some(&pivot) = self.pivots.first() {
            let low = pivot.saturating_sub(REACH_PAGES);
            let within = |run: &PageRun| run.first <= pivot + REACH_PAGES;
            let after = left.next_run(pivot, max_pages).filter(within);
            if let Some(run) = after.or_else(|| left.next_run(low, max_pages).filter(within)) {
                let most = pivot + REACH_PAGES + 1 - run.first;
                return Some(PageRun::new(run.first, run.count.min(most)));
            }
            self.pivots.remove(0);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_fault_comes_first_and_only_its_neighbourhood() {
        let mut left = PageBitmap::full(1000);
        let mut near = NearFaults::default();
        assert_eq!(near.next(&left, 8), None);
        for page in [100, 500] {
            left.remove(page);
            near.faulted(page);
        }
        let mut order = Vec::new();
        while let Some(run) = near.next(&left, 64) {
            left.remove_run(run);
            order.push(run);
        }
        let expected = [(501, 32), (468, 32), (101, 32), (68, 32)];
        assert_eq!(order, expected.map(|(first, count)| PageRun::new(first, count)));
    }

    #[test]
    fn a_page_beyond_ram_is_no_trouble() {
        let mut near = NearFaults::default();
        near.faulted(u64::MAX / 2);
        assert_eq!(near.next(&PageBitmap::full(10), 4), None);
    }
}
