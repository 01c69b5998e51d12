//! The ways to other hosts: measured when the operator asks for it, kept for each peer.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use vmferry_core::report::{Outcome, Report};
use vmferry_runtime::calibrate::{self, CalibrateError, Measured};
use vmferry_sim::{CodecCosts, PathModel};
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
        let (mut path, mut notes) = path_of(&measured);
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
                "what stopping, saving and loading a guest take is typical of QEMU: no migration from here was \
                 completed yet"
                    .into(),
            ),
            count => notes.push(format!(
                "what stopping, saving and loading a guest take is the median of {count} migrations from here"
            )),
        }
    }
}

/// The path that was measured, and what is only typical of it.
fn path_of(measured: &Measured) -> (PathModel, Vec<String>) {
    let Measured { here, there, .. } = measured;
    let typical = PathModel::typical(measured.link_bytes_per_s, measured.rtt_ms);
    let mut notes = Vec::new();
    let mut or_typical = |what: &str, value: Option<f64>, typical: f64| match value {
        Some(value) => value,
        None => {
            notes.push(format!("{what} could not be measured: it is taken for {typical}"));
            typical
        }
    };
    let path = PathModel {
        queue_ms: (measured.loaded_rtt_ms - measured.rtt_ms).max(0.0),
        socket_buffer_bytes: measured.under_way_bytes,
        processors: here.processors,
        codecs: CodecCosts {
            copy: here.copy_ns,
            lz4: here.lz4_ns,
            zstd: here.zstd_ns,
            zstd_5: here.zstd_5_ns,
            delta: here.delta_ns,
            ..typical.codecs
        },
        write_ns_per_byte: measured.write_ns_per_byte,
        receive_ns_per_page: or_typical(
            "taking a page in (ns)",
            there.receive_ns,
            typical.receive_ns_per_page,
        ),
        install_ns_per_page: or_typical(
            "installing a page (ns)",
            there.install_ns,
            typical.install_ns_per_page,
        ),
        arm_ns_per_page: or_typical("arming a page (ns)", here.arm_ns, typical.arm_ns_per_page),
        scan_ns_per_page: or_typical("scanning a page (ns)", here.scan_ns, typical.scan_ns_per_page),
        scan_ns_per_dirty_page: or_typical(
            "scanning a dirty page (ns)",
            here.scan_dirty_ns,
            typical.scan_ns_per_dirty_page,
        ),
        write_fault_ns: or_typical("a write fault (ns)", here.write_fault_ns, typical.write_fault_ns),
        journal_ms: or_typical("the journal (ms)", here.journal_ms, typical.journal_ms),
        ..typical
    };
    (path, notes)
}
