//! How often each of many numbered things occurred: a thin bar each, more than could have a name.

use maud::{Markup, html};

use super::scale::Scale;
use super::{WIDTH, drawing, place};
use crate::number;

const HEIGHT: f64 = 150.0;
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 32.0;
/// A bar is at least so wide, however many there are.
const LEAST_WIDTH: f64 = 0.8;

/// Bars over numbers.
pub(crate) struct Counts<'a> {
    /// Its name on the page.
    pub(crate) id: &'a str,
    /// What it shows.
    pub(crate) title: &'a str,
    /// What is numbered.
    pub(crate) x_label: &'a str,
    /// How many numbers there are, from 0.
    pub(crate) numbers: u32,
    /// Numbers that occurred, each with its share of all.
    pub(crate) shares: Vec<(u32, f64)>,
    /// The largest share of the axis at the side.
    pub(crate) most: f64,
}

impl Counts<'_> {
    /// Draws them.
    pub(crate) fn draw(&self) -> Markup {
        let vertical = Scale::from_zero(self.most);
        let horizontal = Scale::Linear {
            low: 0.0,
            high: f64::from(self.numbers.max(1)),
        };
        let width = ((WIDTH - LEFT - RIGHT) / f64::from(self.numbers.max(1))).max(LEAST_WIDTH);
        let x = |value: f64| LEFT + horizontal.at(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - vertical.at(value) * (HEIGHT - TOP - BOTTOM);
        let below = HEIGHT - BOTTOM;
        let content = html! {
            @for tick in vertical.ticks(0.01, 3) {
                line class="grid" x1=(LEFT) x2=(place(WIDTH - RIGHT)) y1=(place(y(tick))) y2=(place(y(tick))) {}
                text class="tick" x=(place(LEFT - 5.0)) y=(place(y(tick) + 4.0)) text-anchor="end" {
                    (number::digits(tick * 100.0))
                }
            }
            @for tick in horizontal.ticks(1.0, 5) {
                text class="tick" x=(place(x(tick))) y=(place(below + 13.0)) text-anchor="middle" { (number::digits(tick)) }
            }
            @for (number, share) in &self.shares {
                rect class="count" x=(place(x(f64::from(*number)))) y=(place(y(*share))) width=(place(width))
                    height=(place(below - y(*share))) {}
            }
            text class="axis" x="2" y=(place(TOP - 4.0)) { "% of the samples" }
            text class="axis" x=(place((WIDTH + LEFT) / 2.0)) y=(place(HEIGHT - 5.0)) text-anchor="middle" { (self.x_label) }
        };
        drawing(self.id, HEIGHT, self.title, &self.description(), &content)
    }

    fn description(&self) -> String {
        let mut first = self.shares.clone();
        first.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let named = first
            .iter()
            .take(3)
            .map(|(number, share)| format!("{number} with {} %", number::digits(share * 100.0)));
        format!(
            "{} of {} occurred; most often {}.",
            self.shares.len(),
            self.numbers,
            named.collect::<Vec<_>>().join(", ")
        )
    }
}
