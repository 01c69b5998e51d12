//! In which encodings the pages of a migration crossed, for people.

use vmferry_core::encoding::{EncodingReport, EncodingSlice, PagesByEncoding};

use crate::table;
use crate::units::{millis, size};

/// A column of the table over time: its heading and where its number stands.
type Column = (&'static str, fn(&PagesByEncoding) -> u64);

/// Lines of the table over time at most.
const MAX_LINES: usize = 8;

/// What was asked for and what it spared, on one line; nothing where it is not known.
pub(crate) fn summary(report: &EncodingReport) -> Option<String> {
    match (report.asked.as_str(), report.pages.encoded()) {
        ("", _) => None,
        (asked, 0) => Some(asked.to_owned()),
        (asked, _) => Some(format!(
            "{asked}: {} spared for {:.2} s of CPU time",
            size(report.saved_bytes),
            report.cpu_seconds
        )),
    }
}

/// The share of each encoding over time, where any was used.
pub(crate) fn over_time(report: &EncodingReport) -> String {
    let kinds: [Column; 5] = [
        ("raw", |pages| pages.raw),
        ("uniform", |pages| pages.uniform),
        ("lz4", |pages| pages.lz4),
        ("zstd", |pages| pages.zstd),
        ("delta", |pages| pages.delta),
    ];
    if report.pages.encoded() == 0 {
        return String::new();
    }
    let used: Vec<_> = kinds
        .into_iter()
        .filter(|(_, of)| of(&report.pages) > 0)
        .collect();
    let mut heading = vec!["from", "to"];
    heading.extend(used.iter().map(|(name, _)| *name));
    let mut table = table::list(&heading);
    for lines in report
        .over_time
        .chunks(report.over_time.len().div_ceil(MAX_LINES).max(1))
    {
        let (first, last) = (&lines[0], &lines[lines.len() - 1]);
        let sum = |of: fn(&PagesByEncoding) -> u64| {
            lines
                .iter()
                .map(|EncodingSlice { pages, .. }| of(pages))
                .sum::<u64>()
        };
        let all = sum(PagesByEncoding::sum).max(1);
        let mut row = vec![millis(first.start_ms), millis(last.end_ms)];
        row.extend(
            used.iter()
                .map(|(_, of)| format!("{:.0} %", sum(*of) as f64 / all as f64 * 100.0)),
        );
        table.add_row(row);
    }
    table::align_right(&mut table, &[0, 1, 2, 3, 4, 5, 6]);
    format!("\n{}", table::render(table))
}
