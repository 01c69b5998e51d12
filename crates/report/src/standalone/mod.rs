//! Plots that are files of their own: SVG with its style in it, for traces and simulations.

mod calibration;
mod outcomes;
mod trace;

use maud::{Markup, PreEscaped, html};

pub(crate) use calibration::calibration_panel;
pub use calibration::{CalibrationPanel, CalibrationPoint, calibration_panels, calibration_svg};
pub use outcomes::{OutcomeRow, Span, outcomes_svg};
pub use trace::trace_svg;

/// Width of a drawing.
const WIDTH: f64 = 900.0;
/// Room for what is written at the left, and at the right.
const LEFT: f64 = 110.0;
const RIGHT: f64 = 20.0;

/// The same in light and in dark.
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#222}.title{font-size:15px;font-weight:600}\
.small{font-size:11px;fill:#666}.grid{stroke:#bbb;stroke-width:.5}.line{fill:none;stroke:#1f6feb;stroke-width:1.5}\
.second{stroke:#c2570c}.bar{fill:#1f6feb}.whisker{stroke:#222;stroke-width:1.2;fill:none}.frame{fill:none;stroke:#999}\
.p0{fill:#1f6feb}.p1{fill:#c2570c}.p2{fill:#2a9d63}.p3{fill:#8957e5}.p4{fill:#b08800}\
@media(prefers-color-scheme:dark){.sheet{fill:#16181d}text{fill:#ddd}.small{fill:#999}.grid{stroke:#444}.whisker{stroke:#ddd}}";

/// A whole file.
fn file(height: f64, title: &str, description: &str, content: &Markup) -> String {
    let drawn = html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox={ "0 0 " (WIDTH) " " (place(height)) } role="img"
            aria-labelledby="title description" {
            title id="title" { (title) }
            desc id="description" { (description) }
            style { (PreEscaped(STYLE)) }
            rect class="sheet" width=(WIDTH) height=(place(height)) fill="#fff" {}
            text class="title" x="16" y="26" { (title) }
            (content)
        }
    };
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{}\n",
        drawn.into_string()
    )
}

/// A coordinate; more digits would say nothing.
fn place(coordinate: f64) -> String {
    let text = format!("{coordinate:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// A number that an axis may end with: 1, 2 or 5 times a power of ten, at least `most`.
fn round_up(most: f64) -> f64 {
    if !(most > 0.0 && most.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|step| step * power >= most * 0.999);
    step.unwrap_or(10.0) * power
}

/// Three digits that count.
fn digits(number: f64) -> String {
    crate::number::digits(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_with_round_numbers() {
        for (most, end) in [
            (0.0, 1.0),
            (0.9, 1.0),
            (1.1, 2.0),
            (37.0, 50.0),
            (510.0, 1000.0),
            (f64::NAN, 1.0),
        ] {
            assert!((round_up(most) - end).abs() < 1e-9, "{most}: {}", round_up(most));
        }
    }
}
