//! The load outside of the guest: a client of its memcached that knows what every value has to be.
//!
//! One connection, opened before the first migration and kept: a connection that breaks is an error, counted, after
//! which the client connects again and goes on. A value follows from its key and its version, so it needs not
//! be kept to be verified.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use crate::error::{LabError, Result};
use crate::memcached::Connection;
use crate::namespace::Namespace;
use crate::timeline::Timeline;

/// How long the server may keep the client waiting before that is an error.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Requests under way while the values are stored for the first time.
const FILL_WINDOW: usize = 16;
/// Wrong answers of which a description is kept.
const MAX_DESCRIPTIONS: usize = 8;

/// Whether a value was right, and if not, what is wrong with it.
type Checked = std::result::Result<(), String>;

/// What the client does.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The server.
    pub address: SocketAddr,
    /// How many values there are.
    pub values: u32,
    /// Bytes of each.
    pub value_bytes: usize,
    /// Operations a second, evenly spread, as far as the server keeps up.
    pub operations_per_s: u32,
    /// One operation of so many stores a new version; the others read.
    pub one_set_in: u64,
}

/// What the client has seen.
#[derive(Clone, Debug)]
pub struct Record {
    /// When operations ended well.
    pub timeline: Timeline,
    /// Operations that ended well.
    pub operations: u64,
    /// Operations without an answer, or with one that is none: the connection is lost with each.
    pub failures: u64,
    /// Values that were missing or not what was stored.
    pub wrong_values: u64,
    /// The first failures and wrong values, in words.
    pub descriptions: Vec<String>,
}

impl Record {
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

/// The client, running on a thread of its own until it is stopped or dropped.
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    record: Mutex<Record>,
    stop: AtomicBool,
}

impl Load {
    /// Connects from inside `namespace` (or from here), stores every value once, and starts the load.
    ///
    /// # Errors
    /// When it cannot connect or store.
    pub fn start(settings: Settings, namespace: Option<&Namespace>) -> Result<Self> {
        let open = || Connection::open(settings.address, TIMEOUT);
        let connection = match namespace {
            Some(namespace) => namespace.enter(open)?,
            None => open(),
        };
        let mut connection = connection.map_err(|source| LabError::Client {
            what: "connect to",
            source,
        })?;
        let mut values = Values::new(&settings);
        values.fill(&mut connection).map_err(|source| LabError::Client {
            what: "store its values in",
            source,
        })?;
        let record = Record {
            timeline: Timeline::new(Instant::now()),
            operations: 0,
            failures: 0,
            wrong_values: 0,
            descriptions: Vec::new(),
        };
        let shared = Arc::new(Shared {
            record: Mutex::new(record),
            stop: AtomicBool::new(false),
        });
        let client = Client {
            settings,
            values,
            connection: Some(connection),
            shared: Arc::clone(&shared),
        };
        let spawn = || {
            thread::Builder::new()
                .name("lab-client".into())
                .spawn(move || client.run())
        };
        // A thread that is started inside of a namespace stays there, so the client can also connect again.
        let thread = match namespace {
            Some(namespace) => namespace.enter(spawn)?,
            None => spawn(),
        };
        Ok(Self {
            shared,
            thread: Some(thread.map_err(LabError::system("start a thread"))?),
        })
    }

    /// What the client has seen so far.
    pub fn record(&self) -> Record {
        self.shared.lock().clone()
    }

    /// Ends the load. Returns what the client has seen.
    pub fn stop(mut self) -> Record {
        self.join();
        self.record()
    }

    fn join(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(Err(panic)) = self.thread.take().map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Not waited for: it may hang on a guest that is being taken down. It ends with its connection.
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Client {
    settings: Settings,
    values: Values,
    connection: Option<Connection>,
    shared: Arc<Shared>,
}

impl Client {
    fn run(mut self) {
        let interval = Duration::from_secs(1) / self.settings.operations_per_s.max(1);
        let mut choices = SplitMix64::seed_from_u64(u64::from(self.settings.values));
        let mut due = Instant::now();
        while !self.shared.stop.load(Ordering::Relaxed) {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            // What could not be done in time is left out, not made up for.
            due = (due + interval).max(Instant::now());
            let choice = choices.next_u64();
            match self.operate(choice) {
                Ok(checked) => self.note(checked),
                Err(error) => {
                    self.connection = None;
                    let mut record = self.shared.lock();
                    record.failures += 1;
                    record.describe(format!("an operation failed: {error}"));
                    drop(record);
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    /// One operation; what is inside says whether the value was right.
    fn operate(&mut self, choice: u64) -> io::Result<Checked> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Connection::open(self.settings.address, TIMEOUT)?),
        };
        let key = (choice >> 32) as u32 % self.settings.values;
        if (choice & 0xffff_ffff).is_multiple_of(self.settings.one_set_in) {
            self.values.store(connection, key).map(Ok)
        } else {
            self.values.check(connection, key)
        }
    }

    fn note(&self, checked: Checked) {
        let mut record = self.shared.lock();
        record.timeline.record(Instant::now());
        record.operations += 1;
        if let Err(description) = checked {
            record.wrong_values += 1;
            record.describe(description);
        }
    }
}

/// What every key's value has to be.
struct Values {
    value_bytes: usize,
    versions: Vec<Version>,
    sent: Vec<u8>,
    received: Vec<u8>,
}

/// The version of a value at the server.
#[derive(Clone, Copy)]
enum Version {
    /// This one: its storing was confirmed.
    Is(u32),
    /// The one before this, or this: its storing was sent, and no answer came.
    Perhaps(u32),
}

impl Version {
    fn newest(self) -> u32 {
        let (Self::Is(version) | Self::Perhaps(version)) = self;
        version
    }
}

impl Values {
    fn new(settings: &Settings) -> Self {
        let versions = vec![Version::Is(0); settings.values as usize];
        Self {
            value_bytes: settings.value_bytes,
            versions,
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    fn fill(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut keys = 0..self.versions.len() as u32;
        let bytes = self.value_bytes;
        connection.set_all(FILL_WINDOW, |value| {
            let key = keys.next()?;
            write_value(value, key, 0, bytes);
            Some(name(key))
        })
    }

    fn store(&mut self, connection: &mut Connection, key: u32) -> io::Result<()> {
        let version = self.versions[key as usize].newest() + 1;
        self.versions[key as usize] = Version::Perhaps(version);
        write_value(&mut self.sent, key, version, self.value_bytes);
        connection.set(&name(key), &self.sent)?;
        self.versions[key as usize] = Version::Is(version);
        Ok(())
    }

    fn check(&mut self, connection: &mut Connection, key: u32) -> io::Result<Checked> {
        let known = self.versions[key as usize];
        if !connection.get(&name(key), &mut self.received)? {
            return Ok(Err(format!("{} is gone", name(key))));
        }
        let possible = match known {
            Version::Is(version) => version..=version,
            Version::Perhaps(version) => version - 1..=version,
        };
        for version in possible {
            write_value(&mut self.sent, key, version, self.value_bytes);
            if self.sent == self.received {
                self.versions[key as usize] = Version::Is(version);
                return Ok(Ok(()));
            }
        }
        let differs = self
            .sent
            .iter()
            .zip(&self.received)
            .position(|(sent, received)| sent != received);
        Ok(Err(match differs {
            Some(at) => format!(
                "{} differs from version {} from byte {at} on",
                name(key),
                known.newest()
            ),
            None => format!("{} has {} bytes", name(key), self.received.len()),
        }))
    }
}

fn name(key: u32) -> String {
    format!("vmferry:{key}")
}

/// The value of a key: noise, so that no page of it is like another.
fn write_value(value: &mut Vec<u8>, key: u32, version: u32, bytes: usize) {
    let mut noise = SplitMix64::seed_from_u64(u64::from(key) << 32 | u64::from(version));
    value.resize(bytes, 0);
    noise.fill_bytes(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memcached::tests::server;

    fn settings(address: SocketAddr) -> Settings {
        Settings {
            address,
            values: 64,
            value_bytes: 1000,
            operations_per_s: 5000,
            one_set_in: 3,
        }
    }

    fn wait_until(load: &Load, what: impl Fn(&Record) -> bool) -> Record {
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            let record = load.record();
            if what(&record) {
                return record;
            }
            assert!(Instant::now() < end, "{record:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_sound_server_gives_no_errors() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let load = Load::start(settings(address), None).unwrap();
        wait_until(&load, |record| record.operations > 500);
        let record = load.stop();
        assert_eq!(
            (record.errors(), record.descriptions.len()),
            (0, 0),
            "{:?}",
            record.descriptions
        );
    }

    #[test]
    fn changed_old_and_lost_values_are_found() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let settings = Settings {
            one_set_in: u64::MAX,
            ..settings(address)
        };
        let load = Load::start(settings, None).unwrap();
        let mut other = Connection::open(address, TIMEOUT).unwrap();
        for (key, value, description) in [(7, 1, "vmferry:7 differs"), (9, 0, "vmferry:9 has 0 bytes")] {
            let mut changed = Vec::new();
            write_value(&mut changed, key, value, if value == 0 { 0 } else { 1000 });
            other.set(&name(key), &changed).unwrap();
            let found = |record: &Record| {
                record
                    .descriptions
                    .iter()
                    .any(|found| found.starts_with(description))
            };
            wait_until(&load, found);
            write_value(&mut changed, key, 0, 1000);
            other.set(&name(key), &changed).unwrap();
        }
        assert_eq!(load.stop().failures, 0);
    }

    #[test]
    fn a_lost_connection_is_an_error_and_the_client_goes_on() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let relay = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let front = relay.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let cutter = Arc::clone(&cut);
        // Passes everything on, until it cuts the first connection.
        thread::spawn(move || {
            for client in relay.incoming().flatten() {
                let server = std::net::TcpStream::connect(address).unwrap();
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    let cut = Arc::clone(&cutter);
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(length @ 1..) = io::Read::read(&mut from, &mut buffer) {
                            if cut.swap(false, Ordering::Relaxed)
                                || io::Write::write_all(&mut to, &buffer[..length]).is_err()
                            {
                                break;
                            }
                        }
                        let _ = from.shutdown(std::net::Shutdown::Both);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        let load = Load::start(settings(front), None).unwrap();
        wait_until(&load, |record| record.operations > 100);
        cut.store(true, Ordering::Relaxed);
        let broken = wait_until(&load, |record| record.failures > 0);
        let record = wait_until(&load, |record| record.operations > broken.operations + 100);
        assert_eq!(
            (record.failures, record.wrong_values),
            (1, 0),
            "{:?}",
            record.descriptions
        );
    }

    #[test]
    fn no_two_values_are_alike() {
        let value = |key, version| {
            let mut value = Vec::new();
            write_value(&mut value, key, version, 4000);
            value
        };
        assert_eq!(value(1, 2), value(1, 2));
        assert_ne!(value(1, 2), value(1, 3));
        assert_ne!(value(1, 2), value(2, 2));
        assert_eq!(value(1, 2).len(), 4000);
    }
}
