//! The source's book of pages: what the destination still lacks, and what crossed before.

use crate::bitmap::PageBitmap;
use crate::pages::PageRun;

/// Which pages have to cross and which have crossed.
///
/// *Pending* is the truth the migration works off: a page is pending while the destination lacks its current
/// content. It is taken off at the moment it is *claimed* for sending, before it is read: a write that comes
/// later is seen by the tracker and makes it pending again, so a claim never loses one. Holes are never
/// pending: the destination's memory starts as one hole.
#[derive(Clone, Debug)]
pub struct Ledger {
    pending: PageBitmap,
    sent: PageBitmap,
    holes: u64,
}

impl Ledger {
    /// The book at the start: `data` are the pages that hold anything.
    pub fn new(data: PageBitmap) -> Self {
        let (pages, held) = (data.len(), data.count());
        Self {
            pending: data,
            sent: PageBitmap::new(pages),
            holes: pages - held,
        }
    }

    /// The pages whose current content the destination lacks.
    pub fn pending(&self) -> &PageBitmap {
        &self.pending
    }

    /// The pages that crossed at least once.
    pub fn sent(&self) -> &PageBitmap {
        &self.sent
    }

    /// Pages that were holes at the start.
    pub fn holes(&self) -> u64 {
        self.holes
    }

    /// Pages the guest wrote: the destination lacks them (again).
    pub fn dirtied(&mut self, pages: &PageBitmap) {
        self.pending.union_with(pages);
    }

    /// Pages that crossed, but not so that the destination could make anything of them: it lacks them still.
    pub fn missed(&mut self, pages: &PageBitmap) {
        self.pending.union_with(pages);
    }

    /// Claims `run` for sending; answers how many of its pages had crossed before.
    pub fn claim(&mut self, run: PageRun) -> u64 {
        let resent = self.sent.count_in(run);
        self.pending.remove_run(run);
        self.sent.insert_run(run);
        resent
    }

    /// Pages that became holes: those that crossed cross again (as zero), the others need not cross at all.
    pub fn discarded(&mut self, pages: &PageBitmap) {
        let mut never_sent = pages.clone();
        never_sent.subtract(&self.sent);
        self.pending.subtract(&never_sent);
        let mut stale = pages.clone();
        stale.intersect_with(&self.sent);
        self.pending.union_with(&stale);
    }

    /// Drops pages the guest does not use, unless an old version crossed (it must read as zero or stay
    /// current, never be stale). Answers which were pending.
    pub fn drop_free(&mut self, free: &PageBitmap) -> PageBitmap {
        let mut dropped = free.clone();
        dropped.subtract(&self.sent);
        dropped.intersect_with(&self.pending);
        self.pending.subtract(&dropped);
        dropped
    }

    /// After a broken connection: the destination says what it lacks, whatever was claimed.
    pub fn reset_pending(&mut self, lacking: PageBitmap) {
        self.pending = lacking;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pages: &[u64]) -> PageBitmap {
        let mut set = PageBitmap::new(16);
        pages.iter().for_each(|&page| {
            set.insert(page);
        });
        set
    }

    /// Pages 0 to 7 hold data; 0 to 3 crossed, and 0 and 1 were written since.
    fn half_sent() -> Ledger {
        let mut ledger = Ledger::new(set(&[0, 1, 2, 3, 4, 5, 6, 7]));
        assert_eq!(ledger.claim(PageRun::new(0, 4)), 0);
        ledger.dirtied(&set(&[0, 1]));
        ledger
    }

    #[test]
    fn a_claim_counts_what_crosses_again() {
        let mut ledger = half_sent();
        assert_eq!((ledger.holes(), ledger.pending().count()), (8, 6));
        assert_eq!(ledger.claim(PageRun::new(0, 6)), 4);
        assert_eq!(ledger.pending(), &set(&[6, 7]));
        assert_eq!(ledger.sent(), &set(&[0, 1, 2, 3, 4, 5]));
    }

    #[test]
    fn a_free_page_is_dropped_unless_an_old_version_crossed() {
        let mut ledger = half_sent();
        // 0 would be stale there, 2 is current there, 9 is a hole.
        assert_eq!(ledger.drop_free(&set(&[0, 2, 4, 5, 9])), set(&[4, 5]));
        assert_eq!(ledger.pending(), &set(&[0, 1, 6, 7]));
    }

    #[test]
    fn a_discarded_page_crosses_as_zero_if_it_crossed_before() {
        let mut ledger = half_sent();
        ledger.discarded(&set(&[1, 2, 4, 9]));
        assert_eq!(ledger.pending(), &set(&[0, 1, 2, 5, 6, 7]));
    }

    #[test]
    fn after_a_reconnect_the_destination_says_what_it_lacks() {
        let mut ledger = half_sent();
        ledger.reset_pending(set(&[3, 7]));
        assert_eq!(ledger.pending(), &set(&[3, 7]));
        assert_eq!(ledger.claim(PageRun::single(3)), 1);
    }
}
