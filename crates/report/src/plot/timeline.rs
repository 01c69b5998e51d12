//! What a client got done, or waited for answers, over time, across a migration.

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
    /// What the axis at the side counts.
    pub(crate) axis: Axis<'a>,
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

/// What a timeline shows.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Axis<'a> {
    /// Things of this name a second, in the plural.
    Rate(&'a str),
    /// Milliseconds that answers took, on a logarithmic scale.
    Latency,
}

impl Axis<'_> {
    /// What its numbers are divided by, and what it is called then.
    fn scaled(self, most: f64) -> (f64, String) {
        match self {
            Self::Rate("bytes") => {
                let (factor, unit) = number::scaled(Unit::Bytes, most);
                (factor, format!("{unit}/s"))
            }
            Self::Rate(name) => match number::scaled(Unit::PerSecond, most).0 {
                1.0 => (1.0, format!("{name}/s")),
                factor => (factor, format!("thousand {name}/s")),
            },
            Self::Latency => (1.0, "ms".to_owned()),
        }
    }

    fn scale(self, least: f64, most: f64) -> Scale {
        match self {
            Self::Rate(_) => Scale::from_zero(most),
            Self::Latency => Scale::over(least, most, true),
        }
    }

    /// In words.
    fn words(self) -> String {
        match self {
            Self::Rate(name) => format!("{name} a second of the client"),
            Self::Latency => "what the client waited for answers".to_owned(),
        }
    }
}

/// Points that are further from each other than their usual distance so many times have nothing between them.
const APART: f64 = 1.6;

impl Timeline<'_> {
    /// Draws it.
    pub(crate) fn draw(&self) -> Markup {
        let horizontal = Scale::Linear {
            low: self.span_s.0,
            high: self.span_s.1.max(self.span_s.0 + 1e-3),
        };
        let least = self.points.iter().map(|(_, values)| values[0]);
        let vertical = self.axis.scale(least.fold(f64::INFINITY, f64::min), self.most);
        let x = |value: f64| LEFT + horizontal.at(value) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| HEIGHT - BOTTOM - vertical.at(value) * (HEIGHT - TOP - BOTTOM);
        let (factor, label) = self.axis.scaled(self.most);
        let below = HEIGHT - BOTTOM;
        let edge = |points: &[(f64, [f64; 3])], which: usize| -> Vec<(f64, f64)> {
            points
                .iter()
                .map(|(at, values)| (x(*at), y(values[which])))
                .collect()
        };
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
            @for points in self.pieces() {
                path class="band" d={ (path(edge(points, 2).into_iter().chain(edge(points, 0).into_iter().rev()))) "Z" } {}
                path class="trace" d=(path(edge(points, 1))) {}
            }
            @if let Some(resumed) = self.resumed_s {
                line class="resumed" x1=(place(x(resumed))) x2=(place(x(resumed))) y1=(TOP) y2=(place(below)) {}
            }
            text class="axis" x="2" y=(place(TOP - 4.0)) { (label) }
            text class="axis" x=(place((WIDTH + LEFT) / 2.0)) y=(place(HEIGHT - 5.0)) text-anchor="middle" {
                "seconds since the request"
            }
        };
        drawing(self.id, HEIGHT, self.title, &self.description(), &content)
    }

    /// The points, parted where there is nothing between two of them: no answer came.
    fn pieces(&self) -> impl Iterator<Item = &[(f64, [f64; 3])]> {
        let distances = self.points.windows(2).map(|pair| pair[1].0 - pair[0].0);
        let usual = distances.fold(f64::INFINITY, f64::min);
        self.points
            .chunk_by(move |one, next| next.0 - one.0 <= usual * APART)
    }

    fn description(&self) -> String {
        let seconds =
            |moment: Option<f64>| moment.map_or("never".to_owned(), |at| format!("{} s", number::digits(at)));
        format!(
            "Over time: {}. The guest runs at the destination after {}, the migration is over after {}.",
            self.axis.words(),
            seconds(self.resumed_s),
            seconds(self.ended_s)
        )
    }
}
