//! How guests come to be on a host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmferry_core::RamLayout;

use crate::disks::{DiskInfo, PlacedDisk};
use crate::error::{GuestError, Result};
use crate::guest::Vm;

/// Everything another host needs to create the same guest, in the backend's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestSpec {
    /// Name, unique on a host.
    pub name: String,
    /// Name of the backend it is for.
    pub backend: String,
    /// The backend's configuration (for QEMU: machine, memory size, arguments). The backend that reads it
    /// checks it: it may come from a peer.
    pub config: serde_json::Value,
}

/// A kind of hypervisor. `dir` is a directory private to the guest on this host, kept as long as the guest
/// is: sockets and whatever the backend needs to find the guest again live there.
pub trait Backend: Send + Sync {
    /// Name in specifications and reports: `qemu`, `synth`.
    fn name(&self) -> &'static str;

    /// Starts a guest from nothing; it runs when this returns.
    ///
    /// # Errors
    /// When the specification is wrong for this host, or the hypervisor does not start. Nothing is left.
    fn launch(&self, spec: &GuestSpec, dir: &Path) -> Result<Arc<dyn Vm>>;

    /// Creates the guest as the target of a migration: paused, its RAM empty (one hole), the same layout.
    ///
    /// # Errors
    /// As [`Backend::launch`]; also when the resulting layout is not `layout` or memory is too small here.
    fn launch_incoming(&self, spec: &GuestSpec, layout: &RamLayout, dir: &Path) -> Result<Arc<dyn Vm>>;

    /// Finds a guest again that an earlier daemon on this host left running.
    ///
    /// # Errors
    /// When it has ended, or this backend's guests live and die with the daemon.
    fn reopen(&self, spec: &GuestSpec, dir: &Path) -> Result<Arc<dyn Vm>>;

    /// The specification of a guest whose disks, which it names as `disks` say, lie at other places on this host.
    ///
    /// # Errors
    /// When the specification does not name such a disk, or this backend's guests have none.
    fn place_disks(&self, spec: &GuestSpec, disks: &[DiskInfo], places: &[PlacedDisk]) -> Result<GuestSpec> {
        let _ = (disks, places);
        Err(no_disks(spec))
    }

    /// The files that the specification names as disks; those over a network are none.
    fn disk_files(&self, spec: &GuestSpec) -> Vec<PathBuf> {
        let _ = spec;
        Vec::new()
    }

    /// Creates an empty disk of `disk`'s format and size at `path`, where nothing is.
    ///
    /// # Errors
    /// When that is not possible; then nothing is left.
    fn create_disk(&self, spec: &GuestSpec, disk: &DiskInfo, path: &Path) -> Result<()> {
        let _ = (disk, path);
        Err(no_disks(spec))
    }
}

fn no_disks(spec: &GuestSpec) -> GuestError {
    GuestError::Unsuitable {
        name: spec.name.clone(),
        problem: format!("guests of backend {} have no disks that could move", spec.backend),
        mend: "migrate it without its disks".into(),
    }
}
