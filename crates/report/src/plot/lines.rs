//! Lines over numbers, or over names where these have no numbers.

use maud::{Markup, html};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::statistics::Interval;

use super::scale::Scale;
use super::{WIDTH, drawing, path, place};
use crate::number;

const HEIGHT: f64 = 230.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
/// How many kinds of colours, and of marks, there are; together they are more than a plot can bear.
const COLOURS: usize = 6;
const MARKS: usize = 5;

/// Lines in one plot.
pub(crate) struct Lines<'a> {
    /// Its name on the page.
    pub(crate) id: &'a str,
    /// What it shows.
    pub(crate) title: &'a str,
    /// What the axis at the side counts.
    pub(crate) label: &'a str,
    /// Its unit; none of ratios.
    pub(crate) unit: Option<Unit>,
    /// That one on a logarithmic scale.
    pub(crate) log: bool,
    /// The axis below on a logarithmic scale, too.
    pub(crate) log_x: bool,
    /// What the axis below counts.
    pub(crate) x_label: &'a str,
    /// Names along it, with their places; none where it is numbered by itself.
    pub(crate) names: Vec<(f64, String)>,
    /// The lines.
    pub(crate) lines: Vec<Line<'a>>,
}

/// A line.
pub(crate) struct Line<'a> {
    /// Its name.
    pub(crate) name: &'a str,
    /// Which of all lines of the figure it is: decides colour and mark.
    pub(crate) index: usize,
    /// Its points from left to right.
    pub(crate) points: Vec<Point>,
}

/// A point.
#[derive(Clone, Copy)]
pub(crate) struct Point {
    /// Where along the axis.
    pub(crate) x: f64,
    /// Its figure.
    pub(crate) y: f64,
    /// Where that lies truly.
    pub(crate) interval: Option<Interval>,
}

impl Lines<'_> {
    /// Draws them.
    pub(crate) fn draw(&self) -> Markup {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let high = |point: &Point| {
            point
                .interval
                .map_or(point.y, |interval| interval.high.max(point.y))
        };
        let low = |point: &Point| {
            point
                .interval
                .map_or(point.y, |interval| interval.low.min(point.y))
        };
        let one = if self.unit.is_none() { 1.0 } else { 0.0 };
        let most = points().map(high).fold(one, f64::max);
        let vertical = Scale::over(points().map(low).fold(f64::INFINITY, f64::min), most, self.log);
        let (first, last) = points().fold((f64::INFINITY, f64::NEG_INFINITY), |(first, last), point| {
            (first.min(point.x), last.max(point.x))
        });
        let room = ((last - first) * 0.04).max(0.02 * last.abs()).max(1e-9);
        let horizontal = match self.log_x {
            true => Scale::over(first, last, true),
            false => Scale::Linear {
                low: first - room,
                high: last + room,
            },
        };
        let x = |value: f64| LEFT + horizontal.at(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - vertical.at(value) * (HEIGHT - TOP - BOTTOM);
        let (factor, unit) = self
            .unit
            .map_or((1.0, "times"), |unit| number::scaled(unit, most));
        let below = HEIGHT - BOTTOM;
        let content = html! {
            @for tick in vertical.ticks(factor, 5) {
                line class="grid" x1=(LEFT) x2=(place(WIDTH - RIGHT)) y1=(place(y(tick))) y2=(place(y(tick))) {}
                text class="tick" x=(place(LEFT - 5.0)) y=(place(y(tick) + 4.0)) text-anchor="end" {
                    (number::digits(tick / factor))
                }
            }
            @for (at, name) in self.ticks(&horizontal) {
                line class="grid" x1=(place(x(at))) x2=(place(x(at))) y1=(place(below)) y2=(place(below + 4.0)) {}
                text class="tick" x=(place(x(at))) y=(place(below + 16.0)) text-anchor="middle" { (name) }
            }
            text class="axis" x=(place((WIDTH + LEFT) / 2.0)) y=(place(HEIGHT - 6.0)) text-anchor="middle" { (self.x_label) }
            text class="axis" x="2" y=(place(TOP - 1.0)) { (unit) }
            @for line in &self.lines {
                g class={ "line c" (line.index % COLOURS) } {
                    path class="trace" d=(path(line.points.iter().map(|point| (x(point.x), y(point.y))))) {}
                    @for point in &line.points {
                        @if let Some(interval) = point.interval {
                            path class="whisker" d={ "M" (place(x(point.x))) " " (place(y(interval.low)))
                                "V" (place(y(interval.high))) } {}
                        }
                        path class="mark" d=(mark(line.index, x(point.x), y(point.y))) {}
                    }
                }
            }
        };
        let names: Vec<_> = self.lines.iter().map(|line| line.name).collect();
        let description = format!(
            "{} over {}, a line each for {}",
            self.label,
            self.x_label,
            names.join(", ")
        );
        drawing(self.id, HEIGHT, self.title, &description, &content)
    }

    /// What is written along the axis below; of names that would lie on each other only some.
    fn ticks(&self, scale: &Scale) -> Vec<(f64, String)> {
        if self.names.is_empty() {
            let ticks = scale.ticks(1.0, 6).into_iter();
            return ticks.map(|tick| (tick, number::digits(tick))).collect();
        }
        let mut names = self.names.clone();
        names.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let mut until = f64::NEG_INFINITY;
        names.retain(|(at, name)| {
            let middle = scale.at(*at) * (WIDTH - LEFT - RIGHT);
            let half = name.chars().count() as f64 * 3.2 + 2.0;
            let fits = middle - half >= until;
            until = if fits { middle + half } else { until };
            fits
        });
        names
    }
}

/// What the lines are called.
pub(crate) fn legend<'a>(lines: impl IntoIterator<Item = (usize, &'a str)>) -> Markup {
    html! {
        ul class="legend" {
            @for (index, name) in lines {
                li {
                    svg class="key" viewBox="0 0 26 12" aria-hidden="true" {
                        g class={ "line c" (index % COLOURS) } {
                            path class="trace" d="M1 6H25" {}
                            path class="mark" d=(mark(index, 13.0, 6.0)) {}
                        }
                    }
                    (name)
                }
            }
        }
    }
}

/// A disc, a square, a triangle, a diamond or a cross.
pub(super) fn mark(index: usize, x: f64, y: f64) -> String {
    // Marks change faster than colours, so that lines of one colour differ.
    let kind = (index + index / COLOURS) % MARKS;
    let corners: &[(f64, f64)] = match kind {
        1 => &[(-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)],
        2 => &[(0.0, -4.2), (4.0, 3.2), (-4.0, 3.2)],
        3 => &[(0.0, -4.6), (4.6, 0.0), (0.0, 4.6), (-4.6, 0.0)],
        4 => &[
            (-1.4, -4.4),
            (1.4, -4.4),
            (1.4, -1.4),
            (4.4, -1.4),
            (4.4, 1.4),
            (1.4, 1.4),
            (1.4, 4.4),
            (-1.4, 4.4),
            (-1.4, 1.4),
            (-4.4, 1.4),
            (-4.4, -1.4),
            (-1.4, -1.4),
        ],
        _ => {
            return format!(
                "M{} {}a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0Z",
                place(x - 3.6),
                place(y)
            );
        }
    };
    path(corners.iter().map(|(dx, dy)| (x + dx, y + dy))) + "Z"
}
