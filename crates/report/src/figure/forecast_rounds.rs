//! The simulator beside reality: the rounds of pre-copy as they were simulated before the migration, and those that it made.

use maud::{Markup, html};
use vmferry_core::Strategy;
use vmferry_core::forecast::{StrategyForecast, TypicalRound};
use vmferry_core::report::{Report, RoundReport};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::{Account, Results};

use crate::estimate::Case;
use crate::number;

/// A table for each case that went by rounds and had a forecast.
pub(super) fn tables(results: &Results, cases: &[Case<'_>]) -> Markup {
    let found: Vec<_> = cases
        .iter()
        .filter_map(|case| Some((case, first(results, *case)?)))
        .collect();
    let kept = found
        .iter()
        .any(|(_, (_, forecast))| !forecast.typical_rounds.is_empty());
    html! {
        @if found.is_empty() {
            p { "No run of these went by pre-copy with a forecast." }
        } @else {
            @if !kept {
                p { "The forecasts of these runs keep no rounds, only how many were expected: an earlier vmferry made them." }
            }
            div class="tables wide" {
                @for (case, (report, forecast)) in &found { (table(case, report, forecast)) }
            }
            p class="group" {
                "Simulated: the simulation in the middle, by total time, of those that the forecast was made of, before earlier forecasts corrected \
                 it. Found: the first repetition. The last round is the stop."
            }
        }
    }
}

/// The first run of a case that went by rounds and had a forecast, and that.
fn first<'a>(results: &'a Results, case: Case<'_>) -> Option<(&'a Report, &'a StrategyForecast)> {
    let mut runs: Vec<_> = results.runs.iter().filter(|run| case.is_of(run)).collect();
    runs.sort_by_key(|run| run.key.repetition);
    runs.into_iter().find_map(|run| {
        let Account::Vmferry(report) = &run.outcome.measured()?.account else {
            return None;
        };
        let strategy: Strategy = report.strategy.parse().ok()?;
        let by_rounds = matches!(strategy, Strategy::PreCopy | Strategy::PreCopyFilter);
        let forecast = report.forecast.as_ref().filter(|_| by_rounds)?.of(strategy)?;
        Some((report.as_ref(), forecast))
    })
}

fn table(case: &Case<'_>, report: &Report, forecast: &StrategyForecast) -> Markup {
    let (simulated, found) = (&forecast.typical_rounds, &report.rounds);
    let expected = forecast.rounds;
    let caption = format!(
        "{}, {}, {}: rounds before the stop: {}, expected {} ({} to {})",
        case.guest,
        case.link,
        case.variant,
        found.len().saturating_sub(1),
        number::digits(expected.likely),
        number::digits(expected.low),
        number::digits(expected.high)
    );
    let sum = TypicalRound {
        pages: simulated.iter().map(|round| round.pages).sum(),
        bytes: simulated.iter().map(|round| round.bytes).sum(),
        ms: simulated.iter().map(|round| round.ms).sum(),
    };
    let all = found.iter().map(of_report).fold(
        TypicalRound {
            pages: 0,
            bytes: 0,
            ms: 0.0,
        },
        |all, round| TypicalRound {
            pages: all.pages + round.pages,
            bytes: all.bytes + round.bytes,
            ms: all.ms + round.ms,
        },
    );
    html! {
        div class="scroll tall" tabindex="0" role="region" aria-label={ "rounds of " (caption) } { table {
            caption { (caption) }
            thead {
                tr {
                    th scope="col" class="number" rowspan="2" { "round" }
                    @for what in ["pages", "bytes", "time"] { th scope="colgroup" colspan="2" class="number" { (what) } }
                }
                tr { @for _ in 0..3 {
                    th scope="col" class="number" { "simulated" }
                    th scope="col" class="number" { "found" }
                } }
            }
            tbody {
                @for index in 0..simulated.len().max(found.len()) {
                    (row(&(index + 1).to_string(), simulated.get(index).copied(), found.get(index).map(of_report)))
                }
                (row("all", (!simulated.is_empty()).then_some(sum), Some(all)))
            }
        } }
    }
}

fn of_report(round: &RoundReport) -> TypicalRound {
    TypicalRound {
        pages: round.pages_sent,
        bytes: round.bytes,
        ms: round.ms,
    }
}

fn row(name: &str, simulated: Option<TypicalRound>, found: Option<TypicalRound>) -> Markup {
    let cells: [fn(TypicalRound) -> String; 3] = [
        |round| number::show(Unit::Count, round.pages as f64),
        |round| number::show(Unit::Bytes, round.bytes as f64),
        |round| number::show(Unit::Milliseconds, round.ms),
    ];
    html! {
        tr {
            th scope="row" class="number" { (name) }
            @for cell in cells {
                @for round in [simulated, found] {
                    td class="number" { (round.map_or_else(|| "–".to_owned(), cell)) }
                }
            }
        }
    }
}
