//! The guest's disks as of its checkpoint: written before the guest has its device state, while nobody else writes to them.

use std::path::Path;

use vmferry_disk::NbdClient;
use vmferry_guest::{DiskInfo, Vm};
use vmferry_store::{DiskState, Reader};

use super::ResumeError;

/// Puts the disks of the checkpoint back to what they were at its moment. Its files have to be there, and as large as they were.
///
/// # Errors
/// When the guest has other disks; when the store does not give what was on them: then they are as far as that came.
pub(super) fn put_back(vm: &dyn Vm, reader: &Reader, folder: &Path) -> Result<(), ResumeError> {
    let states = &reader.manifest().disks;
    if states.is_empty() {
        return Ok(());
    }
    let missing = |device: &str| ResumeError::NoDisk(device.to_owned());
    let disks = vm.disks().ok_or_else(|| missing(&states[0].device))?;
    let here = disks.list()?;
    let mut infos = Vec::new();
    for state in states {
        let found = here.iter().find(|info| info.id == state.device);
        let found = found.ok_or_else(|| missing(&state.device))?;
        infos.push(DiskInfo {
            bytes: state.bytes,
            ..found.clone()
        });
    }
    let socket = folder.join("disks.sock");
    disks.export(&infos, &socket)?;
    let written = states.iter().try_for_each(|state| write(state, reader, &socket));
    // Whatever came of it: nobody but the guest writes from here on.
    let ended = disks.end_export(None);
    written?;
    Ok(ended?)
}

/// What is not in the checkpoint read as zeros.
fn write(state: &DiskState, reader: &Reader, socket: &Path) -> Result<(), ResumeError> {
    let mut disk = NbdClient::connect(socket, &state.device, None)?;
    let mut at = 0;
    for extent in &state.extents {
        zero(&mut disk, at, extent.offset)?;
        disk.write(extent.offset, &reader.blob(&extent.blob)?)?;
        at = extent.offset + extent.blob.bytes;
    }
    zero(&mut disk, at, state.bytes)?;
    disk.flush()?;
    disk.disconnect();
    Ok(())
}

fn zero<S: std::io::Read + std::io::Write>(
    disk: &mut NbdClient<S>,
    from: u64,
    to: u64,
) -> Result<(), ResumeError> {
    match to.checked_sub(from) {
        None | Some(0) => Ok(()),
        Some(bytes) => Ok(disk.write_zeroes(from, bytes)?),
    }
}
