//! What whoever moved the guest says of it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmferry_core::PAGE_SIZE;
use vmferry_core::report::{Report, RoundReport};

use crate::peer::PeerReport;

/// The report of a migration, by vmferry or by a peer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Account {
    /// vmferry's.
    Vmferry(Box<Report>),
    /// QEMU's.
    Qemu(Box<PeerReport>),
}

impl Account {
    /// Request until the source may free everything, milliseconds.
    pub fn total_ms(&self) -> f64 {
        match self {
            Self::Vmferry(report) => report.total_ms,
            Self::Qemu(report) => report.total_ms,
        }
    }

    /// Paused at the source until running at the destination, milliseconds.
    pub fn downtime_ms(&self) -> f64 {
        match self {
            Self::Vmferry(report) => report.downtime_ms,
            Self::Qemu(report) => report.downtime_ms,
        }
    }

    /// Bytes that the source sent.
    pub fn bytes_sent(&self) -> u64 {
        match self {
            Self::Vmferry(report) => report.bytes_on_wire,
            Self::Qemu(report) => report.bytes_sent(),
        }
    }

    /// Pages that crossed, every crossing counted.
    pub fn pages_sent(&self) -> u64 {
        match self {
            Self::Vmferry(report) => report.pages.sent,
            Self::Qemu(report) => report.pages_sent(),
        }
    }

    /// Bytes of pages that the destination fetched.
    pub fn bytes_fetched(&self) -> u64 {
        PAGE_SIZE
            * match self {
                Self::Vmferry(report) => report.faults.network,
                Self::Qemu(report) => report.pages_fetched(),
            }
    }

    /// What is known of each round, in order; of QEMU nothing is.
    pub fn rounds(&self) -> &[RoundReport] {
        match self {
            Self::Vmferry(report) => &report.rounds,
            Self::Qemu(_) => &[],
        }
    }

    /// A figure of the report by its path in JSON (`/faults/p99_us`); none where this kind of report does not have it.
    pub fn figure(&self, path: &str) -> Option<f64> {
        let report: Value = match self {
            Self::Vmferry(report) => serde_json::to_value(report).ok()?,
            Self::Qemu(report) => serde_json::to_value(report).ok()?,
        };
        report.pointer(path)?.as_f64()
    }

    /// Notes what the guest's client saw.
    pub(crate) fn set_perceived_downtime_ms(&mut self, gap_ms: f64) {
        let perceived = match self {
            Self::Vmferry(report) => &mut report.perceived_downtime_ms,
            Self::Qemu(report) => &mut report.perceived_downtime_ms,
        };
        *perceived = Some(gap_ms);
    }
}
