//! Disks that move with their guest, and points in time of disks that do not.
//!
//! At the source of a migration the hypervisor *mirrors* each disk to an NBD server that it is given, and goes on until the
//! mirrors are told to settle. At the destination it *exports* its disks by NBD until it is told to stop. What lies between the
//! two is the runtime's business.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmferry_core::disks::{DiskProgress, DiskWrites};

use crate::error::Result;

/// The most disks of a guest that move with it.
pub const MAX_DISKS: usize = 64;

/// A disk that the guest can write to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskInfo {
    /// The hypervisor's name of it, the same on both hosts.
    pub id: String,
    /// Its file, as the guest's specification names it.
    pub path: PathBuf,
    /// Its format: `raw`, `qcow2`.
    pub format: String,
    /// Its size as the guest sees it, bytes.
    pub bytes: u64,
    /// Whether its content is that of other files as well (a chain of backing files): the copy stands alone.
    #[serde(default)]
    pub has_backing: bool,
}

/// The disks that move with a guest and how they are to lie at the destination. Crosses as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskPlan {
    /// The disks, at most [`MAX_DISKS`].
    pub disks: Vec<PlannedDisk>,
    /// Folder for all of them; the same paths as at the source where absent.
    #[serde(default)]
    pub folder: Option<PathBuf>,
    /// Whether files that are there may be overwritten.
    #[serde(default)]
    pub overwrite: bool,
    /// Whether data comes through a tunnel ([`vmferry_core::disks::TunnelReport`]), not as NBD.
    #[serde(default)]
    pub tunnel: bool,
    /// The state of the disks that begins with this migration: as of its stop, both sides know it by this name.
    #[serde(default)]
    pub state: String,
}

/// A disk of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedDisk {
    /// The disk at the source.
    pub disk: DiskInfo,
    /// Only what changed since this state comes: the destination has to have the disk in that state.
    #[serde(default)]
    pub since: Option<String>,
}

/// Where a disk of a plan lies at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedDisk {
    /// Its name, as in the plan.
    pub id: String,
    /// Its file.
    pub path: PathBuf,
    /// What was there.
    pub was: Before,
}

/// What was at the place of a disk before it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Before {
    /// Nothing: the file was made for it.
    Nothing,
    /// A file that is overwritten.
    Other,
    /// The same disk in an earlier state, which is brought up to date.
    Earlier,
}

/// How to mirror a disk.
#[derive(Clone, Debug)]
pub struct MirrorTo {
    /// The socket of the NBD server.
    pub socket: PathBuf,
    /// The export there, which has the disk's size.
    pub export: String,
    /// How the guest's writes reach the copy.
    pub writes: DiskWrites,
    /// Most bytes a second; none for no limit.
    pub bytes_per_s: Option<u64>,
    /// Only what changed since this state.
    pub since: Option<String>,
    /// Whether what the copy holds before shall stay until it is written: somebody compares with it. Else the copy may be
    /// emptied first, which spares the zeros.
    pub keep: bool,
}

/// A disk at a point in time, to be read while the guest goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSnapshot {
    /// The disk.
    pub disk: DiskInfo,
    /// Socket of an NBD server.
    pub socket: PathBuf,
    /// Its read-only export of the disk as it was; `base:allocation` tells holes and zeros.
    pub export: String,
    /// Another export there and a metadata context of it that tells which blocks were written since the snapshot that was
    /// [stored last](Disks::end_snapshot); none where that is not known. Its data is not the snapshot's.
    pub written: Option<(String, String)>,
}

/// The disks of a guest. All methods may be called from several threads.
pub trait Disks: Send + Sync {
    /// The disks that the guest can write to and that lie in files or block devices of this host. Others (network storage,
    /// read-only media) are reachable from everywhere, or never change.
    ///
    /// # Errors
    /// When the hypervisor does not tell, or a disk is of a kind that can neither move nor stay.
    fn list(&self) -> Result<Vec<DiskInfo>>;

    /// The state of the disk `id` since which the hypervisor has recorded every change ([`Disks::end_export`]), if there is one.
    ///
    /// # Errors
    /// When the hypervisor does not tell.
    fn recorded_since(&self, id: &str) -> Result<Option<String>>;
    /// Begins to mirror the disk `id`; the guest goes on.
    ///
    /// # Errors
    /// When the hypervisor refuses, or `since` names a state from which changes were not recorded.
    fn begin_mirror(&self, id: &str, to: &MirrorTo) -> Result<()>;
    /// How far the mirror of the disk `id` is.
    ///
    /// # Errors
    /// When it failed, with the cause: the disks are not going to be equal.
    fn mirror_progress(&self, id: &str) -> Result<DiskProgress>;
    /// Changes the limit of all mirrors, bytes a second.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn limit_mirrors(&self, bytes_per_s: Option<u64>) -> Result<()>;
    /// The guest is paused: waits until all copies are equal to their disks and on stable storage, and ends the mirrors.
    ///
    /// # Errors
    /// When that fails: then the copies are worth nothing.
    fn settle_mirrors(&self) -> Result<()>;
    /// Ends all mirrors at once; the copies are incomplete. None under way is no error.
    fn abandon_mirrors(&self);

    /// Exports the disks of an incoming guest for writing, each under its id, by an NBD server at `socket`.
    ///
    /// # Errors
    /// When the hypervisor refuses, or a disk has not the size it shall have.
    fn export(&self, disks: &[DiskInfo], socket: &Path) -> Result<()>;
    /// Ends the exports: from here on nobody but the guest writes. With `state` the hypervisor records from now on what changes
    /// since that state, where it can.
    ///
    /// # Errors
    /// When the hypervisor refuses.
    fn end_export(&self, state: Option<&str>) -> Result<()>;

    /// Gets ready for a snapshot, while the guest runs. What the guest overwrites during one is kept in `folder`, which needs
    /// room for that. One snapshot at a time.
    ///
    /// # Errors
    /// When the hypervisor refuses; then nothing is left of it.
    fn prepare_snapshot(&self, folder: &Path) -> Result<()>;
    /// While the guest is paused, after its device state was saved if it is, and quickly: from here until [`Disks::end_snapshot`] the disks as they are now stay readable,
    /// whatever the guest writes.
    ///
    /// # Errors
    /// When the hypervisor refuses; [`Disks::end_snapshot`] tidies up.
    fn begin_snapshot(&self) -> Result<()>;
    /// Makes the snapshot readable, once the guest goes on.
    ///
    /// # Errors
    /// When the hypervisor refuses; [`Disks::end_snapshot`] tidies up.
    fn open_snapshot(&self) -> Result<Vec<DiskSnapshot>>;
    /// Whether the snapshot still holds: a full `folder` ends it, never the guest.
    ///
    /// # Errors
    /// With the cause, when what is read is worth nothing any more.
    fn check_snapshot(&self) -> Result<()>;
    /// Ends the snapshot and removes what was kept in its folder. Where it was `stored`, the next one tells what was written
    /// since; where not, what was written since the one stored last. None under way is no error.
    fn end_snapshot(&self, stored: bool);
}
