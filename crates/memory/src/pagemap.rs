//! PAGEMAP_SCAN: which pages of a process were written, or are there, read from outside.

use std::fs::File;
use std::ops::Range;

use linux_raw_sys::general::{
    PAGE_IS_PRESENT, PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC, PM_SCAN_WP_MATCHING, page_region, pm_scan_arg,
};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};

use crate::{Error, PAGE_SIZE, Result};

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: Opcode = 0xC060_6610;
/// Runs of pages the kernel reports at once; a scan takes as many requests as it needs.
const REGIONS: usize = 2048;

/// Scans the page tables of one process by `/proc/PID/pagemap`, with addresses of that process.
///
/// A process that has exited has no pages left, and every scan of it is empty: watch its pidfd beside this.
pub struct PagemapScanner {
    pagemap: File,
    regions: Box<[page_region; REGIONS]>,
}

impl PagemapScanner {
    /// Opens the page map of process `pid`.
    ///
    /// # Errors
    /// There is no such process, we may not look into it, or [`Error::NoPagemapScan`].
    pub fn open(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/pagemap");
        let pagemap = File::open(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::ProcessGone,
            _ => Error::system(
                format!("open {path} (it takes the rights to trace the process)"),
                e,
            ),
        })?;
        let none = page_region {
            start: 0,
            end: 0,
            categories: 0,
        };
        let mut scanner = PagemapScanner {
            pagemap,
            regions: Box::new([none; REGIONS]),
        };
        // An empty range costs nothing and tells whether the kernel knows the request.
        match scanner.request(&(0..0), PAGE_IS_PRESENT, 0) {
            Ok(_) => Ok(scanner),
            Err(source) => Err(Error::NoPagemapScan {
                source: source.into(),
            }),
        }
    }

    /// Reports to `found` every run of pages of `range` written since it was last protected, in order, and gives
    /// back how many pages that were. With `rearm`, the same pass over the page tables protects them again:
    /// there is no moment in which a write goes unseen. Pages whose mapping was dropped since (the file still
    /// has what was written) count as written.
    ///
    /// `range` must be registered [`crate::Mode::WP`] with a userfaultfd with [`crate::Features::WP_ASYNC`].
    ///
    /// # Errors
    /// [`Error::NotTracked`] when a part of `range` is not registered so. After any error in a scan with `rearm`,
    /// pages may have been protected again without being reported: take all of `range` for written.
    pub fn scan_written(
        &mut self,
        range: Range<u64>,
        rearm: bool,
        found: impl FnMut(Range<u64>),
    ) -> Result<u64> {
        let rearming = if rearm { PM_SCAN_WP_MATCHING } else { 0 };
        self.scan(range, PAGE_IS_WRITTEN, PM_SCAN_CHECK_WPASYNC | rearming, found)
    }

    /// Reports to `found` every run of pages of `range` that the process has mapped, in order; gives back how
    /// many pages that were.
    ///
    /// # Errors
    /// The kernel refuses the range.
    pub fn scan_present(&mut self, range: Range<u64>, found: impl FnMut(Range<u64>)) -> Result<u64> {
        self.scan(range, PAGE_IS_PRESENT, 0, found)
    }

    fn scan(
        &mut self,
        range: Range<u64>,
        category: u32,
        flags: u32,
        mut found: impl FnMut(Range<u64>),
    ) -> Result<u64> {
        let mut pages = 0;
        // A run that the bound of one request cut in two is reported whole.
        let mut run: Range<u64> = range.start..range.start;
        let mut at = range.start;
        while at < range.end {
            let (count, walked_to) =
                self.request(&(at..range.end), category, flags)
                    .map_err(|e| match e {
                        Errno::PERM => Error::NotTracked {
                            start: range.start,
                            end: range.end,
                        },
                        Errno::SRCH => Error::ProcessGone,
                        _ => Error::system(format!("scan pages {:#x}..{:#x}", range.start, range.end), e),
                    })?;
            for region in &self.regions[..count] {
                pages += (region.end - region.start) / PAGE_SIZE as u64;
                if region.start == run.end {
                    run.end = region.end;
                    continue;
                }
                if !run.is_empty() {
                    found(run);
                }
                run = region.start..region.end;
            }
            at = walked_to;
        }
        if !run.is_empty() {
            found(run);
        }
        Ok(pages)
    }

    /// One request: gives back how many regions were filled, and how far the kernel walked.
    fn request(&mut self, range: &Range<u64>, category: u32, flags: u32) -> Result<(usize, u64), Errno> {
        let mut argument = pm_scan_arg {
            size: size_of::<pm_scan_arg>() as u64,
            flags: flags.into(),
            start: range.start,
            end: range.end,
            walk_end: 0,
            vec: self.regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            max_pages: 0,
            category_inverted: 0,
            // The kernel has a fast path for exactly this shape, and only that one takes a page whose mapping
            // was dropped after a write for written: never ask for other categories together with WRITTEN.
            category_mask: category.into(),
            category_anyof_mask: 0,
            return_mask: category.into(),
        };
        // SAFETY: `vec` points to `vec_len` regions, exclusively ours, which the kernel fills from the start.
        let count = unsafe { rustix::ioctl::ioctl(&self.pagemap, Scan(&mut argument)) }?;
        Ok((count, argument.walk_end))
    }
}

/// The request itself; unlike rustix's patterns it keeps the answer, the number of regions filled.
struct Scan<'a>(&'a mut pm_scan_arg);

// SAFETY: the opcode takes a `pm_scan_arg`, which the kernel reads and updates in place.
unsafe impl Ioctl for Scan<'_> {
    type Output = usize;

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        PAGEMAP_SCAN
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(count: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<usize> {
        Ok(count as usize)
    }
}
