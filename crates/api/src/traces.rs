//! Traces of guests, and the ways to other hosts.

use serde::{Deserialize, Serialize};
use vmferry_sim::PathModel;

/// Record a trace of a guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// For how long, milliseconds.
    pub length_ms: u64,
    /// Time from one sample to the next, milliseconds.
    #[serde(default = "fifty")]
    pub interval_ms: f64,
    /// Look at every page in every sample, whatever that costs the guest.
    #[serde(default)]
    pub full: bool,
    /// Else the share of the guest's time that recording may cost, percent.
    #[serde(default = "three")]
    pub budget_percent: f64,
}

fn fifty() -> f64 {
    50.0
}

fn three() -> f64 {
    3.0
}

/// A recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TraceInfo {
    /// Where it stands.
    pub state: TraceState,
    /// Since it began, milliseconds.
    pub elapsed_ms: f64,
    /// How long it is to take, milliseconds.
    pub length_ms: f64,
    /// Samples taken.
    pub samples: u64,
    /// Dirty rate in the last sample, bytes a second; an estimate where a part of memory is looked at.
    pub dirty_bytes_per_s: f64,
    /// One in so many pages is looked at.
    pub one_in: u32,
    /// Estimated cost to the guest so far, percent of its time.
    pub cost_percent: f64,
    /// Bytes of the file, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_bytes: Option<u64>,
    /// Why it failed, or why the guest cannot be looked at now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Where a recording stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TraceState {
    /// It is under way.
    #[default]
    Recording,
    /// The trace is there.
    Done,
    /// Nothing was recorded.
    Failed,
}

/// Measure the way to another host. The destination is an endpoint as in a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrateRequest {
    /// The daemon there.
    pub to: String,
    /// How long to load the link, milliseconds.
    #[serde(default = "a_second")]
    pub load_ms: u64,
}

fn a_second() -> u64 {
    1000
}

/// What the way to another host takes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// The daemon there.
    pub to: String,
    /// When it was measured, milliseconds since 1970.
    pub measured_unix_ms: u64,
    /// What migrations on it take.
    pub path: PathModel,
    /// What was measured how, and what is only typical.
    pub notes: Vec<String>,
}
