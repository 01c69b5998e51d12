//! How often each state of the data filter's model occurred.

use maud::{Markup, html};
use vmferry_lab::bench::scenario::Dimension;
use vmferry_lab::bench::{Account, Results};

use super::panels::grouped;
use crate::estimate::Case;
use crate::number;
use crate::plot::Counts;

/// A model of a run, as it is drawn: one run each, because the states of two are at different places.
struct Model {
    /// States that there are.
    states: u32,
    /// Those that occurred, with their shares.
    shares: Vec<(u32, f64)>,
    samples: u64,
}

/// A plot for each case whose runs have a model: that of the run with most samples.
pub(super) fn plots(results: &Results, cases: &[Case<'_>], anchor: &str) -> Markup {
    let mut count = 0;
    let mut groups = Vec::new();
    for (group, cases) in grouped(cases, &[Dimension::Link, Dimension::Variant]) {
        let models = cases
            .iter()
            .filter_map(|case| Some((*case, model(results, *case)?)));
        let panels = models.map(|(case, model)| {
            count += 1;
            let plot = Counts {
                id: &format!("{anchor}-p{count}"),
                title: &format!("States of {} with {}, {}", case.guest, case.variant, case.link),
                x_label: "state: the region that was written most",
                numbers: model.states,
                most: model.shares.iter().map(|(_, share)| *share).fold(0.0, f64::max),
                shares: model.shares.clone(),
            };
            html! { div class="panel" {
                h5 { (case.guest) }
                p class="group" {
                    (model.shares.len()) " of " (model.states) " states in " (number::grouped(model.samples as f64)) " samples"
                }
                (plot.draw())
            } }
        });
        let panels: Vec<_> = panels.collect();
        groups.push((group, panels));
    }
    html! {
        @for (group, panels) in groups {
            @if !panels.is_empty() {
                h4 { (group) }
                div class="plots" { @for panel in panels { (panel) } }
            }
        }
        p class="group" {
            "Of the repetition with most samples: where a guest writes is not the same in two of them. The last state is that of a guest that \
             writes nothing."
        }
    }
}

fn model(results: &Results, case: Case<'_>) -> Option<Model> {
    let runs = results.runs.iter().filter(|run| case.is_of(run));
    let filter = |run: &vmferry_lab::bench::Run| match &run.outcome.measured()?.account {
        Account::Vmferry(report) => report.filter.clone(),
        _ => None,
    };
    let filter = runs.filter_map(filter).max_by_key(|filter| filter.samples)?;
    let all = filter.samples.max(1) as f64;
    let shares = filter.states.iter();
    let shares = shares.map(|count| (u32::from(count.state), count.samples as f64 / all));
    Some(Model {
        states: filter.regions + 1,
        shares: shares.collect(),
        samples: filter.samples,
    })
}
