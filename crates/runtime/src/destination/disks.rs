//! The disks of a guest that arrives: streams of the source end in the NBD server of the guest's hypervisor.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vmferry_guest::disks::MAX_DISKS;
use vmferry_guest::{DiskInfo, DiskPlan, PlacedDisk, Vm};
use vmferry_transport::BoxedStream;

use crate::dir::GuestDir;
use crate::link::chain;

/// Bytes carried at once.
const PART_BYTES: usize = 256 << 10;

/// The disks of a session.
pub(super) struct DisksIn {
    plan: DiskPlan,
    socket: PathBuf,
    /// Which of their streams are connected, and the ends of these at the hypervisor.
    taken: Mutex<Vec<Option<UnixStream>>>,
}

/// Reads the plan of a source, which is not trusted.
pub(super) fn read_plan(json: &str) -> Result<DiskPlan, String> {
    let plan: DiskPlan =
        serde_json::from_str(json).map_err(|e| format!("the plan of the disks cannot be read: {e}"))?;
    if plan.disks.len() > MAX_DISKS {
        return Err(format!(
            "got a plan of {} disks, no more than {MAX_DISKS} are taken",
            plan.disks.len()
        ));
    }
    let plain = |text: &str| text.chars().all(|letter| letter.is_ascii_alphanumeric());
    if plan.state.is_empty() || plan.state.len() > 16 || !plain(&plan.state) {
        return Err(format!(
            "got a state of disks named {:?}, expected 1 to 16 letters and digits",
            plan.state
        ));
    }
    Ok(plan)
}

impl DisksIn {
    /// Has the hypervisor of an incoming guest export its disks.
    pub(super) fn export(plan: DiskPlan, vm: &Arc<dyn Vm>, dir: &GuestDir) -> Result<Self, String> {
        let socket = dir.path().join("disks.sock");
        let infos: Vec<DiskInfo> = plan.disks.iter().map(|planned| planned.disk.clone()).collect();
        if !infos.is_empty() {
            let disks = vm
                .disks()
                .ok_or("guests of this backend have no disks that could move")?;
            disks.export(&infos, &socket).map_err(|e| chain(&e))?;
        }
        Ok(Self {
            taken: Mutex::new(infos.iter().map(|_| None).collect()),
            plan,
            socket,
        })
    }

    /// Takes the stream of a disk.
    ///
    /// # Errors
    /// The reason to refuse it.
    pub(super) fn connect(&self, index: u16) -> Result<UnixStream, String> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let disks = taken.len();
        match taken.get_mut(usize::from(index)) {
            Some(Some(_)) => Err("this stream is connected already".into()),
            None => Err(format!("disk {index} of {disks} that were on offer")),
            Some(slot) => {
                let reach = || {
                    let stream = UnixStream::connect(&self.socket)?;
                    let kept = stream.try_clone()?;
                    Ok::<_, std::io::Error>((stream, kept))
                };
                let (stream, kept) = reach().map_err(|e| format!("the disks cannot be reached: {e}"))?;
                *slot = Some(kept);
                Ok(stream)
            }
        }
    }

    /// The source has settled its mirrors: nobody else writes to the disks from here on.
    pub(super) fn end(&self, vm: &Arc<dyn Vm>) -> Result<(), String> {
        self.close();
        match vm.disks() {
            Some(disks) if !self.plan.disks.is_empty() => {
                disks.end_export(Some(&self.plan.state)).map_err(|e| chain(&e))
            }
            _ => Ok(()),
        }
    }

    /// Ends the streams, so that no thread waits for the hypervisor.
    pub(super) fn close(&self) {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for stream in taken.iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Carries bytes both ways until one side ends; then the other one is told.
pub(super) fn carry(mut wire: BoxedStream, mut disk: UnixStream) {
    let (Ok(to_wire), Ok(from_disk)) = (wire.try_clone(), disk.try_clone()) else {
        return;
    };
    let back = spawn("in disk back", move || answer(to_wire, from_disk));
    let mut part = vec![0; PART_BYTES];
    while let Ok(read @ 1..) = wire.read(&mut part) {
        if disk.write_all(&part[..read]).is_err() {
            break;
        }
    }
    let _ = disk.shutdown(Shutdown::Both);
    let _ = wire.shutdown();
    let _ = back.join();
}

fn answer(mut wire: BoxedStream, mut disk: UnixStream) {
    let mut part = vec![0; PART_BYTES];
    while let Ok(read @ 1..) = disk.read(&mut part) {
        if wire.write_all(&part[..read]).is_err() {
            break;
        }
    }
    let _ = disk.shutdown(Shutdown::Both);
    let _ = wire.shutdown();
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .expect("a thread can be started")
}

/// Where the disks lie, for the source.
pub(super) fn places_json(places: &[PlacedDisk]) -> Result<String, String> {
    serde_json::to_string(places).map_err(|e| chain(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_makes_no_sense_is_refused() {
        let refused = |json: &str| read_plan(json).unwrap_err();
        assert!(refused("{").contains("cannot be read"));
        assert!(refused(r#"{"disks": [], "state": "../x"}"#).contains("expected 1 to 16 letters"));
        assert!(refused(r#"{"disks": [], "state": ""}"#).contains("expected 1 to 16 letters"));
        let disk = r#"{"disk": {"id": "d", "path": "/x", "format": "raw", "bytes": 1}}"#;
        let many = vec![disk; MAX_DISKS + 1].join(",");
        assert!(refused(&format!(r#"{{"disks": [{many}], "state": "s"}}"#)).contains("65 disks"));
        assert_eq!(read_plan(r#"{"disks": [], "state": "0a"}"#).unwrap().state, "0a");
    }
}
