//! The report of a migration, for people.

use std::fmt::Write as _;

use serde_json::Value;
use vmferry_core::PAGE_SIZE;
use vmferry_core::filter::FilterReport;
use vmferry_core::report::{LimitsReport, Outcome, PageCounts, Report, Verified};

use crate::units::{bandwidth, count, millis, rate, size};
use crate::{disk_table, encoding_table, forecast_table, table};

/// The report as a table, with a line that says how it ended above it.
pub fn render(report: &Report) -> String {
    let mut text = headline(report) + "\n";
    text.push_str(&summary(report));
    text.push_str(&rounds(report));
    text.push_str(&encoding_table::over_time(&report.encoding));
    text.push_str(&phases(report));
    if !report.notes.is_empty() {
        text.push('\n');
    }
    for note in &report.notes {
        // A string takes everything.
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// What a destination keeps of a migration, whose shape may grow: name and value, level by level.
pub fn render_received(report: &Value) -> String {
    let mut table = table::plain();
    flatten("", report, &mut |name, value| {
        table.add_row([name, value]);
    });
    table::render(table)
}

/// How it ended, where the guest runs now and why, on one line.
pub fn headline(report: &Report) -> String {
    let Report {
        vm,
        strategy,
        backend,
        ..
    } = report;
    let what = match backend.as_str() {
        "" => format!("{vm}: {strategy}"),
        backend => format!("{vm} ({backend}): {strategy}"),
    };
    let why = report
        .error
        .as_deref()
        .map(|error| format!(": {error}"))
        .unwrap_or_default();
    match report.outcome {
        Outcome::Completed => format!("{what} completed, the guest runs at the destination"),
        Outcome::Cancelled => format!("{what} was cancelled, the guest runs at the source{why}"),
        Outcome::Failed => format!("{what} failed, the guest runs at the source{why}"),
        Outcome::Unresolved => {
            format!("{what} broke off after the handover and waits for the peer or `vmferry resolve`{why}")
        }
    }
}

fn summary(report: &Report) -> String {
    let mut table = table::plain();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    row("total time", millis(report.total_ms));
    if report.execution_transfer_ms > 0.0 {
        row("execution transfer time", millis(report.execution_transfer_ms));
    }
    row("downtime", millis(report.downtime_ms));
    if let Some(perceived_ms) = report.perceived_downtime_ms {
        row("perceived downtime", millis(perceived_ms));
    }
    if report.micro_stops_ms > 0.0 {
        row("micro-stops", millis(report.micro_stops_ms));
    }
    row(
        "memory",
        format!(
            "{}, {} of it with data",
            size(report.ram_bytes),
            size(report.data_bytes)
        ),
    );
    row("on the wire", on_the_wire(report));
    row("pages", pages(&report.pages));
    if let Some(kept_back) = kept_back(&report.pages) {
        row("not sent", kept_back);
    }
    if let Some(reused) = reused(report) {
        row("reused", reused);
    }
    if let Some(encoding) = encoding_table::summary(&report.encoding) {
        row("encoding", encoding);
    }
    if report.faults.count > 0 {
        row("faults", faults(report));
    }
    let cpu = report.cpu_seconds;
    row(
        "CPU time",
        format!("source {:.2} s, destination {:.2} s", cpu.source, cpu.destination),
    );
    let memory = report.memory_bytes;
    row(
        "own memory",
        format!(
            "source {}, destination {}",
            size(memory.source),
            size(memory.destination)
        ),
    );
    if let Some(limits) = limits(&report.limits) {
        row("limits", limits);
    }
    if let Some(expected) = forecast_table::expected(report) {
        row("expected", expected);
    }
    if let Some(filter) = &report.filter {
        row("data filter", data_filter(filter));
    }
    if let Some(moved) = &report.disks {
        disk_table::summary(moved, &mut row);
    }
    row("verified", verified(report.verified));
    table::render(table)
}

/// What its model knows, and what it cost.
fn data_filter(filter: &FilterReport) -> String {
    format!(
        "{} of {} states seen in {} samples, {} transitions, {}; a sample took {} to take in",
        filter.states_seen,
        filter.regions + 1,
        count(filter.samples),
        count(filter.transitions_seen),
        size(filter.memory_bytes),
        millis(filter.cost.sample_ms)
    )
}

fn on_the_wire(report: &Report) -> String {
    let bytes = format!(
        "{} ({} of device state)",
        size(report.bytes_on_wire),
        size(report.device_state_bytes)
    );
    match report.total_ms > 0.0 {
        true => format!(
            "{bytes}, {}",
            rate(report.bytes_on_wire as f64 / report.total_ms * 1e3)
        ),
        false => bytes,
    }
}

fn pages(pages: &PageCounts) -> String {
    let kinds = [
        (pages.raw, "raw"),
        (pages.uniform, "uniform"),
        (pages.compressed, "compressed"),
        (pages.delta, "delta"),
        (pages.deduplicated, "deduplicated"),
        (pages.resent, "sent again"),
    ];
    listed(format!("{} sent", count(pages.sent)), &kinds)
}

fn reused(report: &Report) -> Option<String> {
    let reuse = report.reuse.as_ref()?;
    let spared = match u64::try_from(reuse.bytes_spared) {
        Ok(spared) => format!("{} spared", size(spared)),
        Err(_) => format!("{} more", size(reuse.bytes_spared.unsigned_abs())),
    };
    let pages = count(reuse.pages);
    let missed = match reuse.missed_pages {
        0 => String::new(),
        missed => format!(", {} missing there after all", count(missed)),
    };
    Some(match reuse.offered_pages {
        0 => "the destination has no checkpoint to use".to_owned(),
        offered => format!(
            "{pages} pages of {} that the destination had, {spared}{missed}",
            count(offered)
        ),
    })
}

fn kept_back(pages: &PageCounts) -> Option<String> {
    let kinds = [
        (pages.hole, "never touched"),
        (pages.free, "free"),
        (pages.filtered, "filtered"),
    ];
    let sum = kinds.iter().map(|(number, _)| number).sum::<u64>();
    (sum > 0 && pages.sent > 0).then(|| listed(size(sum * PAGE_SIZE), &kinds))
}

fn listed(sum: String, kinds: &[(u64, &str)]) -> String {
    let parts: Vec<_> = kinds
        .iter()
        .filter(|(number, _)| *number > 0)
        .map(|(number, name)| format!("{} {name}", count(*number)))
        .collect();
    match parts.is_empty() {
        true => sum,
        false => format!("{sum}: {}", parts.join(", ")),
    }
}

fn faults(report: &Report) -> String {
    let faults = &report.faults;
    let numbers = format!(
        "{} ({} over the network, {} local)",
        count(faults.count),
        count(faults.network),
        count(faults.local)
    );
    match faults.network {
        0 => numbers,
        _ => format!(
            "{numbers}, served in {} p50, {} p99, {} at most",
            millis(faults.p50_us / 1e3),
            millis(faults.p99_us / 1e3),
            millis(faults.max_us / 1e3)
        ),
    }
}

/// What was set, and what it cost. The goal of the downtime is no limit.
fn limits(limits: &LimitsReport) -> Option<String> {
    let mut parts = Vec::new();
    if let Some(rate) = limits.bandwidth_bytes_per_s {
        parts.push(format!("bandwidth {}", bandwidth(rate)));
    }
    if limits.bandwidth_waited_ms > 0.0 {
        parts.push(format!(
            "waited {} for bandwidth",
            millis(limits.bandwidth_waited_ms)
        ));
    }
    if let Some(percent) = limits.cpu_percent {
        let by = limits.cpu_by.as_deref().unwrap_or("own pacing");
        parts.push(format!("CPU {percent}% of a core by {by}"));
    }
    if let Some(percent) = limits.cpu_destination_percent {
        parts.push(format!("CPU {percent}% of a core at the destination"));
    }
    if limits.cpu_waited_ms > 0.0 {
        parts.push(format!("waited {} for CPU", millis(limits.cpu_waited_ms)));
    }
    if let Some(timeout_ms) = limits.timeout_ms {
        parts.push(format!("handover within {}", millis(timeout_ms)));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn verified(verified: Option<Verified>) -> String {
    match verified {
        None => "not asked for (--verify)".into(),
        Some(Verified { pages, mismatches: 0 }) => format!("{} pages, no mismatch", count(pages)),
        Some(Verified { pages, mismatches }) => {
            format!(
                "{} pages, {} MISMATCHES: the guest is damaged",
                count(pages),
                count(mismatches)
            )
        }
    }
}

fn rounds(report: &Report) -> String {
    if report.rounds.is_empty() {
        return String::new();
    }
    let filtered = report.rounds.iter().any(|round| round.pages_filtered.is_some());
    let mut heading = vec!["round", "time", "pages sent", "dirtied", "bytes"];
    if filtered {
        heading.extend(["filtered", "taken back", "precision", "recall", "saved"]);
    }
    let mut table = table::list(&heading);
    let share = |share: Option<f64>| share.map_or("-".into(), |share| format!("{:.0} %", share * 100.0));
    let number = |number: Option<u64>, show: fn(u64) -> String| number.map_or("-".into(), show);
    for (index, round) in report.rounds.iter().enumerate() {
        let mut row = vec![
            (index + 1).to_string(),
            millis(round.ms),
            count(round.pages_sent),
            count(round.pages_dirtied),
            size(round.bytes),
        ];
        if filtered {
            row.extend([
                number(round.pages_filtered, count),
                number(round.pages_taken_back, count),
                share(round.filter_precision),
                share(round.filter_recall),
                number(round.bytes_saved, size),
            ]);
        }
        table.add_row(row);
    }
    table::align_right(&mut table, &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
    format!("\n{}", table::render(table))
}

/// One line a phase: those of rounds come again and again.
fn phases(report: &Report) -> String {
    if report.phases.is_empty() {
        return String::new();
    }
    let mut sums: Vec<(&str, f64, f64, u64)> = Vec::new();
    for phase in &report.phases {
        let takes_ms = phase.end_ms - phase.start_ms;
        match sums.iter_mut().find(|(name, ..)| *name == phase.name) {
            Some((_, _, sum_ms, times)) => {
                *sum_ms += takes_ms;
                *times += 1;
            }
            None => sums.push((&phase.name, phase.start_ms, takes_ms, 1)),
        }
    }
    let mut table = table::list(&["phase", "begins", "takes", "times"]);
    for (name, start_ms, sum_ms, times) in sums {
        table.add_row([name.to_owned(), millis(start_ms), millis(sum_ms), count(times)]);
    }
    table::align_right(&mut table, &[1, 2, 3]);
    format!("\n{}", table::render(table))
}

fn flatten(name: &str, value: &Value, row: &mut impl FnMut(String, String)) {
    let below = |key: &str| match name {
        "" => key.replace('_', " "),
        name => format!("{name} {}", key.replace('_', " ")),
    };
    match value {
        Value::Object(members) => members
            .iter()
            .for_each(|(key, value)| flatten(&below(key), value, row)),
        Value::Array(values) => {
            values
                .iter()
                .enumerate()
                .for_each(|(index, value)| flatten(&below(&(index + 1).to_string()), value, row));
        }
        Value::String(text) => row(name.to_owned(), text.clone()),
        Value::Number(number) => {
            let text = match number.as_u64() {
                Some(number) => count(number),
                None => format!("{:.2}", number.as_f64().unwrap_or_default()),
            };
            row(name.to_owned(), text);
        }
        Value::Bool(_) => row(name.to_owned(), value.to_string()),
        Value::Null => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmferry_core::report::RoundReport;

    use super::*;

    fn report() -> Report {
        let mut report = json!({
            "vm": "web-1", "strategy": "pre-copy", "backend": "qemu", "outcome": "completed",
            "total_ms": 1234.5, "execution_transfer_ms": 1200.25, "downtime_ms": 6.789,
            "perceived_downtime_ms": 9.5, "micro_stops_ms": 1.25,
            "ram_bytes": 536870912u64, "data_bytes": 134217728, "bytes_on_wire": 141557760,
            "device_state_bytes": 262144,
            "pages": {"sent": 34000, "resent": 1232, "raw": 30000, "uniform": 4000, "hole": 98304, "free": 0,
                      "filtered": 0, "compressed": 0, "delta": 0, "deduplicated": 0},
            "encoding": {"asked": "auto", "saved_bytes": 41943040, "cpu_seconds": 0.125,
                "pages": {"raw": 12000, "uniform": 4000, "lz4": 17000, "delta": 1000},
                "over_time": [
                    {"start_ms": 0.0, "end_ms": 100.0, "raw": 12000, "uniform": 1000},
                    {"start_ms": 100.0, "end_ms": 200.0, "uniform": 3000, "lz4": 17000, "delta": 1000}
                ]},
            "rounds": [
                {"ms": 1100.0, "pages_sent": 32768, "pages_dirtied": 1200, "bytes": 136314880},
                {"ms": 5.5, "pages_sent": 1232, "pages_dirtied": 0, "bytes": 5046272}
            ],
            "faults": {"count": 120, "network": 100, "local": 20, "p50_us": 35.5, "p99_us": 180.0, "max_us": 1250.0},
            "phases": [
                {"name": "push", "start_ms": 10.0, "end_ms": 1110.0},
                {"name": "scan", "start_ms": 1110.0, "end_ms": 1110.5},
                {"name": "push", "start_ms": 1110.5, "end_ms": 1120.0},
                {"name": "stop-and-copy", "start_ms": 1120.0, "end_ms": 1126.789}
            ],
            "cpu_seconds": {"source": 0.75, "destination": 0.5},
            "memory_bytes": {"source": 2097152, "destination": 1048576},
            "verified": {"pages": 131072, "mismatches": 0},
            "notes": ["the guest has no disk"]
        });
        report["filter"] = json!({
            "regions": 256, "interval_ms": 50.0, "samples": 412, "states_seen": 37, "states": [], "frequent_share": 0.9,
            "transitions": 400, "transitions_seen": 80, "memory_bytes": 1048576, "fits": true, "tests": 20,
            "tests_failed": 1, "last_test": null, "rebuilt": 0, "forecasts": 60,
            "cost": {"scans": 415, "scan_ms": 415.0, "decide_ms": 83.0, "decide_max_ms": 1.5, "sample_ms": 1.2}
        });
        serde_json::from_value(report).unwrap()
    }

    #[test]
    fn a_whole_report() {
        insta::assert_snapshot!("report", render(&report()));
    }

    #[test]
    fn rounds_show_what_the_filter_did() {
        let plain = report();
        let filtered = RoundReport {
            filter_precision: Some(0.934),
            filter_recall: Some(0.5),
            pages_filtered: Some(16384),
            pages_taken_back: Some(1024),
            bytes_saved: Some(62 << 20),
            ..plain.rounds[0].clone()
        };
        let report = Report {
            rounds: vec![filtered, plain.rounds[1].clone()],
            ..plain
        };
        insta::assert_snapshot!("rounds_filtered", rounds(&report));
    }

    #[test]
    fn a_failure_says_why_and_where_the_guest_runs() {
        let failed = Report {
            outcome: Outcome::Failed,
            error: Some("the destination has too little memory".into()),
            verified: Some(Verified {
                pages: 10,
                mismatches: 3,
            }),
            ..report()
        };
        let text = render(&failed);
        assert!(text.starts_with(
            "web-1 (qemu): pre-copy failed, the guest runs at the source: the destination has too little memory\n"
        ));
        assert!(text.contains("3 MISMATCHES"));
    }

    #[test]
    fn what_a_destination_kept_is_shown_level_by_level() {
        let text = render_received(
            &json!({"phase": "done", "faults": {"p50_us": 12.5, "count": 12345}, "none": null}),
        );
        assert!(text.contains("faults p50 us"), "{text}");
        assert!(
            text.contains("12.50") && text.contains("12,345") && !text.contains("none"),
            "{text}"
        );
    }
}
