//! Dirty tracking and page faults by the kernel: userfaultfd on the vCPUs' own mapping of RAM.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{FaultMode, GuestError, Installed, PageFaults, Result};
use vmferry_memory::{
    Capabilities, CopyMode, Event, Features, Mapping, Mode, Outcome, PagemapScanner, SharedMemory, Stopped,
    Userfaultfd, WpAsyncTracker, WriteGate,
};

/// Why the kernel cannot do it here; `None`: it can.
pub(crate) fn missing() -> Option<&'static str> {
    let capabilities = Capabilities::probe();
    if capabilities.userfaultfd.is_none() {
        Some("userfaultfd is not permitted")
    } else if !capabilities.tracking || !capabilities.pagemap_scan {
        Some("the kernel cannot track writes (Linux 6.7)")
    } else if !capabilities.has(Features::HYBRID) {
        Some("the kernel does not report missing and minor faults on shared memory")
    } else {
        None
    }
}

/// A tracker of the writes that go through `mapping`.
pub(crate) fn tracker(mapping: &SharedMemory) -> vmferry_memory::Result<WpAsyncTracker> {
    let (uffd, _) = Userfaultfd::open()?;
    let scanner = PagemapScanner::open(std::process::id())?;
    let whole = Mapping {
        addresses: mapping.addresses(),
        file_offset: 0,
    };
    WpAsyncTracker::new(Arc::new(uffd), scanner, vec![whole])
}

/// A gate at which the writes that go through `mapping` are held up.
pub(crate) fn gate(mapping: &SharedMemory) -> vmferry_memory::Result<WriteGate> {
    let (uffd, _) = Userfaultfd::open()?;
    let scanner = PagemapScanner::open(std::process::id())?;
    let whole = Mapping {
        addresses: mapping.addresses(),
        file_offset: 0,
    };
    WriteGate::new(uffd, scanner, vec![whole], false)
}

/// The faults of accesses through one mapping.
pub(crate) struct KernelFaults {
    uffd: Userfaultfd,
    mapping: Arc<SharedMemory>,
    /// Kept from one wait to the next only to spare the allocation.
    events: Mutex<Vec<Event>>,
}

impl KernelFaults {
    /// Faults as of `mode` on all of `mapping`, of which nothing was accessed yet.
    pub(crate) fn register(mapping: Arc<SharedMemory>, mode: FaultMode) -> vmferry_memory::Result<Self> {
        let (uffd, _) = Userfaultfd::open()?;
        let (features, modes) = match mode {
            FaultMode::Missing => (Features::POST_COPY, Mode::MISSING),
            FaultMode::MissingAndStale => (Features::HYBRID, Mode::MISSING | Mode::MINOR),
        };
        uffd.handshake(features)?;
        uffd.register(mapping.addresses(), modes)?;
        Ok(Self {
            uffd,
            mapping,
            events: Mutex::new(Vec::new()),
        })
    }

    fn addresses(&self, run: PageRun) -> std::ops::Range<u64> {
        let start = self.mapping.addresses().start;
        start + run.first * PAGE_SIZE..start + run.end() * PAGE_SIZE
    }

    /// Does `request` for `run`, which stops at pages that are there, and goes on behind each.
    fn install_around(
        &self,
        run: PageRun,
        request: impl Fn(PageRun) -> vmferry_memory::Result<Outcome>,
    ) -> vmferry_memory::Result<Installed> {
        let mut installed = Installed::Fresh;
        let mut rest = Some(run);
        while let Some(run) = rest {
            let outcome = request(run)?;
            let mut done = outcome.installed / PAGE_SIZE;
            match outcome.stopped {
                None => return Ok(installed),
                Some(Stopped::Present) => {
                    installed = Installed::SomePresent;
                    self.uffd
                        .wake(self.addresses(PageRun::single(run.first + done)))?;
                    done += 1;
                }
                Some(Stopped::Hole) => {
                    let hole = self.addresses(PageRun::single(run.first + done));
                    self.uffd.zeropage(hole, CopyMode::empty())?;
                    done += 1;
                }
                Some(Stopped::MappingChanging) => std::thread::yield_now(),
            }
            rest = if done == 0 {
                Some(run)
            } else {
                run.split_at(done).1
            };
        }
        Ok(installed)
    }
}

impl PageFaults for KernelFaults {
    fn wait(&self, timeout: Duration, pages: &mut Vec<u64>) -> Result<()> {
        // A second waiter waits with a list of its own.
        let mut kept = self.events.try_lock();
        let mut own = Vec::new();
        let events = match &mut kept {
            Ok(kept) => &mut **kept,
            Err(_) => &mut own,
        };
        self.uffd
            .read_events(events, Some(timeout))
            .map_err(|e| GuestError::operation("waiting for page faults", e))?;
        let start = self.mapping.addresses().start;
        for event in events.drain(..) {
            if let Event::PageFault { address, .. } = event {
                pages.push((address - start) / PAGE_SIZE);
            }
        }
        Ok(())
    }

    fn install(&self, run: PageRun, data: &[u8]) -> Result<Installed> {
        self.install_around(run, |part| {
            let start = ((part.first - run.first) * PAGE_SIZE) as usize;
            let data = &data[start..start + part.bytes() as usize];
            self.uffd
                .copy(self.addresses(part).start, data, CopyMode::empty())
        })
        .map_err(|e| GuestError::operation("installing pages", e))
    }

    fn install_zero(&self, run: PageRun) -> Result<Installed> {
        self.install_around(run, |part| {
            self.uffd.zeropage(self.addresses(part), CopyMode::empty())
        })
        .map_err(|e| GuestError::operation("installing zero pages", e))
    }

    fn reveal(&self, run: PageRun) -> Result<()> {
        self.install_around(run, |part| {
            self.uffd.continue_range(self.addresses(part), CopyMode::empty())
        })
        .map(|_| ())
        .map_err(|e| GuestError::operation("revealing pages", e))
    }

    fn wake(&self, run: PageRun) -> Result<()> {
        self.uffd
            .wake(self.addresses(run))
            .map_err(|e| GuestError::operation("waking faults", e))
    }

    fn release(&self) -> Result<()> {
        self.uffd
            .unregister(self.mapping.addresses())
            .map_err(|e| GuestError::operation("ending page faults", e))
    }
}
