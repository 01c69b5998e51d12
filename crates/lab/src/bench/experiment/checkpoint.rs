//! Checkpoints of a guest that goes on: how long it stands still, and what it gets done meanwhile.

use std::time::{Duration, Instant};

use vmferry_api::{CheckpointRequest, CheckpointState};
use vmferry_core::take::{TakeOutcome, TakeReport};

use super::{Bed, ExperimentReport};
use crate::bench::plan::GUEST;
use crate::bench::statistics::quantile;
use crate::error::{LabError, Result};
use crate::guards::Interrupt;
use crate::hosts::Host;

/// How often a checkpoint under way is looked at.
const LOOK: Duration = Duration::from_millis(20);
/// Checkpoints that are kept: older ones are merged and deleted, as where they are taken for good.
const KEPT: u32 = 4;

impl Bed<'_> {
    /// Watches the guest for a time, and takes checkpoints of it meanwhile where an interval is given.
    pub(super) fn checkpoints(&self, every_s: Option<f64>, for_s: f64) -> Result<ExperimentReport> {
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(for_s);
        let mut taken: Vec<TakeReport> = Vec::new();
        if let Some(every_s) = every_s {
            let request = CheckpointRequest {
                every_ms: Some((every_s * 1e3) as u64),
                keep: Some(KEPT),
                ..self.checkpoint_request()
            };
            self.hosts[0].checkpoint(GUEST, request)?;
            while Instant::now() < end {
                note(&mut taken, self.hosts[0].checkpoint_state(GUEST)?);
                self.interrupt.sleep(LOOK)?;
            }
            // One under way is cancelled, which is no failure.
            self.hosts[0].end_checkpoints(GUEST)?;
            if taken.is_empty() {
                return Err(LabError::Missing(format!(
                    "no checkpoint was complete within {for_s} s"
                )));
            }
        }
        self.interrupt
            .sleep(end.saturating_duration_since(Instant::now()))?;
        let mut report = ExperimentReport {
            total_ms: begin.elapsed().as_secs_f64() * 1e3,
            ..ExperimentReport::default()
        };
        if let Some(failed) = taken.iter().find(|it| it.outcome == TakeOutcome::Failed) {
            let why = failed
                .error
                .clone()
                .unwrap_or_else(|| "no reason was given".into());
            return Err(LabError::Missing(format!("a checkpoint failed: {why}")));
        }
        if !taken.is_empty() {
            figures(&taken, &mut report);
        }
        Ok(report)
    }

    /// Takes one checkpoint once it was watched for so long what the guest reads and writes.
    ///
    /// # Errors
    /// See [`take`].
    pub(super) fn one_checkpoint(&self, watch: Duration) -> Result<TakeReport> {
        let request = CheckpointRequest {
            watch_ms: Some(watch.as_millis() as u64),
            ..self.checkpoint_request()
        };
        take(&self.hosts[0], request, self.limit, self.interrupt)
    }

    fn checkpoint_request(&self) -> CheckpointRequest {
        CheckpointRequest {
            store: Some(self.store()),
            // Where there are any, they hold nothing that was written.
            without_disks: true,
            ..CheckpointRequest::default()
        }
    }
}

/// Takes one checkpoint of the guest at a host, and waits until it is complete.
///
/// # Errors
/// When it fails or takes too long, or the daemon refuses; or interrupted.
pub(in crate::bench) fn take(
    host: &Host,
    request: CheckpointRequest,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<TakeReport> {
    host.checkpoint(GUEST, request)?;
    let taken = interrupt.wait_for("the checkpoint to end", limit, || {
        let state = host.checkpoint_state(GUEST)?;
        Ok(if state.ended { state.last } else { None })
    })?;
    match taken.outcome {
        TakeOutcome::Completed => Ok(taken),
        _ => {
            let why = taken.error.unwrap_or_else(|| "it was cancelled".into());
            Err(LabError::Missing(format!("the checkpoint failed: {why}")))
        }
    }
}

/// Notes the last checkpoint, unless it is known.
fn note(taken: &mut Vec<TakeReport>, state: CheckpointState) {
    if let Some(last) = state.last
        && taken
            .last()
            .is_none_or(|known| known.started_unix_ms != last.started_unix_ms)
    {
        taken.push(last);
    }
}

fn figures(taken: &[TakeReport], report: &mut ExperimentReport) {
    let median = |of: &dyn Fn(&TakeReport) -> f64, reports: &[TakeReport]| {
        let mut figures: Vec<_> = reports.iter().map(of).collect();
        figures.sort_by(f64::total_cmp);
        quantile(&figures, 0.5)
    };
    let later = match taken {
        // What the first saves is everything.
        [_, later @ ..] if !later.is_empty() => later,
        all => all,
    };
    let mut figure = |name: &str, value: f64| {
        report.figures.insert(name.to_owned(), value);
    };
    figure("checkpoints", taken.len() as f64);
    figure("first_pause_ms", taken[0].pause_ms);
    figure("first_total_ms", taken[0].total_ms);
    figure("pause_ms", median(&|it| it.pause_ms, later));
    let longest = taken.iter().map(|it| it.pause_ms).fold(0.0, f64::max);
    figure("pause_max_ms", longest);
    figure("saving_ms", median(&|it| it.total_ms, later));
    figure("saved_pages", median(&|it| it.saved_pages as f64, later));
    figure("written_pages", median(&|it| it.written_pages as f64, later));
    figure("accessed_pages", median(&|it| it.accessed_pages as f64, later));
    figure("stored_bytes", median(&|it| it.stored_bytes as f64, later));
    figure("held_up_writes", median(&|it| it.faults.count as f64, later));
    report.said = serde_json::to_value(taken).unwrap_or_default();
}
