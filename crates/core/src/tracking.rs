//! Making dirty tracking exact in the presence of direct I/O.
//!
//! A disk opened with O_DIRECT pins a page of guest RAM when a read is submitted: that is when the write fault
//! is recorded. A scan between submission and completion reports the page and protects it again, the page is
//! sent, and then the data arrives through the pin, unseen. So a page that a *live* scan reported may have to
//! cross again. A scan while the guest is stopped has no such page: stopping drains I/O. [`Tracking`] therefore
//! remembers every page that live scans reported since the last scan at a stop (the *unsettled* pages), and
//! hands them out again at the next one. Tracking itself must be armed during a stop for the same reason.

use crate::bitmap::PageBitmap;

/// Where the guest was during a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanPoint {
    /// It ran: the scan may have missed direct I/O under way.
    Live,
    /// It was stopped and its I/O was drained: the scan is exact.
    Stopped,
}

/// The unsettled pages of a guest; see the module.
#[derive(Debug)]
pub struct Tracking {
    pinned_io: bool,
    unsettled: PageBitmap,
}

impl Tracking {
    /// Tracking of a guest of `pages` pages, which may have pinned I/O or not.
    pub fn new(pages: u64, pinned_io: bool) -> Self {
        Self {
            pinned_io,
            unsettled: PageBitmap::new(pages),
        }
    }

    /// Takes a scan in and answers which pages the destination lacks because of it.
    pub fn record(&mut self, mut scanned: PageBitmap, at: ScanPoint) -> PageBitmap {
        if !self.pinned_io {
            return scanned;
        }
        match at {
            ScanPoint::Live => self.unsettled.union_with(&scanned),
            ScanPoint::Stopped => {
                scanned.union_with(&self.unsettled);
                self.unsettled.clear();
            }
        }
        scanned
    }

    /// Pages that a stop would bring back although they crossed.
    pub fn unsettled(&self) -> &PageBitmap {
        &self.unsettled
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(pages: &[u64]) -> PageBitmap {
        let mut set = PageBitmap::new(64);
        pages.iter().for_each(|&page| {
            set.insert(page);
        });
        set
    }

    #[test]
    fn a_stop_brings_live_pages_back_once() {
        let mut tracking = Tracking::new(64, true);
        assert_eq!(tracking.record(set(&[1, 2]), ScanPoint::Live), set(&[1, 2]));
        assert_eq!(tracking.record(set(&[3]), ScanPoint::Live), set(&[3]));
        assert_eq!(tracking.record(set(&[9]), ScanPoint::Stopped), set(&[1, 2, 3, 9]));
        assert_eq!(tracking.record(set(&[]), ScanPoint::Stopped), set(&[]));
    }

    proptest! {
        /// A model of pinned I/O: each operation marks its page when it is submitted and writes when it is
        /// completed; a stop completes all of them. Whatever the order, after the last stop every page written
        /// since it was last sent is among those to send.
        #[test]
        fn no_direct_write_is_lost(steps in prop::collection::vec((0u8..4, 0u64..64), 1..60)) {
            let mut tracking = Tracking::new(64, true);
            let (mut marked, mut in_flight) = (PageBitmap::new(64), Vec::new());
            // Versions: of the guest's page, and of the copy at the destination.
            let (mut memory, mut copy) = ([0u32; 64], [0u32; 64]);
            let stop = |tracking: &mut Tracking, marked: &mut PageBitmap, in_flight: &mut Vec<u64>,
                            memory: &mut [u32; 64], copy: &mut [u32; 64], live: bool| {
                if !live {
                    in_flight.drain(..).for_each(|page| memory[page as usize] += 1);
                }
                let scanned = std::mem::replace(marked, PageBitmap::new(64));
                let point = if live { ScanPoint::Live } else { ScanPoint::Stopped };
                for page in tracking.record(scanned, point).pages() {
                    copy[page as usize] = memory[page as usize];
                }
            };
            for (step, page) in steps {
                match step {
                    0 => { marked.insert(page); in_flight.push(page); }
                    1 => { in_flight.pop().into_iter().for_each(|page| memory[page as usize] += 1); }
                    2 => stop(&mut tracking, &mut marked, &mut in_flight, &mut memory, &mut copy, true),
                    _ => stop(&mut tracking, &mut marked, &mut in_flight, &mut memory, &mut copy, false),
                }
            }
            stop(&mut tracking, &mut marked, &mut in_flight, &mut memory, &mut copy, false);
            prop_assert_eq!(memory, copy);
        }
    }
}
