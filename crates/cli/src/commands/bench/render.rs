//! The results of a bench, for people.

use std::fmt::Write as _;

use vmferry_lab::bench::scenario::Scenario;
use vmferry_lab::bench::summary::{Line, Spread, Verdict};
use vmferry_lab::bench::{Outcome, Results};

use crate::{table, units};

/// A column: its heading, the metric, and how a figure of it is shown.
type Column = (&'static str, &'static str, fn(f64) -> String);

const COLUMNS: &[Column] = &[
    ("data", "data_bytes", bytes),
    ("pages sent", "pages_sent", count),
    ("total", "total_ms", units::millis),
    ("transfer", "execution_transfer_ms", units::millis),
    ("downtime", "downtime_ms", units::millis),
    ("perceived", "perceived_downtime_ms", units::millis),
    ("fetched", "fetched_share", percent),
    ("start", "start_ms", units::millis),
    ("first answer", "first_answer_ms", units::millis),
    ("waited for", "faults_10s", count),
    ("pause", "pause_ms", units::millis),
    ("agent", "answer_ms", units::millis),
    ("ops/s before", "operations_before_per_s", count),
    ("during", "operations_during_per_s", count),
];

/// The scenarios there are.
pub(super) fn list(scenarios: &[(&str, Scenario, Option<usize>)]) -> String {
    let mut table = table::list(&["name", "guests", "links", "variants", "runs", "about"]);
    for (name, scenario, runs) in scenarios {
        let (guests, links, variants) = (
            scenario.guests.len(),
            scenario.links.len(),
            scenario.variants.len(),
        );
        let numbers = [guests, links, variants].map(|number| number.to_string());
        let runs = runs.map_or("not with this version".to_owned(), |runs| runs.to_string());
        let row = std::iter::once((*name).to_owned())
            .chain(numbers)
            .chain([runs, scenario.title.clone()]);
        table.add_row(row);
    }
    table::align_right(&mut table, &[1, 2, 3, 4]);
    table::render(table)
}

/// A table for each guest and link, then claims, failures and what the figures stand for.
pub(super) fn results(results: &Results) -> String {
    let mut text = format!("{}: {}\n", results.scenario, results.title);
    if let Some(source) = &results.source {
        line(&mut text, source);
    }
    if results.quick {
        line(
            &mut text,
            "scaled down (--quick): the figures show that it works, and little else",
        );
    }
    let mut rest = results.summary.as_slice();
    while let Some(first) = rest.first() {
        let same = |line: &&Line| line.guest == first.guest && line.link == first.link;
        let length = rest.iter().take_while(same).count();
        let (block, others) = rest.split_at(length);
        line(&mut text, &format!("\n{}, {}", first.guest, link(results, first)));
        text.push_str(&block_table(block));
        rest = others;
    }
    let failures = results.summary.iter().flat_map(|line| {
        let of = format!("{}, {}, {}", line.guest, line.link, line.variant);
        line.failures
            .iter()
            .map(move |why| format!("failed: {of}: {why}"))
    });
    let failures: Vec<_> = failures.collect();
    if !failures.is_empty() {
        text.push('\n');
    }
    failures.iter().for_each(|failure| line(&mut text, failure));
    if !results.verdicts.is_empty() {
        text.push('\n');
    }
    results
        .verdicts
        .iter()
        .for_each(|found| line(&mut text, &verdict(found)));
    for machine in &results.machines {
        let unoptimised = if machine.optimised {
            ""
        } else {
            " (built without optimisation)"
        };
        let qemu = machine.qemu.as_deref().unwrap_or("no QEMU");
        line(
            &mut text,
            &format!(
                "\nvmferry {}{unoptimised}, Linux {}, {qemu}, {} x {}, {}",
                machine.vmferry,
                machine.kernel,
                machine.cpus,
                machine.cpu,
                units::size(machine.memory_bytes)
            ),
        );
    }
    text
}

/// The median, and below it the smallest and the largest.
fn block_table(lines: &[Line]) -> String {
    let shown = |(_, metric, _): &&Column| {
        let mut figures = lines.iter().filter_map(|line| line.figures.get(*metric));
        figures.any(|figure| figure.most > 0.0)
    };
    let columns: Vec<_> = COLUMNS.iter().filter(shown).collect();
    let mut table = table::plain();
    let headings = columns.iter().map(|(heading, ..)| *heading);
    table.set_header(["", "runs"].into_iter().chain(headings));
    for line in lines {
        let runs = match line.failures.len() {
            0 => line.measured.to_string(),
            failed => format!("{}, {failed} failed", line.measured),
        };
        let cells = columns.iter().map(|(_, metric, show)| {
            line.figures
                .get(*metric)
                .map_or("-".into(), |figure| cell(figure, *show))
        });
        table.add_row([line.variant.clone(), runs].into_iter().chain(cells));
    }
    table::align_right(&mut table, &(1..columns.len() + 2).collect::<Vec<_>>());
    table::render(table)
}

fn cell(figure: &Spread, show: fn(f64) -> String) -> String {
    match figure.count {
        1 => show(figure.median),
        _ => format!(
            "{}\n{} to {}",
            show(figure.median),
            show(figure.least),
            show(figure.most)
        ),
    }
}

fn verdict(verdict: &Verdict) -> String {
    let found = match (verdict.found, verdict.range) {
        (Some(found), Some((least, most))) if least < most => {
            format!("{} ({} to {})", plain(found), plain(least), plain(most))
        }
        (Some(found), _) if verdict.interval.is_none() => format!("{} (one run)", plain(found)),
        (Some(found), _) => plain(found),
        (None, _) => "no figures".to_owned(),
    };
    let word = match verdict.holds {
        Some(true) => "holds  ",
        Some(false) => "DIFFERS",
        None => "unknown",
    };
    format!(
        "{word} {}: {} is {found}, expected {}; {}, {}",
        verdict.claim, verdict.figure, verdict.expected, verdict.guest, verdict.link
    )
}

/// The link as it really was, where runs tell.
fn link(results: &Results, of: &Line) -> String {
    let here = |key: &vmferry_lab::bench::RunKey| key.guest == of.guest && key.link == of.link;
    let runs = results.runs.iter().filter(|run| here(&run.key));
    let mut links: Vec<_> = runs
        .filter_map(|run| match &run.outcome {
            Outcome::Measured(measured) => Some(measured.link.as_str()),
            Outcome::Failed { .. } => None,
        })
        .collect();
    links.sort_unstable();
    links.dedup();
    match links.is_empty() {
        true => of.link.clone(),
        false => links.join(" and "),
    }
}

fn bytes(bytes: f64) -> String {
    units::size(bytes.max(0.0).round() as u64)
}

fn count(number: f64) -> String {
    units::count(number.max(0.0).round() as u64)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

fn plain(number: f64) -> String {
    match number.abs() {
        number if number >= 100.0 => units::count(number.round() as u64),
        _ => format!("{number:.3}"),
    }
}

fn line(text: &mut String, line: &str) {
    // A string takes everything.
    let _ = writeln!(text, "{line}");
}
