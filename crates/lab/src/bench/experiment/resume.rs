//! A guest that is resumed from a checkpoint: when it runs, when it answers, what it waits for, and how soon it is as fast as before.
//! Source: Shaikh, resuming virtual machines by the context of their data, figures 1 to 3.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmferry_api::{ResumeRequest, ResumeState};
use vmferry_core::report::Outcome;
use vmferry_core::resume::{ResumeMode, ResumeReport};
use vmferry_core::take::TakeReport;

use super::{Bed, ExperimentReport};
use crate::bench::plan::GUEST;
use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use crate::workload::Workload;

/// How often a resume is looked at until the guest runs.
const LOOK: Duration = Duration::from_millis(2);
/// How long the guest's service is given for one answer before it is asked again.
const ANSWER: Duration = Duration::from_millis(100);

impl Bed<'_> {
    /// Takes a checkpoint at the first host once the guest was watched for an interval, ends the guest, resumes it at the second host,
    /// and watches it for a time from the request on.
    pub(super) fn resume(&self, mode: ResumeMode, interval_s: f64, for_s: f64) -> Result<ExperimentReport> {
        let taken = self.one_checkpoint(Duration::from_secs_f64(interval_s))?;
        if let Some(load) = self.load {
            load.hold_back();
        }
        self.hosts[0].stop(GUEST)?;
        let request = ResumeRequest {
            checkpoint: GUEST.to_owned(),
            store: Some(self.store()),
            mode,
            clone: false,
            name: None,
            paused: false,
            overwrite_disks: true,
            without_disks: false,
            drain_after_ms: None,
            patience_ms: None,
            readers: None,
            service: None,
        };
        let begin = Instant::now();
        let over = AtomicBool::new(false);
        let answer = thread::scope(|scope| {
            let (client, address, over) = (self.client, self.address, &over);
            let answer = scope.spawn(move || first_answer(client?, address, begin, over));
            let watched = self.resume_and_watch(request, begin, for_s);
            over.store(true, Ordering::Relaxed);
            let answer = answer
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            watched.map(|state| (state, answer))
        });
        let (state, first_answer_ms) = answer?;
        let mut report = ExperimentReport {
            total_ms: begin.elapsed().as_secs_f64() * 1e3,
            began: Some(begin),
            ..ExperimentReport::default()
        };
        figures(&state.report, &taken, first_answer_ms, &mut report)?;
        Ok(report)
    }

    /// Begins the resume, lets the clients go on when the guest runs, and returns how it stands at the end.
    fn resume_and_watch(&self, request: ResumeRequest, begin: Instant, for_s: f64) -> Result<ResumeState> {
        let started = self.hosts[1].resume(request)?;
        self.interrupt.wait_for("the guest to run", self.limit, || {
            let state = self.hosts[1].resume_state(&started.name)?;
            check(&state.report)?;
            thread::sleep(LOOK);
            Ok(state.report.start_ms.map(drop))
        })?;
        if let Some(load) = self.load {
            load.go_on();
        }
        let left = Duration::from_secs_f64(for_s).saturating_sub(begin.elapsed());
        self.interrupt.sleep(left)?;
        let state = self.hosts[1].resume_state(&started.name)?;
        check(&state.report)?;
        Ok(state)
    }
}

/// When the guest's service answered a new client for the first time, milliseconds.
fn first_answer(
    (client, workload): (&Namespace, &Workload),
    address: Ipv4Addr,
    begin: Instant,
    over: &AtomicBool,
) -> Option<f64> {
    while !over.load(Ordering::Relaxed) {
        if client.enter(|| workload.ask(address, ANSWER)).ok()?.is_ok() {
            return Some(begin.elapsed().as_secs_f64() * 1e3);
        }
        thread::sleep(LOOK);
    }
    None
}

fn check(report: &ResumeReport) -> Result<()> {
    match report.outcome {
        None | Some(Outcome::Completed) => Ok(()),
        Some(_) => {
            let why = report
                .error
                .clone()
                .unwrap_or_else(|| "no reason was given".into());
            Err(LabError::Missing(format!("the resume failed: {why}")))
        }
    }
}

fn figures(
    resumed: &ResumeReport,
    taken: &TakeReport,
    first_answer_ms: Option<f64>,
    report: &mut ExperimentReport,
) -> Result<()> {
    let Some(start_ms) = resumed.start_ms else {
        return Err(LabError::Lost);
    };
    let mut figure = |name: &str, value: f64| {
        report.figures.insert(name.to_owned(), value);
    };
    figure("start_ms", start_ms);
    if let Some(first_answer_ms) = first_answer_ms {
        figure("first_answer_ms", first_answer_ms);
    }
    if resumed.outcome == Some(Outcome::Completed) {
        figure("all_in_place_ms", resumed.total_ms);
    }
    figure("faults_10s", resumed.faults.store_first_10s as f64);
    figure("faults_p50_us", resumed.faults.p50_us);
    figure("faults_p99_us", resumed.faults.p99_us);
    figure("store_bytes", resumed.store_bytes as f64);
    figure("configured_bytes", resumed.data_bytes as f64);
    figure("allocated_bytes", resumed.ram_bytes as f64);
    figure("before_start_pages", resumed.pages.before_start as f64);
    figure("demanded_pages", resumed.pages.demanded as f64);
    figure("checkpoint_pause_ms", taken.pause_ms);
    figure("checkpoint_bytes", taken.stored_bytes as f64);
    report.said = serde_json::json!({ "taken": taken, "resumed": resumed });
    Ok(())
}
