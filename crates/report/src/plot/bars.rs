//! Bars that lie, each below its name: names are long, and a phone is narrow. On a logarithmic scale, where the length of
//! a bar says nothing, a mark stands in its place.

use maud::{Markup, html};
use vmferry_lab::bench::quantity::Unit;

use super::scale::Scale;
use super::{WIDTH, drawing, place};
use crate::estimate::Estimate;
use crate::number;

/// Height of a bar with its name.
const ROW: f64 = 32.0;
/// Height of the axis below.
const AXIS: f64 = 34.0;
const BAR: f64 = 9.0;
/// Room at both sides, for what is written at the ends of the axis.
const SIDE: f64 = 10.0;

/// Bars beside each other.
pub(crate) struct Bars<'a> {
    /// Its name on the page.
    pub(crate) id: &'a str,
    /// What it shows.
    pub(crate) title: &'a str,
    /// What the axis counts.
    pub(crate) label: &'a str,
    /// Its unit; none of ratios.
    pub(crate) unit: Option<Unit>,
    /// On a logarithmic scale.
    pub(crate) log: bool,
    /// The bars.
    pub(crate) bars: Vec<Bar<'a>>,
}

/// A bar.
pub(crate) struct Bar<'a> {
    /// Whose.
    pub(crate) name: &'a str,
    /// Whether it is QEMU's: then it is hatched, and says so.
    pub(crate) peer: bool,
    /// Its figure; none where nothing was measured.
    pub(crate) estimate: Option<Estimate>,
    /// What stands in place of a figure.
    pub(crate) lacking: &'static str,
}

impl Bars<'_> {
    /// Draws them.
    pub(crate) fn draw(&self) -> Markup {
        let estimates = || self.bars.iter().filter_map(|bar| bar.estimate.as_ref());
        let one = if self.unit.is_none() { 1.0 } else { 0.0 };
        let most = estimates().map(Estimate::most).fold(one, f64::max);
        let least = estimates().map(Estimate::least).fold(f64::INFINITY, f64::min);
        let scale = Scale::over(least, most, self.log);
        let bottom = ROW * self.bars.len() as f64 + 4.0;
        let x = |value: f64| SIDE + scale.at(value) * (WIDTH - 2.0 * SIDE);
        let (factor, unit) = self
            .unit
            .map_or((1.0, "times"), |unit| number::scaled(unit, most));
        let label = match unit {
            "" => self.label.to_owned(),
            unit => format!("{} ({unit})", self.label),
        };
        let content = html! {
            @for tick in scale.ticks(factor, 5) {
                line class="grid" x1=(place(x(tick))) x2=(place(x(tick))) y1="2" y2=(place(bottom)) {}
                text class="tick" x=(place(x(tick))) y=(place(bottom + 13.0)) text-anchor="middle" {
                    (number::digits(tick / factor))
                }
            }
            @if self.unit.is_none() {
                line class="one" x1=(place(x(1.0))) x2=(place(x(1.0))) y1="2" y2=(place(bottom)) {}
            }
            text class="axis" x=(place(WIDTH / 2.0)) y=(place(bottom + 28.0)) text-anchor="middle" { (label) }
            @for (index, bar) in self.bars.iter().enumerate() {
                (self.row(bar, ROW * index as f64, x))
            }
        };
        drawing(self.id, bottom + AXIS, self.title, &self.description(), &content)
    }

    fn row(&self, bar: &Bar<'_>, top: f64, x: impl Fn(f64) -> f64) -> Markup {
        let text_y = place(top + 12.0);
        let y = top + 17.0;
        let middle = y + BAR / 2.0;
        let value = bar.estimate.as_ref().map(|estimate| self.show(estimate.median));
        html! {
            text class="name" x=(SIDE) y=(text_y) { (bar.name) }
            text class="value" x=(place(WIDTH - SIDE)) y=(text_y) text-anchor="end" {
                (value.as_deref().unwrap_or(bar.lacking))
            }
            @if let Some(estimate) = &bar.estimate {
                @let class = if bar.peer { "bar peer" } else { "bar ours" };
                @if self.log {
                    line class="guide" x1=(SIDE) x2=(place(WIDTH - SIDE)) y1=(place(middle)) y2=(place(middle)) {}
                    rect class=(class) x=(place(x(estimate.median) - 3.0)) y=(place(y)) width="6" height=(BAR) {}
                } @else {
                    @let width = (x(estimate.median) - x(0.0)).max(0.5);
                    rect class=(class) x=(place(x(0.0))) y=(place(y)) width=(place(width)) height=(BAR) {}
                }
                @if let Some(interval) = estimate.interval {
                    @let (low, high) = (place(x(interval.low)), place(x(interval.high)));
                    path class="whisker" d={ "M" (low) " " (place(middle)) "H" (high)
                        "M" (low) " " (place(middle - 4.0)) "v8M" (high) " " (place(middle - 4.0)) "v8" } {}
                }
                @for (_, value) in estimate.each.iter().filter(|_| estimate.count() > 1) {
                    circle class="run" cx=(place(x(*value))) cy=(place(middle)) r="1.8" {}
                }
            }
        }
    }

    fn show(&self, value: f64) -> String {
        self.unit
            .map_or_else(|| number::ratio(value), |unit| number::show(unit, value))
    }

    fn description(&self) -> String {
        let words = self.bars.iter().map(|bar| match &bar.estimate {
            None => format!("{}: {}", bar.name, bar.lacking),
            Some(estimate) => match estimate.interval {
                None => format!("{}: {}, of a single run", bar.name, self.show(estimate.median)),
                Some(interval) => format!(
                    "{}: {}, {} to {}",
                    bar.name,
                    self.show(estimate.median),
                    self.show(interval.low),
                    self.show(interval.high)
                ),
            },
        });
        words.collect::<Vec<_>>().join("; ")
    }
}
