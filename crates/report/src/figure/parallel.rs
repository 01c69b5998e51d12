//! Migrations that went on at once, beside the bound that models of single ones set them from below: performance-model paper, section 5.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vmferry_forecast::history::Record;
use vmferry_forecast::model::{Axis, Model, Observation, fit_about, parallel};
use vmferry_lab::bench::quantity::Unit;
use vmferry_lab::bench::scenario::Figure;
use vmferry_lab::bench::statistics::quantile;
use vmferry_lab::bench::{Results, records_of};

use crate::estimate::Case;
use crate::number;

/// What they share.
const AXIS: Axis = Axis::SourceCpu;

/// Runs of as many guests with the same share.
struct Crowd {
    together: u32,
    /// What all of them shared, percent.
    total: f64,
    /// Of each run: until the last of its guests was over, ms.
    last_ms: Vec<f64>,
    records: Vec<Record>,
}

/// A table for each guest and link.
pub(super) fn tables(results: &Results, figure: &Figure, cases: &[Case<'_>]) -> Markup {
    let mut groups: Vec<(&str, &str)> = cases.iter().map(|case| (case.guest, case.link)).collect();
    groups.dedup();
    html! {
        div class="tables wide" { @for (guest, link) in groups { (table(results, figure, guest, link)) } }
        p class="group" {
            "The model has learned from guests that were moved alone. Bound, as if alone: none of several is over sooner than it were alone with \
             all that they share. Bound, shared: what they share has to be enough for what each needs to be over in time. Below the time at \
             which the last was over stands how many times the bound that is. Each of them: how many times as long it took as one alone with \
             the same share, which the bound does not know."
        }
    }
}

fn table(results: &Results, figure: &Figure, guest: &str, link: &str) -> Markup {
    let crowds = crowds(results, figure, guest, link);
    let alone = crowds.iter().filter(|crowd| crowd.together == 1);
    let alone: Vec<Observation> = alone
        .flat_map(|crowd| &crowd.records)
        .filter_map(observation)
        .collect();
    let caption = format!("{guest}, {link}: several at once");
    html! {
        @match fit_about(&alone, &[AXIS]) {
            Err(error) => p { (caption) ": there is no model of single migrations: " (error.to_string()) },
            Ok(model) => div class="scroll" tabindex="0" role="region" aria-label=(caption) { table {
                caption { (caption) "; model of one alone, of " (alone.len()) " runs: " (model.chosen.formula()) " ms for each MiB" }
                thead { tr {
                    th scope="col" class="number" { "at once" }
                    th scope="col" class="number" { "share of all" }
                    th scope="col" class="number" { "runs" }
                    th scope="col" class="number" { "bound: as if alone" }
                    th scope="col" class="number" { "bound: shared" }
                    th scope="col" class="number" { "the last is over" }
                    th scope="col" class="number" { "each of them" }
                } }
                tbody { @for crowd in &crowds {
                    @if crowd.together > 1 { (row(crowd, &model)) }
                } }
            } },
        }
    }
}

fn row(crowd: &Crowd, model: &Model) -> Markup {
    let ms = |value: f64| number::show(Unit::Milliseconds, value);
    let times = |value: f64| format!("{} times", number::ratio(value));
    let mib = median(
        crowd
            .records
            .iter()
            .map(|record| record.data_bytes as f64 / f64::from(1 << 20)),
    );
    let migrations: Vec<_> = crowd
        .records
        .iter()
        .take(crowd.together as usize)
        .map(|record| (model, record.setting))
        .collect();
    let bound = parallel::bound(&migrations, AXIS, crowd.total);
    let last = median(crowd.last_ms.iter().copied());
    let observed = crowd.records.iter().filter_map(|record| {
        let observation = observation(record)?;
        Some((record.together, observation.setting, observation.value))
    });
    let slower = parallel::measured(model, &observed.collect::<Vec<_>>());
    html! {
        tr {
            th scope="row" class="number" { (crowd.together) }
            td class="number" { (number::digits(crowd.total)) " %" }
            td class="number" { "n = " (crowd.last_ms.len()) }
            @match &bound {
                Ok(bound) => {
                    @for bound in [Some(bound.alone_ms), bound.shared_ms] {
                        td class="number" { (bound.map_or_else(|| "–".to_owned(), |bound| ms(bound * mib))) }
                    }
                }
                Err(error) => td colspan="2" { (error.to_string()) },
            }
            td class="number" {
                (ms(last))
                @if let Ok(bound) = &bound {
                    @let bound = bound.shared_ms.unwrap_or(bound.alone_ms) * mib;
                    @if bound > 0.0 { div class="ratio" { (times(last / bound)) } }
                }
            }
            td class="number" {
                (slower.first().map_or_else(|| "–".to_owned(), |found| times(found.slower)))
            }
        }
    }
}

/// The runs of a guest over a link by how many were moved, and what they shared.
fn crowds(results: &Results, figure: &Figure, guest: &str, link: &str) -> Vec<Crowd> {
    let mut crowds: BTreeMap<(u32, u64), Crowd> = BTreeMap::new();
    let runs = results.runs.iter().filter(|run| {
        run.key.guest == guest && run.key.link == link && figure.shows(guest, link, &run.key.variant)
    });
    for run in runs {
        let records = records_of(results, run);
        let Some((first, measured)) = records.first().zip(run.outcome.measured()) else {
            continue;
        };
        let (together, share) = (first.together, first.setting.get(AXIS));
        let total = share.unwrap_or(100.0) * f64::from(together);
        // Shares are whole, so that this tells them apart.
        let crowd = crowds.entry((together, total as u64)).or_insert_with(|| Crowd {
            together,
            total,
            last_ms: Vec::new(),
            records: Vec::new(),
        });
        crowd.last_ms.push(measured.account.total_ms());
        crowd.records.extend(records);
    }
    crowds.into_values().collect()
}

fn observation(record: &Record) -> Option<Observation> {
    Some(Observation {
        setting: record.setting,
        value: record.ms_per_mib()?,
    })
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    quantile(&values, 0.5)
}
