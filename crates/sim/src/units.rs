//! Units: what a simulation counts in place of pages.
//!
//! A guest of a TiB has 2^28 pages, and each bitmap of them is 32 MiB. So from [`MOST_UNITS`] pages on one *unit* stands for
//! several pages in a row. It is dirty when one page of it, chosen by chance once and for all, is: scattered writes and
//! dense ones scale alike, and so does a hot set, where "any page of it" would make a guest of scattered writes many times
//! as busy.
//!
//! A guest that waits for a unit after its resume does so for each page of it, one after the other: a demand that is answered stands
//! for as many faults, whose bytes cross at once and each of which takes a round trip ([`Units::per`] of them). One that finds the unit
//! on its way already is one fault: the others find their pages in place.

use vmferry_core::{PageBitmap, PageRun};

/// Units at most, where nothing is said: guests of up to 4 GiB are simulated page by page.
pub const MOST_UNITS: u64 = 1 << 20;

/// How pages map to units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Units {
    pages: u64,
    per: u64,
}

impl Units {
    /// For a guest of `pages` pages, at most `most` units.
    pub(crate) fn new(pages: u64, most: u64) -> Self {
        Self {
            pages,
            per: pages.div_ceil(most.max(1)).max(1),
        }
    }

    /// Pages of RAM.
    pub(crate) fn pages(self) -> u64 {
        self.pages
    }

    /// Pages of a unit; the last one may have fewer.
    pub(crate) fn per(self) -> u64 {
        self.per
    }

    /// How many there are.
    pub(crate) fn count(self) -> u64 {
        self.pages.div_ceil(self.per)
    }

    /// Adds the units whose chosen page lies in `pages`.
    pub(crate) fn add(self, pages: PageRun, units: &mut PageBitmap) {
        if self.per == 1 {
            units.insert_run(pages);
            return;
        }
        for unit in pages.first / self.per..=(pages.end() - 1) / self.per {
            if pages.contains(self.chosen(unit)) {
                units.insert(unit);
            }
        }
    }

    fn chosen(self, unit: u64) -> u64 {
        let first = unit * self.per;
        first + mix(unit) % self.per.min(self.pages - first)
    }
}

/// A number that looks like chance: splitmix64.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The same from 0 to 1.
pub(crate) fn chance(value: u64) -> f64 {
    (mix(value) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_and_dense_writes_scale_alike() {
        let units = Units::new(1 << 20, 1 << 12);
        assert_eq!((units.per(), units.count()), (256, 1 << 12));
        let mut dense = PageBitmap::new(units.count());
        units.add(PageRun::new(1000, 1 << 18), &mut dense);
        let mut scattered = PageBitmap::new(units.count());
        for page in 0..1 << 18 {
            units.add(PageRun::single(page * 4 + 1), &mut scattered);
        }
        for set in [dense, scattered] {
            let share = set.count() as f64 / f64::from(1 << 12);
            assert!((share - 0.25).abs() < 0.03, "{share}");
        }
    }

    #[test]
    fn a_guest_that_is_small_enough_is_counted_in_pages() {
        let units = Units::new(1000, 1 << 20);
        let mut all = PageBitmap::new(units.count());
        units.add(PageRun::new(3, 5), &mut all);
        assert!(all.pages().eq(3..8));
        assert_eq!(Units::new(1001, 10).count(), 10);
    }
}
