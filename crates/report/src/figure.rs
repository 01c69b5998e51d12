//! A figure on the page: what is said of it, plots, table, verdict.

mod forecast_rounds;
mod latency;
mod models;
mod over_time;
mod panels;
mod parallel;
mod score;
mod states;

use maud::{Markup, html};
use vmferry_lab::bench::scenario::{Figure, FigureKind};
use vmferry_lab::bench::{Outcome, Results, papers};

use crate::estimate::Case;
use crate::table;
use crate::verdict::{self, Reading};

pub(crate) use score::{Bar, bars as asked_of_forecasts};

/// The figure; `anchor` is its name on the page.
pub(crate) fn figure(results: &Results, figure: &Figure, anchor: &str) -> Markup {
    let cases = cases(results, figure);
    let judged = verdict::of(results, figure);
    let measured = cases.iter().any(|case| table::outcomes(results, *case).0 > 0);
    let reading = match measured {
        true => verdict::together(&judged),
        false => Some(Reading::NotMeasured),
    };
    let metrics = match figure.metrics.is_empty() {
        true => figure
            .kind
            .usual_metrics()
            .iter()
            .map(ToString::to_string)
            .collect(),
        false => figure.metrics.clone(),
    };
    // What a scenario needs no claims for: it is asked of all forecasts alike.
    let asked = score::bars(results, figure);
    let plots = match figure.kind {
        FigureKind::Bars => panels::count(figure, &cases),
        _ => 0,
    };
    html! {
        figure id=(anchor) class="figure" {
            figcaption {
                h3 { (figure.title) }
                @for source in &figure.source { p class="source" { (reference(source)) } }
                @if let Some(claim) = &figure.claim { p class="claim" { (claim) } }
                p class="judgement" {
                    @match reading {
                        _ if !asked.is_empty() => (score::judgement(&asked)),
                        Some(reading) => (reading.show()),
                        None => span class="verdict none" { "shown, not judged: the scenario states no bound" },
                    }
                    @if !measured { " " (not_measured(results, &cases)) }
                }
                @if let Some(why) = &figure.why { p class="why" { b { "Why: " } (why) } }
                @if !asked.is_empty() {
                    ul class="claims" { @for bar in &asked { (bar.show()) } }
                }
                @if !judged.is_empty() && measured {
                    ul class="claims" { @for it in &judged { (it.show()) } }
                }
            }
            @if measured {
                // A single plot leaves room for its table beside it.
                div class=(if plots == 1 { "single" } else { "several" }) {
                    (plots_of(results, figure, &cases, anchor))
                    @match figure.kind {
                        FigureKind::Model | FigureKind::Score | FigureKind::ForecastRounds | FigureKind::Parallel => {}
                        FigureKind::Trial => (models::trials(results, figure)),
                        FigureKind::Rounds => (over_time::rounds_tables(results, figure, &cases)),
                        _ => (table::figures(results, &cases, &metrics, figure.relative_to.as_deref())),
                    }
                }
            } @else if !cases.is_empty() {
                (table::figures(results, &cases, &[], None))
            }
        }
    }
}

/// A scenario that says of no figure has these.
pub(crate) fn usual(results: &Results) -> Vec<Figure> {
    let parse = |text: &str| serde_json::from_str(text).expect("a figure that is correct");
    let mut figures = vec![parse(
        r#"{"id": "times", "title": "Times and data", "kind": "bars",
            "metrics": ["total_ms", "execution_transfer_ms", "downtime_ms", "data_bytes"]}"#,
    )];
    let mut measured = results.runs.iter().filter_map(|run| run.outcome.measured());
    if measured.any(|measured| measured.operations.is_some()) {
        figures.push(parse(
            r#"{"id": "throughput", "title": "Throughput of the client across the migration", "kind": "timeline"}"#,
        ));
    }
    figures
}

fn plots_of(results: &Results, figure: &Figure, cases: &[Case<'_>], anchor: &str) -> Markup {
    match figure.kind {
        FigureKind::Bars => panels::bars(results, figure, cases, anchor),
        FigureKind::Lines => panels::lines(results, figure, cases, anchor),
        FigureKind::Timeline => over_time::timelines(results, cases, anchor),
        FigureKind::Latency => latency::over_time(results, cases, anchor),
        FigureKind::Distribution => latency::distributions(results, cases, anchor),
        FigureKind::States => states::plots(results, cases, anchor),
        FigureKind::Rounds => over_time::rounds(results, figure, cases, anchor),
        FigureKind::Table | FigureKind::Trial => html! {},
        FigureKind::Model => models::models(results, figure, anchor),
        FigureKind::Score => score::score(results, figure, anchor),
        FigureKind::ForecastRounds => forecast_rounds::tables(results, cases),
        FigureKind::Parallel => parallel::tables(results, figure, cases),
    }
}

/// What the figure shows of all that was tried, in the scenario's order.
fn cases<'a>(results: &'a Results, figure: &Figure) -> Vec<Case<'a>> {
    let scenario = &results.content;
    let mut cases = Vec::new();
    for guest in &scenario.guests {
        for link in &scenario.links {
            for variant in &scenario.variants {
                let case = Case {
                    guest: &guest.name,
                    link,
                    variant: variant.name(),
                };
                let tried = || results.runs.iter().any(|run| case.is_of(run));
                if figure.shows(case.guest, case.link, case.variant) && tried() {
                    cases.push(case);
                }
            }
        }
    }
    cases
}

/// Why a figure has nothing to show.
fn not_measured(results: &Results, cases: &[Case<'_>]) -> String {
    let mut failures = results
        .runs
        .iter()
        .filter(|run| cases.iter().any(|case| case.is_of(run)));
    let cause = failures.find_map(|run| match &run.outcome {
        Outcome::Failed { why } => Some(why),
        Outcome::Measured(_) => None,
    });
    match cause {
        Some(cause) => format!("because every run failed: {cause}"),
        None => "because these results have no run of it".to_owned(),
    }
}

/// The paper's figure in words.
fn reference(source: &str) -> Markup {
    match papers::find(source) {
        Some((paper, figure)) => html! { (figure.number) " of the " (paper.name) " paper: " (figure.about) },
        None => html! { (source) },
    }
}
