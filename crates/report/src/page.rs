//! The page as a whole.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use vmferry_lab::bench::statistics::{CONFIDENCE, most_coverage};
use vmferry_lab::bench::{Micro, Results};

use crate::scenario::Section;
use crate::{Source, micro, number, origin, papers, summary};

const STYLE: &str = include_str!("style.css");

/// The page.
pub(crate) fn page(sources: &[Source], micro: Option<&Micro>, made_unix_ms: u64) -> Markup {
    let sections = Section::all(sources);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                // Browsers ask for an icon where a page names none.
                link rel="icon" href="data:,";
                title { "vmferry: evaluation" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { "vmferry: evaluation" }
                    p class="lead" { "Live migration of virtual machines, measured. Made " (date(made_unix_ms)) "." }
                    (contents(&sections, micro.is_some()))
                }
                main {
                    (overview(sources))
                    (summary::summary(&sections))
                    (how_to_read(sources))
                    @for section in &sections { (section.show()) }
                    @if let Some(found) = micro { (micro::micro(found)) }
                    (papers::coverage(&sections))
                    (origin::origin(sources))
                }
            }
        }
    }
}

fn contents(sections: &[Section<'_>], has_micro: bool) -> Markup {
    html! {
        nav aria-label="contents" {
            ol {
                li { a href="#overview" { "What was measured" } }
                li { a href="#peers" { "vmferry beside QEMU" } }
                li { a href="#behind" { "Where it is behind" } }
                @for section in sections {
                    li { a href={ "#" (section.anchor) } { (section.results.title) } }
                }
                @if has_micro { li { a href="#micro" { "Single functions" } } }
                li { a href="#papers" { "Figures of the papers" } }
                li { a href="#origin" { "Machines, command lines, files" } }
            }
        }
    }
}

fn overview(sources: &[Source]) -> Markup {
    let results: Vec<&Results> = sources.iter().map(|source| &source.results).collect();
    let runs = || results.iter().flat_map(|results| &results.runs);
    let failed: Vec<_> = results
        .iter()
        .map(|results| (results, failures(results)))
        .collect();
    let failures: usize = failed.iter().map(|(_, failures)| failures).sum();
    let began = runs().map(|run| run.started_unix_ms).min();
    let ended = runs()
        .map(|run| run.started_unix_ms + (run.took_s * 1e3) as u64)
        .max();
    let hours = runs().map(|run| run.took_s).sum::<f64>() / 3600.0;
    let machines: Vec<_> = results.iter().flat_map(|results| &results.machines).collect();
    html! {
        section id="overview" {
            h2 { "What was measured" }
            dl class="facts" {
                @if let Some(machine) = machines.first() {
                    @for (name, value) in origin::facts(machine) { div { dt { (name) } dd { (value) } } }
                }
                @if let Some((began, ended)) = began.zip(ended) {
                    div { dt { "when" } dd { (date(began)) " to " (date(ended)) } }
                }
                div { dt { "runs" } dd { (runs().count()) " in " (results.len()) " scenarios, " (number::digits(hours)) " hours" } }
                div { dt { "failures" } dd {
                    (failures) " runs"
                    @for (results, count) in failed.iter().filter(|(_, count)| *count > 0) {
                        div class="spread" { (results.scenario) ": " (count) }
                    }
                } }
                @if let Some((load, busy)) = origin::load(&results) {
                    div { dt { "load average" } dd {
                        "median " (number::digits(load)) " when runs began; " (busy) " began while the machine had more to do than processors for it"
                    } }
                }
            }
            @if machines.iter().any(|machine| Some(machine) != machines.first()) {
                p class="warning" { "Not all runs come from one machine with one set of programs: see " a href="#origin" { "below" } "." }
            }
        }
    }
}

fn how_to_read(sources: &[Source]) -> Markup {
    let repetitions = sources.iter().map(|source| source.results.content.repetitions);
    let least = repetitions.min().unwrap_or(0);
    html! {
        section id="reading" {
            h2 { "How to read it" }
            p {
                "Figures are medians of the runs. Below each, and as whiskers, stands its interval: percentile bootstrap, "
                (number::digits(CONFIDENCE * 100.0)) " %; dots are single runs. A ratio is that of two medians, its interval is made by drawing \
                both sides anew. Of a single run there is no interval, and it says so. A claim "
                i { "holds" } " or " i { "differs" } " by its median, and " i { "not beyond doubt" }
                " where its interval reaches across the bound."
            }
            @if (2..6).contains(&least) {
                p {
                    "Intervals of few runs promise more than they keep: that of " (least) " runs holds the true median in "
                    (number::digits(most_coverage(least as usize) * 100.0)) " % of cases at best."
                }
            }
        }
    }
}

fn failures(results: &Results) -> usize {
    results
        .runs
        .iter()
        .filter(|run| run.outcome.measured().is_none())
        .count()
}

/// The day and minute of a moment, in UTC.
fn date(unix_ms: u64) -> String {
    let at = i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(
        || "?".to_owned(),
        |at| at.strftime("%Y-%m-%d %H:%M UTC").to_string(),
    )
}
