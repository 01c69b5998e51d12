//! Pages that the destination has in a store of its own, as it said: they cross as their hashes.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use vmferry_core::policy::Faults;
use vmferry_core::report::ReuseReport;
use vmferry_core::tracking::ScanPoint;
use vmferry_core::{PAGE_SIZE, PageBitmap};
use vmferry_wire::{PAGE_HASH_BYTES, PageHash};

/// Where the destination missed more pages than this, its store is not what it says: everything crosses whole.
const MOST_MISSED: u64 = 1024;

/// What is known about the destination's store.
pub(super) struct Reuse {
    wanted: bool,
    /// The question was sent, and the answer is not all here.
    awaited: AtomicBool,
    gathered: Mutex<Vec<u64>>,
    held: OnceLock<HashSet<u64>>,
    /// Pages that crossed as hashes in vain: they cross whole from now on.
    missed: Mutex<PageBitmap>,
    /// The destination may be another process by now.
    over: AtomicBool,
    pages: AtomicU64,
    bytes: AtomicU64,
}

impl Reuse {
    pub(super) fn new(wanted: bool, pages: u64) -> Self {
        Self {
            wanted,
            awaited: AtomicBool::new(false),
            gathered: Mutex::default(),
            held: OnceLock::new(),
            missed: Mutex::new(PageBitmap::new(pages)),
            over: AtomicBool::new(false),
            pages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    pub(super) fn wanted(&self) -> bool {
        self.wanted
    }

    /// The question goes out.
    pub(super) fn asked(&self) {
        self.awaited.store(true, Ordering::Release);
    }

    /// Whether the answer is still to come.
    pub(super) fn awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// A part of the answer; of a guest of `pages` pages.
    ///
    /// # Errors
    /// When there are more fingerprints than the guest has pages: how many came.
    pub(super) fn told(&self, fingerprints: &[u64], last: bool, pages: u64) -> Result<(), u64> {
        let mut gathered = self.gathered.lock().unwrap_or_else(PoisonError::into_inner);
        let count = (gathered.len() + fingerprints.len()) as u64;
        if count > pages || !self.awaited() {
            return Err(count);
        }
        gathered.extend_from_slice(fingerprints);
        if last {
            let _ = self
                .held
                .set(std::mem::take(&mut *gathered).into_iter().collect());
            self.awaited.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// What the destination may have, where pages of a batch may cross as hashes. At the stop after rounds they do not: they
    /// were just written, and the guest stands still.
    pub(super) fn of_batch(&self, round: u32, point: ScanPoint, faults: Faults) -> Option<&HashSet<u64>> {
        let fitting = point == ScanPoint::Live || faults != Faults::None || round <= 1;
        let held = self.held.get().filter(|held| !held.is_empty())?;
        (fitting && !self.over.load(Ordering::Acquire)).then_some(held)
    }

    /// Whether `page` crossed as its hash in vain.
    pub(super) fn was_missed(&self, page: u64) -> bool {
        self.missed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(page)
    }

    /// The destination does not have these after all.
    pub(super) fn missed(&self, pages: &PageBitmap) {
        let mut missed = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        missed.union_with(pages);
        if missed.count_up_to(MOST_MISSED) == MOST_MISSED {
            self.end();
        }
    }

    /// Everything crosses whole from now on.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// So many pages crossed as hashes, in so many bytes.
    pub(super) fn crossed(&self, pages: u64, bytes: u64) {
        self.pages.fetch_add(pages, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// For the report, where it was asked for.
    pub(super) fn report(&self) -> Option<ReuseReport> {
        let missed_pages = self.missed.lock().unwrap_or_else(PoisonError::into_inner).count();
        let (pages, bytes) = (
            self.pages.load(Ordering::Relaxed),
            self.bytes.load(Ordering::Relaxed),
        );
        let whole = pages.saturating_sub(missed_pages) * PAGE_SIZE;
        self.wanted.then(|| ReuseReport {
            offered_pages: self.held.get().map_or(0, |held| held.len() as u64),
            pages,
            missed_pages,
            bytes_spared: whole as i64 - bytes as i64,
        })
    }
}

/// What a destination says of a page that it may have.
pub(super) fn fingerprint(hash: &PageHash) -> u64 {
    const BEGINNING: usize = size_of::<u64>();
    const _: () = assert!(BEGINNING <= PAGE_HASH_BYTES);
    u64::from_le_bytes(*hash.first_chunk::<BEGINNING>().expect("a hash is longer"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pages: u64) -> Reuse {
        let reuse = Reuse::new(true, pages);
        reuse.asked();
        reuse.told(&[1, 2], false, pages).unwrap();
        assert!(reuse.awaited());
        reuse.told(&[3], true, pages).unwrap();
        assert!(!reuse.awaited());
        reuse
    }

    #[test]
    fn no_more_is_taken_than_the_guest_has_pages_and_nothing_that_was_not_asked_for() {
        let reuse = Reuse::new(true, 2);
        assert_eq!(reuse.told(&[1], true, 2), Err(1));
        reuse.asked();
        assert_eq!(reuse.told(&[1, 2, 3], true, 2), Err(3));
    }

    #[test]
    fn hashes_cross_while_the_guest_runs_and_where_pages_are_demanded() {
        let reuse = told(5000);
        let may = |round, point, faults| reuse.of_batch(round, point, faults).is_some();
        assert!(may(3, ScanPoint::Live, Faults::None));
        assert!(may(3, ScanPoint::Stopped, Faults::Missing));
        assert!(!may(3, ScanPoint::Stopped, Faults::None));
        // Stop-and-copy has nothing else.
        assert!(may(1, ScanPoint::Stopped, Faults::None));
    }

    #[test]
    fn a_store_that_lacks_too_much_is_not_relied_on() {
        let reuse = told(5000);
        let mut missed = PageBitmap::new(5000);
        missed.insert(7);
        reuse.missed(&missed);
        assert!(reuse.was_missed(7) && !reuse.was_missed(8));
        assert!(reuse.of_batch(1, ScanPoint::Live, Faults::None).is_some());
        reuse.missed(&PageBitmap::full(5000));
        assert!(reuse.of_batch(1, ScanPoint::Live, Faults::None).is_none());
    }
}
