//! Regression models of total time, and their trial with five training points, as in the performance-model paper.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vmferry_forecast::model::trial::Trial;
use vmferry_forecast::model::{Axis, Form, Model, Observation, Setting, fit, fit_form};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::scenario::Figure;
use vmferry_lab::bench::{Results, record};

use crate::number;
use crate::plot::{Curve, Models, legend};

/// Points of a curve.
const STEPS: usize = 80;
/// What the issue asks of a model where time depends on the share.
const GOOD_R2: f64 = 0.9;

/// Runs that differ on one axis only.
struct Series {
    name: String,
    link: String,
    /// What the others are.
    fixed: Setting,
    observations: Vec<Observation>,
}

/// A plot for each link, and what the models say.
pub(super) fn models(results: &Results, figure: &Figure, anchor: &str) -> Markup {
    let axis = figure.axis.unwrap_or(Axis::SourceCpu);
    let all = series(results, figure, axis);
    let fitted: Vec<_> = all
        .iter()
        .map(|series| {
            (
                series,
                fit(&series.observations),
                fit_form(&series.observations, &Form::power(axis)),
            )
        })
        .collect();
    let mut links: Vec<&str> = all.iter().map(|series| series.link.as_str()).collect();
    links.dedup();
    let x_label = format!("{axis}, % of a core");
    html! {
        div class="plots" {
            @for (index, link) in links.iter().enumerate() {
                @let curves: Vec<Curve> = fitted.iter().filter(|(series, ..)| series.link == *link).map(|(series, model, _)| {
                    curve(series, model.as_ref().ok(), axis)
                }).collect();
                @let names: Vec<String> = curves.iter().map(|curve| curve.name.clone()).collect();
                div class="panel" {
                    h4 { "Total time, " (link) }
                    (Models {
                        id: &format!("{anchor}-m{index}"),
                        title: &format!("{}, {link}", figure.title),
                        x_label: &x_label,
                        log: figure.log,
                        curves,
                    }.draw())
                    (legend(names.iter().enumerate().map(|(index, name)| (index, name.as_str()))))
                }
            }
        }
        div class="tables wide" { div class="scroll" tabindex="0" role="region" aria-label={ "models of " (figure.title) } { table {
            caption { "models, chosen by cross-validation, beside the paper's power law" }
            thead { tr {
                th scope="col" { "guest" } th scope="col" class="number" { "runs" } th scope="col" { "form" }
                th scope="col" class="number" { "R²" } th scope="col" class="number" { "R² of a power law" }
                th scope="col" { "ms; s, d: CPU shares" } th scope="col" { "finding" }
            } }
            tbody {
                @for (series, model, power) in &fitted { tr {
                    th scope="row" { (series.name) @if links.len() > 1 { ", " (series.link) } }
                    td class="number" { "n = " (series.observations.len()) }
                    @match model {
                        Ok(model) => {
                            td class="text" { (model.chosen.form.to_string()) }
                            td class="number" { (digits(model.chosen.r2)) }
                            td class="number" { (power.as_ref().map_or("–".to_owned(), |model| digits(model.chosen.r2))) }
                            td class="text" { (model.chosen.formula()) }
                            td class="text" { (judged(model)) }
                        }
                        Err(error) => td colspan="5" class="text" { "no model: " (error.to_string()) },
                    }
                } }
            }
        } } }
    }
}

/// Whether R2 is what it should be, where time depends on anything.
fn judged(model: &Model) -> Markup {
    let depends = !model.chosen.axes.is_empty();
    let (class, sign, words) = match (depends, model.chosen.r2 >= GOOD_R2) {
        (false, _) => ("none", "–", ""),
        (true, true) => ("holds", "✓", " R² of 0.9 or more; "),
        (true, false) => ("differs", "✗", " R² below 0.9; "),
    };
    html! {
        span class={ "verdict " (class) } { span aria-hidden="true" { (sign) } (words) }
        " " (model.findings().join("; "))
    }
}

fn curve(series: &Series, model: Option<&Model>, axis: Axis) -> Curve {
    let at = |observation: &Observation| observation.setting.get(axis).unwrap_or_default();
    let (low, high) = series
        .observations
        .iter()
        .map(at)
        .fold((f64::INFINITY, 0.0_f64), |(low, high), value| {
            (low.min(value), high.max(value))
        });
    let expected = |model: &Model| -> Vec<_> {
        let place = |step: usize| low * (high / low).powf(step as f64 / STEPS as f64);
        let point = |x: f64| {
            let said = model.predict(&series.fixed.with(axis, x)).ok()?;
            Some((x, said.value, said.low, said.high))
        };
        (0..=STEPS)
            .filter_map(|step| point(place(step).min(high)))
            .collect()
    };
    Curve {
        name: series.name.clone(),
        measured: series.observations.iter().map(|it| (at(it), it.value)).collect(),
        expected: model.map(expected).unwrap_or_default(),
    }
}

/// The paper's Table 1: five training points of each series, errors on all the others.
pub(super) fn trials(results: &Results, figure: &Figure) -> Markup {
    let axis = figure.axis.unwrap_or(Axis::SourceCpu);
    let power = Form::power(axis);
    html! {
        div class="tables" {
            @for series in series(results, figure, axis) {
                @let (chosen, power) = (
                    Trial::run(&series.observations, axis, None),
                    Trial::run(&series.observations, axis, Some(&power)),
                );
                div class="scroll" tabindex="0" role="region" aria-label={ "trial of " (series.name) } {
                    @match &chosen {
                        Ok(trial) => (trial_table(&series, trial, power.as_ref().ok())),
                        Err(error) => p { (series.name) ": no trial: " (error.to_string()) },
                    }
                }
            }
        }
    }
}

fn trial_table(series: &Series, trial: &Trial, power: Option<&Trial>) -> Markup {
    let ms = |value: f64| number::show(Unit::Milliseconds, value);
    let percent = |share: f64| format!("{:+.1} %", share * 1e2);
    let of_power = |at: f64| power.and_then(|trial| trial.tests.iter().find(|test| test.at == at));
    let training: Vec<_> = trial.training.iter().map(|at| format!("{at:.0}")).collect();
    html! {
        table {
            caption { (series.name) ", " (series.link) ": learned at " (training.join(", ")) " %" }
            thead { tr {
                th scope="col" class="number" { "CPU" } th scope="col" class="number" { "measured" }
                th scope="col" class="number" { (trial.model.chosen.form.to_string()) } th scope="col" class="number" { "error" }
                th scope="col" class="number" { "power law" } th scope="col" class="number" { "error" }
            } }
            tbody {
                @for test in &trial.tests { tr {
                    th scope="row" class="number" { (format!("{:.0} %", test.at)) }
                    td class="number" { (ms(test.measured)) }
                    td class="number" { (ms(test.expected)) }
                    td class="number" { (percent(test.error())) }
                    @match of_power(test.at) {
                        Some(test) => { td class="number" { (ms(test.expected)) } td class="number" { (percent(test.error())) } }
                        None => { td { "–" } td { "–" } }
                    }
                } }
                tr {
                    th scope="row" colspan="2" { "R² on these, median error" }
                    td class="number" { (trial.test_r2.map_or("–".to_owned(), digits)) }
                    td class="number" { (trial.median_error().map_or("–".to_owned(), percent)) }
                    td class="number" { (power.and_then(|trial| trial.test_r2).map_or("–".to_owned(), digits)) }
                    td class="number" { (power.and_then(Trial::median_error).map_or("–".to_owned(), percent)) }
                }
            }
        }
    }
}

/// Runs by guest, link, and everything but `axis`; those that vary on it.
fn series(results: &Results, figure: &Figure, axis: Axis) -> Vec<Series> {
    let mut all: BTreeMap<(usize, usize, Vec<u64>), Series> = BTreeMap::new();
    for run in &results.runs {
        let key = &run.key;
        if !figure.shows(&key.guest, &key.link, &key.variant) {
            continue;
        }
        let Some(record) = record(results, run).filter(|record| record.setting.get(axis).is_some()) else {
            continue;
        };
        let content = &results.content;
        let guest = content
            .guests
            .iter()
            .position(|guest| guest.name == key.guest)
            .unwrap_or(0);
        let link = content
            .links
            .iter()
            .position(|link| *link == key.link)
            .unwrap_or(0);
        let others: Vec<Axis> = Axis::ALL.into_iter().filter(|other| *other != axis).collect();
        let fixed = others
            .iter()
            .map(|other| record.setting.get(*other).unwrap_or_default().to_bits());
        let series = all
            .entry((guest, link, fixed.collect()))
            .or_insert_with(|| Series {
                name: name(&key.guest, &record.setting, &others),
                link: key.link.clone(),
                fixed: record.setting,
                observations: Vec::new(),
            });
        series.observations.push(Observation {
            setting: record.setting,
            value: record.total_ms,
        });
    }
    all.into_values().filter(|series| varies(series, axis)).collect()
}

fn varies(series: &Series, axis: Axis) -> bool {
    let values = series.observations.iter().filter_map(|it| it.setting.get(axis));
    values
        .map(f64::to_bits)
        .collect::<std::collections::BTreeSet<_>>()
        .len()
        > 1
}

fn name(guest: &str, setting: &Setting, others: &[Axis]) -> String {
    let fixed = others
        .iter()
        .filter_map(|axis| Some(format!("{axis} {}", axis.show(setting.get(*axis)?))));
    std::iter::once(guest.to_owned())
        .chain(fixed)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Three digits after the point.
fn digits(value: f64) -> String {
    format!("{value:.3}")
}
