//! Disks as of a moment, readable while the guest goes on.
//!
//! A *copy-before-write* filter is put between the device and its disk while the guest is paused: from then on a block is copied
//! to an image beside before the guest overwrites it. A *snapshot-access* node reads the disk as it was at that moment, and an
//! NBD server exports it. Where the image beside has no room any more, the filter gives the snapshot up (`break-snapshot`): the
//! guest never waits for it and never sees an error. A backup job would do the same with fewer steps, but in QEMU 7.2 its
//! only answer to a full image is an I/O error for the guest.
//!
//! A QEMU that has saved its device state has let go of its disks until it runs again, and with a filter in place it cannot let go of
//! them: so the filter comes after the device state, in the same pause. Exporting a node is what makes QEMU 7.2 take it up again
//! while the guest stands still.
//!
//! What is written between snapshots is recorded by dirty bitmaps: one that goes on from each snapshot, and the one that was
//! frozen by it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tracing::warn;
use vmferry_guest::{DiskSnapshot, GuestError, GuestState, Result};

use crate::guest::QemuGuest;
use crate::qmp::block::{
    BlockDirtyBitmapMerge, BlockDirtyBitmapRemove, BlockExportAdd, BlockdevAdd, BlockdevDel, NbdServerStart,
    QueryDrives, Transaction,
};
use crate::qmp::commands::{QomSet, QueryNamedBlockNodes};

use super::create::format_with;
use super::inventory::LocalDisk;
use super::{PREFIX, lock};

/// Begins the names of the filters.
pub(super) const FILTER: &str = "vmferry-filter-";
/// Begins the names of the bitmaps between snapshots; a number follows.
const WRITTEN: &str = "vmferry-written-";
/// The socket of the NBD server in the folder of a snapshot.
const SOCKET: &str = "disks.sock";
/// What is being done, in errors.
const KEEPING: &str = "keeping the disks as of a moment";

/// A snapshot under way.
pub(super) struct Snapshot {
    folder: PathBuf,
    disks: Vec<Kept>,
    begun: bool,
}

/// A disk of a snapshot.
#[derive(Clone)]
struct Kept {
    disk: LocalDisk,
    /// Its device, whose drive is the filter while there is a snapshot.
    device: String,
    /// The image beside.
    image: PathBuf,
    number: usize,
    /// The bitmap of what was written since the snapshot stored last, frozen by this one.
    frozen: Option<String>,
    /// The bitmap of what is written since this one.
    next: String,
}

impl Kept {
    fn node(&self, role: &str) -> String {
        format!("{PREFIX}{role}-{}", self.number)
    }
}

impl QemuGuest {
    pub(super) fn prepare_disk_snapshot(&self, folder: &Path) -> Result<()> {
        let mut current = lock(&self.disk_state.snapshot);
        if current.is_some() {
            return Err(self.wrong_state("kept as of another moment", "in no snapshot of its disks"));
        }
        self.take_out_leftovers();
        let devices = self.devices_of_drives()?;
        let mut snapshot = Snapshot {
            folder: folder.to_owned(),
            disks: Vec::new(),
            begun: false,
        };
        for (number, disk) in self.local_disks()?.into_iter().enumerate() {
            let device = devices
                .iter()
                .find(|(node, _)| *node == disk.node)
                .map(|(_, device)| device.clone());
            let Some(device) = device else {
                self.tidy_up(&snapshot);
                let problem = format!("the device of its disk {} takes no filter", disk.info.id);
                return Err(self.unsuitable_disk(problem, "leave its disks out"));
            };
            let kept = Kept {
                frozen: latest_record(&disk).map(|(name, _)| name),
                next: format!(
                    "{WRITTEN}{}",
                    latest_record(&disk).map_or(0, |(_, last)| last + 1)
                ),
                image: folder.join(format!("disk-{number}.old")),
                device,
                disk,
                number,
            };
            snapshot.disks.push(kept.clone());
            if let Err(error) = self.prepare_disk(&kept) {
                self.tidy_up(&snapshot);
                return Err(error);
            }
        }
        if let Err(error) = self.start_snapshot_server(&snapshot) {
            self.tidy_up(&snapshot);
            return Err(error);
        }
        *current = Some(snapshot);
        Ok(())
    }

    fn start_snapshot_server(&self, snapshot: &Snapshot) -> Result<()> {
        if snapshot.disks.is_empty() {
            return Ok(());
        }
        let start = NbdServerStart {
            addr: json!({"type": "unix", "data": {"path": snapshot.folder.join(SOCKET)}}),
        };
        self.run(&start, KEEPING).map(drop)
    }

    /// The image beside, which nothing uses yet.
    fn prepare_disk(&self, kept: &Kept) -> Result<()> {
        File::create_new(&kept.image)
            .map_err(|error| GuestError::operation(format!("creating {}", kept.image.display()), error))?;
        let image =
            std::path::absolute(&kept.image).map_err(|error| GuestError::operation(KEEPING, error))?;
        let (node, job) = (kept.node("format"), kept.node("format"));
        format_with(&self.qmp, &image, &node, &job, kept.disk.info.bytes)?;
        let beside = json!({
            "driver": "qcow2", "node-name": kept.node("old"),
            "file": {"driver": "file", "filename": image},
        });
        self.run(&BlockdevAdd(beside), KEEPING).map(drop)
    }

    /// Has QEMU take up the disk and the image beside, if it had let go of them, and puts the filter between.
    fn put_filter(&self, kept: &Kept) -> Result<()> {
        let nodes = [("awake", kept.disk.node.clone()), ("awake-old", kept.node("old"))];
        for (role, node_name) in nodes {
            // It goes with the server.
            let awake = BlockExportAdd {
                r#type: "nbd",
                id: kept.node(role),
                node_name,
                name: role_name(role, &kept.disk.info.id),
                writable: false,
                bitmaps: Vec::new(),
            };
            self.run(&awake, KEEPING)?;
        }
        let filter = json!({
            "driver": "copy-before-write", "node-name": kept.node("filter"),
            "file": kept.disk.node, "target": kept.node("old"), "on-cbw-error": "break-snapshot",
        });
        self.run(&BlockdevAdd(filter), KEEPING)?;
        self.set_drive(&kept.device, kept.node("filter"))
    }

    pub(super) fn begin_disk_snapshot(&self) -> Result<()> {
        if self.known_state() != GuestState::Paused {
            return Err(self.wrong_state("running", "paused"));
        }
        let mut current = lock(&self.disk_state.snapshot);
        let Some(snapshot) = &mut *current else {
            return Err(self.wrong_state("in no snapshot of its disks", "prepared for one"));
        };
        snapshot.begun = true;
        for kept in &snapshot.disks {
            self.put_filter(kept)?;
        }
        let actions: Vec<Value> = snapshot.disks.iter().flat_map(record_anew).collect();
        if actions.is_empty() {
            return Ok(());
        }
        self.run(&Transaction { actions }, "recording the changes of disks")
            .map(drop)
    }

    pub(super) fn open_disk_snapshot(&self) -> Result<Vec<DiskSnapshot>> {
        let current = lock(&self.disk_state.snapshot);
        let Some(snapshot) = current.as_ref().filter(|snapshot| snapshot.begun) else {
            return Err(self.wrong_state("in no snapshot of its disks", "in one"));
        };
        if snapshot.disks.is_empty() {
            return Ok(Vec::new());
        }
        let socket = snapshot.folder.join(SOCKET);
        let open = |kept: &Kept| self.open_disk(kept, &socket);
        snapshot.disks.iter().map(open).collect()
    }

    fn open_disk(&self, kept: &Kept, socket: &Path) -> Result<DiskSnapshot> {
        let access = json!({
            "driver": "snapshot-access", "node-name": kept.node("snapshot"), "file": kept.node("filter"),
        });
        self.run(&BlockdevAdd(access), KEEPING)?;
        // A bitmap is found in the node that is exported and in what lies below: the filter is not, so its disk has an export of
        // its own for it, whose data nobody reads.
        let export = |role: &str, node_name: String, bitmaps: Vec<String>| BlockExportAdd {
            r#type: "nbd",
            id: kept.node(role),
            node_name,
            name: role_name(role, &kept.disk.info.id),
            writable: false,
            bitmaps,
        };
        self.run(&export("snapshot", kept.node("snapshot"), Vec::new()), KEEPING)?;
        let written = match &kept.frozen {
            Some(bitmap) => {
                let add = export("written", kept.disk.node.clone(), vec![bitmap.clone()]);
                self.run(&add, KEEPING)?;
                Some(format!("qemu:dirty-bitmap:{bitmap}"))
            }
            None => None,
        };
        Ok(DiskSnapshot {
            disk: kept.disk.info.clone(),
            socket: socket.to_owned(),
            export: role_name("snapshot", &kept.disk.info.id),
            written: written.map(|context| (role_name("written", &kept.disk.info.id), context)),
        })
    }

    /// A snapshot that was given up reads as an error: that is all there is to see of it, so its first block is no proof. What
    /// QEMU tells is whether the image beside still takes writes.
    pub(super) fn check_disk_snapshot(&self) -> Result<()> {
        let current = lock(&self.disk_state.snapshot);
        let Some(snapshot) = &*current else {
            return Err(self.wrong_state("in no snapshot of its disks", "in one"));
        };
        let drives = self.devices_of_drives()?;
        for kept in &snapshot.disks {
            if !drives.iter().any(|(node, _)| *node == kept.node("filter")) {
                let why = format!("the filter of disk {} was taken out", kept.disk.info.id);
                return Err(GuestError::operation(KEEPING, why));
            }
        }
        Ok(())
    }

    pub(super) fn end_disk_snapshot(&self, stored: bool) {
        let Some(snapshot) = lock(&self.disk_state.snapshot).take() else {
            return;
        };
        self.tidy_up(&snapshot);
        if !snapshot.begun {
            return;
        }
        for kept in &snapshot.disks {
            let Some(frozen) = &kept.frozen else {
                // Nothing was stored that changes could be told from.
                if !stored {
                    self.forget_bitmap(kept, &kept.next);
                }
                continue;
            };
            let merge = BlockDirtyBitmapMerge {
                node: kept.disk.node.clone(),
                target: kept.next.clone(),
                bitmaps: vec![frozen.clone()],
            };
            // Without its bitmap the next snapshot tells nothing, and everything is read.
            if !stored && let Err(error) = self.qmp.run(&merge) {
                warn!(%error, disk = kept.disk.info.id, "what was written is not known any more");
                self.forget_bitmap(kept, &kept.next);
            }
            self.forget_bitmap(kept, frozen);
        }
    }

    fn forget_bitmap(&self, kept: &Kept, name: &str) {
        let remove = BlockDirtyBitmapRemove {
            node: kept.disk.node.clone(),
            name: name.to_owned(),
        };
        // It may not have come to be.
        let _ = self.qmp.run(&remove);
    }

    /// Takes everything apart, from the top; what is not there is no error.
    fn tidy_up(&self, snapshot: &Snapshot) {
        if !snapshot.disks.is_empty() {
            self.stop_server();
        }
        for kept in &snapshot.disks {
            self.delete_node(kept.node("snapshot"));
            let in_place = self
                .devices_of_drives()
                .is_ok_and(|drives| drives.iter().any(|(node, _)| *node == kept.node("filter")));
            // Setting what is set already ends QEMU 7.2.
            if in_place && let Err(error) = self.set_drive(&kept.device, kept.disk.node.clone()) {
                let error: &dyn std::error::Error = &error;
                warn!(
                    error,
                    disk = kept.disk.info.id,
                    "the filter of a snapshot cannot be taken out"
                );
                continue;
            }
            self.delete_node(kept.node("filter"));
            self.delete_node(kept.node("old"));
            let _ = fs::remove_file(&kept.image);
        }
        let _ = fs::remove_file(snapshot.folder.join(SOCKET));
    }

    /// Filters that a daemon left which ended in the middle.
    pub(super) fn take_out_leftovers(&self) {
        let Ok(drives) = self.qmp.run(&QueryDrives {}) else {
            return;
        };
        let Ok(nodes) = self.qmp.run(&QueryNamedBlockNodes {}) else {
            return;
        };
        for drive in drives {
            let Some(medium) = drive.inserted else { continue };
            let filter = medium.node_name.unwrap_or_default();
            let (Some(number), Some(qdev)) = (filter.strip_prefix(FILTER), drive.qdev) else {
                continue;
            };
            // The disk below the filter: the node of a format over the same file.
            let below = nodes.iter().find(|node| {
                let name = node.node_name.as_deref().unwrap_or_default();
                node.file == medium.file
                    && !name.starts_with(PREFIX)
                    && !["file", "host_device", "copy-before-write"].contains(&node.drv.as_str())
            });
            let Some(node) = below.and_then(|node| node.node_name.clone()) else {
                warn!(
                    filter,
                    "the filter of an earlier snapshot cannot be taken out: its disk is not found"
                );
                continue;
            };
            self.stop_server();
            self.delete_node(format!("{PREFIX}snapshot-{number}"));
            if let Err(error) = self.set_drive(device_path(&qdev), node) {
                let error: &dyn std::error::Error = &error;
                warn!(
                    error,
                    filter, "the filter of an earlier snapshot cannot be taken out"
                );
            }
            self.delete_node(filter.clone());
            self.delete_node(format!("{PREFIX}old-{number}"));
        }
    }

    fn delete_node(&self, node_name: String) {
        let _ = self.qmp.run(&BlockdevDel { node_name });
    }

    /// The node and the path of the device of each drive that has both.
    fn devices_of_drives(&self) -> Result<Vec<(String, String)>> {
        let drives = self.run(&QueryDrives {}, KEEPING)?;
        let pair = |drive: crate::qmp::block::Drive| {
            let node = drive.inserted?.node_name?;
            Some((node, device_path(&drive.qdev?).to_owned()))
        };
        Ok(drives.into_iter().filter_map(pair).collect())
    }

    fn set_drive(&self, device: &str, node: String) -> Result<()> {
        let set = QomSet {
            path: device.to_owned(),
            property: "drive".into(),
            value: node.into(),
        };
        self.run(&set, KEEPING).map(drop)
    }
}

/// What freezes the record so far and begins the next one, all at a moment.
fn record_anew(kept: &Kept) -> Vec<Value> {
    let node = &kept.disk.node;
    let mut actions = vec![json!({
        "type": "block-dirty-bitmap-add",
        "data": {"node": node, "name": kept.next, "persistent": false},
    })];
    if let Some(frozen) = &kept.frozen {
        actions.push(json!({
            "type": "block-dirty-bitmap-disable",
            "data": {"node": node, "name": frozen},
        }));
    }
    actions
}

/// The record of what was written since the snapshot stored last, and its number.
fn latest_record(disk: &LocalDisk) -> Option<(String, u64)> {
    let number = |name: &str| name.strip_prefix(WRITTEN)?.parse().ok();
    disk.own_bitmaps()
        .filter(|bitmap| bitmap.recording && !bitmap.inconsistent)
        .filter_map(|bitmap| Some((bitmap.name.clone(), number(&bitmap.name)?)))
        .max_by_key(|(_, number)| *number)
}

/// The device that has the property `drive`: that of a virtio disk is a part of it.
fn device_path(qdev: &str) -> &str {
    qdev.strip_suffix("/virtio-backend").unwrap_or(qdev)
}

fn role_name(role: &str, id: &str) -> String {
    format!("{role}:{id}")
}
