//! What was measured over what was expected: a forecast that is right lies on the diagonal, and its interval crosses it.

use maud::{Markup, html};
use vmferry_forecast::experience::Quantity;
use vmferry_forecast::score::Score;

use super::{file, place};

/// Room for a panel.
const PANEL: f64 = 430.0;
/// Its axes.
const SIDE: f64 = 330.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 60.0;

/// A quantity.
pub struct CalibrationPanel {
    /// In words.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// Its forecasts.
    pub points: Vec<CalibrationPoint>,
}

/// A forecast and what came.
#[derive(Clone, Copy, Debug)]
pub struct CalibrationPoint {
    /// What was expected.
    pub expected: f64,
    /// Lower end of its interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// What was measured.
    pub measured: f64,
}

/// A panel for each quantity of a score.
pub fn calibration_panels(score: &Score) -> Vec<CalibrationPanel> {
    let panel = |quantity: Quantity| {
        let (unit, size) = match quantity {
            Quantity::BytesOnWire => ("MiB", f64::from(1 << 20)),
            _ => ("ms", 1.0),
        };
        let points = score.points.iter().filter(|point| point.quantity == quantity);
        CalibrationPanel {
            name: quantity.name().to_owned(),
            unit,
            points: points
                .map(|point| CalibrationPoint {
                    expected: point.expected.likely / size,
                    low: point.expected.low / size,
                    high: point.expected.high / size,
                    measured: point.measured / size,
                })
                .collect(),
        }
    };
    Quantity::ALL.map(panel).into()
}

/// A panel as part of a page, which has the style. `id` is of its own there.
pub(crate) fn calibration_panel(panel: &CalibrationPanel, id: &str) -> Markup {
    let (title_id, description_id) = (format!("{id}-t"), format!("{id}-d"));
    let (top, height) = (TOP - 36.0, SIDE + 72.0);
    html! {
        svg id=(id) class="plot" viewBox={ "0 " (place(top)) " " (place(LEFT + SIDE + 20.0)) " " (place(height)) } role="img"
            aria-labelledby={ (title_id) " " (description_id) } {
            title id=(title_id) { (panel.name) ": measured over expected" }
            desc id=(description_id) { (held(panel)) }
            (draw(panel))
        }
    }
}

/// How many of its intervals hold, in words.
fn held(panel: &CalibrationPanel) -> String {
    let holds = |point: &&CalibrationPoint| (point.low..=point.high).contains(&point.measured);
    let held = panel.points.iter().filter(holds).count();
    format!("{}: {held} of {} intervals hold", panel.name, panel.points.len())
}

/// Panels beside each other, two in a row, on logarithmic scales.
pub fn calibration_svg(title: &str, panels: &[CalibrationPanel]) -> String {
    let panels: Vec<_> = panels.iter().filter(|panel| !panel.points.is_empty()).collect();
    let content = html! {
        @for (index, panel) in panels.iter().enumerate() {
            g transform={ "translate(" (place(PANEL * (index % 2) as f64)) " " (place(PANEL * (index / 2) as f64)) ")" } {
                (draw(panel))
            }
        }
    };
    let said: Vec<_> = panels.iter().map(|panel| held(panel)).collect();
    let description = said.join("; ");
    file(
        PANEL * panels.len().div_ceil(2) as f64 + 20.0,
        title,
        &description,
        &content,
    )
}

fn draw(panel: &CalibrationPanel) -> Markup {
    let values = || {
        let of = |point: &CalibrationPoint| [point.expected, point.low, point.high, point.measured];
        panel.points.iter().flat_map(of).filter(|value| *value > 0.0)
    };
    let low = values().fold(f64::INFINITY, f64::min).log10().floor();
    let high = values().fold(0.0, f64::max).log10().ceil().max(low + 1.0);
    let at = |value: f64| ((value.max(1e-9).log10() - low) / (high - low)).clamp(0.0, 1.0) * SIDE;
    let x = |value: f64| place(LEFT + at(value));
    let y = |value: f64| place(TOP + SIDE - at(value));
    let (left, right) = (place(LEFT), place(LEFT + SIDE));
    let (top, bottom) = (place(TOP), place(TOP + SIDE));
    html! {
        text x=(left) y=(place(TOP - 10.0)) { (panel.name) ", " (panel.unit) }
        rect class="frame" x=(left) y=(top) width=(place(SIDE)) height=(place(SIDE)) {}
        @for power in (low as i32)..=(high as i32) {
            @let value = 10f64.powi(power);
            path class="grid" d={ "M" (x(value)) " " (top) "V" (bottom) "M" (left) " " (y(value)) "H" (right) } {}
            text class="small tick" x=(x(value)) y=(place(TOP + SIDE + 14.0)) text-anchor="middle" { (value) }
            text class="small tick" x=(place(LEFT - 5.0)) y=(y(value)) text-anchor="end" { (value) }
        }
        path class="line second" d={ "M" (left) " " (bottom) "L" (right) " " (top) } {}
        text class="small tick" x=(place(LEFT + SIDE / 2.0)) y=(place(TOP + SIDE + 30.0)) text-anchor="middle" { "expected, with its interval" }
        text class="small tick" x=(left) y=(place(TOP - 24.0)) { "measured, upwards" }
        @for point in &panel.points {
            @let held = (point.low..=point.high).contains(&point.measured);
            path class="whisker" d={ "M" (x(point.low)) " " (y(point.measured)) "H" (x(point.high)) } {}
            circle class=(if held { "p0" } else { "p1" }) cx=(x(point.expected)) cy=(y(point.measured)) r="3.5" {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_held_is_seen_and_said() {
        let point = |measured| CalibrationPoint {
            expected: 100.0,
            low: 90.0,
            high: 110.0,
            measured,
        };
        let panel = CalibrationPanel {
            name: "total time".into(),
            unit: "ms",
            points: vec![point(100.0), point(500.0)],
        };
        let none = CalibrationPanel {
            name: "bytes".into(),
            unit: "MiB",
            points: Vec::new(),
        };
        let svg = calibration_svg("two forecasts", &[panel, none]);
        assert!(
            svg.contains("total time: 1 of 2 intervals hold") && !svg.contains("bytes"),
            "{svg}"
        );
        assert_eq!(
            (svg.matches("\"p0\"").count(), svg.matches("\"p1\"").count()),
            (1, 1)
        );
    }
}
