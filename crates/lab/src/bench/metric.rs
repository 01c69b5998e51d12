//! The figures of a run, by name.
//!
//! | name | what |
//! |---|---|
//! | `data_bytes` | bytes that the source wrote to its sockets, by its own account |
//! | `link_bytes` | bytes that the source put on its link meanwhile |
//! | `total_ms`, `execution_transfer_ms`, `downtime_ms`, `perceived_downtime_ms` | as in the report, vmferry's or a peer's |
//! | `pages_sent` | pages that crossed, every crossing counted |
//! | `fetched_share` | bytes of pages fetched on demand, as a share of `data_bytes` |
//! | `operations_before_per_s`, `operations_during_per_s`, `operations_after_per_s` | what the guest's client got done |
//! | `operations_kept` | the second as a share of the first |
//!
//! Any other name is a path into the report: `faults.p99_us`, `pages.filtered`; of a peer: `figures.ram.dirty-sync-count`. A report
//! of the other kind does not have it.

use super::measure::Measured;
use super::operations::Operations;

/// The figure of this name; none where the run does not have it.
pub fn of(measured: &Measured, name: &str) -> Option<f64> {
    let account = &measured.account;
    let client = |rate: fn(&Operations) -> f64| measured.operations.as_ref().map(rate);
    match name {
        "data_bytes" => Some(account.bytes_sent() as f64),
        "link_bytes" => measured.link_bytes.map(|bytes| bytes as f64),
        "pages_sent" => Some(account.pages_sent() as f64),
        "fetched_share" => share(account.bytes_fetched() as f64, account.bytes_sent() as f64),
        "operations_before_per_s" => client(|seen| seen.before_per_s),
        "operations_during_per_s" => client(|seen| seen.during_per_s),
        "operations_after_per_s" => client(|seen| seen.after_per_s),
        "operations_kept" => {
            let seen = measured.operations.as_ref()?;
            share(seen.during_per_s, seen.before_per_s)
        }
        path => account.figure(&format!("/{}", path.replace('.', "/"))),
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then_some(part / whole)
}
