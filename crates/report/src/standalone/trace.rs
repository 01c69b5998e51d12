//! A trace: dirty rate over time, how busy the guest was, and where it wrote when.

use maud::{Markup, html};
use vmferry_trace::Summary;
use vmferry_trace::summary::operations_per_s;

use super::{LEFT, RIGHT, WIDTH, digits, file, place, round_up};

const MIB: f64 = (1 << 20) as f64;
const PAGE: f64 = vmferry_core::PAGE_SIZE as f64;
/// Top and height of the plot of the rate, and of the heat map below it.
const RATE: (f64, f64) = (70.0, 150.0);
const HEAT: (f64, f64) = (280.0, 260.0);
/// The same of what tells how busy the guest was, where something does. The heat map is moved down by so much.
const BUSY: (f64, f64) = (280.0, 80.0);
const BUSY_ROOM: f64 = 140.0;
/// A line breaks where there is nothing for so many times the time from one point to the next.
const GAP: f64 = 3.0;
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
    let busy = busy(summary);
    let heat_top = HEAT.0 + if busy.is_some() { BUSY_ROOM } else { 0.0 };
    let content = html! {
        text class="small" x="16" y="46" { (description) }
        (rate(summary))
        @if let Some(busy) = busy { (busy) }
        (heat(summary, heat_top))
    };
    file(heat_top + HEAT.1 + 50.0, &title, &description, &content)
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
    let points = summary
        .rates
        .iter()
        .map(|rate| (rate.at_ms, mib(rate.pages_per_s)));
    let path = path(summary, points, usual_ms(summary), y);
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

/// The usual time from one sample to the next.
fn usual_ms(summary: &Summary) -> f64 {
    summary.observed_ms / summary.rates.len().max(1) as f64
}

/// A line through these points of time and value. Nobody looked in a pause: there is none there.
fn path(
    summary: &Summary,
    points: impl Iterator<Item = (f64, f64)>,
    usual_ms: f64,
    y: impl Fn(f64) -> f64,
) -> String {
    let mut path = String::new();
    let mut before: Option<f64> = None;
    for (at_ms, value) in points {
        let follows = before.is_some_and(|before| at_ms - before < GAP * usual_ms);
        path += if follows { "L" } else { "M" };
        path += &format!("{} {}", place(x(summary, at_ms)), place(y(value)));
        before = Some(at_ms);
    }
    path
}

/// CPU that the guest used and what it did for its clients, each in relation to its own most; none where neither is known.
fn busy(summary: &Summary) -> Option<Markup> {
    let (top, height) = BUSY;
    let cpu: Vec<(f64, f64)> = summary
        .rates
        .iter()
        .filter_map(|rate| Some((rate.at_ms, rate.cpu_percent?)))
        .collect();
    let spans = operations_per_s(&summary.loads);
    let mark_ms = spans
        .iter()
        .map(|((from, until), _)| until - from)
        .fold(0.0, f64::max);
    let operations: Vec<(f64, f64)> = spans
        .into_iter()
        .map(|((from, until), per_s)| ((from + until) / 2.0, per_s))
        .collect();
    if cpu.is_empty() && operations.is_empty() {
        return None;
    }
    let most = |points: &[(f64, f64)]| round_up(points.iter().map(|(_, value)| *value).fold(0.0, f64::max));
    let (most_cpu, most_operations) = (most(&cpu), most(&operations));
    let line = |points: &[(f64, f64)], usual_ms: f64, most: f64| {
        let y = |value: f64| top + height - value / most * height;
        path(summary, points.iter().copied(), usual_ms, y)
    };
    let (below, above) = (place(top + height), place(top));
    Some(html! {
        text x="16" y=(place(top - 8.0)) {
            @if !cpu.is_empty() { "CPU, to " (digits(most_cpu)) " % of one core" }
            @if !cpu.is_empty() && !operations.is_empty() { "; " }
            @if !operations.is_empty() { "operations for clients (orange), to " (digits(most_operations)) " a second" }
        }
        line class="grid" x1=(LEFT) x2=(WIDTH - RIGHT) y1=(above) y2=(above) {}
        line class="grid" x1=(LEFT) x2=(WIDTH - RIGHT) y1=(below) y2=(below) {}
        @if !cpu.is_empty() { path class="line" d=(line(&cpu, usual_ms(summary), most_cpu)) {} }
        @if !operations.is_empty() {
            path class="line second" d=(line(&operations, mark_ms, most_operations)) {}
        }
        (seconds(summary, top + height))
    })
}

fn heat(summary: &Summary, top: f64) -> Markup {
    let (_, height) = HEAT;
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

#[cfg(test)]
mod tests {
    use vmferry_trace::summary::{HeatMap, RateAt};
    use vmferry_trace::{Blend, LoadMark};

    use super::*;

    fn summary(cpu_percent: Option<f64>, operations: Option<u64>) -> Summary {
        let rate_at = |index: u32| RateAt {
            at_ms: 50.0 * f64::from(index) + 25.0,
            pages_per_s: 1000.0,
            cpu_percent,
        };
        let load_at = |second: u32| LoadMark {
            at_us: u64::from(second) * 1_000_000,
            operations: operations.map(|operations| operations * u64::from(second)),
            ..LoadMark::default()
        };
        Summary {
            vm: "web".into(),
            ram_bytes: 64 << 20,
            data_bytes: 1 << 20,
            length_ms: 3000.0,
            observed_ms: 3000.0,
            samples: 60,
            bursts: 1,
            full_samples: 60,
            sparsest: 1,
            cost_percent: None,
            dirty_bytes_per_s: 4e6,
            dirty_bytes_per_s_range: (4e6, 4e6),
            working_set_bytes: 1 << 20,
            written_bytes: 1 << 20,
            content: Blend::default(),
            written_content: Blend::default(),
            delta: None,
            used_for: Vec::new(),
            loads: (0..4).map(load_at).collect(),
            rates: (0..60).map(rate_at).collect(),
            heat: HeatMap::default(),
        }
    }

    #[test]
    fn cpu_and_load_are_drawn_where_they_are_known() {
        let drawn = |cpu, operations| trace_svg(&summary(cpu, operations));
        let neither = drawn(None, None);
        assert!(!neither.contains("CPU") && !neither.contains("operations"));
        let both = drawn(Some(80.0), Some(700));
        assert!(both.contains("CPU, to 100 % of one core; operations"), "{both}");
        assert!(both.contains("to 1000 a second"), "{both}");
        // 80 of 100 and 700 of 1000, each in one piece.
        assert!(both.contains("296L"), "{both}");
        let second = both.split("line second").nth(1).unwrap();
        let path = second.split('"').nth(2).unwrap();
        assert!(
            path.matches('M').count() == 1 && path.matches("304").count() == 3,
            "{path}"
        );
        let load = drawn(None, Some(700));
        assert!(!load.contains("CPU") && load.contains("operations"), "{load}");
    }
}
