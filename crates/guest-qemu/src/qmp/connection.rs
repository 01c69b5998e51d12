//! One connection: a writer, and a thread that sorts what comes into replies and events.

use std::collections::HashMap;
use std::io::{self, IoSlice, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tracing::{debug, warn};

use super::Result;
use super::error::QmpError;
use super::events::{Event, EventLog};
use super::line::LineReader;

/// The most descriptors that go along with one command.
const MAX_FDS: usize = 4;

pub(super) struct Connection {
    writer: Mutex<UnixStream>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
}

/// What the reader thread and the callers share.
struct Shared {
    state: Mutex<State>,
    events: Arc<EventLog>,
}

enum State {
    /// Commands that wait for their answer.
    Live(HashMap<u64, SyncSender<Answer>>),
    /// The connection ended, with the reason.
    Lost(String),
}

/// An answer to a command, as QEMU words it.
type Answer = std::result::Result<Value, Refusal>;

#[derive(Debug, Deserialize)]
struct Refusal {
    class: String,
    desc: String,
}

impl Connection {
    /// Connects, reads the greeting and negotiates (no) capabilities.
    pub(super) fn open(path: &Path, events: &Arc<EventLog>, timeout: Duration) -> Result<Self> {
        let connect = |source| QmpError::Connect {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(path).map_err(connect)?;
        let mut lines = LineReader::new(stream.try_clone().map_err(connect)?);
        read_greeting(&mut lines, path, timeout)?;

        let shared = Arc::new(Shared {
            state: Mutex::new(State::Live(HashMap::new())),
            events: Arc::clone(events),
        });
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("qmp-reader".into())
            .spawn(move || reader.read_until_lost(lines))
            .map_err(connect)?;
        let connection = Self {
            writer: Mutex::new(stream),
            shared,
            next_id: AtomicU64::new(1),
        };
        connection.execute("qmp_capabilities", &json!({}), &[], timeout)?;
        Ok(connection)
    }

    pub(super) fn is_lost(&self) -> bool {
        matches!(*self.shared.lock(), State::Lost(_))
    }

    /// Sends a command and waits for its answer.
    pub(super) fn execute(
        &self,
        command: &'static str,
        arguments: &Value,
        fds: &[BorrowedFd<'_>],
        timeout: Duration,
    ) -> Result<Value> {
        let begun = self.begin(command, arguments, fds)?;
        match begun.wait(timeout) {
            Some(answer) => answer,
            None => {
                self.shared.forget(begun.id);
                Err(QmpError::TimedOut { command, timeout })
            }
        }
    }

    /// Sends a command. Its answer may be waited for or not.
    pub(super) fn begin(
        &self,
        command: &'static str,
        arguments: &Value,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Begun> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::sync_channel(1);
        self.shared.expect(id, sender, command)?;
        let mut line = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        line.push('\n');
        if let Err(error) = self.write(line.as_bytes(), fds) {
            self.shared.lose(&format!("writing to it failed: {error}"));
        }
        Ok(Begun {
            command,
            id,
            receiver,
            shared: Arc::clone(&self.shared),
        })
    }

    fn write(&self, line: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sent = 0;
        if !fds.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            if !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "too many descriptors at once",
                ));
            }
            sent = sendmsg(
                &*writer,
                &[IoSlice::new(line)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )?;
        }
        writer.write_all(&line[sent..])
    }
}

/// A command under way.
pub(super) struct Begun {
    command: &'static str,
    id: u64,
    receiver: Receiver<Answer>,
    shared: Arc<Shared>,
}

impl Begun {
    /// The answer, if it comes within `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> Option<Result<Value>> {
        let command = self.command;
        match self.receiver.recv_timeout(timeout) {
            Ok(Ok(value)) => Some(Ok(value)),
            Ok(Err(refusal)) => Some(Err(QmpError::Refused {
                command,
                class: refusal.class,
                description: refusal.desc,
            })),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Err(self.shared.lost(command))),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // The reader thread sees the end of the stream and leaves.
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = writer.shutdown(Shutdown::Both);
    }
}

impl Shared {
    fn expect(&self, id: u64, sender: SyncSender<Answer>, command: &'static str) -> Result<()> {
        match &mut *self.lock() {
            State::Live(pending) => {
                pending.insert(id, sender);
                Ok(())
            }
            State::Lost(why) => Err(QmpError::Lost {
                command,
                why: why.clone(),
            }),
        }
    }

    fn forget(&self, id: u64) {
        if let State::Live(pending) = &mut *self.lock() {
            pending.remove(&id);
        }
    }

    fn lost(&self, command: &'static str) -> QmpError {
        let why = match &*self.lock() {
            State::Lost(why) => why.clone(),
            State::Live(_) => "the answer was dropped".into(),
        };
        QmpError::Lost { command, why }
    }

    /// Ends the connection for everybody: whoever waits is told.
    fn lose(&self, why: &str) {
        let mut state = self.lock();
        if matches!(*state, State::Live(_)) {
            debug!(why, "QMP connection ended");
            *state = State::Lost(why.to_owned());
            drop(state);
            self.events.disconnected();
        }
    }

    fn read_until_lost(&self, mut lines: LineReader<UnixStream>) {
        let why = loop {
            match lines.next_line() {
                Ok(Some([])) => {}
                Ok(Some(line)) => {
                    if let Err(why) = self.dispatch(line) {
                        break why;
                    }
                }
                Ok(None) => break "QEMU ended or closed it".to_owned(),
                Err(error) => break format!("reading from it failed: {error}"),
            }
        };
        // What is not understood may be anything, an answer too: no use in going on.
        let _ = lines.source().shutdown(Shutdown::Both);
        self.lose(&why);
    }

    fn dispatch(&self, line: &[u8]) -> std::result::Result<(), String> {
        let message: Value =
            serde_json::from_slice(line).map_err(|error| format!("it sent no JSON: {error}"))?;
        if message.get("event").is_some() {
            let event: Event = serde_json::from_value(message)
                .map_err(|error| format!("it sent an event of unknown form: {error}"))?;
            debug!(event = event.name, data = %event.data, "QMP event");
            self.events.push(event);
            return Ok(());
        }
        let (id, answer) = parse_answer(message)?;
        let Some(sender) = (match &mut *self.lock() {
            State::Live(pending) => pending.remove(&id),
            State::Lost(_) => None,
        }) else {
            warn!(id, "QMP answer to a command nobody waits for any more");
            return Ok(());
        };
        let _ = sender.send(answer);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse_answer(mut message: Value) -> std::result::Result<(u64, Answer), String> {
    let answer = if let Some(value) = message.get_mut("return") {
        Ok(value.take())
    } else if let Some(error) = message.get_mut("error") {
        let refusal: Refusal = serde_json::from_value(error.take())
            .map_err(|error| format!("it sent an error of unknown form: {error}"))?;
        Err(refusal)
    } else {
        return Err("it sent neither an answer nor an event".into());
    };
    match (message.get("id").and_then(Value::as_u64), answer) {
        (Some(id), answer) => Ok((id, answer)),
        // An error without an id is about bytes that QEMU could not parse as a command.
        (None, Err(refusal)) => Err(format!("it did not understand us: {}", refusal.desc)),
        (None, Ok(_)) => Err("it sent an answer to no command".into()),
    }
}

fn read_greeting(lines: &mut LineReader<UnixStream>, path: &Path, timeout: Duration) -> Result<()> {
    let deadline = Instant::now() + timeout;
    let not_qmp = |what: String| QmpError::NotQmp {
        path: path.to_owned(),
        what,
    };
    let connect = |source| QmpError::Connect {
        path: path.to_owned(),
        source,
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(QmpError::NoGreeting {
                path: path.to_owned(),
                timeout,
            });
        }
        lines.source().set_read_timeout(Some(left)).map_err(connect)?;
        match lines.next_line() {
            Ok(Some(line)) => {
                let greeting: Value =
                    serde_json::from_slice(line).map_err(|_| not_qmp("its first line is no JSON".into()))?;
                if greeting.get("QMP").is_none() {
                    return Err(not_qmp("its first line is no greeting".into()));
                }
                return lines.source().set_read_timeout(None).map_err(connect);
            }
            Ok(None) => return Err(not_qmp("it closed the connection at once".into())),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(not_qmp(error.to_string()));
            }
            Err(error) => return Err(connect(error)),
        }
    }
}
