//! Plots as inline SVG. They are 360 wide, as a phone is: a page sets several beside each other where it has room. Colours
//! come from classes, so that light, dark and print have their own; shapes and words say the same again.

mod bars;
mod counts;
mod lines;
mod models;
mod scale;
mod timeline;

use maud::{Markup, html};

pub(crate) use bars::{Bar, Bars};
pub(crate) use counts::Counts;
pub(crate) use lines::{Line, Lines, Point, legend};
pub(crate) use models::{Curve, Models};
pub(crate) use timeline::{Axis, Timeline};

/// Width of every plot.
const WIDTH: f64 = 360.0;

/// A drawing with the words that stand for it where it cannot be seen. `id` is of its own on the page.
fn drawing(id: &str, height: f64, title: &str, description: &str, content: &Markup) -> Markup {
    let (title_id, description_id) = (format!("{id}-t"), format!("{id}-d"));
    html! {
        svg id=(id) class="plot" viewBox={ "0 0 " (WIDTH) " " (place(height)) } role="img"
            aria-labelledby={ (title_id) " " (description_id) } {
            title id=(title_id) { (title) }
            desc id=(description_id) { (description) }
            (content)
        }
    }
}

/// A coordinate; more digits would say nothing.
fn place(coordinate: f64) -> String {
    let text = format!("{coordinate:.1}");
    text.strip_suffix(".0").map(str::to_owned).unwrap_or(text)
}

/// A path through points.
fn path(points: impl IntoIterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (x, y) in points {
        text.push(if text.is_empty() { 'M' } else { 'L' });
        text.push_str(&place(x));
        text.push(' ');
        text.push_str(&place(y));
    }
    text
}
