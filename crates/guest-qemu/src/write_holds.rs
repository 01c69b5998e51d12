//! The guest's writes, held up at all mappings QEMU has of its RAM.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};
use vmferry_guest::{GuestError, GuestRam, HeldEvent, MigrateOut, Result, WriteHolds};
use vmferry_memory::{Held, PagemapScanner, RemoteProcess, WriteGate};

use crate::guest::QemuGuest;
use crate::mappings::Mappings;
use crate::process::QemuProcess;

/// Holds up the writes of a QEMU by a userfaultfd of which QEMU has no copy: it ends with this process.
pub(crate) struct QemuWriteHolds {
    gate: WriteGate,
    /// Whether the gate tells that mappings are dropped.
    watches_drops: bool,
    remote: RemoteProcess,
    process: QemuProcess,
    ram: Arc<GuestRam>,
    /// Ranges of the RAM file whose mappings are being dropped by us, and not by a balloon: the pages stay where they are.
    own_drops: Mutex<Vec<Range<u64>>>,
}

impl QemuWriteHolds {
    pub(crate) fn new(guest: &QemuGuest) -> Result<Self> {
        let process = QemuProcess::find(guest.process.id()).map_err(|_| guest.gone())?;
        let scanner = PagemapScanner::open(process.pid()).map_err(failed)?;
        let mappings = Mappings::find(process.pid(), &guest.ram)?.by_page_number();
        // Only a balloon drops mappings, after it has punched the pages out of the file.
        let watches_drops = guest.may_discard_pages();
        let gate = WriteGate::new(guest.own_userfaultfd()?, scanner, mappings, watches_drops);
        Ok(Self {
            watches_drops,
            gate: gate.map_err(failed)?,
            remote: guest.remote()?,
            process,
            ram: Arc::clone(&guest.ram),
            own_drops: Mutex::default(),
        })
    }

    fn own_drops(&self) -> MutexGuard<'_, Vec<Range<u64>>> {
        self.own_drops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether that is what we have QEMU drop; a second time it is somebody else.
    fn is_own_drop(&self, range: &Range<u64>) -> bool {
        let mut own = self.own_drops();
        let found = own.iter().position(|dropped| dropped == range);
        found.map(|at| own.swap_remove(at)).is_some()
    }
}

impl WriteHolds for QemuWriteHolds {
    fn protect(&self, run: PageRun) -> Result<()> {
        self.gate.protect(bytes(run)).map_err(failed)
    }

    fn release(&self, run: PageRun) -> Result<()> {
        self.gate.release(bytes(run)).map_err(failed)
    }

    fn wait(&self, timeout: Duration, events: &mut Vec<HeldEvent>) -> Result<()> {
        let mut held = Vec::new();
        self.gate.wait(timeout, &mut held).map_err(failed)?;
        if held.is_empty() && !self.process.is_alive() {
            return Err(GuestError::operation(HOLDING, "QEMU has ended"));
        }
        for event in held {
            match event {
                Held::Write(offset) => events.push(HeldEvent::Write(offset / PAGE_SIZE)),
                // Not to be looked through for holes, all of it, while writers wait.
                Held::Dropped(range) if self.is_own_drop(&range) => {}
                Held::Dropped(range) => {
                    let holes = self.ram.holes_in(pages(&range));
                    let holes = holes.map_err(|error| GuestError::operation(HOLDING, error))?;
                    events.extend(holes.into_iter().map(HeldEvent::Discarded));
                }
            }
        }
        Ok(())
    }

    fn forget_touches(&self) -> Result<()> {
        // What was told in pieces, or not at all, last time.
        self.own_drops().clear();
        self.gate.mappings().iter().try_for_each(|mapping| {
            if self.watches_drops {
                self.own_drops().push(mapping.file_range());
            }
            self.remote
                .madvise_dontneed(mapping.addresses.clone())
                .map_err(|error| GuestError::operation("forgetting which pages the guest touched", error))
        })
    }

    fn touched(&self, into: &mut PageBitmap) -> Result<()> {
        self.gate
            .scan_touched(&mut |range| into.insert_run(pages(&range)))
            .map_err(|error| GuestError::operation("looking which pages the guest touched", error))
    }

    fn end(&self) -> Result<()> {
        self.gate.end().map_err(failed)
    }
}

const HOLDING: &str = "holding up the guest's writes";

fn failed(error: vmferry_memory::Error) -> GuestError {
    GuestError::operation(HOLDING, error)
}

fn bytes(run: PageRun) -> Range<u64> {
    run.first * PAGE_SIZE..run.end() * PAGE_SIZE
}

fn pages(range: &Range<u64>) -> PageRun {
    PageRun::new(range.start / PAGE_SIZE, (range.end - range.start) / PAGE_SIZE)
}
