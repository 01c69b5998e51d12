//! Disks of a guest that arrives, open for the mirrors of its source.

use std::path::Path;

use serde_json::json;
use tracing::warn;
use vmferry_guest::{DiskInfo, GuestError, Result};

use crate::guest::QemuGuest;
use crate::qmp::block::{
    BlockDirtyBitmapAdd, BlockDirtyBitmapRemove, BlockExportAdd, NbdServerStart, NbdServerStop,
};

use super::inventory::bitmap_since;
use super::{PREFIX, lock};

/// What is being done, in errors.
const EXPORTING: &str = "exporting the disks of the guest";

impl QemuGuest {
    pub(super) fn export_disks(&self, disks: &[DiskInfo], socket: &Path) -> Result<()> {
        let mut exported = lock(&self.disk_state.exported);
        let here = self.local_disks()?;
        let start = NbdServerStart {
            addr: json!({"type": "unix", "data": {"path": socket}}),
        };
        self.run(&start, EXPORTING)?;
        let export = |(index, disk): (usize, &DiskInfo)| {
            let ours = here.iter().find(|ours| ours.info.id == disk.id).ok_or_else(|| {
                self.unsuitable_disk(
                    format!("the guest created here has no disk {}", disk.id),
                    "give both hosts the same",
                )
            })?;
            if ours.info.bytes != disk.bytes {
                let problem = format!(
                    "{} has {} bytes here, the disk at the source {}",
                    ours.info.path.display(),
                    ours.info.bytes,
                    disk.bytes
                );
                return Err(self.unsuitable_disk(problem, "remove the file, or choose another folder"));
            }
            let add = BlockExportAdd {
                r#type: "nbd",
                id: format!("{PREFIX}export-{index}"),
                node_name: ours.node.clone(),
                name: disk.id.clone(),
                writable: true,
                bitmaps: Vec::new(),
            };
            self.run(&add, EXPORTING).map(drop)
        };
        let done = disks.iter().enumerate().try_for_each(export);
        match done {
            Ok(()) => exported.extend(disks.iter().map(|disk| disk.id.clone())),
            Err(_) => self.stop_server(),
        }
        done
    }

    pub(super) fn end_disk_exports(&self, state: Option<&str>) -> Result<()> {
        let exported = std::mem::take(&mut *lock(&self.disk_state.exported));
        if exported.is_empty() {
            return Ok(());
        }
        self.run(&NbdServerStop {}, "ending the export of the guest's disks")?;
        let Some(state) = state else { return Ok(()) };
        for id in exported {
            if let Err(error) = self.record_since(&id, state) {
                let error: &dyn std::error::Error = &error;
                warn!(error, disk = id, "what changes on a disk is not recorded");
            }
        }
        Ok(())
    }

    /// Records from now on what changes on a disk, in the image itself where it has room for that.
    fn record_since(&self, id: &str, state: &str) -> std::result::Result<(), GuestError> {
        let disk = self.local_disk(id)?;
        for old in disk.own_bitmaps() {
            let remove = BlockDirtyBitmapRemove {
                node: disk.node.clone(),
                name: old.name.clone(),
            };
            self.run(&remove, "forgetting older changes of a disk")?;
        }
        let add = |persistent| BlockDirtyBitmapAdd {
            node: disk.node.clone(),
            name: bitmap_since(state),
            persistent,
        };
        let doing = "recording the changes of a disk";
        // An old image has no room for it: then QEMU keeps it as long as it lives.
        let kept = disk.info.format == "qcow2" && self.qmp.run(&add(true)).is_ok();
        if kept {
            Ok(())
        } else {
            self.run(&add(false), doing).map(drop)
        }
    }

    pub(super) fn stop_server(&self) {
        // There may be none.
        let _ = self.qmp.run(&NbdServerStop {});
    }
}
