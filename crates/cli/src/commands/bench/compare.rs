//! `vmferry bench compare`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use vmferry_lab::bench::Results;
use vmferry_lab::bench::compare::{Change, Comparison, Finding, compare};
use vmferry_lab::bench::quantity::{Quantity, Unit};

use crate::cli::Common;
use crate::commands::output;
use crate::{table, units};

/// Says what changed between two sets of results of one scenario: for each guest, link, variant and metric the medians, their
/// ratio with its interval (bootstrap, 95 %), the size of the effect, and whether it can be told from chance: by the test of Mann and
/// Whitney (exact, two-sided), adjusted for how many there are by Benjamini and Hochberg, at 5 %.
///
/// With fewer than four runs a side no difference whatever can be told from chance, and it says so. The exit code is 0 whatever
/// changed. Machines, builds or scenarios that differ are said first.
#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Results of `vmferry bench`, before
    #[arg(value_name = "A")]
    first: PathBuf,
    /// After
    #[arg(value_name = "B")]
    second: PathBuf,
    /// Show also what did not change
    #[arg(long)]
    all: bool,
}

pub(super) fn run(common: &Common, args: &CompareArgs) -> Result<ExitCode> {
    let (first, second) = (Results::read(&args.first)?.0, Results::read(&args.second)?.0);
    let found = compare(&first, &second)?;
    match common.json {
        true => output::json(&found)?,
        false => output::text(&render(&found, args.all))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(found: &Comparison, all: bool) -> String {
    let mut text = format!("{}: what changed from A to B\n", found.scenario);
    let mut line = |line: String| text.extend([line.as_str(), "\n"]);
    found
        .caveats
        .iter()
        .for_each(|caveat| line(format!("caution: {caveat}")));
    for (which, names) in [("A", &found.only_first), ("B", &found.only_second)] {
        names
            .iter()
            .for_each(|name| line(format!("only in {which}: {name}")));
    }
    let count = |finding| {
        found
            .changes
            .iter()
            .filter(|change| change.finding == finding)
            .count()
    };
    line(format!(
        "{} better, {} worse, {} different, {} without a difference that can be told from chance, {} with too few runs to tell",
        count(Finding::Better),
        count(Finding::Worse),
        count(Finding::Different),
        count(Finding::NoDifference),
        count(Finding::TooFewRuns),
    ));
    line(format!(
        "({}, adjusted for {} of them by {}; level {})",
        found.test,
        found.changes.len() - count(Finding::TooFewRuns),
        found.adjusted_by,
        found.level
    ));
    let shown = |change: &&Change| all || change.finding != Finding::NoDifference;
    let mut rest: Vec<_> = found.changes.iter().filter(shown).collect();
    while let Some(first) = rest.first() {
        let same = |change: &&Change| {
            (&change.guest, &change.link, &change.variant) == (&first.guest, &first.link, &first.variant)
        };
        let length = rest.iter().take_while(|change| same(change)).count();
        text.push_str(&format!("\n{}, {}, {}\n", first.guest, first.link, first.variant));
        text.push_str(&block(&rest[..length]));
        rest.drain(..length);
    }
    text
}

fn block(changes: &[&Change]) -> String {
    let mut table = table::plain();
    table.set_header(["", "A", "B", "B / A", "95 %", "effect", "p adjusted", ""]);
    for change in changes {
        let quantity = Quantity::of(&change.metric);
        let median = |median: f64, count: usize| format!("{} (n={count})", show(quantity.unit, median));
        let words = match change.finding {
            Finding::TooFewRuns => "too few runs to tell",
            Finding::NoDifference => "no difference to tell",
            Finding::Better => "better",
            Finding::Worse => "WORSE",
            Finding::Different => "different",
        };
        table.add_row([
            quantity.label.clone(),
            median(change.first.median, change.first.count),
            median(change.second.median, change.second.count),
            change.ratio.map_or("-".into(), |ratio| format!("{ratio:.3}")),
            change
                .interval
                .map_or("-".into(), |it| format!("{:.3} to {:.3}", it.low, it.high)),
            format!("{:+.2}", change.delta),
            change.adjusted_p.map_or("-".into(), |p| format!("{p:.3}")),
            words.to_owned(),
        ]);
    }
    table::align_right(&mut table, &[1, 2, 3, 4, 5, 6]);
    table::render(table)
}

fn show(unit: Unit, value: f64) -> String {
    let whole = |value: f64| value.max(0.0).round() as u64;
    match unit {
        Unit::Bytes => units::size(whole(value)),
        Unit::Milliseconds => units::millis(value),
        Unit::Microseconds => units::millis(value / 1e3),
        Unit::Seconds => units::millis(value * 1e3),
        Unit::PerSecond => format!("{}/s", units::count(whole(value))),
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Count => units::count(whole(value)),
    }
}
