//! Migrations of several strategies beside each other: time, downtime, bytes, and what happened when.

use maud::{Markup, html};

use super::{LEFT, RIGHT, WIDTH, digits, file, place, round_up};

const ROW: f64 = 22.0;
/// Where names end, and panels begin.
const NAMES: f64 = LEFT + 30.0;
const GAP: f64 = 26.0;

/// A figure with how far it may be off, where several migrations were made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Span {
    /// The figure, or the median.
    pub value: f64,
    /// 5 and 95 %.
    pub interval: Option<(f64, f64)>,
}

/// Takes a figure of a strategy.
type Figure = fn(&OutcomeRow) -> Span;

/// A strategy.
#[derive(Clone, Debug, PartialEq)]
pub struct OutcomeRow {
    /// Its name.
    pub name: String,
    /// Request until everything is over, ms.
    pub total_ms: Span,
    /// Paused until running, ms.
    pub downtime_ms: Span,
    /// On the wire, MiB.
    pub wire_mib: Span,
    /// Phases: name, begin and end, ms.
    pub phases: Vec<(String, f64, f64)>,
}

/// Draws strategies as a file of SVG.
pub fn outcomes_svg(title: &str, rows: &[OutcomeRow]) -> String {
    let height = rows.len() as f64 * ROW;
    let panel = (WIDTH - NAMES - RIGHT - 2.0 * GAP) / 3.0;
    let panels: [(&str, Figure); 3] = [
        ("total time, s", |row| scaled(row.total_ms, 1e-3)),
        ("downtime, ms", |row| row.downtime_ms),
        ("on the wire, MiB", |row| row.wire_mib),
    ];
    let said = rows.iter().map(|row| {
        format!(
            "{}: {} s, down {} ms, {} MiB",
            row.name,
            digits(row.total_ms.value / 1e3),
            digits(row.downtime_ms.value),
            digits(row.wire_mib.value)
        )
    });
    let description = said.collect::<Vec<_>>().join("; ");
    let (top, below) = (70.0, 70.0 + height + 60.0);
    let content = html! {
        @for (index, row) in rows.iter().enumerate() {
            text x=(NAMES - 8.0) y=(place(top + ROW * index as f64 + 15.0)) text-anchor="end" { (row.name) }
        }
        @for (index, (name, figure)) in panels.iter().enumerate() {
            (bars(name, rows, *figure, NAMES + (panel + GAP) * index as f64, panel, top))
        }
        (phases(rows, below))
    };
    file(below + height + 70.0, title, &description, &content)
}

fn scaled(span: Span, factor: f64) -> Span {
    Span {
        value: span.value * factor,
        interval: span.interval.map(|(low, high)| (low * factor, high * factor)),
    }
}

fn bars(name: &str, rows: &[OutcomeRow], figure: Figure, left: f64, width: f64, top: f64) -> Markup {
    let highest = |span: Span| span.interval.map_or(span.value, |(_, high)| high.max(span.value));
    let most = round_up(rows.iter().map(|row| highest(figure(row))).fold(0.0, f64::max));
    let x = |value: f64| left + value.max(0.0) / most * width;
    let bottom = top + ROW * rows.len() as f64;
    html! {
        text x=(place(left)) y=(place(top - 10.0)) { (name) }
        @for part in [0.0, 0.5, 1.0] {
            line class="grid" x1=(place(x(most * part))) x2=(place(x(most * part))) y1=(place(top)) y2=(place(bottom)) {}
            text class="small" x=(place(x(most * part))) y=(place(bottom + 15.0)) text-anchor="middle" {
                (digits(most * part))
            }
        }
        @for (index, row) in rows.iter().enumerate() {
            @let span = figure(row);
            @let y = top + ROW * index as f64 + 5.0;
            rect class="bar" x=(place(left)) y=(place(y)) width=(place((x(span.value) - left).max(0.8))) height="12" {
                title { (row.name) ": " (digits(span.value)) }
            }
            @if let Some((low, high)) = span.interval {
                path class="whisker" d={ "M" (place(x(low))) " " (place(y + 6.0)) "H" (place(x(high)))
                    "M" (place(x(low))) " " (place(y + 2.0)) "v8M" (place(x(high))) " " (place(y + 2.0)) "v8" } {}
            }
        }
    }
}

/// What the phases are called, in the order of their colours.
fn kinds(rows: &[OutcomeRow]) -> Vec<&str> {
    let mut kinds: Vec<&str> = Vec::new();
    for (name, from, to) in rows.iter().flat_map(|row| &row.phases) {
        if to > from && !kinds.contains(&name.as_str()) {
            kinds.push(name);
        }
    }
    kinds
}

fn phases(rows: &[OutcomeRow], top: f64) -> Markup {
    let kinds = kinds(rows);
    let most = round_up(rows.iter().map(|row| row.total_ms.value).fold(0.0, f64::max) / 1e3);
    let x = |s: f64| NAMES + s / most * (WIDTH - NAMES - RIGHT);
    let bottom = top + ROW * rows.len() as f64;
    let class = |name: &str| {
        format!(
            "p{}",
            kinds.iter().position(|kind| *kind == name).unwrap_or(0) % 5
        )
    };
    html! {
        text x=(NAMES) y=(place(top - 10.0)) { "phases, s" }
        @for (index, row) in rows.iter().enumerate() {
            @let y = top + ROW * index as f64;
            text x=(NAMES - 8.0) y=(place(y + 15.0)) text-anchor="end" { (row.name) }
            @for (name, from, to) in row.phases.iter().filter(|(_, from, to)| to > from) {
                rect class=(class(name)) x=(place(x(from / 1e3))) y=(place(y + 5.0))
                    width=(place((x(to / 1e3) - x(from / 1e3)).max(0.5))) height="12" {
                    title { (name) ": " (digits(to - from)) " ms" }
                }
            }
        }
        @for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
            text class="small" x=(place(x(most * part))) y=(place(bottom + 15.0)) text-anchor="middle" { (digits(most * part)) }
        }
        @for (index, kind) in kinds.iter().enumerate() {
            @let left = NAMES + (index % 5) as f64 * 150.0;
            @let y = bottom + 36.0 + (index / 5) as f64 * 16.0;
            rect class=(class(kind)) x=(place(left)) y=(place(y - 9.0)) width="10" height="10" {}
            text class="small" x=(place(left + 15.0)) y=(place(y)) { (kind) }
        }
    }
}
