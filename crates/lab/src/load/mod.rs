//! The load outside of the guest: clients of its servers that check every answer, and clients that hear how far it has come with
//! work of its own.
//!
//! Connections are opened before the first migration and kept: one that breaks is an error, counted, after which the client
//! connects again and goes on. All times are the client's.

mod connection;
mod gate;
mod key_value;
pub mod memcached;
mod operate;
pub mod postgres;
pub mod redis;
mod stream;
mod tpcc;

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

pub use key_value::{Protocol, SetGet, Settings};
pub(crate) use stream::Stream;

use gate::Gate;

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::timeline::Timeline;

/// How long the guest may usually keep a client waiting before that is an error. Each load may have more patience.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// After an error, before the client connects again.
const PAUSE: Duration = Duration::from_millis(100);
/// Wrong answers of which a description is kept.
const MAX_DESCRIPTIONS: usize = 8;

/// Whether an answer was right, and if not, what is wrong with it.
type Checked = std::result::Result<(), String>;
/// What a thread of the load does until it is stopped.
type Worker = Box<dyn FnOnce(&Shared) + Send>;

/// What the clients have seen.
#[derive(Clone, Debug)]
pub struct Record {
    /// What was done when.
    pub timeline: Timeline,
    /// What one of it is, in the plural: `operations`, `bytes`, `pages`.
    pub unit: &'static str,
    /// How much was done.
    pub operations: u64,
    /// Operations without an answer, or with one that is none: the connection is lost with each.
    pub failures: u64,
    /// Answers that were not what they had to be: values that were missing or not what was stored.
    pub wrong_values: u64,
    /// The first failures and wrong answers, in words.
    pub descriptions: Vec<String>,
}

impl Record {
    fn new(unit: &'static str) -> Self {
        Self {
            timeline: Timeline::new(Instant::now()),
            unit,
            operations: 0,
            failures: 0,
            wrong_values: 0,
            descriptions: Vec::new(),
        }
    }

    /// Everything that must not happen.
    pub fn errors(&self) -> u64 {
        self.failures + self.wrong_values
    }

    fn describe(&mut self, description: String) {
        if self.descriptions.len() < MAX_DESCRIPTIONS {
            self.descriptions.push(description);
        }
    }
}

/// The clients, running on threads of their own until they are stopped or dropped.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    last_check: Option<Worker>,
}

impl Load {
    /// Connects from inside `namespace` (or from here), stores every value once, and starts the load.
    ///
    /// # Errors
    /// When it cannot connect or store.
    pub fn start(settings: &Settings, namespace: Option<&Namespace>) -> Result<Self> {
        let prepared = within(namespace, || key_value::prepare(settings))?;
        let workers = prepared.map_err(|source| LabError::Client {
            what: format!("fill {}", settings.protocol),
            source,
        })?;
        Self::spawn("operations", workers, None, namespace)
    }

    /// Connects clients of the database at `address` from inside `namespace` (or from here), and starts them. Together they do so many
    /// transactions a second at most. When they are stopped everything has to add up.
    pub(crate) fn order_and_pay(
        address: SocketAddr,
        connections: u32,
        transactions_per_s: f64,
        patience: Duration,
        namespace: Option<&Namespace>,
    ) -> Result<Self> {
        let prepared = within(namespace, || {
            tpcc::prepare(address, connections, transactions_per_s, patience)
        })?;
        let (workers, last_check) = prepared.map_err(|source| LabError::Client {
            what: "connect to the database".into(),
            source,
        })?;
        Self::spawn("transactions", workers, Some(last_check), namespace)
    }

    /// Connects to a stream at `address` from inside `namespace` (or from here), and follows it. `unit` is what it counts; when nothing comes
    /// for longer than `patience`, that is an error.
    pub(crate) fn follow(
        stream: Stream,
        address: SocketAddr,
        unit: &'static str,
        patience: Duration,
        namespace: Option<&Namespace>,
    ) -> Result<Self> {
        let connected = within(namespace, || connection::open(address, patience))?;
        let connection = connected.map_err(|source| LabError::Client {
            what: "connect to the load".into(),
            source,
        })?;
        let worker: Worker = Box::new(move |shared| stream.follow(connection, address, patience, shared));
        Self::spawn(unit, vec![worker], None, namespace)
    }

    /// Starts threads inside `namespace`: there they stay, so clients can also connect again. `last_check` is done when they
    /// have been stopped.
    fn spawn(
        unit: &'static str,
        workers: Vec<Worker>,
        last_check: Option<Worker>,
        namespace: Option<&Namespace>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared {
            record: Mutex::new(Record::new(unit)),
            stop: AtomicBool::new(false),
            gate: Gate::default(),
        });
        let mut load = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            last_check,
        };
        for worker in workers {
            let shared = Arc::clone(&shared);
            let spawn = || {
                thread::Builder::new()
                    .name("lab-client".into())
                    .spawn(move || worker(&shared))
            };
            let thread = within(namespace, spawn)?;
            load.threads
                .push(thread.map_err(LabError::system("start a thread"))?);
        }
        Ok(load)
    }

    /// What the clients have seen so far.
    pub fn record(&self) -> Record {
        self.shared.lock().clone()
    }

    /// Lets the clients drop their connections, and returns when all have: the guest may go away, and be what it was before.
    pub(crate) fn hold_back(&self) {
        self.shared.gate.close();
    }

    /// Lets them connect again, and go on.
    pub(crate) fn go_on(&self) {
        self.shared.gate.open();
    }

    /// Ends the load, and checks what can be checked in the end. Returns what the clients have seen.
    pub fn stop(mut self) -> Record {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.gate.open();
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        if let Some(check) = self.last_check.take() {
            check(&self.shared);
        }
        self.record()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Not waited for: they may hang on a guest that is being taken down. They end with their connections.
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.gate.open();
    }
}

/// What the clients of a load have in common.
struct Shared {
    record: Mutex<Record>,
    stop: AtomicBool,
    gate: Gate,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Whether clients may go on over the connections that they have.
    fn goes_on(&self) -> bool {
        !self.is_stopped() && !self.gate.is_closed()
    }

    /// An operation that was waited for so long has an answer.
    fn answered(&self, latency: Duration, checked: Checked) {
        let mut record = self.lock();
        record.timeline.record(Instant::now(), latency);
        record.operations += 1;
        if let Err(description) = checked {
            record.wrong_values += 1;
            record.describe(description);
        }
    }

    /// The guest did so much more.
    fn progressed(&self, amount: u64) {
        let mut record = self.lock();
        record.timeline.record_progress(Instant::now(), amount);
        record.operations += amount;
    }

    /// An answer is wrong.
    fn wrong(&self, description: String) {
        let mut record = self.lock();
        record.wrong_values += 1;
        record.describe(description);
    }

    /// A connection is lost.
    fn failed(&self, what: &str, error: &io::Error) {
        let mut record = self.lock();
        record.failures += 1;
        record.describe(format!("{what}: {error}"));
    }
}

fn within<T: Send>(namespace: Option<&Namespace>, work: impl FnOnce() -> T + Send) -> Result<T> {
    match namespace {
        Some(namespace) => namespace.enter(work),
        None => Ok(work()),
    }
}
