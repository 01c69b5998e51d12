//! Writes to a RAM file by one process, each held up until somebody has seen to the page.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, Event, Features, Mapping, Mode, PAGE_SIZE, PagemapScanner, Result, Userfaultfd};

/// Most bytes protected by one request: the process's own page faults wait for no longer than that takes.
const PROTECT_AT_ONCE: u64 = 16 << 20;
/// How long a change of the process's mappings may stand in the way: it ends as soon as its thread has run.
const CHANGE_PATIENCE: Duration = Duration::from_secs(10);

/// Something that happened at a [`WriteGate`]. Offsets are bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// A thread wants to write the page at this offset, which is protected, and waits until it is released.
    Write(u64),
    /// The process dropped its mapping of this range. Whether the file still has the pages, the file tells.
    Dropped(Range<u64>),
}

/// Holds up a process's writes to the pages of a RAM file that are protected, through all mappings the process has of
/// it: the page is as it was until it is released. Reads go on, and writes to other pages.
///
/// # Whoever holds writes up may die
/// The descriptor must be the only one: take it with [`crate::RemoteProcess::take_userfaultfd`]. When it is closed,
/// in whatever way our process ends, the kernel lifts all protection and wakes who waits, and the process goes on with
/// its own pages. (Missing pages are another matter: there a copy has to stay open, see [`Userfaultfd`].)
///
/// # What is held up
/// Also writes by the kernel for the process: a system call's, vhost's, and the pinning of a page that a disk
/// opened with O_DIRECT is about to fill. A page pinned *before* it was protected is filled unseen: protect what must
/// not change while the guest is stopped and its I/O drained, or protect it twice, the second time at such a stop.
pub struct WriteGate {
    uffd: Userfaultfd,
    scanner: Mutex<PagemapScanner>,
    mappings: Vec<Mapping>,
    /// Read by who had to, and for [`WriteGate::wait`] to tell.
    kept: Mutex<Vec<Event>>,
}

impl WriteGate {
    /// A gate over `mappings`, all of one process: the one that `uffd` was made in and `scanner` reads. Nothing is
    /// protected yet. With `watch_drops` the process's `madvise` that drops pages is reported too, and waits until it was.
    ///
    /// # Errors
    /// The kernel lacks the features ([`crate::Error::FeaturesMissing`]); another userfaultfd has a mapping
    /// ([`crate::Error::AlreadyRegistered`]); the process is gone. Nothing is registered then.
    pub fn new(
        uffd: Userfaultfd,
        scanner: PagemapScanner,
        mappings: Vec<Mapping>,
        watch_drops: bool,
    ) -> Result<Self> {
        let watched = match watch_drops {
            true => Features::EVENT_REMOVE,
            false => Features::empty(),
        };
        uffd.handshake(Features::HOLDING | watched)?;
        for mapping in &mappings {
            // Whatever was registered before goes with the descriptor.
            uffd.register(mapping.addresses.clone(), Mode::WP)?;
        }
        Ok(WriteGate {
            uffd,
            scanner: Mutex::new(scanner),
            mappings,
            kept: Mutex::default(),
        })
    }

    /// From now on writes to the pages of `range` wait.
    ///
    /// # Errors
    /// The process is gone or changes its mappings: part of the range may be protected.
    pub fn protect(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let next = (at + PROTECT_AT_ONCE).min(range.end);
            for addresses in self.addresses(at..next) {
                self.set(&addresses, true)?;
            }
            at = next;
        }
        Ok(())
    }

    /// Lifts the protection of `range`, and wakes who waits to write there.
    ///
    /// # Errors
    /// As [`WriteGate::protect`].
    pub fn release(&self, range: Range<u64>) -> Result<()> {
        self.addresses(range)
            .try_for_each(|addresses| self.set(&addresses, false))
    }

    /// While a thread of the process waits for us to read that it drops pages, the kernel refuses to change any protection. Whoever
    /// reads that should be here in the middle of an answer, or waits for a lock we hold: so it is read here.
    fn set(&self, addresses: &Range<u64>, protect: bool) -> Result<()> {
        let began = Instant::now();
        loop {
            match self.uffd.write_protect(addresses.clone(), protect) {
                Err(Error::MappingsChanging { .. }) if began.elapsed() < CHANGE_PATIENCE => {
                    self.uffd.read_events(&mut self.kept(), Some(Duration::ZERO))?;
                    std::thread::yield_now();
                }
                done => return done,
            }
        }
    }

    /// Waits at most `timeout` for something to happen, and adds what is there to `held`. A write may come twice.
    ///
    /// # Errors
    /// The userfaultfd cannot be read.
    pub fn wait(&self, timeout: Duration, held: &mut Vec<Held>) -> Result<()> {
        let mut events = std::mem::take(&mut *self.kept());
        let timeout = if events.is_empty() {
            timeout
        } else {
            Duration::ZERO
        };
        self.uffd.read_events(&mut events, Some(timeout))?;
        for event in events {
            match event {
                Event::PageFault { address, .. } => {
                    let page = address / PAGE_SIZE as u64 * PAGE_SIZE as u64;
                    held.extend(self.offsets(page..page + 1).map(|part| Held::Write(part.start)));
                }
                Event::Remove(addresses) | Event::Unmap(addresses) => {
                    held.extend(self.offsets(addresses).map(Held::Dropped));
                }
                Event::Fork { .. } | Event::Remap { .. } => {}
            }
        }
        Ok(())
    }

    /// Reports to `found` the ranges of the file that the process has touched since its mappings were dropped
    /// ([`crate::RemoteProcess::madvise_dontneed`]), or ever. No page beside one that was touched is reported: the kernel
    /// maps no neighbours where a userfaultfd is registered for writes.
    ///
    /// # Errors
    /// The kernel refuses, or the process is gone.
    pub fn scan_touched(&self, found: &mut impl FnMut(Range<u64>)) -> Result<()> {
        let mut scanner = self.scanner.lock().unwrap_or_else(PoisonError::into_inner);
        for Mapping {
            addresses,
            file_offset,
        } in &self.mappings
        {
            scanner.scan_present(addresses.clone(), |present| {
                let start = present.start - addresses.start + file_offset;
                found(start..start + (present.end - present.start));
            })?;
        }
        Ok(())
    }

    /// The mappings at which writes are held up.
    pub fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    /// Lifts all protection for good and lets everybody go on. Dropping the gate does the same.
    ///
    /// # Errors
    /// The process is gone, or has unmapped a range; the other mappings are let go even so.
    pub fn end(&self) -> Result<()> {
        let results = self
            .mappings
            .iter()
            .map(|mapping| self.uffd.unregister(mapping.addresses.clone()));
        results.fold(Ok(()), std::result::Result::and)
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where `range` of the file is mapped, once a mapping.
    fn addresses(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.mappings.iter().filter_map(move |mapping| {
            let end = mapping.file_offset + (mapping.addresses.end - mapping.addresses.start);
            let (first, last) = (range.start.max(mapping.file_offset), range.end.min(end));
            let at = |offset: u64| mapping.addresses.start + (offset - mapping.file_offset);
            (first < last).then(|| at(first)..at(last))
        })
    }

    /// The parts of the file mapped in `addresses`.
    fn offsets(&self, addresses: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        self.mappings.iter().filter_map(move |mapping| {
            let first = addresses.start.max(mapping.addresses.start);
            let last = addresses.end.min(mapping.addresses.end);
            let at = |address: u64| mapping.file_offset + (address - mapping.addresses.start);
            (first < last).then(|| at(first)..at(last))
        })
    }
}
