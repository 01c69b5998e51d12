//! The pages of a RAM file that a process writes, found by write protection and scans.

use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Features, Mapping, Mode, PAGE_SIZE, PagemapScanner, Result, Userfaultfd};

/// Tracks writes to a RAM file by one process, through all the mappings the process has of it.
///
/// The process's userfaultfd protects the pages once; from then on the kernel resolves write faults by itself
/// (`WP_ASYNC`), and a scan of the page tables tells which pages were written and protects them again in the same
/// pass. A scan of clean memory costs well under a millisecond a GiB; each page written costs its writer about a
/// microsecond a scan, so scan no more often than a decision needs.
///
/// # What a scan cannot see
/// * *Holes.* A page punched out of the file (balloon) reads as zero and does not count as written. Compare
///   [`crate::SharedMemory::data_extents`] before and after: what was data and is a hole now is *now zero*.
/// * *Direct I/O.* A disk opened with O_DIRECT pins a page, faults once at submission and writes later: a scan
///   between the two misses the data. The caller closes this, whoever owns the guest's clock: protect first while
///   the guest is stopped, and re-send at the end what was reported during the live rounds.
/// * *Writes by others*: through another process's mapping (vhost-user), or by `write` on the file.
///
/// Pages that hold data from before [`WpAsyncTracker::arm`] do not count as written.
pub struct WpAsyncTracker {
    uffd: Arc<Userfaultfd>,
    scanner: PagemapScanner,
    mappings: Vec<Mapping>,
    /// The parts of them that are tracked, where it is not all.
    parts: Option<Vec<Mapping>>,
    armed: bool,
}

impl WpAsyncTracker {
    /// A tracker over `mappings`, all of one process: the one that `uffd` was made in and that `scanner` reads.
    /// Nothing is tracked yet.
    ///
    /// `uffd` may be new or taken over from an earlier daemon, and may serve several trackers.
    ///
    /// # Errors
    /// The kernel lacks the features ([`Error::FeaturesMissing`]), or `uffd` was set up for something else
    /// ([`Error::FeaturesFixed`]).
    pub fn new(uffd: Arc<Userfaultfd>, scanner: PagemapScanner, mappings: Vec<Mapping>) -> Result<Self> {
        uffd.handshake(Features::TRACKING)?;
        Ok(WpAsyncTracker {
            uffd,
            scanner,
            mappings,
            parts: None,
            armed: false,
        })
    }

    /// The mappings that are tracked.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Whether tracking is on.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Starts tracking: every page counts as clean from now on, also those that do not exist yet. Costs about
    /// 20 ms a GiB of populated memory. Arming again starts afresh.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`] when another userfaultfd has a mapping (an earlier daemon's: find it by
    /// [`crate::RemoteProcess::find_userfaultfds`]); the process is gone or has changed its mappings. Nothing
    /// is tracked then.
    pub fn arm(&mut self) -> Result<()> {
        self.parts = None;
        self.protect()
    }

    /// The same for the pages of these ranges of the file (bytes) only: writes to others are not reported, and cost the
    /// writer nothing.
    ///
    /// # Errors
    /// As [`WpAsyncTracker::arm`].
    pub fn arm_only(&mut self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<()> {
        let ranges: Vec<Range<u64>> = ranges.into_iter().collect();
        let within = |mapping: &Mapping, range: &Range<u64>| {
            let from = mapping.file_offset;
            let start = range.start.max(from);
            let end = range
                .end
                .min(from + (mapping.addresses.end - mapping.addresses.start));
            (start < end).then(|| Mapping {
                addresses: mapping.addresses.start + (start - from)..mapping.addresses.start + (end - from),
                file_offset: start,
            })
        };
        let of = |mapping| ranges.iter().filter_map(move |range| within(mapping, range));
        self.parts = Some(self.mappings.iter().flat_map(of).collect());
        self.protect()
    }

    fn protect(&mut self) -> Result<()> {
        let mut registered = 0;
        let whole = self.mappings.iter().try_for_each(|mapping| {
            self.uffd.register(mapping.addresses.clone(), Mode::WP)?;
            registered += 1;
            Ok(())
        });
        let armed = whole.and_then(|()| {
            self.tracked()
                .iter()
                .try_for_each(|part| self.uffd.write_protect(part.addresses.clone(), true))
        });
        let had_all = std::mem::replace(&mut self.armed, armed.is_ok());
        if armed.is_err() {
            // What is its own, and nothing else: kernels before 6.17 also let go what another userfaultfd has, and a guest whose
            // pages still arrive would read zeros.
            let own = if had_all { self.mappings.len() } else { registered };
            for mapping in &self.mappings[..own] {
                let _ = self.uffd.unregister(mapping.addresses.clone());
            }
        }
        armed
    }

    /// Reports to `found` the ranges of the file (bytes) written since the last scan, or since arming, and starts
    /// over with them, in one pass. Gives back how many pages that were. A page written through two mappings
    /// is reported twice.
    ///
    /// # Errors
    /// Tracking is off, the process changed its mappings, or the kernel refuses. Then every page must be taken
    /// for written: part of the reports may be lost.
    pub fn scan(&mut self, found: &mut impl FnMut(Range<u64>)) -> Result<u64> {
        self.scan_mappings(true, found)
    }

    /// As [`WpAsyncTracker::scan`], but the same pages will be reported again.
    ///
    /// # Errors
    /// As there; no report is lost.
    pub fn peek(&mut self, found: &mut impl FnMut(Range<u64>)) -> Result<u64> {
        self.scan_mappings(false, found)
    }

    fn scan_mappings(&mut self, rearm: bool, found: &mut impl FnMut(Range<u64>)) -> Result<u64> {
        let mut pages = 0;
        let tracked = self.parts.as_deref().unwrap_or(&self.mappings);
        for Mapping {
            addresses,
            file_offset,
        } in tracked
        {
            if !self.armed {
                return Err(Error::NotTracked {
                    start: addresses.start,
                    end: addresses.end,
                });
            }
            pages += self.scanner.scan_written(addresses.clone(), rearm, |written| {
                let start = written.start - addresses.start + file_offset;
                found(start..start + (written.end - written.start));
            })?;
        }
        Ok(pages)
    }

    /// Ends tracking: protection is lifted and the guest runs at full speed again. Dropping the tracker does the
    /// same.
    ///
    /// # Errors
    /// The process is gone or has unmapped a range; the other mappings are let go even so.
    pub fn disarm(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.armed) {
            return Ok(());
        }
        let results = self
            .mappings
            .iter()
            .map(|mapping| self.uffd.unregister(mapping.addresses.clone()));
        results.fold(Ok(()), std::result::Result::and)
    }

    /// The mappings, or the parts of them, that are tracked.
    fn tracked(&self) -> &[Mapping] {
        self.parts.as_deref().unwrap_or(&self.mappings)
    }

    /// Bytes of guest memory that are tracked, counting each mapping.
    pub fn tracked_bytes(&self) -> u64 {
        self.tracked()
            .iter()
            .map(|m| m.addresses.end - m.addresses.start)
            .sum()
    }

    /// Pages that are tracked, counting each mapping.
    pub fn tracked_pages(&self) -> u64 {
        self.tracked_bytes() / PAGE_SIZE as u64
    }
}

impl Drop for WpAsyncTracker {
    fn drop(&mut self) {
        // A process that is gone has nothing left to let go.
        let _ = self.disarm();
    }
}
