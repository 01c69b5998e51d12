//! What a migration measured.

use std::time::Duration;

use super::Summary;
use crate::filter::FilterReport;
use crate::report::{PhaseReport, RoundReport};

/// What a migration measured; the driver adds what only it knows and makes a [`crate::report::Report`] of it.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Request until the end.
    pub total: Duration,
    /// Request until running at the destination.
    pub execution_transfer: Option<Duration>,
    /// Paused until running.
    pub downtime: Option<Duration>,
    /// Short pauses at the source.
    pub micro_stops: Duration,
    /// Bytes of pages.
    pub page_bytes: u64,
    /// Bytes of device state.
    pub device_state_bytes: u64,
    /// Pages that held data.
    pub data_pages: u64,
    /// How pages crossed.
    pub counts: crate::report::PageCounts,
    /// Rounds.
    pub rounds: Vec<RoundReport>,
    /// Phases.
    pub phases: Vec<PhaseReport>,
    /// What the destination said at the end.
    pub summary: Summary,
    /// What the operator should know.
    pub notes: Vec<String>,
    /// The bandwidth cap at the end.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// How long pages waited for nothing but the bandwidth cap.
    pub bandwidth_waited: Duration,
    /// What the data filter learned.
    pub filter: Option<FilterReport>,
}
