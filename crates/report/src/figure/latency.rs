//! What clients waited for answers: over time below what they got done, and its distribution.

use maud::{Markup, html};
use vmferry_lab::bench::quantity::{Better, Quantity, Unit};
use vmferry_lab::bench::scenario::Dimension;
use vmferry_lab::bench::statistics::{Interval, quantile};
use vmferry_lab::bench::{Latencies, Operations, Results};

use super::over_time::{self, Steps};
use super::panels::{grouped, panel};
use crate::estimate::Case;
use crate::plot::{Axis, Line, Lines, Point, legend};

/// For each case what its clients got done, and below it, on the same axis of time, what they waited for answers.
pub(super) fn over_time(results: &Results, cases: &[Case<'_>], anchor: &str) -> Markup {
    let mut plots = 0;
    let mut groups = Vec::new();
    for (group, cases) in grouped(cases, &[Dimension::Guest, Dimension::Link]) {
        let drawn: Vec<_> = over_time::aligned(results, &cases)
            .into_iter()
            .map(|drawn| {
                let points = points(&own(results, drawn.case), drawn.end_s);
                (drawn, points)
            })
            .filter(|(_, points)| !points.is_empty())
            .collect();
        let most_done = over_time::most(drawn.iter().map(|(drawn, _)| drawn.points.as_slice()));
        let most_waited = over_time::most(drawn.iter().map(|(_, points)| points.as_slice()));
        let panels = drawn.into_iter().map(|(drawn, points)| {
            plots += 2;
            let id = |which: usize| format!("{anchor}-p{}", plots - which);
            let case = drawn.case;
            let axis = Axis::Rate(drawn.unit);
            let (span, done) = (drawn.span_s(), drawn.points);
            let done = over_time::timeline(results, case, &id(1), axis, done, span, most_done);
            let waited = over_time::timeline(results, case, &id(0), Axis::Latency, points, span, most_waited);
            html! { div class="panel" { h5 { (case.variant) } (done) (waited) } }
        });
        let panels: Vec<_> = panels.collect();
        groups.push((group, panels));
    }
    html! {
        @for (group, panels) in groups {
            @if !panels.is_empty() {
                h4 { (group) }
                div class="plots" { @for panel in panels { (panel) } }
            }
        }
        p class="group" {
            "Above: what clients got done, the median of the repetitions. Below: what answers took of those that came within a step of time; \
             line: the 90th percentile, band: from the median to the 99th, of steps longer than 100 ms their means weighted by \
             answers, then the median of the repetitions. Where there is no line no answer came."
        }
    }
}

/// What the clients of the guest itself saw, of each run.
fn own<'a>(results: &'a Results, case: Case<'_>) -> Vec<&'a Operations> {
    let runs = results.runs.iter().filter(|run| case.is_of(run));
    let seen = |run: &'a vmferry_lab::bench::Run| run.outcome.measured()?.operations.as_ref();
    runs.filter_map(seen)
        .filter(|seen| seen.latency.is_some() && seen.window_ms > 0)
        .collect()
}

/// Median, 90th and 99th percentile in steps of time.
fn points(seen: &[&Operations], end_s: f64) -> Vec<(f64, [f64; 3])> {
    let Some(steps) = Steps::of(seen.iter().copied(), end_s) else {
        return Vec::new();
    };
    let mut points = Vec::new();
    for (from, until) in steps.iter() {
        let waits: Vec<[f64; 3]> = seen.iter().filter_map(|seen| waits(seen, from, until)).collect();
        if waits.len() * 2 < seen.len() || waits.is_empty() {
            continue;
        }
        let median = |which: usize| {
            let mut figures: Vec<_> = waits.iter().map(|waits| waits[which]).collect();
            figures.sort_by(f64::total_cmp);
            quantile(&figures, 0.5)
        };
        points.push((f64::midpoint(from, until), [median(0), median(1), median(2)]));
    }
    points
}

/// What answers of a client took in a span of time; none where none came.
fn waits(seen: &Operations, from_s: f64, until_s: f64) -> Option<[f64; 3]> {
    let windows = over_time::within(seen, &seen.latency.as_ref()?.windows, from_s, until_s)?;
    let (mut count, mut sums) = (0.0, [0.0; 3]);
    for window in windows.iter().flatten() {
        let weight = window.count as f64;
        count += weight;
        let figures = [window.p50_ms, window.p90_ms, window.p99_ms];
        sums.iter_mut()
            .zip(figures)
            .for_each(|(sum, ms)| *sum += weight * ms);
    }
    (count > 0.0).then(|| sums.map(|sum| sum / count))
}

/// A plot for each guest and link with a line for each variant, and for the guest beside it where there is one.
pub(super) fn distributions(results: &Results, cases: &[Case<'_>], anchor: &str) -> Markup {
    let quantity = Quantity {
        label: "Share of the answers that took no longer".to_owned(),
        unit: Unit::Share,
        better: Some(Better::Higher),
    };
    let mut plots = Vec::new();
    let mut shown: Vec<String> = Vec::new();
    for (group, cases) in grouped(cases, &[Dimension::Guest, Dimension::Link]) {
        let mut found = Vec::new();
        for case in &cases {
            for (whose, seen) in both(results, *case) {
                let points = distribution(&seen);
                if points.is_empty() {
                    continue;
                }
                let name = format!("{}{whose}", case.variant);
                let index = shown.iter().position(|shown| *shown == name);
                let index = index.unwrap_or_else(|| {
                    shown.push(name.clone());
                    shown.len() - 1
                });
                found.push((name, index, points));
            }
        }
        if found.is_empty() {
            continue;
        }
        let lines = found.iter().map(|(name, index, points)| Line {
            name,
            index: *index,
            points: points.clone(),
        });
        let plot = Lines {
            id: &format!("{anchor}-p{}", plots.len()),
            title: &format!("{}: {group}", quantity.label),
            label: &quantity.label,
            unit: Some(Unit::Share),
            log: false,
            log_x: true,
            x_label: "ms",
            names: Vec::new(),
            lines: lines.collect(),
        };
        plots.push(panel(&quantity.label, &group, &quantity, &plot.draw()));
    }
    html! {
        (legend(shown.iter().map(String::as_str).enumerate()))
        div class="plots" { @for plot in plots { (plot) } }
        p class="group" {
            "Of all answers of a run, from the first to the last that was seen. Marks: every tenth percentile, and the 95th, 99th and 99.9th, \
             each the median of the repetitions."
        }
    }
}

/// What the clients of the guest saw, and those of the guest beside it.
fn both<'a>(results: &'a Results, case: Case<'_>) -> [(&'static str, Vec<&'a Latencies>); 2] {
    let measured: Vec<_> = results
        .runs
        .iter()
        .filter(|run| case.is_of(run))
        .filter_map(|run| run.outcome.measured())
        .collect();
    let of = |seen: Option<&'a Operations>| seen?.latency.as_ref();
    let own = measured.iter().filter_map(|run| of(run.operations.as_ref()));
    let beside = measured.iter().filter_map(|run| of(run.neighbour.as_ref()));
    [("", own.collect()), (", its neighbour", beside.collect())]
}

/// The distribution of one line: at each share the median of the runs, none where they differ in what they kept.
fn distribution(seen: &[&Latencies]) -> Vec<Point> {
    let Some(first) = seen.first() else {
        return Vec::new();
    };
    let shares = first.distribution().into_iter().map(|(share, _)| share);
    let point = |share: f64| {
        let mut figures: Vec<_> = seen.iter().filter_map(|seen| seen.quantile_ms(share)).collect();
        figures.sort_by(f64::total_cmp);
        (figures.len() == seen.len()).then(|| Point {
            x: quantile(&figures, 0.5),
            y: share,
            interval: None::<Interval>,
        })
    };
    shares.filter_map(point).collect()
}
