//! The report of a resume: what `vmferry resume --json` prints and the host keeps.

use serde::{Deserialize, Serialize};

use super::ResumeMode;
use crate::report::Outcome;

/// Everything that a resume measured. Times in milliseconds since the request, sizes in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResumeReport {
    /// Name of the guest.
    pub vm: String,
    /// The checkpoint it was resumed from, as in `web/17`.
    pub checkpoint: String,
    /// How.
    pub mode: ResumeMode,
    /// Name of the guest backend (`qemu`, `synth`).
    pub backend: String,
    /// How it ended; absent while pages follow.
    pub outcome: Option<Outcome>,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Until the guest ran; absent where it did not.
    pub start_ms: Option<f64>,
    /// Until the guest's service answered; absent where nobody asked it.
    pub first_answer_ms: Option<f64>,
    /// Until every page was in place, or it ended otherwise; while pages follow, until now.
    pub total_ms: f64,
    /// RAM of the guest, whatever it holds: *allocated* memory.
    pub ram_bytes: u64,
    /// RAM that holds data: *configured* memory.
    pub data_bytes: u64,
    /// Bytes of device state.
    pub device_state_bytes: u64,
    /// How pages came.
    pub pages: ResumePages,
    /// Faults of the guest.
    pub faults: ResumeFaults,
    /// Bytes read from the store.
    pub store_bytes: u64,
    /// How often a read of the store was repeated.
    pub store_retries: u64,
    /// How long the guest was paused because its store did not give it a page.
    pub stalled_ms: f64,
    /// CPU seconds of the threads of the resume.
    pub cpu_seconds: f64,
    /// What happened when.
    pub phases: Vec<ResumePhase>,
    /// What the operator should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// How pages came. All but `ram` and `predicted` are pages that hold data and are in place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumePages {
    /// Pages that hold data.
    pub data: u64,
    /// Pages of them that the guest was not to start without.
    pub predicted: u64,
    /// Pages in place before the start.
    pub before_start: u64,
    /// Pages that the guest waited for.
    pub demanded: u64,
    /// Pages that came together with one it waited for.
    pub beside_demanded: u64,
    /// Pages that came by themselves after the start.
    pub background: u64,
    /// Pages that an earlier daemon had put in place before this one went on.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub by_earlier_daemon: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Faults of the guest until every page was in place, and how long it waited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResumeFaults {
    /// All of them.
    pub count: u64,
    /// Served from the store.
    pub store: u64,
    /// Answered without it (pages that hold nothing, pages that had just come).
    pub local: u64,
    /// Of those served from the store, the ones within the first 10 s after the start.
    pub store_first_10s: u64,
    /// Median service time of faults served from the store, microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Longest.
    pub max_us: f64,
}

/// A phase of a resume, in milliseconds since the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResumePhase {
    /// Its name.
    pub name: String,
    /// When it began.
    pub start_ms: f64,
    /// When it ended.
    pub end_ms: f64,
}

/// A look at a resume under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResumeProgress {
    /// The checkpoint.
    pub checkpoint: String,
    /// Name of the mode.
    pub mode: ResumeMode,
    /// Current phase, in words.
    pub phase: String,
    /// Milliseconds since the request.
    pub elapsed_ms: f64,
    /// When the guest ran, milliseconds since the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<f64>,
    /// Pages that hold data.
    pub data_pages: u64,
    /// Pages of them that are not in place.
    pub missing_pages: u64,
    /// Pages without which the guest does not start, and which are not in place.
    pub missing_before_start_pages: u64,
    /// Bytes read from the store.
    pub store_bytes: u64,
    /// Faults served from the store.
    pub store_faults: u64,
    /// The guest is this host's: nothing takes it away any more but its end.
    #[serde(default)]
    pub ours: bool,
    /// The guest could run and was to be left paused.
    #[serde(default)]
    pub standing: bool,
    /// Why the guest stands still, where its store does not give it a page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled: Option<String>,
    /// Why a page cannot be had that the guest has not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}
