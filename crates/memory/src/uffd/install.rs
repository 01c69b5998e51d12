//! Installing pages in registered ranges, and protecting them.

use std::ops::Range;

use linux_raw_sys::general::{
    uffdio_continue, uffdio_copy, uffdio_range, uffdio_writeprotect, uffdio_zeropage,
};
use linux_raw_sys::ioctl::{UFFDIO_CONTINUE, UFFDIO_COPY, UFFDIO_WRITEPROTECT, UFFDIO_ZEROPAGE};
use rustix::io::Errno;

use super::{CopyMode, Userfaultfd, as_kernel_range};
use crate::Result;

/// `UFFDIO_WRITEPROTECT_MODE_WP`: protect, rather than lift the protection.
const PROTECT: u64 = 1;
/// How often a request that made no headway (the process is changing its mappings) is tried again at once.
const RETRIES: u32 = 64;

/// How far a request over several pages came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes that were installed by this request, from the start of the range.
    pub installed: u64,
    /// Why it did not go on behind them; `None` when the range is complete.
    pub stopped: Option<Stopped>,
}

/// Why a request stopped at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The page is there already. Whoever waits for it was not woken by this request: [`Userfaultfd::wake`].
    Present,
    /// The file has no such page to map ([`Userfaultfd::continue_range`] only): it must be installed.
    Hole,
    /// The process kept changing its mappings meanwhile. Read events, then try again.
    MappingChanging,
}

impl Outcome {
    /// Whether the whole range was installed.
    pub fn is_complete(&self) -> bool {
        self.stopped.is_none()
    }
}

impl Userfaultfd {
    /// Installs `pages` (whole pages) at `address`, each of which becomes visible as a whole or not at all, and
    /// wakes whoever waits for them. Stops at the first page that is there already.
    ///
    /// # Errors
    /// The range is not registered, or there is no memory; [`crate::Error::ProcessGone`].
    pub fn copy(&self, address: u64, pages: &[u8], mode: CopyMode) -> Result<Outcome> {
        let range = address..address.saturating_add(pages.len() as u64);
        let whole = as_kernel_range(&range)?;
        self.install("install pages at", &range, |done| {
            let rest = &pages[done as usize..];
            let (dst, len) = (whole.start + done, rest.len() as u64);
            let mut request = uffdio_copy {
                dst,
                src: rest.as_ptr() as u64,
                len,
                mode: mode.bits(),
                copy: 0,
            };
            // SAFETY: the opcode takes exactly this struct; the kernel only reads `len` bytes at `src`. What it
            // does at `dst`: see the type.
            let result = unsafe { self.ioctl::<UFFDIO_COPY, _>(&mut request) };
            (result, request.copy)
        })
    }

    /// Installs zero pages in `range`. On shared memory each is allocated, so a hole is best answered only once
    /// it is touched. Wakes whoever waits, unless `mode` says not to. Stops at the first page already there.
    ///
    /// # Errors
    /// As [`Userfaultfd::copy`].
    pub fn zeropage(&self, range: Range<u64>, mode: CopyMode) -> Result<Outcome> {
        as_kernel_range(&range)?;
        self.install("install zero pages at", &range, |done| {
            let rest = range.start + done..range.end;
            let mut request = uffdio_zeropage {
                range: kernel_range(&rest),
                mode: (mode & CopyMode::DONTWAKE).bits(),
                zeropage: 0,
            };
            // SAFETY: the opcode takes exactly this struct.
            let result = unsafe { self.ioctl::<UFFDIO_ZEROPAGE, _>(&mut request) };
            (result, request.zeropage)
        })
    }

    /// Maps pages of `range` that the file already has, in a range registered [`super::Mode::MINOR`], and wakes
    /// whoever waits for them. Stops at a page that is mapped already, and at a hole of the file.
    ///
    /// # Errors
    /// As [`Userfaultfd::copy`].
    pub fn continue_range(&self, range: Range<u64>, mode: CopyMode) -> Result<Outcome> {
        as_kernel_range(&range)?;
        self.install("map pages at", &range, |done| {
            let rest = range.start + done..range.end;
            let mut request = uffdio_continue {
                range: kernel_range(&rest),
                mode: mode.bits(),
                mapped: 0,
            };
            // SAFETY: the opcode takes exactly this struct.
            let result = unsafe { self.ioctl::<UFFDIO_CONTINUE, _>(&mut request) };
            (result, request.mapped)
        })
    }

    /// Protects the pages of `range` against writes, or lifts the protection and wakes writers.
    ///
    /// Protect once, when tracking starts; to protect again what was written, let the scan do it
    /// ([`crate::PagemapScanner::scan_written`]): it is fifty times cheaper.
    ///
    /// # Errors
    /// The range is not registered [`super::Mode::WP`], [`crate::Error::ProcessGone`], or the process keeps changing
    /// its mappings ([`crate::Error::MappingsChanging`]): with [`super::Features::EVENT_REMOVE`] for as long as nobody reads of it.
    pub fn write_protect(&self, range: Range<u64>, protect: bool) -> Result<()> {
        let mode = if protect { PROTECT } else { 0 };
        let mut request = uffdio_writeprotect {
            range: as_kernel_range(&range)?,
            mode,
        };
        for _ in 0..RETRIES {
            // SAFETY: the opcode takes exactly this struct.
            match unsafe { self.ioctl::<UFFDIO_WRITEPROTECT, _>(&mut request) } {
                Err(Errno::AGAIN) => std::thread::yield_now(),
                result => return result.map_err(|e| self.range_error("protect", &range, e)),
            }
        }
        Err(crate::Error::MappingsChanging {
            start: range.start,
            end: range.end,
        })
    }

    /// Repeats `request`, which gets the bytes done so far, until `range` is complete or it stops for good.
    ///
    /// The kernel answers a request that came only part of the way with `EAGAIN` and the bytes it did; only the
    /// next one, from there on, says why it stopped.
    fn install(
        &self,
        verb: &str,
        range: &Range<u64>,
        mut request: impl FnMut(u64) -> (Result<(), Errno>, i64),
    ) -> Result<Outcome> {
        let mut installed = 0;
        let mut idle = 0;
        let stopped = loop {
            match request(installed) {
                (Ok(()), _) => {
                    return Ok(Outcome {
                        installed: range.end - range.start,
                        stopped: None,
                    });
                }
                (Err(Errno::AGAIN), progress) if progress > 0 => {
                    installed += progress as u64;
                    idle = 0;
                }
                (Err(Errno::AGAIN), _) if idle < RETRIES => {
                    idle += 1;
                    std::thread::yield_now();
                }
                (Err(Errno::AGAIN), _) => break Stopped::MappingChanging,
                (Err(Errno::EXIST), _) => break Stopped::Present,
                (Err(Errno::FAULT), _) if verb == "map pages at" => break Stopped::Hole,
                (Err(e), _) => return Err(self.range_error(verb, range, e)),
            }
        };
        Ok(Outcome {
            installed,
            stopped: Some(stopped),
        })
    }
}

/// A range that was checked before.
fn kernel_range(range: &Range<u64>) -> uffdio_range {
    uffdio_range {
        start: range.start,
        len: range.end - range.start,
    }
}
