//! Tables of figures: never one without its spread.

use maud::{Markup, html};
use vmferry_lab::bench::quantity::{Quantity, Unit};
use vmferry_lab::bench::{Outcome, Results};

use crate::estimate::{Case, Estimate};
use crate::number;

/// Tables for metrics of which so many have room beside each other.
const NARROW: usize = 2;

/// A table for each guest and link: a row for each variant, a column for each metric, and the causes of runs that failed. Beside
/// figures of `relative_to` the others are shown as ratios too.
pub(crate) fn figures(
    results: &Results,
    cases: &[Case<'_>],
    metrics: &[String],
    relative_to: Option<&str>,
) -> Markup {
    let groups = cases.chunk_by(|one, other| (one.guest, one.link) == (other.guest, other.link));
    html! {
        div class=(if metrics.len() <= NARROW { "tables" } else { "tables wide" }) {
            @for group in groups { (of_group(results, group, metrics, relative_to)) }
        }
    }
}

fn of_group(results: &Results, cases: &[Case<'_>], metrics: &[String], relative_to: Option<&str>) -> Markup {
    let what = cases
        .first()
        .map(|case| {
            format!(
                "{}, {}{}",
                case.guest,
                case.link,
                counted(results, *case, metrics)
            )
        })
        .unwrap_or_default();
    html! {
        div class="scroll" tabindex="0" role="region" aria-label={ "figures of " (what) } {
            table {
                caption { (what) }
                thead { tr {
                    th scope="col" { "variant" }
                    th scope="col" class="number" { "runs" }
                    @for metric in metrics { th scope="col" class="number" { (Quantity::of(metric).label) } }
                } }
                tbody {
                    @for case in cases {
                        @let (measured, failures) = outcomes(results, *case);
                        tr {
                            th scope="row" { (case.variant) }
                            td class="number" { "n = " (measured) }
                            @for metric in metrics {
                                td class="number" { (cell(results, *case, metric, relative_to)) }
                            }
                        }
                        @for (cause, times) in failures {
                            tr class="failed" { td colspan=(2 + metrics.len()) {
                                span class="verdict differs" { span aria-hidden="true" { "✗" } " failed" }
                                @if times > 1 { " (" (times) " runs)" } ": " (cause)
                            } }
                        }
                    }
                }
            }
        }
    }
}

/// What an operation of the guest's client is, where one is shown and it is not one.
fn counted(results: &Results, case: Case<'_>, metrics: &[String]) -> String {
    let mut runs = results.runs.iter().filter(|run| run.key.guest == case.guest);
    let unit = runs.find_map(|run| Some(run.outcome.measured()?.operations.as_ref()?.unit.as_str()));
    match unit {
        Some(unit) if unit != "operations" && metrics.iter().any(|name| name.contains("operations")) => {
            format!("; operations are {unit}")
        }
        _ => String::new(),
    }
}

fn cell(results: &Results, case: Case<'_>, metric: &str, relative_to: Option<&str>) -> Markup {
    let unit = Quantity::of(metric).unit;
    let estimate = Estimate::of(results, case, metric);
    let base = relative_to.filter(|base| *base != case.variant);
    let base = base.and_then(|variant| Estimate::of(results, Case { variant, ..case }, metric));
    let ratio = estimate
        .as_ref()
        .zip(base)
        .and_then(|(own, base)| own.relative_to(&base));
    html! {
        @match estimate {
            None => "–",
            Some(estimate) => {
                (with_spread(&estimate, |value| number::show(unit, value)))
                @if let Some(ratio) = ratio {
                    div class="ratio" { (with_spread(&ratio, |value| format!("{} times", number::ratio(value)))) }
                }
            }
        }
    }
}

/// The median, and below it where it lies truly. How many runs that is of stands beside it.
pub(crate) fn with_spread(estimate: &Estimate, show: impl Fn(f64) -> String) -> Markup {
    html! {
        (show(estimate.median))
        @if let Some(interval) = estimate.interval {
            div class="spread" { (show(interval.low)) " to " (show(interval.high)) }
        }
    }
}

/// How many runs have figures, and the causes of the others with how often each occurred.
pub(crate) fn outcomes<'a>(results: &'a Results, case: Case<'_>) -> (usize, Vec<(&'a str, usize)>) {
    let mut measured = 0;
    let mut failures: Vec<(&'a str, usize)> = Vec::new();
    for run in results.runs.iter().filter(|run| case.is_of(run)) {
        match &run.outcome {
            Outcome::Measured(_) => measured += 1,
            Outcome::Failed { why } => match failures.iter_mut().find(|(cause, _)| cause == why) {
                Some((_, times)) => *times += 1,
                None => failures.push((why, 1)),
            },
        }
    }
    (measured, failures)
}

/// A table of rounds: a row for each round, a column for each line.
pub(crate) fn rounds(
    caption: &str,
    names: &[&str],
    rows: &[(usize, Vec<Option<[f64; 3]>>)],
    unit: Unit,
) -> Markup {
    html! {
        div class="scroll tall" tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr {
                    th scope="col" class="number" { "round" }
                    @for name in names { th scope="col" class="number" { (name) } }
                } }
                tbody {
                    @for (round, cells) in rows {
                        tr {
                            th scope="row" class="number" { (round) }
                            @for cell in cells {
                                td class="number" {
                                    @match cell {
                                        None => "–",
                                        Some([least, median, most]) => {
                                            (number::show(unit, *median))
                                            @if least < most {
                                                div class="spread" { (number::show(unit, *least)) " to " (number::show(unit, *most)) }
                                            }
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
