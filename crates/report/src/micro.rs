//! Micro benches on the page: single functions, and what benches compared.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::{Compared, Function, Micro};

use crate::number;
use crate::origin;

/// Tables of them, and on what they were measured.
pub(crate) fn micro(micro: &Micro) -> Markup {
    let groups: Vec<_> = micro
        .functions
        .chunk_by(|one, other| one.group == other.group)
        .collect();
    html! {
        section id="micro" {
            h2 { "Single functions" }
            p {
                "What parts of a migration take by themselves, by criterion: medians with their 95 % intervals; and benches that measure two \
                 things in turn, medians with the smallest and the largest run."
            }
            p class="group" {
                @for (name, value) in origin::facts(&micro.machine) { (name) ": " (value) ". " }
                @if let Some(load) = micro.load_average { "Load average when they were gathered: " (number::digits(load)) "." }
            }
            div class="tables wide" {
                @for group in groups { (functions(group)) }
                @for (bench, figures) in &micro.comparisons { (compared(bench, figures)) }
            }
        }
    }
}

fn functions(group: &[Function]) -> Markup {
    let name = group
        .first()
        .map(|function| function.group.as_str())
        .unwrap_or_default();
    let caption = if name.is_empty() { "by themselves" } else { name };
    let has_bytes = group.iter().any(|function| function.bytes.is_some());
    html! {
        div class="scroll" tabindex="0" role="region" aria-label=(caption) {
            table {
                caption { (caption) }
                thead { tr {
                    th scope="col" { "function" }
                    th scope="col" class="number" { "time" }
                    @if has_bytes { th scope="col" class="number" { "a second" } }
                } }
                tbody { @for function in group { tr {
                    th scope="row" { (function.name) }
                    td class="number" {
                        (time(function.ns))
                        div class="spread" { (time(function.low_ns)) " to " (time(function.high_ns)) }
                    }
                    @if has_bytes { td class="number" {
                        (function.bytes_per_s().map_or("–".to_owned(), |rate| number::show(Unit::Bytes, rate)))
                    } }
                } } }
            }
        }
    }
}

fn compared(bench: &str, figures: &BTreeMap<String, Compared>) -> Markup {
    html! {
        div class="scroll" tabindex="0" role="region" aria-label=(bench) {
            table {
                caption { "bench " code { (bench) } }
                thead { tr { th scope="col" { "figure" } th scope="col" class="number" { "found" } th scope="col" class="text" { "wanted" } } }
                tbody { @for (name, figure) in figures { tr {
                    th scope="row" { (name) }
                    @match figure {
                        Compared::Figure { median, min, max, unit, .. } => {
                            td class="number" {
                                (number::digits(*median)) " " (unit)
                                div class="spread" { (number::digits(*min)) " to " (number::digits(*max)) }
                            }
                            td {}
                        }
                        Compared::Ratio { ratio, wanted } => {
                            td class="number" { (number::ratio(*ratio)) " times" }
                            td class="text" { (wanted) }
                        }
                    }
                } } }
            }
        }
    }
}

fn time(ns: f64) -> String {
    match ns {
        small if small < 999.5 => format!("{} ns", number::digits(small)),
        other => number::show(Unit::Microseconds, other / 1e3),
    }
}
