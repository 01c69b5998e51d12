//! The guest's disks as of the pause, into the store.
//!
//! The hypervisor keeps what the guest overwrites from the pause on, and exports the disks as they were. They are stored in
//! aligned blocks, those that read as zeros not at all; a block that was not written since the checkpoint before is the one
//! of that checkpoint.

use std::path::Path;

use vmferry_disk::{Extent, NbdClient};
use vmferry_guest::{DiskSnapshot, Disks, Vm};
use vmferry_store::{DiskExtent, DiskState, Writer};

use super::error::{Result, TakeError};

/// Bytes of a disk that are one extent of a checkpoint.
const BLOCK_BYTES: u64 = 1 << 20;
/// The context of an export that tells what reads as zeros.
const ALLOCATION: &str = "base:allocation";

/// A point in time of the disks. It ends with this value.
pub(super) struct DisksOfMoment<'a> {
    disks: &'a dyn Disks,
    stored: bool,
}

impl<'a> DisksOfMoment<'a> {
    /// Gets ready, while the guest runs; none where it has no disks of this host that it can write to.
    pub(super) fn prepare(vm: &'a dyn Vm, folder: &Path) -> Result<Option<Self>> {
        let Some(disks) = vm.disks() else { return Ok(None) };
        if disks.list()?.is_empty() {
            return Ok(None);
        }
        std::fs::create_dir_all(folder).map_err(TakeError::DiskFolder)?;
        disks.prepare_snapshot(folder)?;
        Ok(Some(Self { disks, stored: false }))
    }

    /// This is the moment; the guest is paused.
    pub(super) fn begin(&self) -> Result<()> {
        Ok(self.disks.begin_snapshot()?)
    }

    /// Hands all of it to the store, with the guest running; `before` are the disks of the checkpoint that this one inherits
    /// from. Answers also how many bytes were read.
    pub(super) fn save(
        &self,
        writer: &Writer,
        before: &[DiskState],
        given_up: &dyn Fn() -> bool,
    ) -> Result<(Vec<DiskState>, u64)> {
        let (mut states, mut bytes) = (Vec::new(), 0);
        for snapshot in self.disks.open_snapshot()? {
            let before = before.iter().find(|before| before.device == snapshot.disk.id);
            let (state, read) = save_disk(&snapshot, before, writer, given_up)?;
            states.push(state);
            bytes += read;
        }
        self.disks.check_snapshot()?;
        Ok((states, bytes))
    }

    /// The checkpoint is in the store: the next one inherits from it.
    pub(super) fn stored(mut self) {
        self.stored = true;
    }
}

impl Drop for DisksOfMoment<'_> {
    fn drop(&mut self) {
        self.disks.end_snapshot(self.stored);
    }
}

fn save_disk(
    snapshot: &DiskSnapshot,
    before: Option<&DiskState>,
    writer: &Writer,
    given_up: &dyn Fn() -> bool,
) -> Result<(DiskState, u64)> {
    let mut disk = NbdClient::connect(&snapshot.socket, &snapshot.export, Some(ALLOCATION))?;
    let bytes = disk.bytes();
    let data = blocks(&mut disk, bytes, |extent| !extent.is_zero())?;
    let before = before.filter(|before| before.bytes == bytes);
    let written = match (&snapshot.written, before) {
        (Some((export, context)), Some(_)) => {
            let mut written = NbdClient::connect(&snapshot.socket, export, Some(context))?;
            let blocks = blocks(&mut written, bytes, vmferry_disk::Extent::is_dirty)?;
            written.disconnect();
            blocks
        }
        _ => vec![true; data.len()],
    };
    let kept = |offset: u64| {
        let extents = &before?.extents;
        let found = extents
            .binary_search_by_key(&offset, |extent| extent.offset)
            .ok()?;
        Some(extents[found].clone())
    };
    let (mut extents, mut read) = (Vec::new(), 0);
    let mut content = vec![0; BLOCK_BYTES as usize];
    for (index, (&has_data, &was_written)) in data.iter().zip(&written).enumerate() {
        let offset = index as u64 * BLOCK_BYTES;
        if given_up() {
            return Err(TakeError::Cancelled);
        }
        if !was_written {
            extents.extend(kept(offset));
        } else if has_data {
            let content = &mut content[..BLOCK_BYTES.min(bytes - offset) as usize];
            disk.read(offset, content)?;
            read += content.len() as u64;
            if content.iter().any(|&byte| byte != 0) {
                let blob = writer.blob(content)?;
                extents.push(DiskExtent { offset, blob });
            }
        }
    }
    disk.disconnect();
    let state = DiskState {
        device: snapshot.disk.id.clone(),
        format: "raw".into(),
        bytes,
        extents,
    };
    Ok((state, read))
}

/// Which blocks of an export have a part of which its context says `so`.
fn blocks<S: std::io::Read + std::io::Write>(
    disk: &mut NbdClient<S>,
    bytes: u64,
    so: impl Fn(&Extent) -> bool,
) -> Result<Vec<bool>> {
    let mut blocks = vec![false; bytes.div_ceil(BLOCK_BYTES) as usize];
    let mut at = 0;
    while at < bytes {
        for extent in disk.extents(at, bytes - at)? {
            let end = extent.offset + extent.bytes;
            if so(&extent) {
                let (first, last) = (extent.offset / BLOCK_BYTES, (end - 1) / BLOCK_BYTES);
                blocks[first as usize..=last as usize].fill(true);
            }
            at = at.max(end);
        }
    }
    Ok(blocks)
}
