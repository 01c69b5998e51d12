//! Clients of a key-value server that know what every value has to be. A value follows from its key and its version, so it needs
//! not be kept to be verified. Every client has keys of its own.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use super::operate::{self, Client};
use super::{Checked, Worker, memcached, redis};

/// Requests under way while the values are stored for the first time.
const FILL_WINDOW: usize = 16;

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// memcached's text protocol.
    Memcached,
    /// That of redis.
    Redis,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memcached => "memcached",
            Self::Redis => "redis",
        })
    }
}

impl Protocol {
    fn open(self, address: SocketAddr, timeout: Duration) -> io::Result<Box<dyn Store>> {
        Ok(match self {
            Self::Memcached => Box::new(memcached::Connection::open(address, timeout)?),
            Self::Redis => Box::new(redis::Connection::open(address, timeout)?),
        })
    }
}

/// How many operations store and how many read, as in `1:9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SetGet {
    /// So many store a new version,
    pub sets: u32,
    /// while so many read.
    pub gets: u32,
}

impl FromStr for SetGet {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(sets, gets)| {
            Some(Self {
                sets: sets.parse().ok()?,
                gets: gets.parse().ok()?,
            })
        });
        numbers
            .filter(|ratio| ratio.sets > 0 || ratio.gets > 0)
            .ok_or_else(|| format!("{text:?} is no ratio of stores to reads; write for example \"1:9\""))
    }
}

impl TryFrom<String> for SetGet {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl From<SetGet> for String {
    fn from(ratio: SetGet) -> Self {
        format!("{}:{}", ratio.sets, ratio.gets)
    }
}

/// What the clients do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the server speaks.
    pub protocol: Protocol,
    /// The server.
    pub address: SocketAddr,
    /// How many values there are.
    pub values: u32,
    /// Bytes of each.
    pub value_bytes: usize,
    /// Operations a second of all clients together, evenly spread, as far as the server keeps up.
    pub operations_per_s: u32,
    /// What they are.
    pub set_get: SetGet,
    /// Clients, each with a connection of its own.
    pub connections: u32,
    /// How long they wait for an answer before that is an error.
    pub patience: Duration,
}

/// A connection to a server that keeps values.
pub(super) trait Store: Send {
    /// Sends that a value be stored.
    fn send_set(&mut self, key: &str, value: &[u8]) -> io::Result<()>;

    /// Reads the answer to the oldest of those.
    fn stored(&mut self) -> io::Result<()>;

    /// Reads the value of a key into `value`; `false` when there is none.
    fn get(&mut self, key: &str, value: &mut Vec<u8>) -> io::Result<bool>;

    /// Stores values, `window` requests ahead of the answers, which is much faster than one by one. `more` writes
    /// the next value into its buffer and returns its key.
    fn set_all(
        &mut self,
        window: usize,
        more: &mut dyn FnMut(&mut Vec<u8>) -> Option<String>,
    ) -> io::Result<()> {
        let mut value = Vec::new();
        let mut waiting = 0;
        while let Some(key) = more(&mut value) {
            self.send_set(&key, &value)?;
            waiting += 1;
            if waiting == window {
                self.stored()?;
                waiting -= 1;
            }
        }
        (0..waiting).try_for_each(|_| self.stored())
    }
}

/// Connects all clients and stores their values.
pub(super) fn prepare(settings: &Settings) -> io::Result<Vec<Worker>> {
    let clients = settings.connections.clamp(1, settings.values.max(1));
    let operations_per_s = f64::from(settings.operations_per_s) / f64::from(clients);
    let worker = |number: u32| -> io::Result<Worker> {
        let mut store = settings.protocol.open(settings.address, settings.patience)?;
        let mut values = Values::new(settings, number, clients);
        values.fill(&mut *store)?;
        let client = KeyValueClient {
            settings: settings.clone(),
            values,
            store: Some(store),
        };
        let seed = u64::from(settings.values) + u64::from(number);
        Ok(Box::new(move |shared| {
            operate::run(client, operations_per_s, seed, shared);
        }))
    };
    (0..clients).map(worker).collect()
}

struct KeyValueClient {
    settings: Settings,
    values: Values,
    store: Option<Box<dyn Store>>,
}

impl Client for KeyValueClient {
    fn operate(&mut self, choice: u64) -> io::Result<Checked> {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => self
                .settings
                .protocol
                .open(self.settings.address, self.settings.patience)?,
        };
        let SetGet { sets, gets } = self.settings.set_get;
        let index = (choice >> 32) as usize % self.values.versions.len();
        let checked = if choice as u32 % (sets + gets) < sets {
            self.values.store(&mut *store, index).map(Ok)
        } else {
            self.values.check(&mut *store, index)
        }?;
        self.store = Some(store);
        Ok(checked)
    }

    fn disconnect(&mut self) {
        self.store = None;
    }
}

/// What the value of each of a client's keys has to be.
struct Values {
    /// The keys are this one,
    first: u32,
    /// and every so many-th after it.
    step: u32,
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
    fn new(settings: &Settings, first: u32, step: u32) -> Self {
        let keys = (first..settings.values).step_by(step as usize);
        Self {
            first,
            step,
            value_bytes: settings.value_bytes,
            versions: keys.map(|_| Version::Is(0)).collect(),
            sent: Vec::new(),
            received: Vec::new(),
        }
    }

    fn key(&self, index: usize) -> u32 {
        self.first + index as u32 * self.step
    }

    fn fill(&mut self, store: &mut dyn Store) -> io::Result<()> {
        let mut indices = 0..self.versions.len();
        store.set_all(FILL_WINDOW, &mut |value| {
            let key = self.key(indices.next()?);
            write_value(value, key, 0, self.value_bytes);
            Some(name(key))
        })
    }

    fn store(&mut self, store: &mut dyn Store, index: usize) -> io::Result<()> {
        let key = self.key(index);
        let version = self.versions[index].newest() + 1;
        self.versions[index] = Version::Perhaps(version);
        write_value(&mut self.sent, key, version, self.value_bytes);
        store.send_set(&name(key), &self.sent)?;
        store.stored()?;
        self.versions[index] = Version::Is(version);
        Ok(())
    }

    fn check(&mut self, store: &mut dyn Store, index: usize) -> io::Result<Checked> {
        let (key, known) = (self.key(index), self.versions[index]);
        if !store.get(&name(key), &mut self.received)? {
            return Ok(Err(format!("{} is gone", name(key))));
        }
        let possible = match known {
            Version::Is(version) => version..=version,
            Version::Perhaps(version) => version - 1..=version,
        };
        for version in possible {
            write_value(&mut self.sent, key, version, self.value_bytes);
            if self.sent == self.received {
                self.versions[index] = Version::Is(version);
                return Ok(Ok(()));
            }
        }
        let mut pairs = self.sent.iter().zip(&self.received);
        Ok(Err(match pairs.position(|(sent, received)| sent != received) {
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
pub(super) mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;
    use std::time::Instant;

    use super::*;
    use crate::guards::Process;
    use crate::load::memcached::tests::server;
    use crate::load::{Load, PATIENCE, Record};

    /// A server of the host's on loopback, or nothing where it is not installed. `arguments` tells it its port.
    pub(in crate::load) fn start(
        program: &str,
        arguments: impl FnOnce(&mut Command, &str),
    ) -> Option<(Process, SocketAddr)> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(program);
        arguments(&mut command, &address.port().to_string());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("skipped: {program} is not installed");
            return None;
        };
        let process = Process::new(child);
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "{program} does not listen");
            thread::sleep(Duration::from_millis(5));
        }
        Some((process, address))
    }

    /// Stores and reads.
    pub(in crate::load) fn check_server(store: &mut dyn Store) {
        let mut value = Vec::new();
        assert!(!store.get("nothing", &mut value).unwrap());
        store.send_set("key", b"a value with\r\nEND\r\nin it").unwrap();
        store.stored().unwrap();
        assert!(store.get("key", &mut value).unwrap());
        assert_eq!(value, b"a value with\r\nEND\r\nin it");
        let mut number = 0u32;
        let mut next = |value: &mut Vec<u8>| {
            number += 1;
            value.clear();
            value.extend_from_slice(&number.to_le_bytes());
            (number <= 1000).then(|| format!("n{number}"))
        };
        store.set_all(64, &mut next).unwrap();
        for number in [1u32, 500, 1000] {
            assert!(store.get(&format!("n{number}"), &mut value).unwrap());
            assert_eq!(value, number.to_le_bytes());
        }
    }

    /// Answers a question for the value of `key`, which has so many bytes, with each of these, with a line that never ends and
    /// with nothing; none is an answer.
    pub(in crate::load) fn check_nonsense(
        answers: &[&str],
        question_bytes: usize,
        open: impl Fn(SocketAddr, Duration) -> io::Result<Box<dyn Store>>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let long = "x".repeat(4096);
        for &answer in answers.iter().chain(&[long.as_str(), ""]) {
            let peer = thread::spawn({
                let (listener, answer) = (listener.try_clone().unwrap(), answer.to_owned());
                move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.read_exact(&mut vec![0; question_bytes]).unwrap();
                    // The client may hang up in the middle of the long one.
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            let mut store = open(address, PATIENCE).unwrap();
            assert!(store.get("key", &mut Vec::new()).is_err(), "{answer:?}");
            peer.join().unwrap();
        }
    }

    fn settings(address: SocketAddr) -> Settings {
        Settings {
            protocol: Protocol::Memcached,
            address,
            values: 64,
            value_bytes: 1000,
            operations_per_s: 5000,
            set_get: SetGet { sets: 1, gets: 2 },
            connections: 1,
            patience: PATIENCE,
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
        let load = Load::start(&settings(address), None).unwrap();
        wait_until(&load, |record| record.operations > 500);
        let record = load.stop();
        assert_eq!(record.errors(), 0, "{:?}", record.descriptions);
        assert_eq!(record.timeline.waits().count() as u64, record.operations);
    }

    #[test]
    fn several_clients_of_redis_keep_their_values_apart() {
        let Some((_server, address)) = redis::tests::server() else {
            return;
        };
        let settings = Settings {
            protocol: Protocol::Redis,
            set_get: SetGet { sets: 5, gets: 5 },
            connections: 3,
            ..settings(address)
        };
        let load = Load::start(&settings, None).unwrap();
        wait_until(&load, |record| record.operations > 1000);
        let record = load.stop();
        assert_eq!(record.errors(), 0, "{:?}", record.descriptions);
    }

    #[test]
    fn clients_share_the_keys() {
        let settings = settings("127.0.0.1:1".parse().unwrap());
        let mut keys: Vec<_> = (0..3)
            .map(|number| Values::new(&settings, number, 3))
            .flat_map(|values| {
                (0..values.versions.len())
                    .map(move |index| values.key(index))
                    .collect::<Vec<_>>()
            })
            .collect();
        keys.sort_unstable();
        assert_eq!(keys, (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn ratios_are_read() {
        for (text, sets, gets) in [("1:9", 1, 9), ("5:5", 5, 5), ("0:1", 0, 1)] {
            let ratio: SetGet = text.parse().unwrap();
            assert_eq!(ratio, SetGet { sets, gets });
            assert_eq!(String::from(ratio), text);
        }
        for text in ["", "1", "1:", "a:b", "0:0", "-1:2"] {
            assert!(text.parse::<SetGet>().unwrap_err().contains("ratio"), "{text}");
        }
    }

    #[test]
    fn changed_old_and_lost_values_are_found() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let settings = Settings {
            set_get: SetGet { sets: 0, gets: 1 },
            ..settings(address)
        };
        let load = Load::start(&settings, None).unwrap();
        let mut other = Protocol::Memcached.open(address, PATIENCE).unwrap();
        for (key, value, description) in [(7, 1, "vmferry:7 differs"), (9, 0, "vmferry:9 has 0 bytes")] {
            let mut changed = Vec::new();
            write_value(&mut changed, key, value, if value == 0 { 0 } else { 1000 });
            other.send_set(&name(key), &changed).unwrap();
            other.stored().unwrap();
            let found = |record: &Record| {
                record
                    .descriptions
                    .iter()
                    .any(|found| found.starts_with(description))
            };
            wait_until(&load, found);
            write_value(&mut changed, key, 0, 1000);
            other.send_set(&name(key), &changed).unwrap();
            other.stored().unwrap();
        }
        assert_eq!(load.stop().failures, 0);
    }

    #[test]
    fn a_lost_connection_is_an_error_and_the_client_goes_on() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let relay = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = relay.local_addr().unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let cutter = Arc::clone(&cut);
        // Passes everything on, until it cuts the first connection.
        thread::spawn(move || {
            for client in relay.incoming().flatten() {
                let server = TcpStream::connect(address).unwrap();
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server, client),
                ] {
                    let cut = Arc::clone(&cutter);
                    thread::spawn(move || {
                        let mut buffer = [0; 4096];
                        while let Ok(length @ 1..) = Read::read(&mut from, &mut buffer) {
                            if cut.swap(false, Ordering::Relaxed)
                                || Write::write_all(&mut to, &buffer[..length]).is_err()
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
        let load = Load::start(&settings(front), None).unwrap();
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
