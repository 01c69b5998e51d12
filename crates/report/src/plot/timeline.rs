//! What a client got done, over time, across a migration.

use maud::{Markup, html};
use vmferry_lab::bench::quantity::Unit;

use super::scale::Scale;
use super::{WIDTH, drawing, path, place};
use crate::number;

const HEIGHT: f64 = 150.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 32.0;

/// A timeline.
pub(crate) struct Timeline<'a> {
    /// Its name on the page.
    pub(crate) id: &'a str,
    /// What it shows.
    pub(crate) title: &'a str,
    /// What the axis at the side counts, with its unit.
    pub(crate) unit: Unit,
    /// Smallest, median and largest of the repetitions at moments in seconds since the request.
    pub(crate) points: Vec<(f64, [f64; 3])>,
    /// When the guest ran at the destination, seconds.
    pub(crate) resumed_s: Option<f64>,
    /// When the migration was over.
    pub(crate) ended_s: Option<f64>,
    /// First and last moment of the axis.
    pub(crate) span_s: (f64, f64),
    /// The largest number of the axis at the side.
    pub(crate) most: f64,
}

impl Timeline<'_> {
    /// Draws it.
    pub(crate) fn draw(&self) -> Markup {
        let horizontal = Scale::Linear {
            low: self.span_s.0,
            high: self.span_s.1.max(self.span_s.0 + 1e-3),
        };
        let vertical = Scale::from_zero(self.most);
        let x = |value: f64| LEFT + horizontal.at(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - vertical.at(value) * (HEIGHT - TOP - BOTTOM);
        let (factor, unit) = number::scaled(self.unit, self.most);
        let below = HEIGHT - BOTTOM;
        let edge = |which: usize| self.points.iter().map(move |(at, values)| (*at, values[which]));
        let band = edge(2).chain(edge(0).rev()).map(|(at, value)| (x(at), y(value)));
        let content = html! {
            @if let Some(ended) = self.ended_s {
                rect class="moving" x=(place(x(0.0))) y=(TOP) width=(place((x(ended) - x(0.0)).max(1.0)))
                    height=(place(below - TOP)) {}
            }
            @for tick in vertical.ticks(factor, 3) {
                line class="grid" x1=(LEFT) x2=(place(WIDTH - RIGHT)) y1=(place(y(tick))) y2=(place(y(tick))) {}
                text class="tick" x=(place(LEFT - 5.0)) y=(place(y(tick) + 4.0)) text-anchor="end" {
                    (number::digits(tick / factor))
                }
            }
            @for tick in horizontal.ticks(1.0, 6) {
                text class="tick" x=(place(x(tick))) y=(place(below + 13.0)) text-anchor="middle" { (number::digits(tick)) }
            }
            @if !self.points.is_empty() {
                path class="band" d={ (path(band)) "Z" } {}
                path class="trace" d=(path(edge(1).map(|(at, value)| (x(at), y(value))))) {}
            }
            @if let Some(resumed) = self.resumed_s {
                line class="resumed" x1=(place(x(resumed))) x2=(place(x(resumed))) y1=(TOP) y2=(place(below)) {}
            }
            text class="axis" x="2" y=(place(TOP - 4.0)) { "operations " (unit) }
            text class="axis" x=(place((WIDTH + LEFT) / 2.0)) y=(place(HEIGHT - 5.0)) text-anchor="middle" {
                "seconds since the request"
            }
        };
        drawing(self.id, HEIGHT, self.title, &self.description(), &content)
    }

    fn description(&self) -> String {
        let seconds =
            |moment: Option<f64>| moment.map_or("never".to_owned(), |at| format!("{} s", number::digits(at)));
        format!(
            "Operations a second of the client over time. The guest runs at the destination after {}, the migration is over after {}.",
            seconds(self.resumed_s),
            seconds(self.ended_s)
        )
    }
}
