//! The reports that a host keeps.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::state_dir;
use crate::api::{ReportSide, StoredReport};

/// How many reports are kept; the oldest go first.
const KEPT: usize = 1000;

/// Reports on disk, and in memory to be found quickly.
pub(super) struct Reports {
    dir: PathBuf,
    all: Mutex<Vec<StoredReport>>,
}

impl Reports {
    /// Reads all in `dir`. One that is not understood is left alone.
    pub(super) fn load(dir: PathBuf) -> Result<Self> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
            match read {
                Ok(report) => all.push(report),
                Err(error) => tracing::warn!("{} is no report of ours: {error}", path.display()),
            }
        }
        all.sort_by_key(|report: &StoredReport| report.ended_unix_ms);
        Ok(Self {
            dir,
            all: Mutex::new(all),
        })
    }

    /// Keeps a report. That it cannot be written is no reason to lose it from memory.
    pub(super) fn keep(&self, id: &str, vm: &str, side: ReportSide, report: &impl Serialize) {
        let report = serde_json::to_value(report).unwrap_or_default();
        let ended_unix_ms = unix_ms();
        let stored = StoredReport {
            id: id.into(),
            vm: vm.into(),
            side,
            ended_unix_ms,
            report,
        };
        let path = self.path(&stored);
        let bytes = serde_json::to_vec_pretty(&stored).unwrap_or_default();
        if let Err(error) = state_dir::store(&path, &bytes) {
            tracing::error!("cannot write the report {}: {error}", path.display());
        }
        let mut all = self.lock();
        all.push(stored);
        let excess = all.len().saturating_sub(KEPT);
        for old in all.drain(..excess) {
            // Gone already is as good.
            let _ = fs::remove_file(self.path(&old));
        }
    }

    /// The newest of a guest that a side of this kind wrote.
    pub(super) fn last_of(&self, vm: &str, of: impl Fn(ReportSide) -> bool) -> Option<StoredReport> {
        let all = self.lock();
        let mut newest_first = all.iter().rev();
        newest_first
            .find(|report| report.vm == vm && of(report.side))
            .cloned()
    }

    /// All, the newest last.
    pub(super) fn all(&self) -> Vec<StoredReport> {
        self.lock().clone()
    }

    fn path(&self, report: &StoredReport) -> PathBuf {
        let side = match report.side {
            ReportSide::Source => "source",
            ReportSide::Destination => "destination",
            ReportSide::Resume => "resume",
        };
        self.dir
            .join(format!("{:013}-{}-{side}.json", report.ended_unix_ms, report.vm))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<StoredReport>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the migrations of a guest apart.
pub(super) fn new_id(vm: &str) -> String {
    format!("{vm}-{}", unix_ms())
}

/// Now, in milliseconds since 1970.
pub(super) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reports_are_there_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let reports = Reports::load(temp.path().to_owned()).unwrap();
        reports.keep("web-1", "web", ReportSide::Source, &json!({"n": 1}));
        reports.keep("db-1", "db", ReportSide::Destination, &json!({"n": 2}));
        fs::write(temp.path().join("strange.json"), "{").unwrap();
        let reports = Reports::load(temp.path().to_owned()).unwrap();
        assert_eq!(reports.all().len(), 2);
        assert_eq!(reports.last_of("web", |_| true).unwrap().report, json!({"n": 1}));
        assert_eq!(reports.last_of("nobody", |_| true), None);
        assert_eq!(
            reports.last_of("web", |side| side == ReportSide::Destination),
            None
        );
    }
}
