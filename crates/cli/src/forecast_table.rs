//! What was expected, beside what came.

use vmferry_core::forecast::Expected;
use vmferry_core::report::Report;

use crate::units::{millis, size};

/// The forecast of the strategy that ran, where there was one: each figure, and whether what came is within its interval.
pub(crate) fn expected(report: &Report) -> Option<String> {
    let forecast = report.forecast.as_ref()?;
    let of = forecast.of(report.strategy.parse().ok()?)?;
    let one = |name: &str, expected: &Expected, came: f64, show: &dyn Fn(f64) -> String| {
        let within = if expected.holds(came) { "" } else { ", not held" };
        format!(
            "{name} {} ({} to {}{within})",
            show(expected.likely),
            show(expected.low),
            show(expected.high)
        )
    };
    let figures = [
        one("total", &of.total_ms, report.total_ms, &millis),
        one("downtime", &of.downtime_ms, report.downtime_ms, &millis),
        one("", &of.bytes_on_wire, report.bytes_on_wire as f64, &|bytes| {
            size(bytes as u64)
        }),
    ];
    Some(figures.map(|figure| figure.trim_start().to_owned()).join(", "))
}
