//! What the command and the daemon say to each other: JSON over HTTP on a unix socket.
//!
//! | request | body | answer |
//! |---|---|---|
//! | `GET /v1/host` | | [`HostInfo`] |
//! | `GET /v1/guests` | | list of [`GuestInfo`] |
//! | `POST /v1/guests` | [`GuestSpec`](vmferry_guest::GuestSpec) | [`GuestInfo`] |
//! | `POST /v1/attach` | [`AttachRequest`] | [`GuestInfo`] |
//! | `GET /v1/guests/{name}` | | [`GuestInfo`] |
//! | `DELETE /v1/guests/{name}?force=BOOL` | | [`Done`] |
//! | `GET /v1/guests/{name}/stats` | | statistics of a synthetic guest |
//! | `POST /v1/guests/{name}/stats/reset-gap` | | [`Done`]: its longest gap is measured anew |
//! | `POST /v1/guests/{name}/migrate` | [`MigrateRequest`] | [`Started`] |
//! | `GET /v1/guests/{name}/migration` | | [`Migration`]: the one under way, else the last one |
//! | `POST /v1/guests/{name}/agent` | [`AgentRequest`] | [`AgentInfo`]: what the agent in it says |
//! | `POST /v1/guests/{name}/limits` | [`LimitsRequest`] | [`Done`]: they hold for the migration under way |
//! | `POST /v1/guests/{name}/cancel` | | [`Done`] |
//! | `POST /v1/guests/{name}/resolve` | [`ResolveRequest`] | [`Done`] |
//! | `POST /v1/guests/{name}/checkpoint` | [`CheckpointRequest`] | [`CheckpointState`] |
//! | `GET /v1/guests/{name}/checkpoint` | | [`CheckpointState`]: of those being taken, else of the last |
//! | `DELETE /v1/guests/{name}/checkpoint` | | [`CheckpointState`]: no more are taken, one under way is cancelled |
//! | `POST /v1/resume` | [`ResumeRequest`] | [`ResumeStarted`] |
//! | `GET /v1/guests/{name}/resume` | | [`ResumeState`]: the resume under way, else the last one |
//! | `POST /v1/guests/{name}/continue` | | [`Done`]: a guest that was resumed to stand paused runs |
//! | `POST /v1/guests/{name}/fill` | | [`Done`]: a guest that was resumed gets the rest of its pages |
//! | `GET /v1/reports` | | list of [`StoredReport`], newest last |
//! | `POST /v1/guests/{name}/trace` | [`TraceRequest`] | [`TraceInfo`]: a trace of it is being recorded |
//! | `GET /v1/guests/{name}/trace` | | [`TraceInfo`]: the recording under way, else the last one |
//! | `DELETE /v1/guests/{name}/trace` | | [`TraceInfo`]: the recording is ended, with what it has |
//! | `GET /v1/guests/{name}/trace/file` | | the bytes of the last trace (`vmferry_trace::file`) |
//! | `POST /v1/paths` | [`CalibrateRequest`] | [`Calibration`]: the way to another host was measured |
//! | `GET /v1/paths` | | list of [`Calibration`], the newest of each peer |
//! | `GET /v1/history` | | [`Kept`](vmferry_forecast::history::Kept): what migrations left for the models |
//!
//! An answer with a status of 400 or more carries [`ErrorBody`].

#![forbid(unsafe_code)]

mod checkpoint;
pub mod client;
mod resume;
mod traces;

use std::path::PathBuf;

pub use checkpoint::{CheckpointRequest, CheckpointState};
pub use client::{Client, ClientError};
pub use resume::{ResumeRequest, ResumeStarted, ResumeState};
use serde::{Deserialize, Serialize};
use vmferry_core::hints::Class;
use vmferry_core::report::{Progress, Report};
use vmferry_core::resume::ResumeProgress;
use vmferry_core::sampling::SamplingReport;
use vmferry_guest::{GuestLoad, GuestState, ProcessRan};

pub use traces::{CalibrateRequest, Calibration, TraceInfo, TraceRequest, TraceState};

/// A daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of vmferry.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Where it keeps its guests and reports.
    pub state_dir: PathBuf,
    /// Where guests arrive, with the port that is really used.
    pub listen: String,
    /// Names of the backends.
    pub backends: Vec<String>,
    /// How many guests there are.
    pub guests: usize,
    /// The share of their time that learning about guests may cost them, percent; absent where nothing is learned.
    #[serde(default)]
    pub sampling_budget_percent: Option<f64>,
    /// What happened at the start that the operator should know.
    pub notes: Vec<String>,
}

/// A guest of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GuestInfo {
    /// Name.
    pub name: String,
    /// Name of the backend.
    pub backend: String,
    /// What this host has to do with it.
    pub role: Role,
    /// What its vCPUs do; absent where it cannot be asked.
    pub state: Option<GuestState>,
    /// Process that executes it.
    pub pid: Option<u32>,
    /// Size of its RAM in bytes.
    pub ram_bytes: u64,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The migration under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// Checkpoints of it that are being taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<CheckpointState>,
    /// Its resume from a checkpoint, while pages of it are in the store only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<ResumeProgress>,
    /// What was learned of it while it runs; only where one guest is asked for, is this host's and is learned about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<SamplingReport>,
}

/// What a host has to do with a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The guest is this host's.
    Owner,
    /// The guest is this host's and runs here, pages of it still arrive.
    Receiving,
    /// The guest is being moved away.
    Source,
    /// The guest is being moved here and is not this host's yet.
    Destination,
    /// The guest is being resumed from a checkpoint, or runs already and pages of it are in the store only.
    Resuming,
    /// It is being created, attached or ended.
    Busy,
    /// Its directory is there, and it could not be reached when the daemon started.
    Unreachable,
}

/// Take over a QEMU that already runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachRequest {
    /// Name to give it; its own where absent.
    pub name: Option<String>,
    /// Its process.
    pub pid: u32,
    /// Its QMP socket; the one on its command line where absent.
    pub qmp: Option<PathBuf>,
}

/// Move a guest. The destination is an endpoint: `host`, `host:port`, `tcp:host:port`, `unix:/path`.
pub type MigrateRequest = vmferry_core::MigrationRequest<String>;

/// Ask the agent in a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRequest {
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
    /// Whether to say how far the guest could be ballooned down.
    #[serde(default)]
    pub balloon: bool,
    /// Whether to say what its pages are used for, as a migration by `enlightened` asks.
    #[serde(default)]
    pub classes: bool,
}

/// What the agent in a guest says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentInfo {
    /// How busy the guest is.
    pub load: GuestLoad,
    /// When its processes ran last, the latest first.
    pub last_runs: Vec<ProcessRan>,
    /// Memory that a balloon could take without making the guest swap, in bytes, where that was asked for: nine tenths of
    /// what it could have without swapping. A hint, on which nothing acts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balloon_bytes: Option<u64>,
    /// What its memory is used for, the most urgent first, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Vec<ClassBytes>>,
}

/// How much of a guest's memory is of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassBytes {
    /// The class.
    pub class: Class,
    /// Bytes.
    pub bytes: u64,
}

/// A migration that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Tells it from other migrations of the same guest.
    pub id: String,
}

/// A migration, under way or ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Migration {
    /// Tells it from other migrations of the same guest.
    pub id: String,
    /// Where it stands.
    #[serde(flatten)]
    pub stage: Stage,
}

/// Two looks at migrations are the same when they say the same.
impl PartialEq for Migration {
    fn eq(&self, other: &Self) -> bool {
        serde_json::to_value(self).ok() == serde_json::to_value(other).ok()
    }
}

/// Where a migration stands.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "kebab-case")]
pub enum Stage {
    /// Under way, from this host.
    Outgoing {
        /// Endpoint of the destination; empty where only the journal of an earlier daemon knows it.
        to: String,
        /// How far it is.
        progress: Progress,
    },
    /// Under way, to this host.
    Incoming {
        /// How far it is.
        progress: Arrival,
    },
    /// Ended; this host was the source.
    Sent {
        /// What was measured.
        report: Box<Report>,
    },
    /// Ended; this host was the destination.
    Received {
        /// What this host saw of it.
        report: serde_json::Value,
    },
}

/// How far a migration to this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Current phase, in words.
    pub phase: String,
    /// Pages that arrived, every crossing counted.
    pub received_pages: u64,
    /// Pages that still have to arrive, where the guest runs already.
    pub outstanding_pages: u64,
    /// Faults served so far.
    pub faults: u64,
}

/// Change the limits of a migration under way. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsRequest {
    /// Bandwidth of all page streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_bytes_per_s: Option<Cap>,
    /// CPU time of the page streams at the source, in percent of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<Cap>,
}

/// A cap: `"none"`, or `{"to": 25000000}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cap {
    /// No cap any more.
    None,
    /// This one.
    To(u64),
}

impl From<Cap> for Option<u64> {
    fn from(cap: Cap) -> Self {
        match cap {
            Cap::None => None,
            Cap::To(value) => Some(value),
        }
    }
}

/// Settle by hand who owns a guest past the commit point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveRequest {
    /// Who.
    pub owner: Owner,
}

/// An owner, seen from the host that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Owner {
    /// This host.
    Here,
    /// The other one.
    There,
}

/// It was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// A report on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StoredReport {
    /// Tells it from other migrations of the same guest.
    pub id: String,
    /// Name of the guest.
    pub vm: String,
    /// Which side this host was.
    pub side: ReportSide,
    /// When it was written, milliseconds since 1970.
    pub ended_unix_ms: u64,
    /// The report.
    pub report: serde_json::Value,
}

/// The side that wrote a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReportSide {
    /// The source: a [`Report`].
    Source,
    /// The destination: what it saw.
    Destination,
    /// It was no migration: the guest was resumed here from a checkpoint.
    Resume,
}

/// Why something was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What was wrong and why, one line.
    pub error: String,
    /// How to mend it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}
