//! Timelines of the client's throughput, and the rounds of pre-copy.

use std::borrow::Cow;

use maud::{Markup, html};
use vmferry_lab::bench::quantity::Quantity;
use vmferry_lab::bench::scenario::{Dimension, Figure};
use vmferry_lab::bench::statistics::{Interval, quantile};
use vmferry_lab::bench::{Operations, Results, Run, rounds as rounds_of};

use super::panels::{grouped, panel};
use crate::estimate::{Case, Estimate};
use crate::plot::{Axis, Line, Lines, Point, Timeline, legend};
use crate::table;

/// Points of a timeline; more cannot be told apart on a plot of this width.
const POINTS: usize = 220;
/// Timelines of one guest and link have one axis of time, unless one is so many times longer than another.
const ALIKE: f64 = 4.0;

/// What clients got done in a case, ready to be drawn.
pub(super) struct Drawn<'a> {
    pub(super) case: Case<'a>,
    /// What they count, in the plural.
    pub(super) unit: &'a str,
    /// Smallest, median and largest of the repetitions.
    pub(super) points: Vec<(f64, [f64; 3])>,
    /// Where its axis of time ends, seconds since the request.
    pub(super) end_s: f64,
    /// Whether all of them have one axis of time.
    shared: bool,
}

impl Drawn<'_> {
    /// Where its axis of time begins and ends.
    pub(super) fn span_s(&self) -> (f64, f64) {
        (self.points.first().map_or(0.0, |(at, _)| *at), self.end_s)
    }
}

/// Cases of one guest and link with what their clients got done, on one axis of time unless they differ much.
pub(super) fn aligned<'a>(results: &'a Results, cases: &[Case<'a>]) -> Vec<Drawn<'a>> {
    let seen = cases.iter().map(|case| (*case, clients(results, *case)));
    let seen: Vec<_> = seen.filter(|(_, clients)| !clients.is_empty()).collect();
    let end =
        |clients: &Vec<Cow<'_, Operations>>| clients.iter().map(|client| end_s(client)).fold(0.0, f64::max);
    let longest = seen.iter().map(|(_, clients)| end(clients)).fold(0.0, f64::max);
    let shared = seen.iter().all(|(_, clients)| end(clients) * ALIKE >= longest);
    let drawn = seen.iter().map(|(case, clients)| {
        let end_s = if shared { longest } else { end(clients) };
        Drawn {
            case: *case,
            unit: unit(results, *case),
            points: points(clients, end_s),
            end_s,
            shared,
        }
    });
    drawn.collect()
}

/// The largest number of several timelines.
pub(super) fn most<'a>(timelines: impl Iterator<Item = &'a [(f64, [f64; 3])]>) -> f64 {
    let peaks = timelines.flatten().map(|(_, [_, _, most])| *most);
    peaks.fold(0.0, f64::max)
}

/// A timeline for each case, those of one guest and link with the same axis.
pub(super) fn timelines(results: &Results, cases: &[Case<'_>], anchor: &str) -> Markup {
    let mut plots = 0;
    let mut groups = Vec::new();
    for (group, cases) in grouped(cases, &[Dimension::Guest, Dimension::Link]) {
        let drawn = aligned(results, &cases);
        let most = most(drawn.iter().map(|drawn| drawn.points.as_slice()));
        let shared = drawn.iter().all(|drawn| drawn.shared);
        let draw = |drawn: Drawn<'_>| {
            plots += 1;
            let (case, axis, span) = (drawn.case, Axis::Rate(drawn.unit), drawn.span_s());
            let id = format!("{anchor}-p{plots}");
            let plot = timeline(results, case, &id, axis, drawn.points, span, most);
            html! { div class="panel" { h5 { (case.variant) } (plot) } }
        };
        let panels: Vec<_> = drawn.into_iter().map(draw).collect();
        groups.push((group, shared, panels));
    }
    html! {
        @for (group, shared, panels) in groups {
            @if !panels.is_empty() {
                h4 { (group) }
                @if !shared { p class="group" { "The axes of time differ." } }
                div class="plots" { @for panel in panels { (panel) } }
            }
        }
        p class="group" {
            "Line: median of the repetitions; band: from the smallest to the largest of them; shaded: the migration; dashed: the guest \
             runs at the destination. Of two guests that contend, both together."
        }
    }
}

pub(super) fn timeline(
    results: &Results,
    case: Case<'_>,
    id: &str,
    axis: Axis<'_>,
    points: Vec<(f64, [f64; 3])>,
    span_s: (f64, f64),
    most: f64,
) -> Markup {
    let moment = |metric| Estimate::of(results, case, metric).map(|estimate| estimate.median / 1e3);
    let what = match axis {
        Axis::Rate(_) => "Throughput",
        Axis::Latency => "Latency",
    };
    let plot = Timeline {
        id,
        title: &format!("{what} of {} with {}, {}", case.guest, case.variant, case.link),
        axis,
        points,
        resumed_s: moment("execution_transfer_ms"),
        ended_s: moment("total_ms"),
        span_s,
        most,
    };
    plot.draw()
}

/// What the clients of a case count.
fn unit<'a>(results: &'a Results, case: Case<'_>) -> &'a str {
    let runs = results.runs.iter().filter(|run| case.is_of(run));
    let mut seen = runs.filter_map(|run| run.outcome.measured()?.operations.as_ref());
    seen.next().map_or("operations", |seen| seen.unit.as_str())
}

/// What the clients of the guest saw; of both guests together where it has a neighbour.
fn clients<'a>(results: &'a Results, case: Case<'_>) -> Vec<Cow<'a, Operations>> {
    let runs = results.runs.iter().filter(|run| case.is_of(run));
    let seen = |run: &'a Run| {
        let measured = run.outcome.measured()?;
        let own = measured.operations.as_ref()?;
        Some(match &measured.neighbour {
            None => Cow::Borrowed(own),
            Some(neighbour) => {
                let windows = own.windows.iter().zip(&neighbour.windows);
                Cow::Owned(Operations {
                    windows: windows.map(|(own, other)| own + other).collect(),
                    ..own.clone()
                })
            }
        })
    };
    runs.filter_map(seen)
        .filter(|seen| !seen.windows.is_empty() && seen.window_ms > 0)
        .collect()
}

/// When the last window of a client ends, seconds.
fn end_s(seen: &Operations) -> f64 {
    (seen.windows_start_ms + (seen.windows.len() as u64 * seen.window_ms) as f64) / 1e3
}

/// Steps of time that all repetitions have in common.
pub(super) struct Steps {
    start_s: f64,
    step_s: f64,
    count: usize,
}

impl Steps {
    /// None of no client.
    pub(super) fn of<'a>(seen: impl Iterator<Item = &'a Operations> + Clone, end_s: f64) -> Option<Self> {
        let window_s = seen.clone().next()?.window_ms as f64 / 1e3;
        let start_s = seen
            .map(|client| client.windows_start_ms / 1e3)
            .fold(0.0, f64::min);
        let windows = ((end_s - start_s) / window_s).ceil().max(1.0);
        // Whole windows: parts of one are not known.
        let step_s = (windows / POINTS as f64).ceil() * window_s;
        Some(Self {
            start_s,
            step_s,
            count: ((end_s - start_s) / step_s).floor() as usize,
        })
    }

    /// Where each begins and ends, seconds since the request.
    pub(super) fn iter(&self) -> impl Iterator<Item = (f64, f64)> {
        let at = |step: usize| self.start_s + step as f64 * self.step_s;
        (0..self.count).map(move |step| (at(step), at(step + 1)))
    }
}

/// Smallest, median and largest of the repetitions, step by step.
fn points(seen: &[Cow<'_, Operations>], end_s: f64) -> Vec<(f64, [f64; 3])> {
    let Some(steps) = Steps::of(seen.iter().map(AsRef::as_ref), end_s) else {
        return Vec::new();
    };
    let mut points = Vec::new();
    for (from, until) in steps.iter() {
        let mut rates: Vec<_> = seen
            .iter()
            .filter_map(|client| rate(client, from, until))
            .collect();
        // Where only some are left, they speak for themselves and not for all.
        if rates.len() * 2 >= seen.len() && !rates.is_empty() {
            rates.sort_by(f64::total_cmp);
            let spread = [rates[0], quantile(&rates, 0.5), rates[rates.len() - 1]];
            points.push((f64::midpoint(from, until), spread));
        }
    }
    points
}

/// Operations a second of a client in a span of time; none where it was not there for all of it.
fn rate(seen: &Operations, from_s: f64, until_s: f64) -> Option<f64> {
    let windows = within(seen, &seen.windows, from_s, until_s)?;
    let seconds = windows.len() as f64 * seen.window_ms as f64 / 1e3;
    Some(windows.iter().sum::<f64>() / seconds)
}

/// What a client has of each window in a span of time; none where it was not there for all of it.
pub(super) fn within<'a, T>(
    seen: &Operations,
    windows: &'a [T],
    from_s: f64,
    until_s: f64,
) -> Option<&'a [T]> {
    let window_s = seen.window_ms as f64 / 1e3;
    let index = |at: f64| ((at - seen.windows_start_ms / 1e3) / window_s).round();
    let (first, last) = (index(from_s), index(until_s));
    let is_within = first >= 0.0 && first < last && last <= windows.len() as f64;
    is_within.then(|| &windows[first as usize..last as usize])
}

/// A plot for each guest, link and metric, with a line for each variant.
pub(super) fn rounds(results: &Results, figure: &Figure, cases: &[Case<'_>], anchor: &str) -> Markup {
    let mut plots = Vec::new();
    let mut shown = Vec::new();
    for (group, cases) in grouped(cases, &[Dimension::Guest, Dimension::Link]) {
        for metric in &figure.metrics {
            let quantity = Quantity::of(metric);
            let mut lines = Vec::new();
            for case in &cases {
                let index = shown.iter().position(|name| *name == case.variant);
                let points: Vec<_> = spreads(results, *case, metric).into_iter().enumerate().collect();
                let point = |(round, spread): (usize, Option<[f64; 3]>)| {
                    let [low, y, high] = spread?;
                    let interval = (low < high).then_some(Interval { low, high });
                    Some(Point {
                        x: (round + 1) as f64,
                        y,
                        interval,
                    })
                };
                let points: Vec<_> = points.into_iter().filter_map(point).collect();
                if points.is_empty() {
                    continue;
                }
                let index = index.unwrap_or_else(|| {
                    shown.push(case.variant);
                    shown.len() - 1
                });
                lines.push(Line {
                    name: case.variant,
                    index,
                    points,
                });
            }
            if lines.is_empty() {
                continue;
            }
            let plot = Lines {
                id: &format!("{anchor}-p{}", plots.len()),
                title: &format!("{} of each round: {group}", quantity.label),
                label: &quantity.label,
                unit: Some(quantity.unit),
                log: figure.log,
                log_x: false,
                x_label: "round",
                names: Vec::new(),
                lines,
            };
            plots.push(panel(&quantity.label, &group, &quantity, &plot.draw()));
        }
    }
    html! {
        (legend(shown.iter().copied().enumerate()))
        div class="plots" { @for plot in plots { (plot) } }
        p class="group" { "Marks: the median of the repetitions that had the round; whiskers: from the smallest to the largest of them." }
    }
}

/// Each metric of each round as a table.
pub(super) fn rounds_tables(results: &Results, figure: &Figure, cases: &[Case<'_>]) -> Markup {
    html! {
        div class="tables" { @for metric in &figure.metrics {
            @for (group, cases) in grouped(cases, &[Dimension::Guest, Dimension::Link]) {
                @let columns: Vec<_> = cases.iter().map(|case| (case.variant, spreads(results, *case, metric))).filter(|(_, spreads)| !spreads.is_empty()).collect();
                @let most = columns.iter().map(|(_, spreads)| spreads.len()).max().unwrap_or(0);
                @if most > 0 {
                    @let names: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
                    @let rows: Vec<_> = (0..most).map(|round| {
                        (round + 1, columns.iter().map(|(_, spreads)| spreads.get(round).copied().flatten()).collect())
                    }).collect();
                    @let caption = format!("{} of each round: {group}", Quantity::of(metric).label);
                    (table::rounds(&caption, &names, &rows, Quantity::of(metric).unit))
                }
            }
        } }
    }
}

/// Smallest, median and largest of each round, over the repetitions that had it.
fn spreads(results: &Results, case: Case<'_>, metric: &str) -> Vec<Option<[f64; 3]>> {
    let runs = results.runs.iter().filter(|run| case.is_of(run));
    let runs: Vec<_> = runs
        .filter_map(|run| Some(rounds_of::of(run.outcome.measured()?, metric)))
        .filter(|rounds| rounds.iter().any(Option::is_some))
        .collect();
    let most = runs.iter().map(Vec::len).max().unwrap_or(0);
    let spread = |round: usize| {
        let mut figures: Vec<_> = runs
            .iter()
            .filter_map(|run| run.get(round).copied().flatten())
            .collect();
        figures.sort_by(f64::total_cmp);
        Some([*figures.first()?, quantile(&figures, 0.5), *figures.last()?])
    };
    (0..most).map(spread).collect()
}
