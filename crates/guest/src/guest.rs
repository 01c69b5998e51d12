//! A guest, and what each side of a migration asks of it.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_core::{PageBitmap, PageRun};

use crate::backend::GuestSpec;
use crate::disks::Disks;
use crate::enlightened::Enlightened;
use crate::error::{GuestError, Result};
use crate::ram::GuestRam;
use crate::write_holds::WriteHolds;

/// What a guest is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GuestState {
    /// Its vCPUs run.
    Running,
    /// Its vCPUs stand still, its I/O is drained.
    Paused,
    /// Created by [`Backend::launch_incoming`](crate::Backend::launch_incoming), no device state loaded yet.
    Incoming,
    /// It ended.
    Gone,
}

/// The life of a guest.
pub trait Guest: Send + Sync {
    /// What it was made from.
    fn spec(&self) -> &GuestSpec;
    /// Its RAM, mapped into this process.
    fn ram(&self) -> &Arc<GuestRam>;
    /// What it is doing now.
    fn state(&self) -> GuestState;
    /// Process that executes it, for display.
    fn pid(&self) -> Option<u32>;
    /// Stops the vCPUs and drains I/O. Returns when both hold. Pausing a paused guest is no error.
    ///
    /// # Errors
    /// When the guest is gone or the hypervisor refuses.
    fn pause(&self) -> Result<()>;
    /// Lets a paused guest go on. Also right after a failed or abandoned [`MigrateOut::save_device_state`],
    /// and as the last step of a migration at its destination.
    ///
    /// # Errors
    /// When the guest is gone or the hypervisor refuses.
    fn resume(&self) -> Result<()>;
    /// Ends it and frees what it holds on this host. Ending a guest that is gone is no error.
    fn destroy(&self);
}

/// What the source of a migration asks.
pub trait MigrateOut: Guest {
    /// Gets ready for a migration out: checks that nothing stands against it (RAM not shared, a device that
    /// cannot move). Changes nothing the guest could notice.
    ///
    /// # Errors
    /// With what is missing.
    fn prepare_out(&self) -> Result<()>;
    /// A tracker of this guest's writes, not yet armed.
    ///
    /// # Errors
    /// When this host cannot track.
    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>>;
    /// Gets ready to hold up the guest's writes; nothing is protected yet. Where a [`DirtyTracker`] is armed it has to let go
    /// first.
    ///
    /// # Errors
    /// When this host does not permit it, or the backend cannot do it.
    fn hold_writes(&self) -> Result<Arc<dyn WriteHolds>> {
        Err(GuestError::Unsupported {
            what: format!("a checkpoint of {} while it runs", self.spec().name),
            mend: format!("guests of {} cannot hold up their writes", self.spec().backend),
        })
    }
    /// Whether devices may write to RAM through pages pinned earlier (disks opened with O_DIRECT), so that a
    /// live scan can miss the write: see `vmferry_core::tracking`.
    fn has_pinned_io(&self) -> bool;
    /// Whether pages can turn into holes behind the tracker's back (a balloon, free page reporting).
    fn may_discard_pages(&self) -> bool;
    /// Called shortly before the last pause, while the guest runs: flush disks so that the pause is short.
    ///
    /// # Errors
    /// When the flush fails: then the disks are not safe to hand over.
    fn before_stop(&self) -> Result<()>;
    /// The device state of the paused guest, without RAM. The guest stays paused; until it is destroyed,
    /// [`Guest::resume`] takes it back to life.
    ///
    /// # Errors
    /// When the hypervisor cannot save it.
    fn save_device_state(&self) -> Result<Vec<u8>>;
    /// The same into `out`, in parts as they come, so that the first are under way while the rest is saved. Answers how many
    /// bytes there were. Whether they are whole, [`MigrateOut::confirm_device_state`] says.
    ///
    /// # Errors
    /// When the hypervisor cannot save it, or `out` does not take it.
    fn stream_device_state(&self, out: &mut dyn Write) -> Result<u64> {
        let state = self.save_device_state()?;
        out.write_all(&state)
            .map_err(|error| GuestError::operation("sending the device state", error))?;
        Ok(state.len() as u64)
    }
    /// After [`MigrateOut::stream_device_state`], before anybody relies on what it gave: waits for the hypervisor's word on it.
    ///
    /// # Errors
    /// When it was not saved whole.
    fn confirm_device_state(&self) -> Result<()> {
        Ok(())
    }
    /// Pages that devices and the guest talk through (the rings of paravirtual devices), as far as they can be told while it
    /// runs. Loading the device state reads them, and a guest cannot do without them. A hint: where some are missing or wrong
    /// it costs time, nothing else.
    fn shared_with_devices(&self) -> Vec<PageRun> {
        Vec::new()
    }
    /// What the guest says about its pages, where it was set up to say something.
    fn enlightened(&self) -> Option<&dyn Enlightened> {
        None
    }
    /// Its disks, where they can move with it.
    fn disks(&self) -> Option<&dyn Disks> {
        None
    }
}

/// Which pages were written. One tracker a guest at a time; dropping it disarms it.
pub trait DirtyTracker: Send {
    /// From here on writes are recorded. The guest must be paused, so that no device has a page pinned.
    ///
    /// # Errors
    /// When tracking cannot be set up.
    fn arm(&mut self) -> Result<()>;
    /// The same while the guest runs, for learning only: what a device writes through a page that it had pinned before
    /// goes unrecorded. Nothing of the guest stands still for it.
    ///
    /// # Errors
    /// As [`DirtyTracker::arm`].
    fn arm_running(&mut self) -> Result<()> {
        self.arm()
    }
    /// As [`DirtyTracker::arm_running`], for the pages of `runs` only (ascending): what is written elsewhere may go unreported,
    /// and costs the guest nothing where the tracker can tell the difference.
    ///
    /// # Errors
    /// As [`DirtyTracker::arm`].
    fn arm_running_only(&mut self, runs: &[PageRun]) -> Result<()> {
        let _ = runs;
        self.arm_running()
    }
    /// Adds to `dirty` the pages written since `arm` or the last scan, and re-arms them.
    ///
    /// # Errors
    /// When the scan fails: then the tracker must be considered blind.
    fn scan(&mut self, dirty: &mut PageBitmap) -> Result<()>;
    /// Stops recording. The guest pays nothing any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn disarm(&mut self) -> Result<()>;
}

/// What the destination of a migration asks.
pub trait MigrateIn: Guest {
    /// Prepares for faults; must come before [`MigrateIn::load_device_state`], which may touch RAM itself.
    /// Without it, all of RAM has to be in place before the device state is loaded.
    ///
    /// # Errors
    /// When this host does not permit it.
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>>;
    /// Finds the fault mechanism of [`MigrateIn::page_faults`] again after the daemon restarted, with every
    /// waiting vCPU woken so that no fault is lost.
    ///
    /// # Errors
    /// When the guest has none.
    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>>;
    /// Gets ready to load, so that [`MigrateIn::load_device_state`] takes less time; after [`MigrateIn::page_faults`].
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn prepare_load(&self) -> Result<()> {
        Ok(())
    }
    /// Loads what [`MigrateOut::save_device_state`] gave. The guest is paused afterwards; pages that loading
    /// touches are asked for through [`PageFaults`], so those have to be served meanwhile.
    ///
    /// # Errors
    /// When the state does not fit this guest.
    fn load_device_state(&self, state: &[u8]) -> Result<()>;
    /// Tells the network where the guest is now; right after it runs.
    ///
    /// # Errors
    /// When the hypervisor refuses; the migration goes on.
    fn announce(&self) -> Result<()>;
}

/// A guest that can leave and arrive.
pub trait Vm: MigrateOut + MigrateIn {}

impl<G: MigrateOut + MigrateIn> Vm for G {}

/// Which accesses of the guest turn into faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultMode {
    /// Accesses to pages that hold nothing yet (post-copy into empty memory).
    Missing,
    /// Those, and the first access to each page that holds something: it may be a version that is out of
    /// date (post-copy after pages were pushed from the running guest).
    MissingAndStale,
}

/// What an installation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Installed {
    /// All pages of the run are new.
    Fresh,
    /// Some of them were there before and were left as they are.
    SomePresent,
}

/// The faults of a guest whose memory is not all there yet, and their answers. All methods may be called
/// from several threads. Every call that makes pages visible also wakes who waits for them.
pub trait PageFaults: Send + Sync {
    /// Waits for faults at most `timeout` and adds the pages to `pages` (a page may come more than once).
    ///
    /// # Errors
    /// When the mechanism broke.
    fn wait(&self, timeout: Duration, pages: &mut Vec<u64>) -> Result<()>;
    /// Makes the pages of `run`, which hold nothing, appear with `data`, each of them whole.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than a page that is there.
    fn install(&self, run: PageRun, data: &[u8]) -> Result<Installed>;
    /// The same with zeros.
    ///
    /// # Errors
    /// As [`PageFaults::install`].
    fn install_zero(&self, run: PageRun) -> Result<Installed>;
    /// Makes pages visible whose content is in the memory file already (their first access faults in
    /// [`FaultMode::MissingAndStale`]); the caller has written the content completely before.
    ///
    /// # Errors
    /// When the kernel refuses for another reason than a page that is visible.
    fn reveal(&self, run: PageRun) -> Result<()>;
    /// Wakes who waits for a page of `run`: the access is tried again.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn wake(&self, run: PageRun) -> Result<()>;
    /// All pages are there: no access faults any more, and memory costs nothing extra.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn release(&self) -> Result<()>;
}
