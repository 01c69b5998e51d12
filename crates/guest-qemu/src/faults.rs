//! The guest's page faults, and the pages that answer them.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{FaultMode, GuestError, Installed, PageFaults, Result};
use vmferry_memory::{CopyMode, Event, Features, Mode, Outcome, Stopped, Userfaultfd};

use crate::guest::QemuGuest;
use crate::mappings::{MappedRun, Mappings};
use crate::process::QemuProcess;
use crate::record::RecordFile;

/// How long a request is tried again while QEMU changes its mappings.
const CHANGING_TIMEOUT: Duration = Duration::from_secs(5);

/// Faults of a QEMU, all its mappings of RAM registered with its userfaultfd.
pub(crate) struct QemuFaults {
    uffd: Arc<Userfaultfd>,
    mappings: Mappings,
    mode: FaultMode,
    process: QemuProcess,
    /// Events read, kept from call to call to spare the allocation.
    events: Mutex<Vec<Event>>,
    record: Arc<RecordFile>,
}

/// What became of the pages of a request.
struct Done {
    some_present: bool,
}

impl QemuFaults {
    /// Registers all RAM of `guest`.
    pub(crate) fn register(guest: &QemuGuest, mode: FaultMode) -> Result<Self> {
        let (features, uffd_mode) = match mode {
            FaultMode::Missing => (Features::POST_COPY, Mode::MISSING),
            FaultMode::MissingAndStale => (Features::HYBRID, Mode::MISSING | Mode::MINOR),
        };
        let uffd = guest.userfaultfd(features)?;
        let mappings = Mappings::find(guest.process.pid(), &guest.ram)?;
        for run in mappings.runs() {
            if let Err(error) = uffd.register(run.addresses.clone(), uffd_mode) {
                for run in mappings.runs() {
                    let _ = uffd.unregister(run.addresses.clone());
                }
                return Err(failed("registering the guest's RAM for page faults", error));
            }
        }
        guest.record.change(|record| record.faults = Some(mode))?;
        Self::new(guest, uffd, mappings, mode)
    }

    /// Takes over what an earlier daemon registered, and wakes everybody who waits: the faults come again.
    pub(crate) fn take_over(guest: &QemuGuest) -> Result<Self> {
        let mode = guest.record.fault_mode().ok_or_else(|| GuestError::Unsupported {
            what: "an earlier daemon's page fault mechanism".into(),
            mend: "the guest has all its memory: nothing is left to take over".into(),
        })?;
        let uffd = guest.left_userfaultfd()?.ok_or_else(|| GuestError::Unsupported {
            what: "the page fault mechanism of the earlier daemon".into(),
            mend: "QEMU has no userfaultfd open any more: the guest's memory is lost, start it anew".into(),
        })?;
        let mappings = Mappings::find(guest.process.pid(), &guest.ram)?;
        let faults = Self::new(guest, uffd, mappings, mode)?;
        for run in faults.mappings.runs() {
            faults
                .uffd
                .wake(run.addresses.clone())
                .map_err(|error| failed("waking the guest", error))?;
        }
        Ok(faults)
    }

    fn new(guest: &QemuGuest, uffd: Arc<Userfaultfd>, mappings: Mappings, mode: FaultMode) -> Result<Self> {
        let process = QemuProcess::find(guest.process.id()).map_err(|_| guest.gone())?;
        Ok(Self {
            uffd,
            mappings,
            mode,
            process,
            events: Mutex::default(),
            record: Arc::clone(&guest.record),
        })
    }

    /// Installs pages through the first mapping of each, by `request` over QEMU's addresses. Pages that are there
    /// stay as they are, and who waits for them is woken.
    fn install_by(
        &self,
        run: PageRun,
        request: impl Fn(&MappedRun, Range<u64>) -> vmferry_memory::Result<Outcome>,
    ) -> Result<Installed> {
        let mut some_present = false;
        // Pages from here on are not installed yet: a later mapping of an earlier page is a second one.
        let mut next = run.first;
        for part in self.mappings.of(run) {
            if part.pages.first >= next {
                next = part.pages.end();
                some_present |= self
                    .each_page(&part.addresses, |rest| request(&part, rest))?
                    .some_present;
            } else {
                self.show_in_second_mapping(&part)?;
            }
        }
        Ok(if some_present {
            Installed::SomePresent
        } else {
            Installed::Fresh
        })
    }

    /// A page installed through one mapping is in the file: through another one it only has to be mapped.
    fn show_in_second_mapping(&self, part: &MappedRun) -> Result<()> {
        if self.mode == FaultMode::MissingAndStale {
            self.each_page(&part.addresses, |rest| self.map_existing(rest))?;
        }
        self.uffd
            .wake(part.addresses.clone())
            .map_err(|error| failed("waking the guest", error))
    }

    /// Maps what the file holds; where it holds nothing, zeros.
    fn map_existing(&self, rest: Range<u64>) -> vmferry_memory::Result<Outcome> {
        let outcome = self.uffd.continue_range(rest.clone(), CopyMode::empty())?;
        if outcome.stopped != Some(Stopped::Hole) {
            return Ok(outcome);
        }
        let hole = rest.start + outcome.installed;
        let filled = self.uffd.zeropage(hole..hole + PAGE_SIZE, CopyMode::empty())?;
        Ok(Outcome {
            installed: outcome.installed + filled.installed,
            stopped: filled.stopped,
        })
    }

    /// Repeats `request` from where it stopped until all of `addresses` is done. It may also end early without a
    /// reason: then it is repeated too.
    fn each_page(
        &self,
        addresses: &Range<u64>,
        request: impl Fn(Range<u64>) -> vmferry_memory::Result<Outcome>,
    ) -> Result<Done> {
        let mut at = addresses.start;
        let mut some_present = false;
        let mut changing_since: Option<Instant> = None;
        while at < addresses.end {
            let outcome = request(at..addresses.end).map_err(|error| failed("installing pages", error))?;
            at += outcome.installed;
            match outcome.stopped {
                None | Some(Stopped::Hole) => {}
                Some(Stopped::Present) => {
                    some_present = true;
                    let page = at..at + PAGE_SIZE;
                    self.uffd
                        .wake(page)
                        .map_err(|error| failed("waking the guest", error))?;
                    at += PAGE_SIZE;
                }
                Some(Stopped::MappingChanging) => {
                    if changing_since.get_or_insert_with(Instant::now).elapsed() > CHANGING_TIMEOUT {
                        let why = "QEMU keeps changing its mappings";
                        return Err(GuestError::operation("installing pages", why));
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
            }
        }
        Ok(Done { some_present })
    }
}

impl PageFaults for QemuFaults {
    fn wait(&self, timeout: Duration, pages: &mut Vec<u64>) -> Result<()> {
        let mut events = std::mem::take(&mut *self.events.lock().unwrap_or_else(PoisonError::into_inner));
        events.clear();
        let read = self.uffd.read_events(&mut events, Some(timeout));
        let read = read.map_err(|error| failed("waiting for page faults", error))?;
        pages.extend(events.iter().filter_map(|event| match event {
            Event::PageFault { address, .. } => self.mappings.page_at(*address),
            _ => None,
        }));
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = events;
        if read == 0 && !self.process.is_alive() {
            return Err(GuestError::operation("waiting for page faults", "QEMU has ended"));
        }
        Ok(())
    }

    fn install(&self, run: PageRun, data: &[u8]) -> Result<Installed> {
        assert_eq!(data.len() as u64, run.bytes(), "data of exactly the run");
        self.install_by(run, |part, rest| {
            let offset = (part.pages.first - run.first) * PAGE_SIZE + (rest.start - part.addresses.start);
            let len = rest.end - rest.start;
            let bytes = &data[offset as usize..(offset + len) as usize];
            self.uffd.copy(rest.start, bytes, CopyMode::empty())
        })
    }

    fn install_zero(&self, run: PageRun) -> Result<Installed> {
        self.install_by(run, |_, rest| self.uffd.zeropage(rest, CopyMode::empty()))
    }

    fn reveal(&self, run: PageRun) -> Result<()> {
        for part in self.mappings.of(run) {
            match self.mode {
                // What is in the file does not fault: who waits only has to try again.
                FaultMode::Missing => {
                    self.uffd
                        .wake(part.addresses)
                        .map_err(|error| failed("waking the guest", error))?;
                }
                FaultMode::MissingAndStale => {
                    self.each_page(&part.addresses, |rest| self.map_existing(rest))?;
                }
            }
        }
        Ok(())
    }

    fn wake(&self, run: PageRun) -> Result<()> {
        for part in self.mappings.of(run) {
            self.uffd
                .wake(part.addresses)
                .map_err(|error| failed("waking the guest", error))?;
        }
        Ok(())
    }

    fn release(&self) -> Result<()> {
        for run in self.mappings.runs() {
            self.uffd
                .unregister(run.addresses.clone())
                .map_err(|error| failed("ending page faults", error))?;
        }
        self.record.change(|record| record.faults = None)
    }
}

fn failed(doing: &str, error: vmferry_memory::Error) -> GuestError {
    GuestError::operation(doing, error)
}
