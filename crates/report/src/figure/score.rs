//! What forecasts were worth: the score of all runs that had one, whether it is what is asked of it, and expected beside measured.

use std::collections::BTreeSet;

use maud::{Markup, html};
use vmferry_forecast::experience::Quantity;
use vmferry_forecast::history::Record;
use vmferry_forecast::score::{GoalScore, Point, QuantityScore, Score};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::scenario::{Figure, FigureKind};
use vmferry_lab::bench::statistics::quantile;
use vmferry_lab::bench::{Results, record};

use crate::number;
use crate::standalone::{calibration_panel, calibration_panels};

/// Of fewer migrations a score says little.
const LEAST_MIGRATIONS: usize = 30;
/// Largest median error of total time and bytes, as a share of what was measured.
const MOST_ERROR: f64 = 0.15;
/// How far a downtime may be off in the median: milliseconds, or a share of what was measured.
const DOWNTIME_OFF: (f64, f64) = (10.0, 0.25);
/// Least and largest share of the 90 % intervals that hold what was measured: where more do, they are wider than they have to be.
const COVERAGE: (f64, f64) = (0.80, 0.97);
/// How often the recommended strategy has to be the best, or as good.
const LEAST_NAMED: f64 = 0.8;

/// What is asked of forecasts, and what was found.
pub(crate) struct Bar {
    /// What is asked, in words.
    pub(crate) wanted: String,
    found: String,
    held: bool,
    /// Of too few migrations to say much.
    few: bool,
}

impl Bar {
    /// Whether it was not reached.
    pub(crate) fn is_missed(&self) -> bool {
        !self.held
    }

    /// Sign and words.
    pub(crate) fn verdict(&self) -> Markup {
        let (class, sign, words) = match self.held {
            true => ("holds", "✓", "held"),
            false => ("differs", "✗", "missed"),
        };
        html! {
            span class={ "verdict " (class) } {
                span aria-hidden="true" { (sign) } " " (words)
                @if self.few { ", of too few migrations" }
            }
        }
    }

    /// What was found.
    pub(crate) fn found(&self) -> &str {
        &self.found
    }

    /// In a line of a list.
    pub(super) fn show(&self) -> Markup {
        html! { li { (self.verdict()) ": " (self.wanted) ": " span class="found" { (self.found) } } }
    }
}

/// What is asked of the forecasts that a figure is about, each with what was found; nothing where it is about something else, or no run
/// had a forecast.
pub(crate) fn bars(results: &Results, figure: &Figure) -> Vec<Bar> {
    let score = match figure.kind {
        FigureKind::Score => Score::of(&records(results, figure)),
        _ => None,
    };
    score.map_or_else(Vec::new, |score| of_score(&score))
}

/// All of them together, in words.
pub(super) fn judgement(bars: &[Bar]) -> Markup {
    let missed = bars.iter().filter(|bar| bar.is_missed()).count();
    let few = bars.iter().any(|bar| bar.few);
    let (class, sign, words) = match missed {
        0 => ("holds", "✓", format!("all {} bars held", bars.len())),
        _ => ("differs", "✗", format!("{missed} of {} bars missed", bars.len())),
    };
    html! {
        span class={ "verdict " (class) } { span aria-hidden="true" { (sign) } " " (words) }
        @if few { " Of too few migrations to say much: " (LEAST_MIGRATIONS) " or more are needed." }
    }
}

fn of_score(score: &Score) -> Vec<Bar> {
    let few = score.migrations < LEAST_MIGRATIONS;
    let bar = |wanted: String, found: String, held: bool| Bar {
        wanted,
        found,
        held,
        few,
    };
    let mut bars = vec![Bar {
        few: false,
        ..bar(
            format!("at least {LEAST_MIGRATIONS} migrations"),
            match few {
                true => format!("only {}", score.migrations),
                false => score.migrations.to_string(),
            },
            !few,
        )
    }];
    for of in &score.quantities {
        let name = of.quantity.name();
        match of.quantity {
            Quantity::TotalMs | Quantity::BytesOnWire => bars.push(bar(
                format!("median error of {name} at most {}", percent(MOST_ERROR)),
                percent(of.median_error),
                of.median_error <= MOST_ERROR,
            )),
            Quantity::DowntimeMs => bars.push(bar(
                format!(
                    "{name} within {} ms or {} in the median",
                    DOWNTIME_OFF.0,
                    percent(DOWNTIME_OFF.1)
                ),
                format!(
                    "off by {} and {}; within that in {} of the migrations",
                    amount(of.quantity, of.median_absolute_error),
                    percent(of.median_error),
                    percent(of.near)
                ),
                of.median_absolute_error <= DOWNTIME_OFF.0 || of.median_error <= DOWNTIME_OFF.1,
            )),
            Quantity::ExecutionTransferMs => {}
        }
    }
    bars.extend(score.quantities.iter().flat_map(|of| held(of, &bar)));
    bars.extend(score.recommended.iter().flat_map(|of| named(of, &bar)));
    if score.recommended.is_empty() {
        bars.push(bar(
            format!("the best strategy named in at least {}", percent(LEAST_NAMED)),
            "not known: no guest was moved over a link by three strategies or more".to_owned(),
            false,
        ));
    }
    bars
}

/// How many intervals hold, as they were said and as a host without earlier forecasts would have said them.
fn held(of: &QuantityScore, bar: &impl Fn(String, String, bool) -> Bar) -> [Bar; 2] {
    let (least, most) = COVERAGE;
    let of_whose = |whose: &str, coverage: f64| {
        let wide = if coverage > most { ": too wide" } else { "" };
        bar(
            format!(
                "90 % intervals of {}{whose} hold what was measured in {} to {}",
                of.quantity.name(),
                percent(least),
                percent(most)
            ),
            format!("{}{wide}", percent(coverage)),
            (least..=most).contains(&coverage),
        )
    };
    [
        of_whose("", of.coverage),
        of_whose(" of a host without earlier forecasts", of.untaught_coverage),
    ]
}

/// How often the recommended strategy was the best, and how often it or one as good was recommended.
fn named(of: &GoalScore, bar: &impl Fn(String, String, bool) -> Bar) -> [Bar; 2] {
    let counted = |what: &str, count: usize| {
        let share = count as f64 / of.forecasts as f64;
        bar(
            format!(
                "the best strategy named{what} in at least {}, for the goal {}",
                percent(LEAST_NAMED),
                of.goal
            ),
            format!("{count} of {} forecasts, {}", of.forecasts, percent(share)),
            share >= LEAST_NAMED,
        )
    };
    [counted("", of.best), counted(", or one as good,", of.as_good)]
}

/// Tables of the score, and a plot for each quantity.
pub(super) fn score(results: &Results, figure: &Figure, anchor: &str) -> Markup {
    let records = records(results, figure);
    let Some(score) = Score::of(&records) else {
        return html! { p { "No run of these had a forecast and completed: there is nothing to score." } };
    };
    let panels = calibration_panels(&score);
    html! {
        p class="group" { (counted(results, figure, &records)) }
        div class="tables wide" {
            (quantities(&score))
            @if !score.recommended.is_empty() { (goals(&score)) }
            (strategies(&score))
        }
        div class="plots" {
            @for (index, panel) in panels.iter().filter(|panel| !panel.points.is_empty()).enumerate() {
                div class="panel" {
                    h4 { "Forecasts of " (panel.name) }
                    (calibration_panel(panel, &format!("{anchor}-c{index}")))
                }
            }
        }
        p class="group" {
            "A mark for each migration, with the 90 % interval of its forecast as whisker: full where that holds what was measured, hollow where \
             it does not. A forecast that is right lies on the diagonal. Bias: how much more was measured than expected, in the median; \
             untaught: by the intervals that a host without earlier forecasts would have said; near: within 15 % of what was measured, of the \
             downtime within 10 ms or 25 %."
        }
    }
}

/// The runs that the figure shows as migrations that forecasts are scored by.
fn records(results: &Results, figure: &Figure) -> Vec<Record> {
    let shown = results
        .runs
        .iter()
        .filter(|run| figure.shows(&run.key.guest, &run.key.link, &run.key.variant));
    shown.filter_map(|run| record(results, run)).collect()
}

/// How many migrations it is of, and of what kinds.
fn counted(results: &Results, figure: &Figure, records: &[Record]) -> String {
    let scored: Vec<_> = records
        .iter()
        .filter(|record| record.expected().is_some())
        .collect();
    let runs = results.runs.iter().filter(|run| {
        let forecast = record(results, run).is_some_and(|record| record.expected().is_some());
        forecast && figure.shows(&run.key.guest, &run.key.link, &run.key.variant)
    });
    let (guests, links): (BTreeSet<_>, BTreeSet<_>) = runs
        .map(|run| (run.key.guest.as_str(), run.key.link.as_str()))
        .unzip();
    // In the scenario's order.
    let content = &results.content;
    let guests: Vec<_> = content
        .guests
        .iter()
        .map(|guest| guest.name.as_str())
        .filter(|name| guests.contains(name))
        .collect();
    let links: Vec<_> = content
        .links
        .iter()
        .map(String::as_str)
        .filter(|name| links.contains(name))
        .collect();
    let strategies: BTreeSet<_> = scored.iter().map(|record| record.strategy.as_str()).collect();
    let backends: BTreeSet<_> = scored.iter().map(|record| record.backend.as_str()).collect();
    let list = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    format!(
        "Migrations with a forecast: {}. Guests: {} ({}): {}. Links: {}: {}. Strategies: {}: {}.",
        scored.len(),
        guests.len(),
        list(backends),
        guests.join(", "),
        links.len(),
        links.join(", "),
        strategies.len(),
        list(strategies)
    )
}

fn quantities(score: &Score) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="errors of forecasts" { table {
            caption { (score.migrations) " migrations: expected beside measured" }
            thead { tr {
                th scope="col" { "forecast of" }
                th scope="col" class="number" { "bias" }
                th scope="col" class="number" { "median error" }
                th scope="col" class="number" { "in the 90 % interval" }
                th scope="col" class="number" { "the same untaught" }
                th scope="col" class="number" { "near" }
            } }
            tbody { @for of in &score.quantities { tr {
                th scope="row" { (of.quantity.name()) }
                td class="number" { (format!("{:+.1} %", of.bias * 1e2)) }
                td class="number" {
                    (percent(of.median_error))
                    div class="spread" { (amount(of.quantity, of.median_absolute_error)) }
                }
                td class="number" { (percent(of.coverage)) }
                td class="number" { (percent(of.untaught_coverage)) }
                td class="number" { (percent(of.near)) }
            } } }
        } }
    }
}

fn goals(score: &Score) -> Markup {
    let share = |count: usize, of: usize| format!("{} of {of}, {}", count, percent(count as f64 / of as f64));
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="recommended strategies" { table {
            caption { "how often the recommended strategy was the best of those that were run, or as good: within 5 % of it, and for evict within 10 ms" }
            thead { tr {
                th scope="col" { "goal" }
                th scope="col" class="number" { "guests and links" }
                th scope="col" class="number" { "the best" }
                th scope="col" class="number" { "or as good" }
            } }
            tbody { @for of in &score.recommended { tr {
                th scope="row" { (of.goal.to_string()) }
                td class="number" { (of.settings) }
                td class="number" { (share(of.best, of.forecasts)) }
                td class="number" { (share(of.as_good, of.forecasts)) }
            } } }
        } }
    }
}

/// Medians over everything hide a strategy that is far off: each by itself.
fn strategies(score: &Score) -> Markup {
    let mut names: Vec<_> = score.points.iter().map(|point| point.strategy).collect();
    names.sort_by_key(|strategy| strategy.name());
    names.dedup();
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="errors by strategy" { table {
            caption { "median error by strategy, and how many intervals hold" }
            thead { tr {
                th scope="col" { "strategy" }
                @for quantity in Quantity::ALL { th scope="col" class="number" { (quantity.name()) } }
            } }
            tbody { @for strategy in names { tr {
                th scope="row" { (strategy.name()) }
                @for quantity in Quantity::ALL {
                    @let points: Vec<&Point> = score.points.iter().filter(|point| {
                        point.strategy == strategy && point.quantity == quantity && point.measured > 0.0
                    }).collect();
                    td class="number" { (error(&points)) }
                }
            } } }
        } }
    }
}

fn error(points: &[&Point]) -> Markup {
    let mut errors: Vec<f64> = points
        .iter()
        .map(|point| (point.expected.likely - point.measured).abs() / point.measured)
        .collect();
    errors.sort_by(f64::total_cmp);
    let held = points.iter().filter(|point| point.expected.holds(point.measured));
    html! {
        @if errors.is_empty() { "–" } @else {
            (percent(quantile(&errors, 0.5)))
            div class="spread" { (held.count()) " of " (points.len()) " hold" }
        }
    }
}

fn percent(share: f64) -> String {
    number::show(Unit::Share, share)
}

/// So much of a quantity.
fn amount(quantity: Quantity, value: f64) -> String {
    let unit = match quantity {
        Quantity::BytesOnWire => Unit::Bytes,
        _ => Unit::Milliseconds,
    };
    number::show(unit, value)
}
