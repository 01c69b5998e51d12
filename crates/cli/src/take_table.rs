//! Checkpoints being taken, and what was measured about them, for people.

use std::fmt::Write as _;

use vmferry_core::PAGE_SIZE;
use vmferry_core::take::{TakeOutcome, TakeReport};

use crate::api::CheckpointState;
use crate::table;
use crate::units::{count, millis, size};

/// The report as a table, with a line that says how it ended above it.
pub(crate) fn render(report: &TakeReport) -> String {
    let mut text = headline(report) + "\n";
    if report.outcome == TakeOutcome::Completed {
        text.push_str(&summary(report));
    }
    for note in &report.notes {
        // A string takes everything.
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// What is being done to a guest, or was, and the last checkpoint.
pub(crate) fn render_state(state: &CheckpointState) -> String {
    let mut text = match state.every_ms {
        Some(every_ms) => format!(
            "checkpoints every {} into {}: {} taken",
            millis(every_ms as f64),
            state.store,
            count(state.run.completed)
        ),
        None => format!("a checkpoint into {}", state.store),
    };
    if state.run.failed > 0 {
        let _ = write!(text, ", {} failed", count(state.run.failed));
    }
    match (state.ended, state.every_ms) {
        (true, Some(_)) => text.push_str("; ended\n"),
        (true, None) => text.push('\n'),
        (false, _) => {
            let _ = writeln!(text, "; {}", progress_line(state));
        }
    }
    match &state.last {
        Some(report) => text + "last checkpoint:\n" + &render(report),
        None => text,
    }
}

/// How far the one under way is, or when the next begins, on one line.
pub(crate) fn progress_line(state: &CheckpointState) -> String {
    let Some(progress) = &state.progress else {
        let next_in = state.next_in_ms.map_or(0.0, |ms| ms as f64);
        return format!("the next in {}", millis(next_in));
    };
    let mut line = progress.phase.clone();
    if let Some(id) = &progress.id {
        let _ = write!(line, " {id}");
    }
    if progress.pages > 0 {
        let bytes = |pages: u64| size(pages * PAGE_SIZE);
        let _ = write!(
            line,
            ", {} of {} saved",
            bytes(progress.saved_pages),
            bytes(progress.pages)
        );
    }
    line
}

fn headline(report: &TakeReport) -> String {
    let id = report.id.as_deref().unwrap_or("a checkpoint");
    let why = report
        .error
        .as_deref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default();
    match report.outcome {
        TakeOutcome::Completed => format!(
            "{id} was taken; {} stood still for {}",
            report.vm,
            millis(report.pause_ms)
        ),
        TakeOutcome::Cancelled => format!("{id} of {} was cancelled{why}", report.vm),
        TakeOutcome::Failed => format!("{id} of {} failed, the guest goes on{why}", report.vm),
    }
}

fn summary(report: &TakeReport) -> String {
    let mut table = table::plain();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    let pages = |pages: u64| format!("{} ({})", count(pages), size(pages * PAGE_SIZE));
    row("pause", millis(report.pause_ms));
    row("in the store after", millis(report.total_ms));
    if let Some(parent) = &report.parent {
        row("since", parent.clone());
    }
    row("memory", size(report.ram_bytes));
    row("  that holds data", pages(report.data_pages));
    row("  saved", pages(report.saved_pages));
    row("  as before", pages(report.inherited_pages));
    row("  new to the store", pages(report.new_pages));
    if let Some(interval_ms) = report.interval_ms {
        row("watched for", millis(interval_ms as f64));
        row("  written", pages(report.written_pages));
        row("  read or written", pages(report.accessed_pages));
    }
    row("device state", size(report.device_state_bytes));
    if report.disk_bytes > 0 {
        row("disks", size(report.disk_bytes));
    }
    row("added to the store", size(report.stored_bytes));
    let faults = &report.faults;
    row(
        "writes held up",
        format!(
            "{}, of which {} copied a page first and {} waited",
            count(faults.count),
            count(faults.copied),
            count(faults.waited)
        ),
    );
    if faults.count > 0 {
        row(
            "  for",
            format!(
                "{:.0} us median, {:.0} us 99th percentile, {:.0} us longest",
                faults.p50_us, faults.p99_us, faults.max_us
            ),
        );
    }
    for phase in &report.phases {
        row(
            &format!("  {}", phase.name),
            millis(phase.end_ms - phase.start_ms),
        );
    }
    table::render(table)
}
