//! Units: what is counted in place of the pages of a large guest.
//!
//! A file of some hundred bytes may say that it is of a guest of 64 TiB, and a number for each page of that would take 64 GiB. So
//! from [`MOST_UNITS`] pages on one *unit* stands for several pages in a row: it is dirty when one page of it, chosen by chance
//! once and for all, is. Scattered writes and dense ones scale alike (as in `sim::units`).

use vmferry_core::{PageBitmap, PageRun};

use crate::page_set::PageSet;

/// Units at most: guests of up to 16 GiB are counted page by page.
const MOST_UNITS: u64 = 1 << 22;

/// How pages map to units.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Units {
    pages: u64,
    per: u64,
}

impl Units {
    /// Of a guest of `pages` pages.
    pub(crate) fn new(pages: u64) -> Self {
        Self {
            pages,
            per: pages.div_ceil(MOST_UNITS).max(1),
        }
    }

    /// Pages of a unit; the last one may have fewer.
    pub(crate) fn per(self) -> u64 {
        self.per
    }

    /// How many there are.
    pub(crate) fn count(self) -> u64 {
        self.pages.div_ceil(self.per)
    }

    /// Adds the units of `pages` to `units`.
    pub(crate) fn add(self, pages: &PageSet, units: &mut PageBitmap) {
        match self.per {
            1 => pages.add_to(units),
            _ => pages.runs().for_each(|run| self.add_run(run, units)),
        }
    }

    fn add_run(self, run: PageRun, units: &mut PageBitmap) {
        for unit in run.first / self.per..=(run.end() - 1) / self.per {
            if run.contains(self.chosen(unit)) {
                units.insert(unit);
            }
        }
    }

    fn chosen(self, unit: u64) -> u64 {
        let first = unit * self.per;
        first + scattered(unit) % self.per.min(self.pages - first)
    }
}

/// A number that looks like chance, and another one than those that choose what is looked at: the finalizer of MurmurHash3.
fn scattered(value: u64) -> u64 {
    let mut h = value.wrapping_add(0x5851_f42d_4c95_7f2d);
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_and_dense_writes_scale_alike() {
        // 1 TiB.
        let units = Units::new(1 << 28);
        assert_eq!((units.per(), units.count()), (64, 1 << 22));
        let dense = PageSet::from_runs([PageRun::new(1000, 1 << 22)]);
        let scattered = PageSet::from_runs((0..1 << 22).map(|page| PageRun::single(page * 64 + 1)));
        for set in [dense, scattered] {
            let mut found = PageBitmap::new(units.count());
            units.add(&set, &mut found);
            let pages = found.count() * units.per();
            let share = pages as f64 / f64::from(1 << 22);
            assert!((share - 1.0).abs() < 0.03, "{share}");
        }
    }

    #[test]
    fn a_guest_that_is_small_enough_is_counted_in_pages() {
        let units = Units::new(1000);
        let mut all = PageBitmap::new(units.count());
        units.add(&PageSet::from_runs([PageRun::new(3, 5)]), &mut all);
        assert!(all.pages().eq(3..8));
    }
}
