//! Questions and answers over the socket of the agent's port.

use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use thiserror::Error;
use vmferry_agent_proto::{
    Body, Call, FrameRun, LastRun, Load, MapReader, ProtoError, Request, StructPages, VERSION, read_answer,
    write_request,
};

/// Why there is no answer to use.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    /// Nobody answers.
    #[error("it is silent")]
    Silent,
    /// The guest has none.
    #[error("it has no port for an agent")]
    NoPort,
    /// QEMU does not let us in.
    #[error("its port cannot be reached")]
    Connect(#[source] io::Error),
    /// What came is no answer.
    #[error("what it says makes no sense")]
    Protocol(#[source] ProtoError),
    /// What it says cannot be.
    #[error("what it says cannot be: {0}")]
    Lie(String),
    /// It says that it cannot.
    #[error("it answers: {0}")]
    Refused(String),
}

impl From<ProtoError> for Fault {
    fn from(error: ProtoError) -> Self {
        match &error {
            ProtoError::Read(cause) | ProtoError::Write(cause) => match cause.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Silent,
                _ => Self::Protocol(error),
            },
            _ => Self::Protocol(error),
        }
    }
}

/// A connection to the agent, of one version. All its calls together end by one deadline.
pub(crate) struct Client {
    socket: BufReader<Timed>,
    id: u32,
}

/// A socket with a deadline.
struct Timed {
    socket: UnixStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        self.socket.read(buffer)
    }
}

impl Client {
    /// Begins anew: from now on calls have `timeout`.
    pub(crate) fn renew(&mut self, timeout: Duration) {
        self.socket.get_mut().deadline = Instant::now() + timeout;
    }

    /// Connects, and agrees on a version.
    pub(crate) fn connect(path: &Path, timeout: Duration) -> Result<Self, Fault> {
        let socket = UnixStream::connect(path).map_err(Fault::Connect)?;
        socket.set_write_timeout(Some(timeout)).map_err(Fault::Connect)?;
        let deadline = Instant::now() + timeout;
        let mut client = Self {
            socket: BufReader::new(Timed { socket, deadline }),
            // Answers to whoever was connected before are told from ours by it.
            id: std::process::id().wrapping_mul(0x9e37_79b9) ^ seconds(),
        };
        match client.ask(Call::Ping { version: VERSION })? {
            Body::Pong { version } if version == VERSION => Ok(client),
            Body::Pong { version } => Err(Fault::Lie(format!(
                "it speaks version {version}, this host {VERSION}"
            ))),
            other => Err(unexpected("a pong", &other)),
        }
    }

    /// Where the guest's kernel has its `struct page`s, or why that is not known.
    pub(crate) fn kernel(&mut self) -> Result<Result<StructPages, String>, Fault> {
        match self.ask(Call::Kernel)? {
            Body::Kernel(kernel) => Ok(kernel
                .struct_pages
                .ok_or_else(|| format!("{} (Linux {})", kernel.why_not, kernel.release))),
            other => Err(unexpected("the kernel", &other)),
        }
    }

    /// How busy the guest is.
    pub(crate) fn load(&mut self) -> Result<Load, Fault> {
        match self.ask(Call::Load)? {
            Body::Load(load) => Ok(load),
            other => Err(unexpected("a load", &other)),
        }
    }

    /// When the guest's processes ran last, the latest first.
    pub(crate) fn last_runs(&mut self) -> Result<Vec<LastRun>, Fault> {
        match self.ask(Call::LastRuns)? {
            Body::LastRuns(runs) => Ok(runs),
            other => Err(unexpected("a list of processes", &other)),
        }
    }

    /// Hands out the runs of a map of frames below `end`.
    pub(crate) fn map(&mut self, call: Call, end: u64, mut each: impl FnMut(FrameRun)) -> Result<(), Fault> {
        let mut body = self.ask(call)?;
        let mut reader = MapReader::new(end);
        loop {
            match body {
                Body::Map(chunk) => reader.take(&chunk, &mut each)?,
                other => return Err(unexpected("a map", &other)),
            }
            if reader.is_finished() {
                return Ok(());
            }
            body = self.next()?;
        }
    }

    fn ask(&mut self, call: Call) -> Result<Body, Fault> {
        self.id = self.id.wrapping_add(1);
        let request = Request { id: self.id, call };
        write_request(&mut self.socket.get_mut().socket, &request)?;
        self.next()
    }

    /// The next answer to the last question. Others' are passed over, as long as there is time.
    fn next(&mut self) -> Result<Body, Fault> {
        loop {
            let answer = read_answer(&mut self.socket)?;
            match answer.body {
                _ if answer.id != self.id => {}
                Body::Failed { reason } => return Err(Fault::Refused(reason)),
                body => return Ok(body),
            }
        }
    }
}

fn seconds() -> u32 {
    std::time::UNIX_EPOCH
        .elapsed()
        .map_or(0, |since| since.as_millis() as u32)
}

fn unexpected(expected: &str, came: &Body) -> Fault {
    let came = match came {
        Body::Pong { .. } => "a pong",
        Body::Map(_) => "a map",
        Body::Load(_) => "a load",
        Body::LastRuns(_) => "a list of processes",
        Body::Kernel(_) => "the kernel",
        Body::Failed { .. } => "a failure",
    };
    Fault::Lie(format!("{came} where {expected} was asked for"))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;
    use std::thread;

    use vmferry_agent_proto::{Answer, MapChunk, read_request, write_answer};

    use super::*;

    const END: u64 = 65_536;

    /// What a client makes of an agent that answers the ping rightly and then whatever `lie` writes.
    fn of_agent(lie: impl FnOnce(&mut UnixStream, u32) + Send + 'static) -> Result<(), Fault> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            // The rest of an answer to somebody before.
            socket.write_all(b"vfA1 rest of a frame").unwrap();
            let id = read_request(&mut socket).unwrap().id;
            let body = Body::Pong { version: VERSION };
            write_answer(&mut socket, &Answer { id, body }).unwrap();
            let id = read_request(&mut socket).unwrap().id;
            lie(&mut socket, id);
            socket
        });
        let result = Client::connect(&path, Duration::from_millis(500))
            .and_then(|mut client| client.map(Call::Free, END, drop));
        agent.join().unwrap();
        result
    }

    fn chunk(socket: &mut UnixStream, id: u32, first_frame: u64, runs: &[u8], last: bool) -> bool {
        let body = Body::Map(MapChunk {
            first_frame,
            runs: runs.to_vec(),
            last,
        });
        write_answer(socket, &Answer { id, body }).is_ok()
    }

    #[test]
    fn an_honest_map_is_taken_and_old_answers_are_passed_over() {
        let result = of_agent(|socket, id| {
            chunk(socket, id ^ 1, 0, &[0xff; 10], true);
            chunk(socket, id, 256, &[0x89, 0x20], true);
        });
        assert!(result.is_ok(), "{result:?}");
    }

    #[test]
    fn lies_and_silence_are_told() {
        let said = |result: Result<(), Fault>| {
            let fault = result.unwrap_err();
            let cause = std::error::Error::source(&fault).map(ToString::to_string);
            format!("{fault}: {}", cause.unwrap_or_default())
        };
        let beyond = of_agent(|socket, id| {
            chunk(socket, id, END - 1, &[0x89, 0x20], true);
        });
        assert!(said(beyond).contains("beyond"));
        let twice = of_agent(|socket, id| {
            chunk(socket, id, 0, &[0x89, 0x20], false);
            chunk(socket, id, 0, &[0x89, 0x20], true);
        });
        assert!(said(twice).contains("classified twice"));
        let endless = of_agent(|socket, id| while chunk(socket, id, 0, &[], false) {});
        assert!(matches!(endless, Err(Fault::Silent | Fault::Protocol(_))));
        let noise = of_agent(|socket, _| while socket.write_all(&[0x76; 4096]).is_ok() {});
        assert!(said(noise).contains("without the beginning of a frame"));
        let other = of_agent(|socket, id| {
            let body = Body::Pong { version: 1 };
            write_answer(socket, &Answer { id, body }).unwrap();
        });
        assert!(said(other).contains("a pong where a map"));
        assert!(matches!(of_agent(|_, _| {}), Err(Fault::Silent)));
    }
}
