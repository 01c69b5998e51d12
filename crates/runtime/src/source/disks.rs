//! The disks of a source: what the hypervisor's mirrors write is carried to the destination, one stream a disk.
//!
//! The hypervisor writes to an NBD server on a socket in the guest's directory. What comes there goes over a stream of the
//! migration like any other: to the port that the destination has open anyway, under the migration's bandwidth cap, and through
//! whatever the transport does to its streams.

use std::fs;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmferry_core::disks::{DiskProgress, DiskReport, DiskRequest, DisksReport, TunnelReport};
use vmferry_core::report::Outcome;
use vmferry_core::source::Event;
use vmferry_guest::disks::{Before, MAX_DISKS, MirrorTo, PlannedDisk};
use vmferry_guest::{DiskInfo, DiskPlan, Disks, PlacedDisk, Vm};
use vmferry_transport::BoxedStream;
use vmferry_wire::{DISKS_SINCE, StreamRole, ToDestination};

use super::Shared;
use super::disk_tunnel::Tunnel;
use super::driver::{Driver, Input};
use crate::link::{chain, dial, new_token, token_text};

/// How often the mirrors are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long the hypervisor may take to open the socket it was told of.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it is looked whether it has.
const CONNECT_POLL: Duration = Duration::from_millis(2);
/// Bytes carried at once. Small: what a cap keeps back waits in the hypervisor.
const PART_BYTES: usize = 64 << 10;

/// The disks of a migration under way.
pub(super) struct DiskCopy {
    plan: DiskPlan,
    lines: Vec<Line>,
    watcher: Option<JoinHandle<()>>,
    settler: Option<JoinHandle<()>>,
    /// The lines end.
    stop: Arc<AtomicBool>,
    /// The watcher ends.
    seen_enough: Arc<AtomicBool>,
    /// Bytes copied of each disk, as of the last look.
    copied: Arc<Vec<AtomicU64>>,
    /// What crossed through tunnels, once they have ended.
    crossed: Option<TunnelReport>,
}

/// The way of a disk's data.
struct Line {
    stream: BoxedStream,
    socket: PathBuf,
    /// The hypervisor's end, once it has connected.
    hypervisor: Arc<std::sync::Mutex<Option<UnixStream>>>,
    thread: JoinHandle<()>,
    /// The tunnel on it, if it is one.
    tunnel: Option<Arc<Tunnel>>,
    /// Bytes that came back.
    returned: Arc<AtomicU64>,
}

impl Driver {
    /// Tells the destination which disks will come. `version` is what it speaks.
    pub(super) fn offer_disks(&mut self, request: &DiskRequest, version: u16) -> Result<(), String> {
        if version < DISKS_SINCE {
            return Err(format!(
                "the destination speaks version {version} of the protocol, which moves no disks; update vmferry there"
            ));
        }
        let plan = plan(&self.vm, request)?;
        let plan_json = serde_json::to_string(&plan).map_err(|e| chain(&e))?;
        self.disks = Some(DiskCopy::new(plan));
        self.send(&ToDestination::Disks { plan_json })
    }

    /// Opens a stream for each disk and lets the hypervisor mirror into it.
    pub(super) fn copy_disks(&mut self) -> Result<(), String> {
        let copy = self.disks.as_mut().ok_or("no disks were on offer")?;
        let request = self.shared.request.disks.clone().unwrap_or_default();
        let disks = self.vm.disks().ok_or("the guest has no disks that could move")?;
        let places = self
            .shared
            .places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        for (index, planned) in copy.plan.disks.iter().enumerate() {
            let held_something = places
                .iter()
                .any(|place| place.id == planned.disk.id && place.was != Before::Nothing);
            let role = StreamRole::Disk { index: index as u16 };
            let (stream, _) = dial(&self.shared.request.to, self.shared.session, role)?;
            let socket = self.dir.path().join(format!("mirror-{index}.sock"));
            let tunnel = copy.plan.tunnel.then(|| Arc::new(Tunnel::new()));
            let line = Line::open(
                stream,
                socket.clone(),
                &planned.disk,
                tunnel,
                &self.shared,
                &copy.stop,
            )?;
            copy.lines.push(line);
            let to = MirrorTo {
                socket,
                export: planned.disk.id.clone(),
                writes: request.writes,
                bytes_per_s: self.shared.source().bandwidth_limit(),
                since: planned.since.clone(),
                keep: copy.plan.tunnel && held_something,
            };
            disks.begin_mirror(&planned.disk.id, &to).map_err(|e| chain(&e))?;
        }
        copy.watch(&self.vm, &self.shared, self.inputs.clone());
        Ok(())
    }

    /// The guest is stopped: settles the mirrors on a thread of its own, while pages cross.
    pub(super) fn settle_disks(&mut self) -> Result<(), String> {
        let copy = self.disks.as_mut().ok_or("no disks were copied")?;
        copy.stop_watching();
        let (vm, shared, inputs) = (self.vm.clone(), self.shared.clone(), self.inputs.clone());
        let settle = move || {
            let _usage = shared.usage.thread();
            let settled = vm.disks().map_or(Ok(()), Disks::settle_mirrors);
            let _ = inputs.send(Input::Local(match settled {
                Ok(()) => Event::DisksSettled,
                Err(error) => Event::Failed(chain(&error)),
            }));
        };
        copy.settler = Some(spawn("out settle", settle));
        Ok(())
    }

    /// The limit of the migration has changed: the hypervisor should not send faster than that either.
    pub(super) fn limit_disks(&self) {
        let limit = self.shared.source().bandwidth_limit();
        let under_way = self.disks.as_ref().is_some_and(|copy| !copy.lines.is_empty());
        if under_way
            && let Some(disks) = self.vm.disks()
            && let Err(error) = disks.limit_mirrors(limit)
        {
            tracing::warn!(
                error = chain(&error),
                "the mirrors of disks are not limited at their source"
            );
        }
    }

    /// The migration is off, or over: nothing of the copy is left at this host.
    pub(super) fn end_disks(&mut self) {
        let Some(copy) = &mut self.disks else { return };
        copy.stop_watching();
        if let Some(disks) = self.vm.disks().filter(|_| !copy.lines.is_empty()) {
            disks.abandon_mirrors();
        }
        let sent = copy.close();
        self.disk_bytes += sent;
    }

    /// What became of the disks.
    pub(super) fn disks_report(&self, outcome: Outcome) -> Option<DisksReport> {
        let copy = self.disks.as_ref()?;
        let source = self.shared.source();
        let (copied, settled) = source.disk_times().unwrap_or_default();
        let places = self
            .shared
            .places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let report = |(planned, copied): (&PlannedDisk, &AtomicU64)| {
            let place = places.iter().find(|place| place.id == planned.disk.id);
            let (source_is, destination_is) = conditions(outcome, place);
            DiskReport {
                id: planned.disk.id.clone(),
                source: planned.disk.path.display().to_string(),
                destination: place.map_or_else(String::new, |place| place.path.display().to_string()),
                format: planned.disk.format.clone(),
                bytes: planned.disk.bytes,
                copied_bytes: copied.load(Ordering::Relaxed),
                source_is,
                destination_is,
            }
        };
        Some(DisksReport {
            state: copy.plan.state.clone(),
            copy_ms: copied.as_secs_f64() * 1e3,
            settle_ms: settled.as_secs_f64() * 1e3,
            bytes_on_wire: self.disk_bytes,
            disks: copy
                .plan
                .disks
                .iter()
                .zip(copy.copied.iter())
                .map(report)
                .collect(),
            tunnel: copy.crossed,
        })
    }
}

/// The disks of a guest as the destination needs to know them.
fn plan(vm: &Arc<dyn Vm>, request: &DiskRequest) -> Result<DiskPlan, String> {
    let disks = vm
        .disks()
        .ok_or("the guest has no disks that could move; migrate it without them")?;
    let found = disks.list().map_err(|e| chain(&e))?;
    if found.len() > MAX_DISKS {
        return Err(format!(
            "the guest has {} disks, no more than {MAX_DISKS} can move",
            found.len()
        ));
    }
    let planned = |disk: vmferry_guest::DiskInfo| {
        let since = match request.incremental {
            true => Some(recorded_since(disks, &disk.id)?),
            false => None,
        };
        Ok(PlannedDisk { disk, since })
    };
    Ok(DiskPlan {
        disks: found.into_iter().map(planned).collect::<Result<_, String>>()?,
        folder: request.folder.clone(),
        overwrite: request.overwrite,
        tunnel: request.tunnel,
        state: new_token().map(token_text).map_err(|e| chain(&e))?[..16].to_owned(),
    })
}

fn recorded_since(disks: &dyn Disks, id: &str) -> Result<String, String> {
    disks.recorded_since(id).map_err(|e| chain(&e))?.ok_or_else(|| {
        format!(
            "what changed on disk {id} since an earlier state was not recorded, so it cannot move incrementally; move all of \
             it, without --incremental"
        )
    })
}

/// In which condition the files of a disk are after a migration, at the source and at the destination.
fn conditions(outcome: Outcome, place: Option<&PlacedDisk>) -> (String, String) {
    let in_use = "in use by the guest".to_owned();
    match (outcome, place) {
        (Outcome::Completed, _) => ("kept as of the stop, not written any more".into(), in_use),
        (Outcome::Unresolved, _) => (
            "as of the stop, equal to the other".into(),
            "as of the stop, equal to the other".into(),
        ),
        (_, None) => (in_use, "not touched".into()),
        (
            _,
            Some(PlacedDisk {
                was: Before::Nothing, ..
            }),
        ) => (in_use, "incomplete, removed by its daemon".into()),
        (_, Some(_)) => (in_use, "overwritten in part: marked as incomplete".into()),
    }
}

impl DiskCopy {
    fn new(plan: DiskPlan) -> Self {
        Self {
            copied: Arc::new(plan.disks.iter().map(|_| AtomicU64::new(0)).collect()),
            plan,
            lines: Vec::new(),
            watcher: None,
            settler: None,
            stop: Arc::default(),
            seen_enough: Arc::default(),
            crossed: None,
        }
    }

    /// Looks at the mirrors again and again.
    fn watch(&mut self, vm: &Arc<dyn Vm>, shared: &Arc<Shared>, inputs: crossbeam_channel::Sender<Input>) {
        let ids: Vec<String> = self
            .plan
            .disks
            .iter()
            .map(|planned| planned.disk.id.clone())
            .collect();
        let tunnels: Vec<_> = self.lines.iter().filter_map(|line| line.tunnel.clone()).collect();
        let (vm, shared, stop, copied) = (
            vm.clone(),
            shared.clone(),
            self.seen_enough.clone(),
            self.copied.clone(),
        );
        let watch = move || {
            let mut usage = shared.usage.thread();
            while !stop.load(Ordering::Relaxed) {
                match look(&vm, &ids, &copied) {
                    Ok(progress) => drop(inputs.send(Input::Local(Event::DisksProgress(progress)))),
                    Err(reason) => {
                        // The hypervisor knows no more than that its copy failed.
                        let why = tunnels.iter().find_map(|tunnel| tunnel.failure());
                        return drop(inputs.send(Input::Local(Event::Failed(why.unwrap_or(reason)))));
                    }
                }
                usage.flush();
                thread::park_timeout(LOOK_EVERY);
            }
        };
        self.watcher = Some(spawn("out disks", watch));
    }

    fn stop_watching(&mut self) {
        if let Some(watcher) = self.watcher.take() {
            self.seen_enough.store(true, Ordering::Relaxed);
            watcher.thread().unpark();
            let _ = watcher.join();
        }
    }

    /// Ends all lines; answers how many bytes they carried.
    fn close(&mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        let tunnels = self.lines.iter().filter_map(|line| line.tunnel.as_ref());
        let crossed = tunnels.map(|tunnel| tunnel.report()).reduce(added);
        self.crossed = self.crossed.or(crossed);
        if let Some(settler) = self.settler.take() {
            let _ = settler.join();
        }
        self.lines.drain(..).map(Line::close).sum()
    }
}

fn look(vm: &Arc<dyn Vm>, ids: &[String], copied: &[AtomicU64]) -> Result<DiskProgress, String> {
    let Some(disks) = vm.disks() else {
        return Ok(DiskProgress::default());
    };
    let of = |(id, copied): (&String, &AtomicU64)| {
        let progress = disks.mirror_progress(id).map_err(|e| chain(&e))?;
        copied.store(progress.done_bytes, Ordering::Relaxed);
        Ok(progress)
    };
    ids.iter().zip(copied).map(of).sum()
}

impl Line {
    /// Waits for the hypervisor at `socket` and carries what it says, on threads of their own.
    fn open(
        stream: BoxedStream,
        socket: PathBuf,
        disk: &DiskInfo,
        tunnel: Option<Arc<Tunnel>>,
        shared: &Arc<Shared>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, String> {
        let _ = fs::remove_file(&socket);
        let failed = |error: std::io::Error| format!("cannot listen at {}: {error}", socket.display());
        let listener = UnixListener::bind(&socket).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let hypervisor: Arc<std::sync::Mutex<Option<UnixStream>>> = Arc::default();
        let returned = Arc::new(AtomicU64::new(0));
        let (shared, stop, slot, back) = (shared.clone(), stop.clone(), hypervisor.clone(), returned.clone());
        let wire = stream.try_clone().map_err(|e| chain(&e))?;
        let (through, info) = (tunnel.clone(), disk.clone());
        let carry = move || {
            let carried = accept(&listener, &stop).and_then(|disk| {
                let kept = disk.try_clone()?;
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
                match through {
                    Some(tunnel) => tunnel.carry(disk, wire, &info, &shared, &stop),
                    None => carry(disk, wire, &shared, &stop, &back),
                }
            });
            // The hypervisor notices by itself, and says more about it.
            if let Err(error) = carried {
                tracing::debug!(%error, "the stream of a disk ended");
            }
        };
        Ok(Self {
            stream,
            thread: spawn("out disk", carry),
            socket,
            hypervisor,
            tunnel,
            returned,
        })
    }

    fn close(self) -> u64 {
        let _ = self.stream.shutdown();
        if let Some(hypervisor) = &*self.hypervisor.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = hypervisor.shutdown(std::net::Shutdown::Both);
        }
        let _ = self.thread.join();
        let _ = fs::remove_file(&self.socket);
        self.stream.bytes_written() + self.returned.load(Ordering::Relaxed)
    }
}

fn accept(listener: &UnixListener, stop: &AtomicBool) -> std::io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIMEOUT;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if stop.load(Ordering::Relaxed) || Instant::now() > deadline {
            return Err(std::io::Error::new(
                ErrorKind::TimedOut,
                "the hypervisor did not connect",
            ));
        }
        thread::sleep(CONNECT_POLL);
    }
}

/// Carries bytes both ways until one side ends; then the other one is told.
fn carry(
    mut disk: UnixStream,
    mut wire: BoxedStream,
    shared: &Arc<Shared>,
    stop: &Arc<AtomicBool>,
    returned: &Arc<AtomicU64>,
) -> std::io::Result<()> {
    let (mut from_wire, mut to_disk) = (wire.try_clone()?, disk.try_clone()?);
    let (usage, returned) = (shared.clone(), returned.clone());
    let back = spawn("out disk back", move || {
        let _usage = usage.usage.thread();
        let mut part = vec![0; PART_BYTES];
        while let Ok(read @ 1..) = from_wire.read(&mut part) {
            returned.fetch_add(read as u64, Ordering::Relaxed);
            if to_disk.write_all(&part[..read]).is_err() {
                break;
            }
        }
        let _ = to_disk.shutdown(std::net::Shutdown::Both);
    });
    let mut usage = shared.usage.thread();
    let mut part = vec![0; PART_BYTES];
    let carried = loop {
        match disk.read(&mut part) {
            Ok(0) => break Ok(()),
            Ok(read) => {
                wait_for_turn(shared, stop, read as u64);
                if let Err(error) = wire.write_all(&part[..read]) {
                    break Err(error);
                }
            }
            Err(error) => break Err(error),
        }
        usage.flush();
    };
    let _ = disk.shutdown(std::net::Shutdown::Both);
    let _ = wire.shutdown();
    let _ = back.join();
    carried
}

/// Waits until the bandwidth cap lets `bytes` through.
pub(super) fn wait_for_turn(shared: &Shared, stop: &AtomicBool, bytes: u64) {
    while !stop.load(Ordering::Relaxed) {
        let now = shared.now();
        let turn = shared.source().admit_disk_bytes(now, bytes);
        match turn {
            Ok(()) => return,
            // The cap may be lifted meanwhile.
            Err(at) => thread::sleep(at.saturating_sub(now).min(Duration::from_millis(50))),
        }
    }
}

pub(super) fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .expect("a thread can be started")
}

fn added(one: TunnelReport, other: TunnelReport) -> TunnelReport {
    TunnelReport {
        written_bytes: one.written_bytes + other.written_bytes,
        zero_bytes: one.zero_bytes + other.zero_bytes,
        deduplicated_bytes: one.deduplicated_bytes + other.deduplicated_bytes,
        data_bytes: one.data_bytes + other.data_bytes,
        compressed_bytes: one.compressed_bytes + other.compressed_bytes,
    }
}

/// Reads where the destination put the disks.
pub(super) fn places(json: &str) -> Result<Vec<PlacedDisk>, String> {
    let places: Vec<PlacedDisk> = serde_json::from_str(json)
        .map_err(|e| format!("where the disks lie at the destination is not understood: {e}"))?;
    if places.len() > MAX_DISKS {
        return Err(format!("the destination names {} disks", places.len()));
    }
    Ok(places)
}
