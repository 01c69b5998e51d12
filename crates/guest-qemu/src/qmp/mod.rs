//! A thin client of the QEMU Machine Protocol.
//!
//! [`Qmp`] holds one connection to QEMU's unix socket and makes a new one when it was lost. Commands are
//! typed (see [`commands`]); events are kept in a bounded log that any number of threads can wait on (see
//! [`events`]). What a QEMU can do is asked from itself (see [`schema`]), nothing is compiled in by version.

mod connection;
mod line;

pub mod block;
pub mod commands;
pub mod error;
pub mod events;
pub mod schema;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use commands::Command;
pub use error::QmpError;
pub use events::{Cursor, Event, EventLog, Timestamp};
pub use schema::Schema;

use connection::Connection;

/// Between two looks for an answer while an event is waited for.
const ANSWER_POLL: Duration = Duration::from_millis(1);
/// How long a command may take where the caller says nothing else.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// Result of a QMP operation.
pub type Result<T> = std::result::Result<T, QmpError>;

/// A client of one QEMU. Threads may use it at the same time; QEMU answers in the order of arrival.
pub struct Qmp {
    path: PathBuf,
    events: Arc<EventLog>,
    /// None before the first command, where it was left to that.
    connection: Mutex<Option<Arc<Connection>>>,
}

impl Qmp {
    /// Connects to QEMU's QMP socket at `path` and leaves capabilities negotiation.
    ///
    /// # Errors
    /// When there is no such socket, nobody greets within `timeout` (another client may hold the connection:
    /// QEMU serves one a socket), or what greets is not QMP.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let events = Arc::new(EventLog::new());
        let connection = Connection::open(path, &events, timeout)?;
        Ok(Self {
            path: path.to_owned(),
            events,
            connection: Mutex::new(Some(Arc::new(connection))),
        })
    }

    /// A client that connects when it has something to say: to a QEMU that does not answer now, because it waits for something else.
    pub fn connect_later(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            events: Arc::new(EventLog::new()),
            connection: Mutex::default(),
        }
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Executes a command and returns its typed reply.
    ///
    /// # Errors
    /// [`QmpError::Refused`] with QEMU's own words, or what happened to the connection.
    pub fn run<C: Command>(&self, command: &C) -> Result<C::Reply> {
        self.run_within(command, COMMAND_TIMEOUT)
    }

    /// The same with an own time-out; a command that timed out may still be executed later.
    ///
    /// # Errors
    /// As [`Qmp::run`].
    pub fn run_within<C: Command>(&self, command: &C, timeout: Duration) -> Result<C::Reply> {
        self.send(command, &[], timeout)
    }

    /// Executes a command until it is answered, or an event comes that `done` accepts; then the answer is not waited for.
    ///
    /// # Errors
    /// As [`Qmp::run`].
    pub fn run_until<C: Command>(
        &self,
        command: &C,
        timeout: Duration,
        done: impl Fn(&Event) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        let cursor = self.events.now();
        let arguments = arguments(command)?;
        let begun = self.live_connection()?.begin(C::NAME, &arguments, &[])?;
        loop {
            match self.events.wait(cursor, ANSWER_POLL, C::NAME, &done) {
                Ok(_) => return Ok(()),
                Err(_) => match begun.wait(Duration::ZERO) {
                    Some(answer) => return answer.map(drop),
                    None if Instant::now() >= deadline => {
                        return Err(QmpError::TimedOut {
                            command: C::NAME,
                            timeout,
                        });
                    }
                    None => {}
                },
            }
        }
    }

    /// Executes a command that takes file descriptors (`getfd`, `add-fd`).
    ///
    /// # Errors
    /// As [`Qmp::run`].
    pub fn run_with_fds<C: Command>(&self, command: &C, fds: &[BorrowedFd<'_>]) -> Result<C::Reply> {
        self.send(command, fds, COMMAND_TIMEOUT)
    }

    /// Executes a command of the human monitor and returns what it prints.
    ///
    /// # Errors
    /// As [`Qmp::run`]. An error of the human command itself is part of what it prints.
    pub fn human(&self, command_line: &str) -> Result<String> {
        self.run(&commands::HumanMonitorCommand {
            command_line: command_line.to_owned(),
        })
    }

    /// Asks what this QEMU knows.
    ///
    /// # Errors
    /// As [`Qmp::run`].
    pub fn schema(&self) -> Result<Schema> {
        Ok(Schema::new(self.run(&commands::QueryQmpSchema {})?))
    }

    /// The events QEMU sent, also over earlier connections.
    pub fn events(&self) -> &EventLog {
        &self.events
    }

    fn send<C: Command>(&self, command: &C, fds: &[BorrowedFd<'_>], timeout: Duration) -> Result<C::Reply> {
        let arguments = arguments(command)?;
        let reply: Value = self
            .live_connection()?
            .execute(C::NAME, &arguments, fds, timeout)?;
        serde_json::from_value(reply).map_err(|source| QmpError::BadReply {
            command: C::NAME,
            source,
        })
    }

    /// The connection, made anew when QEMU or a time-out ended the last one.
    fn live_connection(&self) -> Result<Arc<Connection>> {
        let mut connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        match &*connection {
            Some(live) if !live.is_lost() => Ok(Arc::clone(live)),
            _ => {
                let new = Arc::new(Connection::open(&self.path, &self.events, COMMAND_TIMEOUT)?);
                Ok(Arc::clone(connection.insert(new)))
            }
        }
    }
}

fn arguments<C: Command>(command: &C) -> Result<Value> {
    serde_json::to_value(command).map_err(|source| QmpError::BadReply {
        command: C::NAME,
        source,
    })
}
