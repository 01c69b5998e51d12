//! What the benches ask of a migration, and how often.

use anyhow::{Context as _, Result, ensure};
use vmferry_core::report::{Outcome, Report};
use vmferry_runtime::Request;

/// Runs of a bench: the environment variable `VMFERRY_BENCH_RUNS`, or this many.
///
/// # Errors
/// When the variable is no number.
pub fn runs(default: usize) -> Result<usize> {
    match std::env::var("VMFERRY_BENCH_RUNS") {
        Ok(runs) => runs.parse().context("VMFERRY_BENCH_RUNS is no number"),
        Err(_) => Ok(default),
    }
}

/// The same over one stream and without a comparison of the pages.
#[must_use]
pub fn plain(request: Request) -> Request {
    Request {
        streams: Some(1),
        verify: false,
        ..request
    }
}

/// The report of a migration that completed.
///
/// # Errors
/// When it did not.
pub fn completed(report: Report) -> Result<Report> {
    ensure!(
        report.outcome == Outcome::Completed,
        "the migration ended as {:?}: {}",
        report.outcome,
        report.error.as_deref().unwrap_or_default()
    );
    Ok(report)
}
