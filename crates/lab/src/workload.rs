//! What a Linux guest does, and the clients that watch it do it from outside.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::guards::Interrupt;
use crate::load::{Load, Protocol, SetGet, Settings, Stream, memcached, postgres, redis};
use crate::namespace::Namespace;

/// Where servers in the guest listen.
pub(crate) const MEMCACHED_PORT: u16 = 11211;
const REDIS_PORT: u16 = 6379;
const POSTGRES_PORT: u16 = 5432;
/// The guest's server takes a few more.
const MAX_DATABASE_CONNECTIONS: u32 = 32;
/// Where the guest's own load says how far it has come, or streams.
const WORK_PORT: u16 = 7121;
/// How long a server that was started may take to answer.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How long it may take when it is asked whether it is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a Linux guest does.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Workload {
    /// Nothing; there is no client.
    #[default]
    Idle,
    /// memcached, with clients that read and write.
    Memcached(KeyValue),
    /// redis, with clients that read and write.
    Redis(KeyValue),
    /// PostgreSQL, with clients that order and pay like those of TPC-C.
    Tpcc {
        /// MiB of its shared buffers.
        mib: u64,
        /// Clients, each with a connection of its own and one transaction under way.
        #[serde(default = "one")]
        connections: u32,
        /// Transactions a second; as many as go where absent.
        #[serde(default)]
        transactions_per_s: Option<u32>,
    },
    /// Writes memory, page after page.
    Write {
        /// So much of it.
        mib: u64,
        /// So fast; as fast as it goes where absent.
        #[serde(default)]
        mib_per_s: Option<u64>,
    },
    /// Reads memory, page after page, as fast as it goes.
    Read {
        /// So much of it.
        mib: u64,
    },
    /// Allocates, touches and frees memory, block after block, as fast as it goes.
    Allocate {
        /// Size of a block.
        kib: u64,
    },
    /// Computes.
    Cpu {
        /// For this share of the time.
        percent: u32,
    },
    /// Compresses text with `gzip`.
    Gzip {
        /// So much of it, again and again.
        mib: u64,
    },
    /// Compresses text with `bzip2`, which takes 900 kB of it at a time and is heard of no more often.
    Bzip2 {
        /// So much of it, again and again.
        mib: u64,
    },
    /// Compiles C files.
    Compile {},
    /// Reads a disk.
    DiskRead {
        /// Its size.
        mib: u64,
    },
    /// Sends to a client, as fast as it goes.
    NetSend {},
    /// Receives from a client.
    NetReceive {
        /// So fast; as fast as it goes where absent.
        #[serde(default)]
        mib_per_s: Option<u64>,
    },
}

/// A key-value server in the guest, and clients that know every value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyValue {
    /// MiB that the server may use for items.
    pub mib: u64,
    /// How many values there are.
    pub values: u32,
    /// Bytes of each.
    pub value_bytes: usize,
    /// Operations a second; as many as go where absent.
    #[serde(default)]
    pub operations_per_s: Option<u32>,
    /// How many operations store and how many read, as in `1:9`.
    pub set_get: SetGet,
    /// Clients, each with a connection of its own and one operation under way.
    #[serde(default = "one")]
    pub connections: u32,
}

impl Workload {
    /// What its clients count; nothing where there are none.
    pub fn unit(&self) -> Option<&'static str> {
        Some(match self {
            Self::Idle => return None,
            Self::Memcached(_) | Self::Redis(_) => "operations",
            Self::Tpcc { .. } => "transactions",
            Self::Write { .. } | Self::Read { .. } => "pages",
            Self::Allocate { .. } => "blocks",
            Self::Cpu { .. } => "loops",
            Self::Compile {} => "files",
            Self::Gzip { .. }
            | Self::Bzip2 { .. }
            | Self::DiskRead { .. }
            | Self::NetSend {}
            | Self::NetReceive { .. } => "bytes",
        })
    }

    /// Whether somebody outside talks to it.
    pub fn has_client(&self) -> bool {
        self.unit().is_some()
    }

    /// The layer of the guest image that it needs beside the base.
    pub fn layer(&self) -> Option<&'static str> {
        match self {
            Self::Redis(_) => Some("redis"),
            Self::Tpcc { .. } => Some("database"),
            Self::Compile {} => Some("compile"),
            _ => None,
        }
    }

    /// MiB of the disk that it needs.
    pub fn disk_mib(&self) -> Option<u64> {
        match self {
            Self::DiskRead { mib } => Some(*mib),
            _ => None,
        }
    }

    /// What the guest's init script is told, by the kernel's command line.
    pub(crate) fn parameter(&self) -> Option<String> {
        let work = |what: String| Some(format!("vmferry.work={what}"));
        match self {
            Self::Idle => None,
            Self::Memcached(server) => Some(format!("vmferry.memcached={}", server.mib)),
            Self::Redis(server) => Some(format!("vmferry.redis={}", server.mib)),
            Self::Tpcc { mib, .. } => Some(format!("vmferry.database={mib}")),
            Self::Write { mib, mib_per_s } => work(format!("write:{mib}:{}", mib_per_s.unwrap_or(0))),
            Self::Read { mib } => work(format!("read:{mib}")),
            Self::Allocate { kib } => work(format!("allocate:{kib}")),
            Self::Cpu { percent } => work(format!("cpu:{percent}")),
            Self::Gzip { mib } => work(format!("gzip:{mib}")),
            Self::Bzip2 { mib } => work(format!("bzip2:{mib}")),
            Self::Compile {} => work("compile".into()),
            Self::DiskRead { .. } => work("disk-read".into()),
            Self::NetSend {} => work("net-send".into()),
            Self::NetReceive { .. } => work("net-receive".into()),
        }
    }

    /// Whether it makes sense; if not, what is wrong.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        let more_than_0 = |what: &str, number: u64| match number {
            0 => Err(format!("{what} of its workload has to be more than 0")),
            _ => Ok(()),
        };
        match self {
            Self::Memcached(server) | Self::Redis(server) => {
                more_than_0("mib", server.mib)?;
                more_than_0("values", server.values.into())?;
                more_than_0("connections", server.connections.into())?;
                more_than_0("operations_per_s", server.operations_per_s.map_or(1, u64::from))?;
                let bytes = u64::from(server.values) * server.value_bytes as u64;
                match bytes <= server.mib << 20 {
                    true => Ok(()),
                    // It would drop some, which its clients would take for a loss.
                    false => Err(format!(
                        "mib of its workload is {}, and the values alone take {}",
                        server.mib,
                        bytes.div_ceil(1 << 20)
                    )),
                }
            }
            Self::Tpcc {
                mib,
                connections,
                transactions_per_s,
            } => {
                more_than_0("mib", *mib)?;
                more_than_0("transactions_per_s", transactions_per_s.map_or(1, u64::from))?;
                match connections {
                    1..=MAX_DATABASE_CONNECTIONS => Ok(()),
                    _ => Err(format!(
                        "connections of its workload is {connections}, expected 1 to {MAX_DATABASE_CONNECTIONS}"
                    )),
                }
            }
            Self::Write { mib, mib_per_s } => {
                more_than_0("mib", *mib)?;
                more_than_0("mib_per_s", mib_per_s.unwrap_or(1))
            }
            Self::Read { mib } | Self::Gzip { mib } | Self::Bzip2 { mib } | Self::DiskRead { mib } => {
                more_than_0("mib", *mib)
            }
            Self::Allocate { kib } => more_than_0("kib", *kib),
            Self::NetReceive { mib_per_s } => more_than_0("mib_per_s", mib_per_s.unwrap_or(1)),
            Self::Cpu { percent } if *percent > 100 => {
                Err(format!("percent of its workload is {percent}, expected 0 to 100"))
            }
            Self::Idle | Self::Cpu { .. } | Self::Compile {} | Self::NetSend {} => Ok(()),
        }
    }

    /// Waits until what runs in the guest at `address` answers, and starts its clients in `namespace`; none where it has none.
    /// Clients take no answer within `patience` for an error. `alive` says, again and again, whether the guest still runs.
    ///
    /// # Errors
    /// When the guest ends, or does not answer.
    pub fn start_clients(
        &self,
        address: Ipv4Addr,
        namespace: &Namespace,
        interrupt: &Interrupt,
        patience: Duration,
        mut alive: impl FnMut() -> Result<()>,
    ) -> Result<Option<Load>> {
        let Some(unit) = self.unit() else {
            return Ok(None);
        };
        interrupt.wait_for("the guest's load to answer", START_LIMIT, || {
            alive()?;
            Ok(namespace.enter(|| self.ask(address, PATIENCE))?.ok())
        })?;
        let mib_to_bytes = |mib: u64| mib << 20;
        let stream = match self {
            Self::Memcached(server) => {
                return server
                    .start(Protocol::Memcached, address, patience, namespace)
                    .map(Some);
            }
            Self::Redis(server) => {
                return server
                    .start(Protocol::Redis, address, patience, namespace)
                    .map(Some);
            }
            Self::Tpcc {
                connections,
                transactions_per_s,
                ..
            } => {
                let rate = transactions_per_s.map_or(f64::from(u32::MAX), f64::from);
                let server = guest(address, POSTGRES_PORT);
                let load = Load::order_and_pay(server, *connections, rate, patience, Some(namespace));
                return load.map(Some);
            }
            Self::NetSend {} => Stream::FromGuest,
            Self::NetReceive { mib_per_s } => Stream::ToGuest {
                bytes_per_s: mib_per_s.map(mib_to_bytes),
            },
            _ => Stream::Progress,
        };
        let address = guest(address, WORK_PORT);
        Load::follow(stream, address, unit, patience, Some(namespace)).map(Some)
    }

    /// Whether it answers within so long.
    pub(crate) fn ask(&self, address: Ipv4Addr, patience: Duration) -> io::Result<()> {
        match self {
            Self::Memcached(_) => memcached::Connection::open(guest(address, MEMCACHED_PORT), patience)?
                .version()
                .map(drop),
            Self::Redis(_) => redis::Connection::open(guest(address, REDIS_PORT), patience)?.ping(),
            Self::Tpcc { .. } => {
                postgres::Connection::open(guest(address, POSTGRES_PORT), patience).map(drop)
            }
            _ => TcpStream::connect_timeout(&guest(address, WORK_PORT), patience).map(drop),
        }
    }
}

impl KeyValue {
    fn start(
        &self,
        protocol: Protocol,
        address: Ipv4Addr,
        patience: Duration,
        namespace: &Namespace,
    ) -> Result<Load> {
        let port = match protocol {
            Protocol::Memcached => MEMCACHED_PORT,
            Protocol::Redis => REDIS_PORT,
        };
        let settings = Settings {
            protocol,
            address: guest(address, port),
            values: self.values,
            value_bytes: self.value_bytes,
            operations_per_s: self.operations_per_s.unwrap_or(u32::MAX),
            set_get: self.set_get,
            connections: self.connections,
            patience,
        };
        Load::start(&settings, Some(namespace))
    }
}

/// A port of the guest, wherever it runs.
fn guest(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}

fn one() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Holder {
        workload: Workload,
    }

    fn read(text: &str) -> std::result::Result<Workload, String> {
        let holder: std::result::Result<Holder, _> = toml::from_str(&format!("workload = {{ {text} }}"));
        holder
            .map(|holder| holder.workload)
            .map_err(|error| error.message().to_owned())
    }

    /// Reads it, and compares what the guest is told, the layer it needs and what is counted; nothing is `-`.
    fn check(text: &str, expected: [&str; 3]) {
        let workload = read(text).unwrap();
        workload.check().unwrap();
        let parameter = workload.parameter().unwrap_or_else(|| "-".into());
        let (layer, unit) = (workload.layer().unwrap_or("-"), workload.unit().unwrap_or("-"));
        assert_eq!([parameter.as_str(), layer, unit], expected, "{text}");
        let again: Workload = serde_json::from_value(serde_json::to_value(&workload).unwrap()).unwrap();
        assert_eq!(again, workload);
    }

    #[test]
    fn servers_are_read_and_the_guest_is_told() {
        let server = "mib = 64, values = 10, value_bytes = 100, set_get = \"5:5\"";
        for (kind, expected) in [
            ("memcached", ["vmferry.memcached=64", "-", "operations"]),
            ("redis", ["vmferry.redis=64", "redis", "operations"]),
        ] {
            check(&format!("kind = \"{kind}\", {server}"), expected);
        }
        let expected = ["vmferry.database=32", "database", "transactions"];
        check("kind = \"tpcc\", mib = 32", expected);
    }

    #[test]
    fn loads_of_the_guests_own_are_read_and_the_guest_is_told() {
        for (text, work, layer, unit) in [
            ("kind = \"write\", mib = 32", "write:32:0", "-", "pages"),
            (
                "kind = \"write\", mib = 32, mib_per_s = 9",
                "write:32:9",
                "-",
                "pages",
            ),
            ("kind = \"cpu\", percent = 40", "cpu:40", "-", "loops"),
            ("kind = \"allocate\", kib = 4", "allocate:4", "-", "blocks"),
            ("kind = \"gzip\", mib = 8", "gzip:8", "-", "bytes"),
            ("kind = \"bzip2\", mib = 8", "bzip2:8", "-", "bytes"),
            ("kind = \"compile\"", "compile", "compile", "files"),
            ("kind = \"disk-read\", mib = 8", "disk-read", "-", "bytes"),
            ("kind = \"net-send\"", "net-send", "-", "bytes"),
            ("kind = \"net-receive\"", "net-receive", "-", "bytes"),
        ] {
            check(text, [&format!("vmferry.work={work}"), layer, unit]);
        }
        check("kind = \"idle\"", ["-"; 3]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, named) in [
            ("kind = \"mine\"", "mine"),
            ("kind = \"gzip\"", "mib"),
            ("kind = \"gzip\", mib = 0", "mib"),
            ("kind = \"allocate\", kib = 0", "kib"),
            ("kind = \"gzip\", mib = 1, level = 9", "level"),
            ("kind = \"cpu\", percent = 101", "101"),
            (
                "kind = \"redis\", mib = 1, values = 0, value_bytes = 1, set_get = \"1:9\"",
                "values",
            ),
            (
                "kind = \"redis\", mib = 1, values = 1, value_bytes = 1, set_get = \"1\"",
                "ratio",
            ),
            (
                "kind = \"redis\", mib = 3, values = 1024, value_bytes = 4096, set_get = \"1:9\"",
                "alone take 4",
            ),
            ("kind = \"write\", mib = 1, mib_per_s = 0", "mib_per_s"),
            ("kind = \"tpcc\", mib = 1, connections = 33", "33"),
        ] {
            let error = read(text).and_then(|workload| workload.check()).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
