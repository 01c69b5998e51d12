//! A trace: dirty rate over time, and where the guest wrote when.

use maud::{Markup, html};
use vmferry_trace::Summary;

use super::{LEFT, RIGHT, WIDTH, digits, file, place, round_up};

const MIB: f64 = (1 << 20) as f64;
const PAGE: f64 = vmferry_core::PAGE_SIZE as f64;
/// The plot of the rate, and the heat map below it.
const RATE: (f64, f64) = (70.0, 150.0);
const HEAT: (f64, f64) = (280.0, 260.0);
/// Colours of heat, from nothing to the most.
const COLOURS: [&str; 8] = [
    "#f4f6fa", "#d6e4f7", "#a9c8ef", "#78a9e4", "#4b88d6", "#c98a3a", "#c2570c", "#8b1a10",
];

/// Draws a trace as a file of SVG.
pub fn trace_svg(summary: &Summary) -> String {
    let title = format!("{}: what it writes", summary.vm);
    let description = format!(
        "dirty rate and heat of regions of a guest of {} MiB over {} s: {} MiB/s, a working set of {} MiB",
        digits(summary.ram_bytes as f64 / MIB),
        digits(summary.length_ms / 1e3),
        digits(summary.dirty_bytes_per_s / MIB),
        digits(summary.working_set_bytes as f64 / MIB),
    );
    let content = html! {
        text class="small" x="16" y="46" { (description) }
        (rate(summary))
        (heat(summary))
    };
    file(HEAT.0 + HEAT.1 + 50.0, &title, &description, &content)
}

fn x(summary: &Summary, at_ms: f64) -> f64 {
    LEFT + at_ms / summary.length_ms.max(1e-9) * (WIDTH - LEFT - RIGHT)
}

fn rate(summary: &Summary) -> Markup {
    let (top, height) = RATE;
    let mib = |pages_per_s: f64| pages_per_s * PAGE / MIB;
    let most = round_up(
        summary
            .rates
            .iter()
            .map(|rate| mib(rate.pages_per_s))
            .fold(0.0, f64::max),
    );
    let y = |value: f64| top + height - value / most * height;
    let mut path = String::new();
    let mut before: Option<f64> = None;
    let usual_ms = summary.observed_ms / summary.rates.len().max(1) as f64;
    for rate in &summary.rates {
        // Nobody looked in a pause: no line there.
        let follows = before.is_some_and(|before| rate.at_ms - before < 3.0 * usual_ms);
        path += if follows { "L" } else { "M" };
        path += &format!(
            "{} {}",
            place(x(summary, rate.at_ms)),
            place(y(mib(rate.pages_per_s)))
        );
        before = Some(rate.at_ms);
    }
    html! {
        text x="16" y=(place(top - 8.0)) { "dirtied, MiB/s" }
        @for part in [0.0, 0.5, 1.0] {
            line class="grid" x1=(LEFT) x2=(WIDTH - RIGHT) y1=(place(y(most * part))) y2=(place(y(most * part))) {}
            text class="small" x=(LEFT - 6.0) y=(place(y(most * part) + 4.0)) text-anchor="end" { (digits(most * part)) }
        }
        path class="line" d=(path) {}
        (seconds(summary, top + height))
    }
}

fn heat(summary: &Summary) -> Markup {
    let (top, height) = HEAT;
    let map = &summary.heat;
    let all = map.pages_per_s.iter().flatten().copied();
    let most = all.fold(0.0, f64::max);
    let regions = map.pages_per_s.first().map_or(1, Vec::len).max(1);
    let row = height / regions as f64;
    let colour = |value: f64| {
        // By the root: regions differ by orders of magnitude.
        let level = (value / most.max(1e-9)).sqrt() * (COLOURS.len() - 1) as f64;
        COLOURS[(level.ceil() as usize).min(COLOURS.len() - 1)]
    };
    let ram_mib = summary.ram_bytes as f64 / MIB;
    html! {
        text x="16" y=(place(top - 8.0)) {
            "regions of RAM, MiB from its begin; the darkest wrote " (digits(most * PAGE / MIB)) " MiB/s"
        }
        @for (column, (from_ms, to_ms)) in map.pages_per_s.iter().zip(&map.columns_ms) {
            @let (left, right) = (x(summary, *from_ms), x(summary, *to_ms));
            @for (region, value) in column.iter().enumerate().filter(|(_, value)| **value > 0.0) {
                rect x=(place(left)) y=(place(top + row * region as f64)) width=(place((right - left).max(0.6)))
                    height=(place(row)) fill=(colour(*value)) {}
            }
        }
        rect class="frame" x=(LEFT) y=(top) width=(WIDTH - LEFT - RIGHT) height=(height) {}
        @for part in [0.0, 0.25, 0.5, 0.75, 1.0] {
            text class="small" x=(LEFT - 6.0) y=(place(top + height * part + 4.0)) text-anchor="end" {
                (digits(ram_mib * part))
            }
        }
        (seconds(summary, top + height))
    }
}

/// The axis of time.
fn seconds(summary: &Summary, bottom: f64) -> Markup {
    let long_s = summary.length_ms / 1e3;
    let step = round_up(long_s / 8.0);
    let count = (long_s / step) as usize;
    html! {
        @for tick in 0..=count {
            @let at_s = tick as f64 * step;
            text class="small" x=(place(x(summary, at_s * 1e3))) y=(place(bottom + 16.0)) text-anchor="middle" {
                (digits(at_s)) @if tick == count { " s" }
            }
        }
    }
}
