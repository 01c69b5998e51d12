//! How QEMU guests come to be on this host.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vmferry_core::{PageRun, RamLayout};
use vmferry_guest::{Backend, DiskInfo, Guest, GuestError, GuestSpec, PlacedDisk, Result, Vm};

use crate::disks;
use crate::guest::{Phase, QemuGuest};
use crate::launch::{self, Start};
use crate::spec::{BACKEND, QemuConfig, unsuitable};

/// Stock QEMU, started by vmferry.
#[derive(Clone, Copy, Debug, Default)]
pub struct QemuBackend;

impl QemuBackend {
    /// As [`Backend::launch`], with the guest's own type.
    ///
    /// # Errors
    /// As there.
    pub fn start(&self, spec: &GuestSpec, dir: &Path) -> Result<QemuGuest> {
        let config = QemuConfig::from_spec(spec)?;
        let started = launch::start(&config, &spec.name, dir, Start::Boot)?;
        QemuGuest::new(spec.clone(), config, dir, started, Phase::Live)
    }

    /// As [`Backend::launch_incoming`], with the guest's own type.
    ///
    /// # Errors
    /// As there.
    pub fn start_incoming(&self, spec: &GuestSpec, layout: &RamLayout, dir: &Path) -> Result<QemuGuest> {
        let config = QemuConfig::from_spec(spec)?;
        check_layout(&config, &spec.name, layout)?;
        let started = launch::start(&config, &spec.name, dir, Start::Incoming)?;
        let guest = QemuGuest::new(spec.clone(), config, dir, started, Phase::Incoming)?;
        guest.make_ready().inspect_err(|_| guest.destroy())?;
        Ok(guest)
    }

    /// As [`Backend::reopen`], with the guest's own type.
    ///
    /// # Errors
    /// As there.
    pub fn find(&self, spec: &GuestSpec, dir: &Path) -> Result<QemuGuest> {
        let config = QemuConfig::from_spec(spec)?;
        QemuGuest::of_record(spec.clone(), config, dir)
    }
}

impl Backend for QemuBackend {
    fn name(&self) -> &'static str {
        BACKEND
    }

    fn launch(&self, spec: &GuestSpec, dir: &Path) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(self.start(spec, dir)?))
    }

    fn launch_incoming(&self, spec: &GuestSpec, layout: &RamLayout, dir: &Path) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(self.start_incoming(spec, layout, dir)?))
    }

    fn reopen(&self, spec: &GuestSpec, dir: &Path) -> Result<Arc<dyn Vm>> {
        Ok(Arc::new(self.find(spec, dir)?))
    }

    fn place_disks(&self, spec: &GuestSpec, disks: &[DiskInfo], places: &[PlacedDisk]) -> Result<GuestSpec> {
        let config = QemuConfig::from_spec(spec)?;
        Ok(disks::place(config, &spec.name, disks, places)?.into_spec(&spec.name))
    }

    fn disk_files(&self, spec: &GuestSpec) -> Vec<PathBuf> {
        QemuConfig::from_spec(spec).map_or_else(|_| Vec::new(), |config| disks::files(&config))
    }

    fn create_disk(&self, spec: &GuestSpec, disk: &DiskInfo, path: &Path) -> Result<()> {
        disks::create(&QemuConfig::from_spec(spec)?, &spec.name, disk, path)
    }
}

impl QemuGuest {
    /// Makes a QEMU that waits for its migration take it our way, its RAM one hole.
    fn make_ready(&self) -> Result<()> {
        let schema = self.asked(self.qmp.schema(), "asking QEMU what it can do")?;
        self.set_up_stream(&schema)?;
        let all = PageRun::new(0, self.ram.layout().pages());
        self.ram
            .punch(all)
            .map_err(|error| GuestError::operation("emptying the new guest's RAM", error))
    }
}

/// Refuses a layout that the configuration does not lead to: both come from the peer.
fn check_layout(config: &QemuConfig, name: &str, layout: &RamLayout) -> Result<()> {
    let ours = config.backends(name)?;
    let same = ours.len() == layout.blocks().len()
        && ours.iter().zip(layout.blocks()).all(|(backend, block)| {
            backend.id == block.name && backend.bytes == block.pages * vmferry_core::PAGE_SIZE
        });
    if same {
        return Ok(());
    }
    let show = |blocks: Vec<(&str, u64)>| {
        blocks
            .iter()
            .map(|(name, bytes)| format!("{name} of {bytes} bytes"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let expected = layout
        .blocks()
        .iter()
        .map(|b| (b.name.as_str(), b.pages * vmferry_core::PAGE_SIZE))
        .collect();
    let found = ours.iter().map(|b| (b.id.as_str(), b.bytes)).collect();
    Err(unsuitable(
        name,
        format!(
            "its configuration gives RAM blocks {}; the source has {}",
            show(found),
            show(expected)
        ),
        "migrate it from a host with the same configuration",
    ))
}
