//! The source of a migration.

mod asking;
mod batch;
mod closing;
mod connection;
mod control;
mod delta_cache;
mod disk_tunnel;
mod disks;
mod driver;
mod encodings;
mod faults;
mod page_writer;
mod pages;
mod reuse;
mod steps;

use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use serde::{Deserialize, Serialize};
use vmferry_core::handover::{Epoch, Record};
use vmferry_core::report::{Progress, Report};
use vmferry_core::sampling::Ready;
use vmferry_core::source::{Event, Setup, Side, Source};
use vmferry_core::{MigrationRequest, limits};
use vmferry_guest::{GuestRam, PlacedDisk, Vm};
use vmferry_transport::Endpoint;
use vmferry_wire::{CPU_CAP_SINCE, SessionToken};

use crate::clock::Clock;
use crate::cpu_cap::CpuCap;
use crate::dir::{GuestDir, load_json, store_json};
use crate::error::RuntimeError;
use crate::journal::Journal;
use crate::link::{new_token, parse_token, token_text};
use crate::usage::Usage;
use driver::{Driver, Input};
use encodings::Encodings;
use reuse::Reuse;

/// Most page streams.
pub const MAX_STREAMS: u16 = 64;

/// A migration to make.
pub type Request = MigrationRequest<Endpoint>;

/// How many page streams it has. Half of the cores unless it says so, at most four: a stream is a thread at either side.
fn streams(request: &Request) -> u16 {
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    request.streams.unwrap_or((cores / 2).clamp(1, 4) as u16)
}

fn check(request: &Request, pages: u64) -> Result<(), RuntimeError> {
    let streams = streams(request);
    if streams == 0 || streams > MAX_STREAMS {
        return Err(RuntimeError::BadRequest(format!(
            "{streams} page streams are not possible; choose 1 to {MAX_STREAMS}"
        )));
    }
    let bad = |error: &dyn std::fmt::Display| RuntimeError::BadRequest(error.to_string());
    request.limits.check().map_err(|error| bad(&error))?;
    request.tuning.check(pages).map_err(|error| bad(&error))
}

/// What a restarted daemon needs to take a handed-over guest up again.
#[derive(Debug, Serialize, Deserialize)]
struct SavedSession {
    session: String,
    request: Request,
}

/// A migration on its way out. Handles are cheap to clone; the migration goes on without any.
#[derive(Clone)]
pub struct Outgoing {
    shared: Arc<Shared>,
    inputs: Sender<Input>,
    report: Arc<(Mutex<Option<Report>>, Condvar)>,
}

/// What the threads of a source share.
struct Shared {
    source: Mutex<Source>,
    /// Notified when streams should ask again.
    wake: Condvar,
    clock: Clock,
    ram: Arc<GuestRam>,
    encodings: Arc<Encodings>,
    reuse: Arc<Reuse>,
    usage: Usage,
    cpu_cap: CpuCap,
    /// Version of the protocol agreed on with the destination; 0 before that.
    version: AtomicU16,
    session: SessionToken,
    request: Request,
    /// Where the destination put the disks, once it has said so.
    places: Mutex<Vec<PlacedDisk>>,
}

impl Shared {
    fn source(&self) -> MutexGuard<'_, Source> {
        self.source.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.clock.now()
    }

    fn peer_speaks(&self, version: u16) {
        self.version.store(version, Ordering::Relaxed);
        self.encodings.peer_speaks(version);
    }

    /// The CPU cap of the destination, where it can be told.
    fn destination_cpu_percent(&self) -> Option<u32> {
        let told = self.version.load(Ordering::Relaxed) >= CPU_CAP_SINCE;
        self.request.limits.cpu_destination_percent.filter(|_| told)
    }

    /// Waits until woken, or until `at`.
    fn wait<'a>(&self, source: MutexGuard<'a, Source>, at: Option<Duration>) -> MutexGuard<'a, Source> {
        let longest = Duration::from_secs(1);
        let time = at
            .map_or(longest, |at| at.saturating_sub(self.now()))
            .min(longest);
        self.wake
            .wait_timeout(source, time)
            .map_or_else(|e| e.into_inner().0, |(source, _)| source)
    }
}

impl Outgoing {
    /// Starts a migration on threads of its own; the guest goes on meanwhile.
    ///
    /// # Errors
    /// When the guest is not this host's, cannot leave, or the request makes no sense. What comes later is in
    /// the report.
    pub fn start(vm: Arc<dyn Vm>, dir: GuestDir, request: Request) -> Result<Self, RuntimeError> {
        Self::start_knowing(vm, dir, request, None)
    }

    /// The same with what a [`Sampler`](crate::Sampler) learned of the guest. That has ended: there is one tracker of a
    /// guest at a time.
    ///
    /// # Errors
    /// As [`Outgoing::start`].
    pub fn start_knowing(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        request: Request,
        ready: Option<Ready>,
    ) -> Result<Self, RuntimeError> {
        check(&request, vm.ram().layout().pages())?;
        let journal = Journal::open(dir.path())?;
        match journal.last() {
            None | Some(Record::Owner { .. }) => {}
            Some(record) => return Err(RuntimeError::NotOwner(format!("{record:?}"))),
        }
        if dir.page_states().exists() {
            return Err(RuntimeError::BadRequest(
                "pages of the guest still arrive from its last host; wait until that migration is complete"
                    .into(),
            ));
        }
        vm.prepare_out()?;
        let failed = |source| RuntimeError::File {
            what: "get a random number for",
            path: dir.session(),
            source,
        };
        let session = new_token().map_err(failed)?;
        store_json(
            &dir.session(),
            &SavedSession {
                session: token_text(session),
                request: request.clone(),
            },
        )?;
        let policy = request.policy(vm.ram().layout().pages(), ready);
        let setup = setup(&vm, &request, journal.epoch().next());
        let mut source = Source::new(setup, policy).within(&request.limits);
        if request.disks.is_some() {
            source = source.with_disks(request.limits.downtime);
        }
        Ok(Self::spawn(vm, dir, journal, request, session, source, false))
    }

    /// Takes up a guest that was handed over when the daemon ended: the destination may lack pages that only
    /// this host has, or may have lost it.
    ///
    /// # Errors
    /// When the journal does not say that it was handed over.
    pub fn recover(vm: Arc<dyn Vm>, dir: GuestDir) -> Result<Self, RuntimeError> {
        let journal = Journal::open(dir.path())?;
        let Some(Record::HandedOver { epoch, .. }) = journal.last() else {
            return Err(RuntimeError::NotOwner("nothing of a handover".into()));
        };
        let damaged = |why: &str| RuntimeError::Damaged {
            path: dir.session(),
            why: why.into(),
        };
        let saved: SavedSession = load_json(&dir.session())?.ok_or_else(|| damaged("it is missing"))?;
        let session = parse_token(&saved.session).ok_or_else(|| damaged("its session is no token"))?;
        let request = saved.request;
        let policy = request.policy(vm.ram().layout().pages(), None);
        let source = Source::recovered(setup(&vm, &request, epoch), policy).within(&request.limits);
        Ok(Self::spawn(vm, dir, journal, request, session, source, true))
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress {
            cpu_limit_percent: self.shared.cpu_cap.percent(),
            encoding: self.shared.encodings.in_use(),
            ..self.shared.source().progress(self.shared.now())
        }
    }

    /// Cancels it: the guest stays here.
    ///
    /// # Errors
    /// Past the commit point.
    pub fn cancel(&self) -> Result<(), RuntimeError> {
        self.ask(Event::Cancel)
    }

    /// Caps the bandwidth from now on, in bytes a second, or lifts the cap. Where the daemon is restarted past the commit
    /// point, the cap of the request holds again.
    ///
    /// # Errors
    /// When the cap makes no sense, or the migration is over.
    pub fn limit_bandwidth(&self, bytes_per_s: Option<u64>) -> Result<(), RuntimeError> {
        limits::check_bandwidth(bytes_per_s).map_err(|error| RuntimeError::BadRequest(error.to_string()))?;
        self.ask(Event::LimitBandwidth(bytes_per_s))
    }

    /// Caps the CPU time of the page streams from now on, in percent of one core, or lifts the cap.
    ///
    /// # Errors
    /// When the cap makes no sense, or the migration is over.
    pub fn limit_cpu(&self, percent: Option<u32>) -> Result<(), RuntimeError> {
        limits::check_cpu(percent).map_err(|error| RuntimeError::BadRequest(error.to_string()))?;
        if self.report().is_some() {
            return Err(RuntimeError::BadRequest("the migration is over".into()));
        }
        self.shared.cpu_cap.set(percent);
        Ok(())
    }

    /// The operator says where the guest has to run, when the destination cannot be reached.
    ///
    /// # Errors
    /// When nothing waits for that.
    pub fn resolve(&self, side: Side) -> Result<(), RuntimeError> {
        self.ask(Event::Resolve(side))
    }

    /// The report, once the migration ended.
    pub fn report(&self) -> Option<Report> {
        self.report
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the end.
    pub fn wait(&self) -> Report {
        let mut report = self.report.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*report {
                Some(report) => return report.clone(),
                None => report = self.report.1.wait(report).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn ask(&self, event: Event) -> Result<(), RuntimeError> {
        let over = || RuntimeError::BadRequest("the migration is over".into());
        let (answer, answered) = bounded(1);
        self.inputs.send(Input::Ask(event, answer)).map_err(|_| over())?;
        Ok(answered.recv().map_err(|_| over())??)
    }

    fn spawn(
        vm: Arc<dyn Vm>,
        dir: GuestDir,
        journal: Journal,
        request: Request,
        session: SessionToken,
        source: Source,
        recovered: bool,
    ) -> Self {
        let (inputs, received) = unbounded();
        let clock = Clock::start();
        let ram_bytes = vm.ram().layout().bytes();
        let delta_cache_bytes = request.delta_cache_bytes(ram_bytes);
        let shared = Arc::new(Shared {
            source: Mutex::new(source),
            wake: Condvar::new(),
            encodings: Arc::new(Encodings::new(request.encoding, delta_cache_bytes, clock)),
            reuse: Arc::new(Reuse::new(request.reuse, vm.ram().layout().pages())),
            clock,
            ram: vm.ram().clone(),
            usage: Usage::start(),
            cpu_cap: CpuCap::new(format!(
                "vmferry-{}-{}",
                std::process::id(),
                &token_text(session)[..8]
            )),
            version: AtomicU16::new(0),
            session,
            request,
            places: Mutex::default(),
        });
        shared.cpu_cap.set(shared.request.limits.cpu_percent);
        let report = Arc::new((Mutex::new(None), Condvar::new()));
        let outgoing = Self {
            shared: shared.clone(),
            inputs: inputs.clone(),
            report: report.clone(),
        };
        let name = vm.spec().name.clone();
        let driver = Driver::new(vm, dir, journal, shared, inputs, received);
        let run = move || {
            let ended = driver.run(recovered);
            *report.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ended);
            report.1.notify_all();
        };
        thread::Builder::new()
            .name(format!("out {name}"))
            .spawn(run)
            .expect("a thread can be started");
        outgoing
    }
}

fn setup(vm: &Arc<dyn Vm>, request: &Request, epoch: Epoch) -> Setup {
    Setup {
        pages: vm.ram().layout().pages(),
        streams: usize::from(streams(request)),
        pinned_io: vm.has_pinned_io(),
        verify: request.verify,
        epoch,
    }
}
