//! Disks of a QEMU guest: mirrored by QEMU's own block jobs, exported by its own NBD server, kept as of a moment.
//!
//! | what | how |
//! |---|---|
//! | all of a disk, and what is written meanwhile | `blockdev-mirror` to an NBD node ([`mirror`]) |
//! | what changed since a state | a dirty bitmap, and `blockdev-backup` of it again and again ([`mirror`]) |
//! | the copy | `nbd-server-start` and a writable export in the QEMU that waits for its migration ([`export`]) |
//! | a disk as of a moment | `blockdev-backup` with `sync=none` into an overlay, which is exported ([`snapshot`]) |
//!
//! Everything that vmferry makes in QEMU has a name that begins with [`PREFIX`], so that leftovers of a daemon that ended are
//! known.

mod create;
mod export;
mod inventory;
mod mirror;
mod place;
mod snapshot;

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_core::disks::DiskProgress;
use vmferry_guest::disks::MirrorTo;
use vmferry_guest::{DiskInfo, DiskSnapshot, Disks, Result};

use crate::guest::QemuGuest;
use mirror::Mirror;
use snapshot::Snapshot;

pub(crate) use create::create;
pub(crate) use place::{files, place};

/// Begins the names of our nodes, jobs, exports and bitmaps.
const PREFIX: &str = "vmferry-";

/// What goes on with the disks of a guest.
#[derive(Default)]
pub(crate) struct DiskState {
    mirrors: Mutex<Vec<Mirror>>,
    snapshot: Mutex<Option<Snapshot>>,
    /// No pass is begun: the guest is about to be stopped.
    passes_held: AtomicBool,
    /// The disks that are exported, by their ids.
    exported: Mutex<Vec<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Disks for QemuGuest {
    fn list(&self) -> Result<Vec<DiskInfo>> {
        Ok(self.local_disks()?.into_iter().map(|disk| disk.info).collect())
    }

    fn recorded_since(&self, id: &str) -> Result<Option<String>> {
        Ok(self.local_disk(id)?.recorded_since())
    }

    fn begin_mirror(&self, id: &str, to: &MirrorTo) -> Result<()> {
        self.start_mirror(id, to)
    }

    fn mirror_progress(&self, id: &str) -> Result<DiskProgress> {
        self.look_at_mirror(id)
    }

    fn limit_mirrors(&self, bytes_per_s: Option<u64>) -> Result<()> {
        self.limit_all_mirrors(bytes_per_s)
    }

    fn settle_mirrors(&self) -> Result<()> {
        self.settle_all_mirrors()
    }

    fn abandon_mirrors(&self) {
        self.abandon_all_mirrors();
    }

    fn export(&self, disks: &[DiskInfo], socket: &Path) -> Result<()> {
        self.export_disks(disks, socket)
    }

    fn end_export(&self, state: Option<&str>) -> Result<()> {
        self.end_disk_exports(state)
    }

    fn prepare_snapshot(&self, folder: &Path) -> Result<()> {
        self.prepare_disk_snapshot(folder)
    }

    fn begin_snapshot(&self) -> Result<()> {
        self.begin_disk_snapshot()
    }

    fn open_snapshot(&self) -> Result<Vec<DiskSnapshot>> {
        self.open_disk_snapshot()
    }

    fn check_snapshot(&self) -> Result<()> {
        self.check_disk_snapshot()
    }

    fn end_snapshot(&self, stored: bool) {
        self.end_disk_snapshot(stored);
    }
}
