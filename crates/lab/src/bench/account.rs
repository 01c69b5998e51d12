//! What whoever moved the guest says of it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmferry_core::PAGE_SIZE;
use vmferry_core::report::{Report, RoundReport};

use super::experiment::ExperimentReport;
use crate::peer::PeerReport;

/// The report of a migration, by vmferry or by a peer, or of an experiment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Account {
    /// vmferry's.
    Vmferry(Box<Report>),
    /// QEMU's.
    Qemu(Box<PeerReport>),
    /// What an experiment found.
    Experiment(Box<ExperimentReport>),
}

impl Account {
    /// Request until the source may free everything, or how long the experiment took, milliseconds.
    pub fn total_ms(&self) -> f64 {
        match self {
            Self::Vmferry(report) => report.total_ms,
            Self::Qemu(report) => report.total_ms,
            Self::Experiment(report) => report.total_ms,
        }
    }

    /// Paused at the source until running at the destination, milliseconds; of a migration.
    pub fn downtime_ms(&self) -> Option<f64> {
        match self {
            Self::Vmferry(report) => Some(report.downtime_ms),
            Self::Qemu(report) => Some(report.downtime_ms),
            Self::Experiment(_) => None,
        }
    }

    /// Bytes that the source sent, in a migration.
    pub fn bytes_sent(&self) -> Option<u64> {
        match self {
            Self::Vmferry(report) => Some(report.bytes_on_wire),
            Self::Qemu(report) => Some(report.bytes_sent()),
            Self::Experiment(_) => None,
        }
    }

    /// Pages that crossed in a migration, every crossing counted.
    pub fn pages_sent(&self) -> Option<u64> {
        match self {
            Self::Vmferry(report) => Some(report.pages.sent),
            Self::Qemu(report) => Some(report.pages_sent()),
            Self::Experiment(_) => None,
        }
    }

    /// Bytes of pages that the destination of a migration fetched.
    pub fn bytes_fetched(&self) -> Option<u64> {
        let pages = match self {
            Self::Vmferry(report) => report.faults.network,
            Self::Qemu(report) => report.pages_fetched(),
            Self::Experiment(_) => return None,
        };
        Some(PAGE_SIZE * pages)
    }

    /// What is known of each round, in order; of QEMU and experiments nothing is.
    pub fn rounds(&self) -> &[RoundReport] {
        match self {
            Self::Vmferry(report) => &report.rounds,
            Self::Qemu(_) | Self::Experiment(_) => &[],
        }
    }

    /// A figure of the report by its path in JSON (`/faults/p99_us`), of an experiment also by its name alone; none where this kind
    /// of report does not have it.
    pub fn figure(&self, path: &str) -> Option<f64> {
        let report: Value = match self {
            Self::Vmferry(report) => serde_json::to_value(report).ok()?,
            Self::Qemu(report) => serde_json::to_value(report).ok()?,
            Self::Experiment(report) => match report.figures.get(path.trim_start_matches('/')) {
                Some(figure) => return Some(*figure),
                None => serde_json::to_value(report).ok()?,
            },
        };
        report.pointer(path)?.as_f64()
    }

    /// When what counts began, of an experiment that had to prepare it first.
    pub(super) fn began(&self) -> Option<Instant> {
        match self {
            Self::Experiment(report) => report.began,
            Self::Vmferry(_) | Self::Qemu(_) => None,
        }
    }

    /// Notes what the guest's client saw.
    pub(crate) fn set_perceived_downtime_ms(&mut self, gap_ms: f64) {
        let perceived = match self {
            Self::Vmferry(report) => &mut report.perceived_downtime_ms,
            Self::Qemu(report) => &mut report.perceived_downtime_ms,
            Self::Experiment(report) => &mut report.perceived_downtime_ms,
        };
        *perceived = Some(gap_ms);
    }
}
