//! The record of a migration, and which records teach the same model.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use vmferry_core::MigrationRequest;
use vmferry_core::forecast::Forecast;
use vmferry_core::report::{CpuSeconds, Outcome, Report};
use vmferry_core::workload::Workload;

use super::Beside;
use crate::model::{Observation, Setting};

/// A migration that ended, seen from its source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Tells it from others of the same guest.
    pub id: String,
    /// Name of the guest.
    pub vm: String,
    /// The destination.
    pub to: String,
    /// When it ended, milliseconds since 1970.
    pub ended_unix_ms: u64,
    /// Name of the guest's backend.
    pub backend: String,
    /// Name of the strategy.
    pub strategy: String,
    /// How pages were encoded, as it was asked for.
    pub encoding: String,
    /// What the guest did, where somebody said so.
    #[serde(default)]
    pub workload: Option<Workload>,
    /// What the migration might use.
    pub setting: Setting,
    /// Migrations from this host that went on at the same time at most, itself included.
    pub together: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// See [`Report::ram_bytes`].
    pub ram_bytes: u64,
    /// See [`Report::data_bytes`].
    pub data_bytes: u64,
    /// See [`Report::bytes_on_wire`].
    pub bytes_on_wire: u64,
    /// See [`Report::total_ms`].
    pub total_ms: f64,
    /// See [`Report::execution_transfer_ms`].
    pub execution_transfer_ms: f64,
    /// See [`Report::downtime_ms`].
    pub downtime_ms: f64,
    /// CPU time at both sides.
    pub cpu_seconds: CpuSeconds,
    /// Migrations of which this is the same are alike in everything but their strategy, where somebody saw to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same: Option<String>,
    /// What it did beside moving memory; nothing in records that were made before this was kept.
    #[serde(default, skip_serializing_if = "Beside::is_nothing")]
    pub beside: Beside,
    /// What was expected before it began.
    #[serde(default)]
    pub forecast: Option<Forecast>,
}

impl Record {
    /// The record of a migration that was asked for by `request` and ended with `report` at `ended_unix_ms`.
    pub fn new<To: fmt::Display>(
        id: impl Into<String>,
        request: &MigrationRequest<To>,
        report: &Report,
        ended_unix_ms: u64,
        together: u32,
    ) -> Self {
        let percent = |percent: u32| f64::from(percent);
        Self {
            id: id.into(),
            vm: report.vm.clone(),
            to: request.to.to_string(),
            ended_unix_ms,
            backend: report.backend.clone(),
            strategy: report.strategy.clone(),
            encoding: request.encoding.to_string(),
            workload: request.workload,
            setting: Setting {
                // As they were at the end: they may have been changed under way.
                source_percent: report.limits.cpu_percent.map(percent),
                destination_percent: report.limits.cpu_destination_percent.map(percent),
                bandwidth_bytes_per_s: report.limits.bandwidth_bytes_per_s.map(|rate| rate as f64),
            },
            together,
            outcome: report.outcome,
            ram_bytes: report.ram_bytes,
            data_bytes: report.data_bytes,
            bytes_on_wire: report.bytes_on_wire,
            total_ms: report.total_ms,
            execution_transfer_ms: report.execution_transfer_ms,
            downtime_ms: report.downtime_ms,
            cpu_seconds: report.cpu_seconds,
            same: None,
            beside: Beside::asked(request),
            forecast: report.forecast.clone(),
        }
    }

    /// Which model it teaches.
    pub fn kind(&self) -> Kind {
        Kind {
            workload: self.workload,
            strategy: self.strategy.clone(),
            backend: self.backend.clone(),
            encoding: self.encoding.clone(),
        }
    }

    /// Milliseconds for each MiB that held data: what guests of several sizes have in common. None where time went into
    /// something else.
    pub fn ms_per_mib(&self) -> Option<f64> {
        let mib = self.data_bytes as f64 / f64::from(1 << 20);
        let usable = self.outcome == Outcome::Completed && self.total_ms > 0.0 && mib > 0.0;
        let usable = usable && self.beside.is_nothing();
        usable.then(|| self.total_ms / mib)
    }
}

/// Migrations that are alike in everything but what they might use. The paper takes the platform for given (section 5), and so
/// does this: a history is one host's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Kind {
    /// What the guest did; nothing where nobody said.
    pub workload: Option<Workload>,
    /// Name of the strategy.
    pub strategy: String,
    /// Name of the backend.
    pub backend: String,
    /// Encoding of pages.
    pub encoding: String,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.workload {
            Some(workload) => write!(f, "{workload}")?,
            None => f.write_str("unknown workload")?,
        }
        write!(f, ", {}, {}, {}", self.strategy, self.backend, self.encoding)
    }
}

/// What each kind of migration teaches about time: those that completed, went on alone and moved nothing but memory, in
/// milliseconds for each MiB of data.
pub fn observations(records: &[Record]) -> BTreeMap<Kind, Vec<Observation>> {
    let mut kinds: BTreeMap<Kind, Vec<Observation>> = BTreeMap::new();
    for record in records.iter().filter(|record| record.together <= 1) {
        if let Some(value) = record.ms_per_mib() {
            let setting = record.setting;
            kinds
                .entry(record.kind())
                .or_default()
                .push(Observation { setting, value });
        }
    }
    kinds
}
