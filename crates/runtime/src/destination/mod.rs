//! The destination of migrations.

mod closing;
pub(crate) mod compare;
mod connection;
mod disks;
mod driver;
mod faults;
mod holdings;
mod opening;
mod pages;
mod probe;
mod session;
mod session_log;
mod steps;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};
use vmferry_core::RamLayout;
use vmferry_core::report::{FaultReport, Outcome, Verified};
use vmferry_guest::{DiskPlan, GuestSpec, PlacedDisk, Vm};
use vmferry_transport::{BoxedStream, Listener};
use vmferry_wire::{Hello, HelloReply, OwnerState, SPOKEN, SessionToken, StreamRole};

use crate::dir::GuestDir;
use crate::error::RuntimeError;
use crate::link::{DIAL_TIMEOUT, chain};
use crate::source::MAX_STREAMS;
pub use holdings::Holdings;
use session::Session;
use session_log::SessionLog;

/// Connections that may be without a hello at a time: each is a thread.
const MAX_STRANGERS: usize = 128;

/// Connections that may measure the way at a time.
const MAX_PROBES: usize = 8;

/// A guest created for a migration.
pub struct Admitted {
    /// The guest: incoming, its RAM one hole.
    pub vm: Arc<dyn Vm>,
    /// Its directory, fresh.
    pub dir: GuestDir,
}

/// What the daemon of the destination decides. Called from threads of sessions.
pub trait Host: Send + Sync {
    /// Creates the guest on offer.
    ///
    /// # Errors
    /// One line: why this host does not take it and how to mend that.
    fn admit(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Admitted, String>;
    /// The same for a guest whose disks come with it: makes room for them first.
    ///
    /// # Errors
    /// As [`Host::admit`]; then nothing is left of the disks either.
    fn admit_with_disks(
        &self,
        spec: &GuestSpec,
        layout: &RamLayout,
        plan: &DiskPlan,
    ) -> Result<(Admitted, Vec<PlacedDisk>), String> {
        let _ = (spec, layout, plan);
        Err("this host takes no disks; migrate the guest without them".into())
    }
    /// The pages of a store of this host that may be pages of the guest on its way, no more than `most`; none where it has none.
    fn holdings(&self, name: &str, most: u64) -> Option<Arc<dyn Holdings>> {
        let _ = (name, most);
        None
    }
    /// The guest is this host's from now on, and runs; pages may still arrive.
    fn arrived(&self, name: &str);
    /// The guest that was admitted was given up and destroyed.
    fn discarded(&self, name: &str, reason: &str);
    /// Everything is here.
    fn finished(&self, name: &str, report: IncomingReport);
}

/// What the destination knows of a migration at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IncomingReport {
    /// Name of the guest.
    pub vm: String,
    /// Name of the strategy.
    pub strategy: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// From the offer to the end.
    pub total_ms: f64,
    /// From the offer until the guest ran; 0 where it never did.
    pub running_ms: f64,
    /// Pages received, every crossing counted.
    pub pages_received: u64,
    /// Faults of the guest.
    pub faults: FaultReport,
    /// CPU seconds of the migration's threads.
    pub cpu_seconds: f64,
    /// Private memory at its highest.
    pub memory_bytes: u64,
    /// What `--verify` found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
}

/// A look at a migration on its way in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IncomingProgress {
    /// Current phase, in words.
    pub phase: String,
    /// Name of the strategy.
    pub strategy: String,
    /// Pages received, every crossing counted.
    pub pages_received: u64,
    /// Pages the guest still lacks; 0 before the switch.
    pub outstanding: u64,
    /// Faults of the guest so far.
    pub faults: u64,
}

/// Takes migrations in: one thread accepts connections, each session has its driver.
pub struct Incoming {
    shared: Arc<Shared>,
}

/// What all sessions of a host share.
struct Shared {
    host: Arc<dyn Host>,
    listener: Listener,
    sessions: Mutex<HashMap<SessionToken, Arc<Session>>>,
    /// Connections that have not said who they are.
    strangers: AtomicUsize,
    /// Connections that measure the way.
    probes: AtomicUsize,
    /// The most page streams of a migration.
    max_streams: AtomicU16,
    log: SessionLog,
}

impl Shared {
    fn sessions(&self) -> MutexGuard<'_, HashMap<SessionToken, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, token: SessionToken) -> Option<Arc<Session>> {
        self.sessions().get(&token).cloned()
    }

    fn of_guest(&self, name: &str) -> Option<Arc<Session>> {
        self.sessions()
            .values()
            .find(|session| session.name() == name)
            .cloned()
    }
}

impl Incoming {
    /// Listens. `state_dir` holds the log of sessions, which tells a source that comes back what became of its
    /// guest. Recover sessions ([`Incoming::recover`]) before [`Incoming::serve`].
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn new(listener: Listener, host: Arc<dyn Host>, state_dir: &Path) -> Result<Self, RuntimeError> {
        let log = SessionLog::open(state_dir)?;
        Ok(Self {
            shared: Arc::new(Shared {
                host,
                listener,
                sessions: Mutex::default(),
                strangers: AtomicUsize::new(0),
                probes: AtomicUsize::new(0),
                max_streams: AtomicU16::new(MAX_STREAMS),
                log,
            }),
        })
    }

    /// Takes at most `streams` page streams of each migration from now on, 1 to [`MAX_STREAMS`]. A source that wants more
    /// goes on with as many, and its report says so.
    pub fn limit_streams(&self, streams: u16) {
        self.shared
            .max_streams
            .store(streams.clamp(1, MAX_STREAMS), Ordering::Relaxed);
    }

    /// Begins to accept connections.
    pub fn serve(&self) {
        let shared = self.shared.clone();
        thread::Builder::new()
            .name("accept".into())
            .spawn(move || accept(&shared))
            .expect("a thread can be started");
    }

    /// Stops accepting. Sessions go on.
    pub fn stop(&self) {
        self.shared.listener.shutdown();
    }

    /// How far the migration of this guest is.
    pub fn progress(&self, name: &str) -> Option<IncomingProgress> {
        self.shared.of_guest(name).map(|session| session.progress())
    }

    /// Takes up a guest whose pages still arrive, after a restart of the daemon: its faults are served again,
    /// and its source is awaited.
    ///
    /// # Errors
    /// When its directory does not hold what is needed, or its faults cannot be found again.
    pub fn recover(&self, vm: Arc<dyn Vm>, dir: GuestDir) -> Result<(), RuntimeError> {
        opening::recover(&self.shared, vm, dir)
    }

    /// Gives an incoming guest up, which is possible before its commit; the source goes on with it.
    ///
    /// # Errors
    /// When there is none, or it runs here already.
    pub fn cancel(&self, name: &str) -> Result<(), RuntimeError> {
        let session = self
            .shared
            .of_guest(name)
            .ok_or_else(|| RuntimeError::NoSession(name.into()))?;
        session.cancel()
    }
}

fn accept(shared: &Arc<Shared>) {
    loop {
        match shared.listener.accept() {
            Ok(stream) if shared.strangers.load(Ordering::Relaxed) >= MAX_STRANGERS => {
                tracing::warn!(
                    peer = stream.peer(),
                    "too many connections without a hello: this one is closed"
                );
            }
            Ok(stream) => {
                shared.strangers.fetch_add(1, Ordering::Relaxed);
                let host = shared.clone();
                let greet = move || greet(&host, stream);
                if thread::Builder::new().name("hello".into()).spawn(greet).is_err() {
                    shared.strangers.fetch_sub(1, Ordering::Relaxed);
                    tracing::warn!("no thread for a connection: it is closed");
                }
            }
            Err(error) => {
                tracing::debug!(error = chain(&error), "no more connections");
                return;
            }
        }
    }
}

/// Reads the hello of a connection and brings it where it belongs.
fn greet(shared: &Arc<Shared>, mut stream: BoxedStream) {
    let peer = stream.peer();
    let in_time = stream.set_read_timeout(Some(DIAL_TIMEOUT)).map_err(|e| chain(&e));
    let hello = in_time.and_then(|()| Hello::read(&mut stream).map_err(|e| chain(&e)));
    shared.strangers.fetch_sub(1, Ordering::Relaxed);
    let hello = match hello {
        Ok(hello) => hello,
        Err(error) => {
            tracing::warn!(peer, error, "connection refused");
            refuse(stream, &error);
            return;
        }
    };
    let version = match SPOKEN.negotiate(hello.versions) {
        Ok(version) => version,
        Err(error) => return refuse(stream, &chain(&error)),
    };
    if !matches!(hello.role, StreamRole::Pages { .. }) {
        // Without it faults are slower where the push fills the link, nothing else.
        let _ = stream.set_low_delay();
    }
    let session = shared.session(hello.session);
    match (hello.role, session) {
        (StreamRole::Probe, _) => serve_probe(shared, stream, version),
        (StreamRole::Control { resume: false }, None) => {
            if welcome(&mut stream, version) {
                opening::run(shared, hello.session, stream);
            }
        }
        (StreamRole::Control { resume: false }, Some(_)) => refuse(stream, "this session exists already"),
        (StreamRole::Control { resume: true }, Some(session)) => {
            if welcome(&mut stream, version) {
                session.reconnected(stream);
            }
        }
        (StreamRole::Control { resume: true }, None) => {
            if welcome(&mut stream, version) {
                answer_from_log(shared, hello.session, stream);
            }
        }
        (role, Some(session)) => {
            match session.take_stream(role, version, stream, |stream| welcome(stream, version)) {
                Ok(()) => {}
                Err((stream, reason)) => refuse(stream, &reason),
            }
        }
        (_, None) => refuse(stream, "no such session"),
    }
}

/// Few at a time: each loads the link.
fn serve_probe(shared: &Shared, mut stream: BoxedStream, version: u16) {
    if shared.probes.fetch_add(1, Ordering::Relaxed) >= MAX_PROBES {
        refuse(
            stream,
            "too many measurements of this host are under way; try again later",
        );
    } else if welcome(&mut stream, version) {
        probe::serve(stream);
    }
    shared.probes.fetch_sub(1, Ordering::Relaxed);
}

fn welcome(stream: &mut BoxedStream, version: u16) -> bool {
    let ready = stream
        .set_read_timeout(None)
        .and_then(|()| stream.set_nodelay(true))
        .is_ok();
    ready && HelloReply::Welcome { version }.write(stream).is_ok()
}

fn refuse(mut stream: BoxedStream, reason: &str) {
    // The peer may be no vmferry and gone.
    let _ = HelloReply::Refused {
        reason: reason.into(),
    }
    .write(&mut stream);
    let _ = stream.shutdown();
}

/// A source asks about a session that does not live any more.
fn answer_from_log(shared: &Shared, token: SessionToken, mut stream: BoxedStream) {
    use vmferry_wire::{ToDestination, ToSource, read_control, write_control};
    let Ok(ToDestination::Query { epoch }) = read_control(&mut stream) else {
        return;
    };
    let state = match shared.log.look_up(token, epoch) {
        Ok(state) => state,
        Err(error) => {
            tracing::error!(error = chain(&error), "cannot answer a source");
            OwnerState::Unknown
        }
    };
    let _ = write_control(&mut stream, &ToSource::Owner { epoch, state });
    if state == OwnerState::Owner {
        // It ended, so every page is here, and the source missed the news.
        let said = opening::say_all_received(shared.log.pages(token), &mut stream);
        if said.is_ok() && matches!(read_control(&mut stream), Ok(ToDestination::PushedAll)) {
            let summary = vmferry_wire::DestinationSummary::default();
            let _ = write_control(&mut stream, &ToSource::Complete { summary });
        }
    }
}
