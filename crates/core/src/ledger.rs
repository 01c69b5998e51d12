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
    /// current, never be stale). Answers how many were pending.
    pub fn drop_free(&mut self, free: &PageBitmap) -> u64 {
        let mut dropped = free.clone();
        dropped.subtract(&self.sent);
        dropped.intersect_with(&self.pending);
        self.pending.subtract(&dropped);
        dropped.count()
    }

    /// After a broken connection: the destination says what it lacks, whatever was claimed.
    pub fn reset_pending(&mut self, lacking: PageBitmap) {
        self.pending = lacking;
    }
}
