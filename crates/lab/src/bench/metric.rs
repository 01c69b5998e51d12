//! The figures of a run, by name.
//!
//! | name | what |
//! |---|---|
//! | `data_bytes` | bytes that vmferry wrote to its sockets |
//! | `link_bytes` | bytes that the source put on its link meanwhile |
//! | `total_ms`, `execution_transfer_ms`, `downtime_ms`, `perceived_downtime_ms` | as in the report |
//! | `pages_sent` | pages that crossed, every crossing counted |
//! | `fetched_share` | bytes of pages fetched on demand, as a share of `data_bytes` |
//! | `operations_before_per_s`, `operations_during_per_s`, `operations_after_per_s` | what the guest's client got done |
//! | `operations_kept` | the second as a share of the first |
//!
//! Any other name is a path into the report: `faults.p99_us`, `pages.filtered`.

use vmferry_core::PAGE_SIZE;

use super::measure::Measured;
use super::operations::Operations;

/// The figure of this name; none where the run does not have it.
pub fn of(measured: &Measured, name: &str) -> Option<f64> {
    let report = &measured.report;
    let client = |rate: fn(&Operations) -> f64| measured.operations.as_ref().map(rate);
    match name {
        "data_bytes" => Some(report.bytes_on_wire as f64),
        "link_bytes" => measured.link_bytes.map(|bytes| bytes as f64),
        "pages_sent" => Some(report.pages.sent as f64),
        "fetched_share" => share(
            (report.faults.network * PAGE_SIZE) as f64,
            report.bytes_on_wire as f64,
        ),
        "operations_before_per_s" => client(|seen| seen.before_per_s),
        "operations_during_per_s" => client(|seen| seen.during_per_s),
        "operations_after_per_s" => client(|seen| seen.after_per_s),
        "operations_kept" => {
            let seen = measured.operations.as_ref()?;
            share(seen.during_per_s, seen.before_per_s)
        }
        path => {
            let report = serde_json::to_value(report).ok()?;
            report.pointer(&format!("/{}", path.replace('.', "/")))?.as_f64()
        }
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then_some(part / whole)
}
