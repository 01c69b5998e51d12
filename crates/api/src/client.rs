//! A client of the daemon's API, for the command, the demo and tests.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use vmferry_forecast::history::Kept;
use vmferry_guest::GuestSpec;

use crate::{
    AgentInfo, AgentRequest, AttachRequest, CalibrateRequest, Calibration, CheckpointRequest,
    CheckpointState, Done, ErrorBody, GuestInfo, HostInfo, LimitsRequest, MigrateRequest, Migration, Owner,
    ResolveRequest, ResumeRequest, ResumeStarted, ResumeState, Started, StoredReport, TraceInfo,
    TraceRequest,
};

/// The daemon's socket where nothing else is said.
pub const DEFAULT_SOCKET: &str = "/var/lib/vmferry/api.sock";

/// Largest answer that is taken: far beyond thousands of reports.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// A request that brought no answer, or a refusal.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error(
        "no daemon answers at {}; is `vmferry host` running? start it with `vmferry host`, or name its socket with \
         --host-socket",
        socket.display()
    )]
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The socket is not ours to use.
    #[error(
        "the daemon's socket {} may not be used by this user: run the command as root or as the daemon's user",
        socket.display()
    )]
    Forbidden {
        /// The socket.
        socket: PathBuf,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{}", .0.line())]
    Refused(Refusal),
    /// The daemon ended, or what answers is none.
    #[error("the daemon at {} broke off: {what}", socket.display())]
    Broken {
        /// The socket.
        socket: PathBuf,
        /// What happened.
        what: String,
    },
}

/// What the daemon answered in place of doing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status: 400 and above.
    pub status: u16,
    /// Why.
    pub body: ErrorBody,
}

impl Refusal {
    fn line(&self) -> String {
        match &self.body.mend {
            Some(mend) => format!("{}; {mend}", self.body.error),
            None => self.body.error.clone(),
        }
    }
}

impl ClientError {
    /// The refusal, where the daemon did answer.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// Result of a request.
pub type Result<T> = std::result::Result<T, ClientError>;

/// A client. It connects for each request; calls block, and must not be made from an async task.
pub struct Client {
    socket: PathBuf,
    runtime: tokio::runtime::Runtime,
}

impl Client {
    /// A client of the daemon at `socket`. Nothing is connected yet.
    ///
    /// # Errors
    /// When the system gives no event loop (too many open files).
    pub fn new(socket: impl Into<PathBuf>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        Ok(Self {
            socket: socket.into(),
            runtime,
        })
    }

    /// The daemon's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Waits until the daemon answers, which is after it has recovered its guests.
    ///
    /// # Errors
    /// The last failure, when `timeout` is over.
    pub fn wait_ready(&self, timeout: Duration) -> Result<HostInfo> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.host() {
                Err(ClientError::Unreachable { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                answer => return answer,
            }
        }
    }

    /// About the daemon.
    ///
    /// # Errors
    /// See [`ClientError`], as for all requests.
    pub fn host(&self) -> Result<HostInfo> {
        self.get("/v1/host")
    }

    /// All guests of the host.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn guests(&self) -> Result<Vec<GuestInfo>> {
        self.get("/v1/guests")
    }

    /// One guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn guest(&self, name: &str) -> Result<GuestInfo> {
        self.get(&guest_path(name, ""))
    }

    /// Starts a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn run(&self, spec: &GuestSpec) -> Result<GuestInfo> {
        self.post("/v1/guests", spec)
    }

    /// Takes over a QEMU that runs.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn attach(&self, request: &AttachRequest) -> Result<GuestInfo> {
        self.post("/v1/attach", request)
    }

    /// Ends a guest. With `force` also one that lacks pages or that cannot be reached.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stop(&self, name: &str, force: bool) -> Result<()> {
        let path = guest_path(name, &format!("?force={force}"));
        self.request::<Done>(Method::DELETE, &path, Bytes::new())
            .map(drop)
    }

    /// What a synthetic guest has done so far (`vmferry_guest_synth::Stats`).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn stats(&self, name: &str) -> Result<vmferry_guest_synth::Stats> {
        self.get(&guest_path(name, "/stats"))
    }

    /// Starts the measurement of a synthetic guest's longest gap anew.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reset_gap(&self, name: &str) -> Result<()> {
        self.post::<Done>(&guest_path(name, "/stats/reset-gap"), &Done {})
            .map(drop)
    }

    /// Starts a migration.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn migrate(&self, name: &str, request: &MigrateRequest) -> Result<Started> {
        self.post(&guest_path(name, "/migrate"), request)
    }

    /// The migration of a guest that is under way, else the last one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn migration(&self, name: &str) -> Result<Migration> {
        self.get(&guest_path(name, "/migration"))
    }

    /// Cancels the migration of a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn cancel(&self, name: &str) -> Result<()> {
        self.post::<Done>(&guest_path(name, "/cancel"), &Done {})
            .map(drop)
    }

    /// Asks the agent in a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn agent(&self, name: &str, request: &AgentRequest) -> Result<AgentInfo> {
        self.post(&guest_path(name, "/agent"), request)
    }

    /// Changes the limits of the migration of a guest that is under way.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn limit(&self, name: &str, request: &LimitsRequest) -> Result<()> {
        self.post::<Done>(&guest_path(name, "/limits"), request).map(drop)
    }

    /// Settles who owns a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resolve(&self, name: &str, owner: Owner) -> Result<()> {
        self.post::<Done>(&guest_path(name, "/resolve"), &ResolveRequest { owner })
            .map(drop)
    }

    /// Begins to take checkpoints of a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn checkpoint(&self, name: &str, request: &CheckpointRequest) -> Result<CheckpointState> {
        self.post(&guest_path(name, "/checkpoint"), request)
    }

    /// The checkpoints of a guest that are being taken, else how the last ones ended.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn checkpoint_state(&self, name: &str) -> Result<CheckpointState> {
        self.get(&guest_path(name, "/checkpoint"))
    }

    /// Takes no more checkpoints of a guest; one under way is cancelled.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn end_checkpoints(&self, name: &str) -> Result<CheckpointState> {
        self.delete(&guest_path(name, "/checkpoint"))
    }

    /// Begins to resume a checkpoint.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resume(&self, request: &ResumeRequest) -> Result<ResumeStarted> {
        self.post("/v1/resume", request)
    }

    /// The resume of a guest that is under way, else the last one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn resume_state(&self, name: &str) -> Result<ResumeState> {
        self.get(&guest_path(name, "/resume"))
    }

    /// Lets a guest run that was resumed to stand paused.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn go_on(&self, name: &str) -> Result<()> {
        self.post::<Done>(&guest_path(name, "/continue"), &Done {})
            .map(drop)
    }

    /// Brings the rest of the pages of a guest that was resumed.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn fill(&self, name: &str) -> Result<()> {
        self.post::<Done>(&guest_path(name, "/fill"), &Done {}).map(drop)
    }

    /// All reports this host keeps, the newest last.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reports(&self) -> Result<Vec<StoredReport>> {
        self.get("/v1/reports")
    }

    /// Begins to record a trace of a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn begin_trace(&self, name: &str, request: &TraceRequest) -> Result<TraceInfo> {
        self.post(&guest_path(name, "/trace"), request)
    }

    /// The recording of a guest that is under way, else the last one.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn trace(&self, name: &str) -> Result<TraceInfo> {
        self.get(&guest_path(name, "/trace"))
    }

    /// Ends the recording of a guest, which keeps what it has.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn end_trace(&self, name: &str) -> Result<TraceInfo> {
        self.request(Method::DELETE, &guest_path(name, "/trace"), Bytes::new())
    }

    /// The file of the last trace of a guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn trace_file(&self, name: &str) -> Result<Vec<u8>> {
        let path = guest_path(name, "/trace/file");
        let bytes = self.answer(Method::GET, &path, Bytes::new())?;
        Ok(bytes.to_vec())
    }

    /// Measures the way to another host.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn calibrate(&self, request: &CalibrateRequest) -> Result<Calibration> {
        self.post("/v1/paths", request)
    }

    /// The ways to other hosts that were measured, the newest measurement of each.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn paths(&self) -> Result<Vec<Calibration>> {
        self.get("/v1/paths")
    }

    /// What migrations from this host left for the models.
    ///
    /// # Errors
    /// See [`ClientError`]; refused where the history cannot be used.
    pub fn history(&self) -> Result<Kept> {
        self.get("/v1/history")
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.request(Method::GET, path, Bytes::new())
    }

    fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.request(Method::DELETE, path, Bytes::new())
    }

    fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        let body = serde_json::to_vec(body).expect("a request becomes JSON");
        self.request(Method::POST, path, body.into())
    }

    fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let answer = self.answer(method, path, body)?;
        serde_json::from_slice(&answer)
            .map_err(|error| self.broken(format!("its answer is not understood ({error})")))
    }

    /// The bytes of an answer, unless it is a refusal.
    fn answer(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes> {
        let (status, answer) = self.runtime.block_on(self.exchange(method, path, body))?;
        if status.is_success() {
            return Ok(answer);
        }
        let body = serde_json::from_slice(&answer).unwrap_or_else(|_| ErrorBody {
            error: format!("the daemon answered {status} to {path}"),
            mend: Some("command and daemon may be of different versions".into()),
        });
        Err(ClientError::Refused(Refusal {
            status: status.as_u16(),
            body,
        }))
    }

    async fn exchange(&self, method: Method, path: &str, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket, source },
                _ => ClientError::Unreachable { socket, source },
            }
        })?;
        let broken = |error: &dyn std::fmt::Display| self.broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| broken(&e))?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| broken(&e))?;
        let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
            .collect()
            .await
            .map_err(|e| broken(&e))?;
        connection.abort();
        Ok((status, answer.to_bytes()))
    }

    fn broken(&self, what: String) -> ClientError {
        ClientError::Broken {
            socket: self.socket.clone(),
            what,
        }
    }
}

/// Names that were not checked may hold anything: what is no plain letter is escaped.
fn guest_path(name: &str, rest: &str) -> String {
    let mut path = String::from("/v1/guests/");
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => path.push(byte.into()),
            _ => path.push_str(&format!("%{byte:02X}")),
        }
    }
    path + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_break_out_of_the_path() {
        assert_eq!(guest_path("web-1", "/stats"), "/v1/guests/web-1/stats");
        assert_eq!(guest_path("a/../b?c", ""), "/v1/guests/a%2F..%2Fb%3Fc");
    }

    #[test]
    fn without_a_daemon_the_error_says_how_to_start_one() {
        let client = Client::new("/nonexistent/api.sock").unwrap();
        let error = client.host().unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }));
        assert!(
            error.to_string().contains("start it with `vmferry host`"),
            "{error}"
        );
        let error = client.wait_ready(Duration::ZERO).unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }));
    }
}
