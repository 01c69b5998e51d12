//! Bars and lines: a plot for each metric and for everything that is not along the axis.

use maud::{Markup, html};
use vmferry_lab::bench::Results;
use vmferry_lab::bench::quantity::{Better, Quantity};
use vmferry_lab::bench::scenario::{Dimension, Figure};

use crate::estimate::{Case, Estimate};
use crate::plot::{Bar, Bars, Line, Lines, Point, legend};
use crate::side::Side;
use crate::table;

const DIMENSIONS: [Dimension; 3] = [Dimension::Guest, Dimension::Link, Dimension::Variant];

/// How many plots its bars need.
pub(super) fn count(figure: &Figure, cases: &[Case<'_>]) -> usize {
    grouped(cases, &fixed(figure)).len() * figure.metrics.len()
}

/// Bars with one dimension along the axis.
pub(super) fn bars(results: &Results, figure: &Figure, cases: &[Case<'_>], anchor: &str) -> Markup {
    let fixed = fixed(figure);
    let mut plots = Vec::new();
    for (group, cases) in grouped(cases, &fixed) {
        for metric in &figure.metrics {
            let quantity = Quantity::of(metric);
            let bars: Vec<_> = cases
                .iter()
                .filter(|case| figure.relative_to.as_deref() != Some(case.variant))
                .map(|case| bar(results, figure, *case, metric))
                .collect();
            if bars.iter().all(|bar| bar.estimate.is_none()) {
                continue;
            }
            let heading = heading(&quantity, figure.relative_to.as_deref());
            let title = format!("{heading}: {group}");
            let plot = Bars {
                id: &format!("{anchor}-p{}", plots.len()),
                title: &title,
                label: &heading,
                unit: figure.relative_to.is_none().then_some(quantity.unit),
                log: figure.log,
                bars,
            };
            plots.push(panel(&heading, &group, &quantity, &plot.draw()));
        }
    }
    html! { div class="plots" { @for plot in plots { (plot) } } }
}

/// What is not along the axis of bars.
fn fixed(figure: &Figure) -> Vec<Dimension> {
    let along = figure.along();
    DIMENSIONS
        .into_iter()
        .filter(|dimension| *dimension != along)
        .collect()
}

fn bar<'a>(results: &'a Results, figure: &Figure, case: Case<'a>, metric: &str) -> Bar<'a> {
    let lacking = match table::outcomes(results, case) {
        (0, failures) if !failures.is_empty() => "failed",
        (0, _) => "not measured",
        _ => "without this figure",
    };
    Bar {
        name: name(case, figure.along()),
        peer: Side::of(&results.content, case.variant) == Side::Peer,
        estimate: estimate(results, figure, case, metric),
        lacking,
    }
}

/// Lines over one dimension, a line for each of another, a plot for each of the third.
pub(super) fn lines(results: &Results, figure: &Figure, cases: &[Case<'_>], anchor: &str) -> Markup {
    let along = figure.along();
    let series = match along {
        Dimension::Variant => Dimension::Guest,
        _ => Dimension::Variant,
    };
    let fixed = DIMENSIONS
        .into_iter()
        .find(|other| *other != along && *other != series);
    let all = names(cases, series);
    let x_names = names(cases, along);
    let placed = x_names.iter().all(|name| figure.place(name).is_some());
    let place = |name: &str| match placed {
        true => figure.place(name),
        // Names without numbers, one after the other.
        false => x_names
            .iter()
            .position(|other| *other == name)
            .map(|index| index as f64),
    };
    let x_label = figure.x_label.as_deref().unwrap_or(match along {
        Dimension::Link if placed => "link, Mbit/s",
        Dimension::Link => "link",
        Dimension::Guest => "guest",
        Dimension::Variant => "variant",
    });
    let mut plots = Vec::new();
    for (group, cases) in grouped(cases, fixed.as_slice()) {
        for metric in &figure.metrics {
            let quantity = Quantity::of(metric);
            let points = |of: &str| {
                let own = cases.iter().filter(|case| name(**case, series) == of);
                let point = |case: &Case<'_>| {
                    let estimate = estimate(results, figure, *case, metric)?;
                    Some(Point {
                        x: place(name(*case, along))?,
                        y: estimate.median,
                        interval: estimate.interval,
                    })
                };
                let mut points: Vec<_> = own.filter_map(point).collect();
                points.sort_by(|one, other| one.x.total_cmp(&other.x));
                points
            };
            let lines = all.iter().enumerate().map(|(index, of)| Line {
                name: of,
                index,
                points: points(of),
            });
            let lines: Vec<_> = lines.filter(|line| !line.points.is_empty()).collect();
            if lines.is_empty() {
                continue;
            }
            let heading = heading(&quantity, figure.relative_to.as_deref());
            let plot = Lines {
                id: &format!("{anchor}-p{}", plots.len()),
                title: &format!("{heading}: {group}"),
                label: &heading,
                unit: figure.relative_to.is_none().then_some(quantity.unit),
                log: figure.log,
                log_x: false,
                x_label,
                names: x_names
                    .iter()
                    .filter_map(|name| Some((place(name)?, tick(name, placed, figure))))
                    .collect(),
                lines,
            };
            plots.push(panel(&heading, &group, &quantity, &plot.draw()));
        }
    }
    html! {
        (legend(all.iter().copied().enumerate()))
        div class="plots" { @for plot in plots { (plot) } }
    }
}

/// What stands at the axis for a name.
fn tick(name: &str, placed: bool, figure: &Figure) -> String {
    match figure.place(name) {
        Some(place) if placed => crate::number::digits(place),
        _ => name.to_owned(),
    }
}

/// A plot with its heading.
pub(super) fn panel(heading: &str, group: &str, quantity: &Quantity, plot: &Markup) -> Markup {
    html! {
        div class="panel" {
            h4 {
                (heading)
                @match quantity.better {
                    Some(Better::Lower) => span class="better" { "less is better" },
                    Some(Better::Higher) => span class="better" { "more is better" },
                    None => {},
                }
            }
            @if !group.is_empty() { p class="group" { (group) } }
            (plot)
        }
    }
}

fn heading(quantity: &Quantity, relative_to: Option<&str>) -> String {
    match relative_to {
        Some(base) => format!("{}, relative to {base}", quantity.label),
        None => quantity.label.clone(),
    }
}

fn estimate(results: &Results, figure: &Figure, case: Case<'_>, metric: &str) -> Option<Estimate> {
    let own = Estimate::of(results, case, metric)?;
    match figure.relative_to.as_deref() {
        None => Some(own),
        Some(variant) => own.relative_to(&Estimate::of(results, Case { variant, ..case }, metric)?),
    }
}

/// Cases that have these dimensions in common, with what that is.
pub(super) fn grouped<'a>(cases: &[Case<'a>], fixed: &[Dimension]) -> Vec<(String, Vec<Case<'a>>)> {
    let mut groups: Vec<(String, Vec<Case<'a>>)> = Vec::new();
    for case in cases {
        let names: Vec<_> = fixed.iter().map(|dimension| name(*case, *dimension)).collect();
        let group = names.join(", ");
        match groups.iter_mut().find(|(other, _)| *other == group) {
            Some((_, cases)) => cases.push(*case),
            None => groups.push((group, vec![*case])),
        }
    }
    groups
}

fn names<'a>(cases: &[Case<'a>], dimension: Dimension) -> Vec<&'a str> {
    let mut names = Vec::new();
    for case in cases {
        let name = name(*case, dimension);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

fn name(case: Case<'_>, dimension: Dimension) -> &str {
    match dimension {
        Dimension::Guest => case.guest,
        Dimension::Link => case.link,
        Dimension::Variant => case.variant,
    }
}
