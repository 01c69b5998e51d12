//! The report of a migration: what `--json` prints and both hosts keep.

use serde::{Deserialize, Serialize};

use crate::disks::{DiskProgress, DisksReport};
use crate::encoding::{Encoding, EncodingReport};
use crate::filter::FilterReport;
use crate::forecast::Forecast;

/// How a migration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The guest runs at the destination, which has everything.
    Completed,
    /// The operator cancelled it; the guest runs at the source.
    Cancelled,
    /// It failed before the commit point; the guest runs at the source.
    Failed,
    /// It failed after the commit point and waits for the peer or for `vmferry resolve`.
    Unresolved,
}

/// Everything a migration measured. Times in milliseconds, sizes in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Name of the guest.
    pub vm: String,
    /// Name of the strategy that ran.
    pub strategy: String,
    /// Name of the guest backend (`qemu`, `synth`).
    pub backend: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Request until the source may free everything.
    pub total_ms: f64,
    /// Request until running at the destination.
    pub execution_transfer_ms: f64,
    /// Paused at the source until running at the destination, by the source's clock (one way of network
    /// delay included).
    pub downtime_ms: f64,
    /// Longest gap a client of the guest saw, where a client measured it.
    pub perceived_downtime_ms: Option<f64>,
    /// Time the guest was paused for a moment while it still lived at the source (first protect, settling).
    pub micro_stops_ms: f64,
    /// Configured and untouched RAM together.
    pub ram_bytes: u64,
    /// Bytes of RAM that held data when the migration started.
    pub data_bytes: u64,
    /// Bytes written to all sockets by the source.
    pub bytes_on_wire: u64,
    /// Bytes of device state.
    pub device_state_bytes: u64,
    /// How pages crossed.
    pub pages: PageCounts,
    /// What the destination had of them beforehand, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reuse: Option<ReuseReport>,
    /// In which encodings they crossed, and what that took and spared.
    #[serde(default)]
    pub encoding: EncodingReport,
    /// One entry a round, in order; the stop is the last one.
    pub rounds: Vec<RoundReport>,
    /// Faults of the guest at the destination.
    pub faults: FaultReport,
    /// What happened when.
    pub phases: Vec<PhaseReport>,
    /// CPU time of the migration's threads.
    pub cpu_seconds: CpuSeconds,
    /// Private memory of the migration at its highest, at source and destination.
    pub memory_bytes: SidesBytes,
    /// The limits that were set, and how long they made the migration wait.
    #[serde(default)]
    pub limits: LimitsReport,
    /// What the data filter learned and what it cost, of a migration that had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterReport>,
    /// What became of the disks, where they were to move with the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DisksReport>,
    /// What `--verify` found; absent when it was not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Verified>,
    /// What was expected before it began, where somebody asked for a forecast.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Forecast>,
    /// What the operator should know: fall-backs taken, limits reached.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// How many pages crossed in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Pages that crossed, every crossing counted.
    pub sent: u64,
    /// Crossings of a page that had crossed before.
    pub resent: u64,
    /// Pages that crossed between the stop and the resume without a demand, because the loading of the device state was
    /// about to read them.
    #[serde(default)]
    pub ahead: u64,
    /// Crossings as 4096 plain bytes.
    pub raw: u64,
    /// Crossings as one byte.
    pub uniform: u64,
    /// Pages that were never touched and did not cross.
    pub hole: u64,
    /// Pages that the guest does not use and did not cross.
    pub free: u64,
    /// Pages held back in rounds, by a learned working set or the data filter; counted each time.
    pub filtered: u64,
    /// Crossings in compressed form.
    pub compressed: u64,
    /// Crossings as a difference to the version sent before.
    pub delta: u64,
    /// Pages that crossed as a reference to content the destination has.
    pub deduplicated: u64,
}

/// Pages that the destination had in a store of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReuseReport {
    /// Pages that the destination said it may have.
    pub offered_pages: u64,
    /// Crossings of pages as their hashes.
    pub pages: u64,
    /// Of these, pages that it turned out not to have while the guest ran at the source: they crossed once more.
    pub missed_pages: u64,
    /// Bytes of these crossings less than of whole pages; what pages that were missed took is taken off.
    pub bytes_spared: i64,
}

/// One round of pre-copy, or the stop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RoundReport {
    /// How long it took.
    pub ms: f64,
    /// Pages sent in it.
    pub pages_sent: u64,
    /// Pages the guest dirtied during it.
    pub pages_dirtied: u64,
    /// Bytes it put on the wire.
    pub bytes: u64,
    /// Share of the pages held back that were dirtied indeed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_precision: Option<f64>,
    /// Share of the pages dirtied that had been held back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filter_recall: Option<f64>,
    /// Pages held back in it to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages_filtered: Option<u64>,
    /// Pages held back at first and then sent in it after all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pages_taken_back: Option<u64>,
    /// Bytes of the pages held back that were dirtied indeed: they would have crossed in vain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_saved: Option<u64>,
}

/// Faults of the guest at the destination, and how long it waited for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// All of them.
    pub count: u64,
    /// Served over the network.
    pub network: u64,
    /// Answered at the destination (holes, pages that had just arrived).
    pub local: u64,
    /// Median fault service time of network faults, microseconds.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// Longest.
    pub max_us: f64,
}

/// A phase of the migration, in milliseconds since the request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PhaseReport {
    /// Name of the phase.
    pub name: String,
    /// When it began.
    pub start_ms: f64,
    /// When it ended.
    pub end_ms: f64,
}

/// The limits of a migration, at its end, and the time spent waiting for them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LimitsReport {
    /// The goal for the downtime.
    pub downtime_ms: f64,
    /// Longest time until the handover.
    pub timeout_ms: Option<f64>,
    /// Bandwidth cap.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// How long pages waited for nothing but the bandwidth cap.
    pub bandwidth_waited_ms: f64,
    /// CPU cap of the source's page streams, in percent of one core.
    pub cpu_percent: Option<u32>,
    /// CPU cap of the destination's page streams, in percent of one core, where the destination keeps to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_destination_percent: Option<u32>,
    /// How long page streams waited for the CPU cap, all streams added up.
    pub cpu_waited_ms: f64,
    /// What enforced the CPU cap: a control group of the kernel, or the streams themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_by: Option<String>,
}

/// CPU seconds of both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CpuSeconds {
    /// At the source.
    pub source: f64,
    /// At the destination.
    pub destination: f64,
}

/// Bytes at both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SidesBytes {
    /// At the source.
    pub source: u64,
    /// At the destination.
    pub destination: u64,
}

/// What the comparison of all pages found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verified {
    /// Pages compared.
    pub pages: u64,
    /// Pages that differ.
    pub mismatches: u64,
}

/// A look at a migration under way.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Current phase, in words.
    pub phase: String,
    /// Round of pre-copy, from 1; 0 outside of rounds.
    pub round: u32,
    /// Milliseconds since the request.
    pub elapsed_ms: f64,
    /// Pages that still have to cross.
    pub remaining_pages: u64,
    /// Pages that crossed, every crossing counted.
    pub sent_pages: u64,
    /// Bytes on the wire so far.
    pub bytes_on_wire: u64,
    /// How the last batch of pages crossed; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<Encoding>,
    /// Current rate of sending, bytes a second.
    pub rate_bytes_per_s: f64,
    /// Rate at which the guest dirties memory, bytes a second.
    pub dirty_bytes_per_s: f64,
    /// Estimated time left at the current rates; absent where it would not converge.
    pub eta_ms: Option<f64>,
    /// Faults served so far (post-copy).
    pub faults: u64,
    /// Bandwidth cap in force.
    #[serde(default)]
    pub bandwidth_limit_bytes_per_s: Option<u64>,
    /// CPU cap in force, in percent of one core.
    #[serde(default)]
    pub cpu_limit_percent: Option<u32>,
    /// How long pages waited for nothing but the bandwidth cap.
    #[serde(default)]
    pub bandwidth_waited_ms: f64,
    /// How far the copy of the disks is, where they move with the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskProgress>,
}
