//! The disks of a guest that arrives: streams of the source end in the NBD server of the guest's hypervisor.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use vmferry_disk::tunnel::index::Place;
use vmferry_disk::tunnel::{FromSource, Index, Receiver, Target, ToSource};
use vmferry_disk::{DiskError, NbdClient};
use vmferry_guest::disks::{Before, MAX_DISKS};
use vmferry_guest::{DiskInfo, DiskPlan, PlacedDisk, Vm};
use vmferry_transport::BoxedStream;

use crate::dir::GuestDir;
use crate::link::chain;

/// Bytes carried at once.
const PART_BYTES: usize = 256 << 10;

/// The most blocks that are known by their hash: those of 32 GiB, for about 50 MB of memory.
const MAX_KNOWN_BLOCKS: usize = 1 << 19;

/// The disks of a session.
pub(super) struct DisksIn {
    plan: DiskPlan,
    socket: PathBuf,
    /// The disks held something before, by their numbers.
    held_something: Vec<bool>,
    /// Blocks of all disks by their hash, for tunnels.
    index: Arc<Mutex<Index>>,
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
    pub(super) fn export(
        plan: DiskPlan,
        places: &[PlacedDisk],
        vm: &Arc<dyn Vm>,
        dir: &GuestDir,
    ) -> Result<Self, String> {
        let socket = dir.path().join("disks.sock");
        let infos: Vec<DiskInfo> = plan.disks.iter().map(|planned| planned.disk.clone()).collect();
        if !infos.is_empty() {
            let disks = vm
                .disks()
                .ok_or("guests of this backend have no disks that could move")?;
            disks.export(&infos, &socket).map_err(|e| chain(&e))?;
        }
        Ok(Self {
            held_something: infos
                .iter()
                .map(|info| held_something(places, &info.id))
                .collect(),
            index: Arc::new(Mutex::new(Index::new(MAX_KNOWN_BLOCKS))),
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

    /// What carries the stream of disk `index`, connected by [`DisksIn::connect`].
    pub(super) fn carrier(&self, index: u16, disk: UnixStream) -> impl FnOnce(BoxedStream) + Send + 'static {
        let exports = || Exports {
            socket: self.socket.clone(),
            names: self
                .plan
                .disks
                .iter()
                .map(|planned| planned.disk.id.clone())
                .collect(),
            this: usize::from(index),
            others: BTreeMap::new(),
        };
        let tunnel = self.plan.tunnel.then(|| {
            let had_content = self.held_something[usize::from(index)];
            (exports(), had_content, self.index.clone())
        });
        move |wire| match tunnel {
            Some((exports, had_content, known)) => {
                through_tunnel(wire, disk, index, exports, had_content, known);
            }
            None => carry(wire, disk),
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
fn carry(mut wire: BoxedStream, mut disk: UnixStream) {
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

/// Carries frames out until the source ends.
fn through_tunnel(
    mut wire: BoxedStream,
    disk: UnixStream,
    number: u16,
    exports: Exports,
    had_content: bool,
    known: Arc<Mutex<Index>>,
) {
    if let Err(error) = take_frames(&mut wire, disk, number, exports, had_content, known) {
        let reason = chain(&error);
        tracing::warn!(reason, disk = number, "the tunnel of a disk broke");
        // The source may be gone.
        let _ = ToSource::Failed { reason }.write(&mut wire);
        // It listens only once what it is sending has been taken.
        while let Ok(Some(_)) = FromSource::read(&mut wire) {}
    }
    let _ = wire.shutdown();
}

fn take_frames(
    wire: &mut BoxedStream,
    disk: UnixStream,
    number: u16,
    exports: Exports,
    had_content: bool,
    known: Arc<Mutex<Index>>,
) -> Result<(), DiskError> {
    let client = NbdClient::open(disk, &exports.names[exports.this], None)?;
    let target = OverNbd { client, exports };
    let mut receiver = Receiver::new(target, number, had_content, known);
    while let Some(frame) = FromSource::read(wire)? {
        if let Some(answer) = receiver.take(frame)? {
            answer.write(wire)?;
        }
    }
    Ok(())
}

/// The exports of the guest's disks.
struct Exports {
    socket: PathBuf,
    names: Vec<String>,
    this: usize,
    /// Connections to the others, as they are needed.
    others: BTreeMap<usize, NbdClient<UnixStream>>,
}

/// A disk behind the hypervisor's NBD server.
struct OverNbd {
    client: NbdClient<UnixStream>,
    exports: Exports,
}

impl Target for OverNbd {
    fn bytes(&self) -> u64 {
        self.client.bytes()
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        self.client.write(offset, data)
    }
    fn zero(&mut self, offset: u64, bytes: u64) -> Result<(), DiskError> {
        self.client.write_zeroes(offset, bytes)
    }
    fn flush(&mut self) -> Result<(), DiskError> {
        self.client.flush()
    }
    fn read(&mut self, place: Place, block: &mut [u8]) -> Result<(), DiskError> {
        let disk = usize::from(place.disk);
        if disk == self.exports.this {
            return self.client.read(place.offset, block);
        }
        let Exports {
            socket,
            names,
            others,
            ..
        } = &mut self.exports;
        let client = match others.entry(disk) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(empty) => {
                let name = names.get(disk).ok_or(DiskError::Ended("a disk of the guest"))?;
                empty.insert(NbdClient::connect(socket, name, None)?)
            }
        };
        client.read(place.offset, block)
    }
}

fn held_something(places: &[PlacedDisk], id: &str) -> bool {
    places
        .iter()
        .any(|place| place.id == id && place.was != Before::Nothing)
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
