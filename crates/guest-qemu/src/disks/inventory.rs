//! Which disks a guest has, and which of them are of this host.

use std::path::PathBuf;

use serde_json::Value;
use vmferry_guest::{DiskInfo, GuestError, Result};

use crate::guest::QemuGuest;
use crate::qmp::block::{DirtyBitmap, Drive, QueryDrives};

use super::PREFIX;

/// A disk of this host, and how to name it to QEMU.
#[derive(Clone, Debug)]
pub(super) struct LocalDisk {
    pub(super) info: DiskInfo,
    /// The drive or node, for commands that take either.
    pub(super) device: String,
    /// Its node, for commands that take nothing else.
    pub(super) node: String,
    bitmaps: Vec<DirtyBitmap>,
}

/// Begins the names of bitmaps that record what changes since a state.
const SINCE: &str = "vmferry-since-";

/// The bitmap that records what changes since `state`.
pub(super) fn bitmap_since(state: &str) -> String {
    format!("{SINCE}{state}")
}

impl LocalDisk {
    /// The state since which every change was recorded.
    pub(super) fn recorded_since(&self) -> Option<String> {
        let sound = |bitmap: &&DirtyBitmap| bitmap.recording && !bitmap.inconsistent;
        let state = |bitmap: &DirtyBitmap| Some(bitmap.name.strip_prefix(SINCE)?.to_owned());
        self.bitmaps.iter().filter(sound).find_map(state)
    }

    /// The bitmaps that are ours.
    pub(super) fn own_bitmaps(&self) -> impl Iterator<Item = &DirtyBitmap> {
        self.bitmaps
            .iter()
            .filter(|bitmap| bitmap.name.starts_with(PREFIX))
    }

    /// The bitmap of this name.
    pub(super) fn bitmap(&self, name: &str) -> Option<&DirtyBitmap> {
        self.bitmaps.iter().find(|bitmap| bitmap.name == name)
    }
}

impl QemuGuest {
    /// The disks that the guest can write to and that lie in files or block devices of this host.
    pub(super) fn local_disks(&self) -> Result<Vec<LocalDisk>> {
        let drives = self.run(&QueryDrives {}, "asking QEMU for its disks")?;
        drives.into_iter().filter_map(|drive| self.local(drive)).collect()
    }

    pub(super) fn local_disk(&self, id: &str) -> Result<LocalDisk> {
        let disks = self.local_disks()?;
        disks
            .into_iter()
            .find(|disk| disk.info.id == id)
            .ok_or_else(|| self.unsuitable_disk(format!("it has no disk {id}"), "name one that it has"))
    }

    fn local(&self, drive: Drive) -> Option<Result<LocalDisk>> {
        let medium = drive.inserted.filter(|medium| !medium.ro)?;
        let node = medium.node_name.clone().unwrap_or_default();
        let given = [drive.device.clone(), node.clone(), drive.qdev.unwrap_or_default()];
        // Nodes that QEMU named itself have other names at the destination.
        let id = given
            .into_iter()
            .find(|name| !name.is_empty() && !name.starts_with('#'))?;
        let path = match file_of(&medium.file) {
            Place::Here(path) => path,
            Place::Elsewhere => return None,
            Place::Unknown => {
                let problem = format!("where its disk {id} lies ({}) is not understood", medium.file);
                return Some(Err(self.unsuitable_disk(problem, "give it a plain file")));
            }
        };
        let device = if drive.device.is_empty() {
            node.clone()
        } else {
            drive.device
        };
        Some(Ok(LocalDisk {
            info: DiskInfo {
                id,
                path,
                format: medium.drv,
                bytes: medium.image.virtual_size,
                has_backing: medium.backing_depth > 0,
            },
            device,
            node,
            bitmaps: medium.dirty_bitmaps,
        }))
    }

    pub(super) fn unsuitable_disk(&self, problem: String, mend: &str) -> GuestError {
        crate::spec::unsuitable(&self.spec.name, problem, mend)
    }
}

/// Where an image lies.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// In a file or block device of this host.
    Here(PathBuf),
    /// Where it is reached over a network, or nowhere.
    Elsewhere,
    Unknown,
}

/// QEMU names images by their path, by a URL, or by the options of their nodes in JSON.
fn file_of(name: &str) -> Place {
    if let Some(json) = name.strip_prefix("json:") {
        return match serde_json::from_str::<Value>(json) {
            Ok(options) => in_options(&options),
            Err(_) => Place::Unknown,
        };
    }
    let path = name.strip_prefix("file:").unwrap_or(name);
    let colon = path.find(':').unwrap_or(path.len());
    let slash = path.find('/').unwrap_or(path.len());
    if path.is_empty() || (colon < path.len() && colon < slash) {
        return Place::Elsewhere;
    }
    Place::Here(path.into())
}

fn in_options(options: &Value) -> Place {
    let local = ["file", "host_device"];
    match options["driver"].as_str() {
        Some(driver) if local.contains(&driver) => match options["filename"].as_str() {
            Some(path) => Place::Here(path.into()),
            None => Place::Unknown,
        },
        _ if options["file"].is_object() => in_options(&options["file"]),
        Some(_) => Place::Elsewhere,
        None => Place::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_this_host_are_told_from_others() {
        let here = |path: &str| Place::Here(path.into());
        for (name, place) in [
            ("disk.img", here("disk.img")),
            ("/var/a:b.qcow2", here("/var/a:b.qcow2")),
            ("file:/x", here("/x")),
            ("nbd+unix:///d?socket=/x", Place::Elsewhere),
            ("rbd:pool/image", Place::Elsewhere),
            (
                r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/x"}}"#,
                here("/x"),
            ),
            (
                r#"json:{"driver":"raw","file":{"driver":"nbd","export":"d"}}"#,
                Place::Elsewhere,
            ),
            ("json:{", Place::Unknown),
            ("", Place::Elsewhere),
        ] {
            assert_eq!(file_of(name), place, "{name}");
        }
    }
}
