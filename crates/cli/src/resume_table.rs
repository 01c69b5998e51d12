//! The report of a resume, for people.

use std::fmt::Write as _;

use vmferry_core::PAGE_SIZE;
use vmferry_core::report::Outcome;
use vmferry_core::resume::ResumeReport;

use crate::table;
use crate::units::{count, millis, size};

/// The report as a table, with a line that says how it ended above it.
pub fn render(report: &ResumeReport) -> String {
    let mut text = headline(report) + "\n";
    text.push_str(&summary(report));
    for note in &report.notes {
        // A string takes everything.
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// How it ended, or stands, on one line.
pub fn headline(report: &ResumeReport) -> String {
    let ResumeReport {
        vm, checkpoint, mode, ..
    } = report;
    let why = report
        .error
        .as_deref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default();
    let what = format!("{vm}: resuming {checkpoint}, {mode},");
    match (report.outcome, report.start_ms) {
        (None, None) => format!("{vm} stands paused as of {checkpoint}; `vmferry continue {vm}` lets it run"),
        (None, Some(_)) => format!("{vm} runs from {checkpoint}, {mode}; pages of it are in the store only"),
        (Some(Outcome::Completed), _) => {
            format!("{vm} runs from {checkpoint}, {mode}, and has all its memory")
        }
        (Some(Outcome::Cancelled), _) => format!("{what} was given up{why}"),
        (Some(Outcome::Failed), _) => format!("{what} failed, nothing is left of it{why}"),
        (Some(Outcome::Unresolved), _) => format!("{what} broke off and the guest cannot go on{why}"),
    }
}

fn summary(report: &ResumeReport) -> String {
    let mut table = table::plain();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    let pages = |pages: u64| format!("{} ({})", count(pages), size(pages * PAGE_SIZE));
    if let Some(start_ms) = report.start_ms {
        row("time to start", millis(start_ms));
    }
    if let Some(first_answer_ms) = report.first_answer_ms {
        row("time to first answer", millis(first_answer_ms));
    }
    if report.outcome.is_some() {
        row("all of it here after", millis(report.total_ms));
    }
    if report.stalled_ms > 0.0 {
        row("paused for want of pages", millis(report.stalled_ms));
    }
    row("memory", size(report.ram_bytes));
    row("  that holds data", size(report.data_bytes));
    row("device state", size(report.device_state_bytes));
    row("read from the store", size(report.store_bytes));
    if report.store_retries > 0 {
        row("  reads repeated", count(report.store_retries));
    }
    row("pages before the start", pages(report.pages.before_start));
    row("pages the guest waited for", pages(report.pages.demanded));
    row("  that came with them", pages(report.pages.beside_demanded));
    row("pages in the background", pages(report.pages.background));
    if report.pages.by_earlier_daemon > 0 {
        row(
            "pages by an earlier daemon",
            pages(report.pages.by_earlier_daemon),
        );
    }
    let faults = report.faults;
    row("faults", count(faults.count));
    if faults.store > 0 {
        row("  from the store", count(faults.store));
        row("    in the first 10 s", count(faults.store_first_10s));
        let quantiles = [faults.p50_us, faults.p99_us, faults.max_us].map(|us| millis(us / 1e3));
        row("    service time p50, p99, max", quantiles.join(", "));
    }
    table::align_right(&mut table, &[1]);
    table::render(table)
}
