//! Models beside what they were fitted to: a mark for each measurement, a curve for what is expected, and the interval of that.

use maud::{Markup, html};
use vmferry_lab::bench::quantity::Unit;

use super::lines::mark;
use super::scale::Scale;
use super::{WIDTH, drawing, path, place};
use crate::number;

const HEIGHT: f64 = 230.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 40.0;
const COLOURS: usize = 6;

/// Models in one plot.
pub(crate) struct Models<'a> {
    /// Its name on the page.
    pub(crate) id: &'a str,
    /// What it shows.
    pub(crate) title: &'a str,
    /// What the axis below counts.
    pub(crate) x_label: &'a str,
    /// Both axes on logarithmic scales: a power law is a straight line.
    pub(crate) log: bool,
    /// The models.
    pub(crate) curves: Vec<Curve>,
}

/// A model.
pub(crate) struct Curve {
    /// Its name.
    pub(crate) name: String,
    /// What was measured: where, and milliseconds.
    pub(crate) measured: Vec<(f64, f64)>,
    /// What is expected along the axis, with the ends of its interval.
    pub(crate) expected: Vec<(f64, f64, f64, f64)>,
}

impl Models<'_> {
    /// Draws them.
    pub(crate) fn draw(&self) -> Markup {
        let points = || self.curves.iter().flat_map(|curve| &curve.measured);
        let expected = || self.curves.iter().flat_map(|curve| &curve.expected);
        let most = points()
            .map(|point| point.1)
            .chain(expected().map(|point| point.1))
            .fold(0.0, f64::max);
        let least = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let vertical = Scale::over(least, most, self.log);
        let (first, last) = points().fold((f64::INFINITY, 0.0_f64), |(first, last), point| {
            (first.min(point.0), last.max(point.0))
        });
        let horizontal = match self.log {
            true => Scale::over(first, last, true),
            false => Scale::from_zero(last),
        };
        let x = |value: f64| LEFT + horizontal.at(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - vertical.at(value) * (HEIGHT - TOP - BOTTOM);
        let (factor, unit) = number::scaled(Unit::Milliseconds, most);
        let below = HEIGHT - BOTTOM;
        let content = html! {
            @for tick in vertical.ticks(factor, 5) {
                line class="grid" x1=(LEFT) x2=(place(WIDTH - RIGHT)) y1=(place(y(tick))) y2=(place(y(tick))) {}
                text class="tick" x=(place(LEFT - 5.0)) y=(place(y(tick) + 4.0)) text-anchor="end" {
                    (number::digits(tick / factor))
                }
            }
            @for tick in horizontal.ticks(1.0, 6) {
                line class="grid" x1=(place(x(tick))) x2=(place(x(tick))) y1=(place(below)) y2=(place(below + 4.0)) {}
                text class="tick" x=(place(x(tick))) y=(place(below + 16.0)) text-anchor="middle" { (number::digits(tick)) }
            }
            text class="axis" x=(place((WIDTH + LEFT) / 2.0)) y=(place(HEIGHT - 6.0)) text-anchor="middle" { (self.x_label) }
            text class="axis" x="2" y=(place(TOP - 1.0)) { (unit) }
            @for (index, curve) in self.curves.iter().enumerate() {
                g class={ "line c" (index % COLOURS) } {
                    @if self.curves.len() == 1 {
                        @for end in [|point: &(f64, f64, f64, f64)| point.2, |point: &(f64, f64, f64, f64)| point.3] {
                            path class="whisker" d=(path(curve.expected.iter().map(|point| (x(point.0), y(end(point)))))) {}
                        }
                    }
                    path class="trace" d=(path(curve.expected.iter().map(|point| (x(point.0), y(point.1))))) {}
                    @for (at, ms) in &curve.measured { path class="mark" d=(mark(index, x(*at), y(*ms))) {} }
                }
            }
        };
        let names: Vec<_> = self.curves.iter().map(|curve| curve.name.as_str()).collect();
        let description = format!(
            "total time over {}, measured and as the model has it, for {}",
            self.x_label,
            names.join(", ")
        );
        drawing(self.id, HEIGHT, self.title, &description, &content)
    }
}
