//! The ways to other hosts: measured when the operator asks for it, kept for each peer.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vmferry_core::report::{Outcome, Report};
use vmferry_runtime::calibrate::{self, CalibrateError};
use vmferry_sim::PathModel;
use vmferry_transport::Endpoint;

use super::host::LocalHost;
use super::refusal::Refusal;
use super::reports::unix_ms;
use super::state_dir;
use crate::api::{CalibrateRequest, Calibration, ReportSide};

/// Reports of earlier migrations that say what device states take.
const MOST_REPORTS: usize = 50;

/// What is known of the ways to other hosts.
pub(super) struct Paths {
    file: PathBuf,
    known: Mutex<BTreeMap<String, Calibration>>,
}

impl Paths {
    /// Reads what an earlier daemon kept in `file`. What is not understood has to be measured anew.
    pub(super) fn load(file: PathBuf) -> Self {
        let known = fs::read(&file).ok().and_then(|bytes| {
            serde_json::from_slice(&bytes)
                .inspect_err(|error| tracing::warn!("{} is of no use: {error}", file.display()))
                .ok()
        });
        Self {
            file,
            known: Mutex::new(known.unwrap_or_default()),
        }
    }

    /// All of them.
    pub(super) fn all(&self) -> Vec<Calibration> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    fn keep(&self, calibration: &Calibration) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert(calibration.to.clone(), calibration.clone());
        let bytes = serde_json::to_vec_pretty(&*known).unwrap_or_default();
        if let Err(error) = state_dir::store(&self.file, &bytes) {
            tracing::error!("cannot write {}: {error}", self.file.display());
        }
    }
}

impl LocalHost {
    /// Measures the way to another host, and keeps it.
    pub(super) fn calibrate(&self, request: &CalibrateRequest) -> Result<Calibration, Refusal> {
        self.check_open()?;
        let to: Endpoint = request.to.parse().map_err(Refusal::bad_request)?;
        let load = Duration::from_millis(request.load_ms);
        let measured = calibrate::measure(&to, load, self.state.path()).map_err(|error| match error {
            CalibrateError::BadTime(_) => Refusal::bad_request(error),
            _ => Refusal::failed(error),
        })?;
        let (mut path, mut notes) = measured.path();
        self.learn_devices(&mut path, &mut notes);
        let calibration = Calibration {
            to: to.to_string(),
            measured_unix_ms: unix_ms(),
            path,
            notes,
        };
        self.paths.keep(&calibration);
        Ok(calibration)
    }

    /// What stopping, saving and loading took in earlier migrations of real guests from here.
    fn learn_devices(&self, path: &mut PathModel, notes: &mut Vec<String>) {
        let reports: Vec<Report> = self
            .reports
            .all()
            .into_iter()
            .rev()
            .filter(|stored| stored.side == ReportSide::Source)
            .filter_map(|stored| serde_json::from_value(stored.report).ok())
            .filter(|report: &Report| report.outcome == Outcome::Completed && report.backend != "synth")
            .take(MOST_REPORTS)
            .collect();
        match path.learn_from(&reports) {
            0 => notes.push(
                "what stopping, saving and loading a guest take is typical of QEMU: no migration from here that moved \
                 memory alone was completed yet"
                    .into(),
            ),
            count => notes.push(format!(
                "what stopping, saving and loading a guest take is the median of {count} migrations from here"
            )),
        }
    }
}
