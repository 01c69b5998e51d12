//! `vmferry forecast score`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use vmferry_forecast::experience::Quantity;
use vmferry_forecast::score::Score;
use vmferry_lab::bench::{Results, records};
use vmferry_report::standalone::{calibration_panels, calibration_svg};

use crate::cli::Common;
use crate::commands::output;
use crate::{table, units};

/// Says what forecasts were worth: of all migrations from this host that had one, expected beside measured.
///
/// bias: how much more was measured than expected, in the median. error: how far off a forecast was, in the median. held: share
/// of the intervals for nine of ten cases that held what was measured; it should be near 90%. untaught: the same of the intervals that a host
/// without earlier forecasts would have said. near: share of the forecasts
/// within 15% of what was measured, of the downtime within 10 ms or 25%. best named: how often the strategy that was recommended was
/// the best of those that were tried with the same guest, destination and limits; one that only failed is the worst.
#[derive(Debug, Args)]
pub(crate) struct ScoreArgs {
    /// Results of `vmferry bench` (as of the scenario forecasts), in place of the history of the host
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Also draw it, as SVG: what was measured over what was expected
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
}

pub(super) fn run(common: &Common, args: &ScoreArgs) -> Result<ExitCode> {
    let mut all = Vec::new();
    for file in &args.from {
        all.append(&mut records(&Results::read(file)?.0));
    }
    if args.from.is_empty() {
        all = common.history()?;
    }
    let Some(score) = Score::of(&all) else {
        bail!(
            "there are no migrations that completed and had a forecast, among {} (those with disks, --reuse or --verify are no test of \
             it): move guests with `vmferry migrate --forecast` or `--strategy auto`, or measure many with `vmferry bench forecasts \
             FILE` and name that with --from FILE",
            all.len()
        );
    };
    if let Some(svg) = &args.svg {
        fs::write(svg, drawing(&score)).with_context(|| format!("cannot write {}", svg.display()))?;
    }
    match common.json {
        true => output::json(&score)?,
        false => output::text(&render(&score))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(score: &Score) -> String {
    let mut quantities = table::list(&["forecast of", "bias", "error", "", "held", "untaught", "near"]);
    let percent = |share: f64| format!("{:.1}%", share * 1e2);
    for of in &score.quantities {
        let absolute = match of.quantity {
            Quantity::BytesOnWire => units::size(of.median_absolute_error as u64),
            _ => units::millis(of.median_absolute_error),
        };
        quantities.add_row([
            of.quantity.name().to_owned(),
            format!("{:+.1}%", of.bias * 1e2),
            percent(of.median_error),
            absolute,
            percent(of.coverage),
            percent(of.untaught_coverage),
            percent(of.near),
        ]);
    }
    table::align_right(&mut quantities, &[1, 2, 3, 4, 5, 6]);
    let mut text = format!(
        "{} migrations with a forecast\n\n{}",
        score.migrations,
        table::render(quantities)
    );
    if score.recommended.is_empty() {
        return text
            + "\nno setting was tried with three strategies or more: which of them is the best is not known\n";
    }
    let mut goals = table::list(&["goal", "settings", "forecasts", "best named", "or as good"]);
    for of in &score.recommended {
        let share = |count: usize| percent(count as f64 / of.forecasts as f64);
        goals.add_row([
            of.goal.to_string(),
            of.settings.to_string(),
            of.forecasts.to_string(),
            share(of.best),
            share(of.as_good),
        ]);
    }
    table::align_right(&mut goals, &[1, 2, 3, 4]);
    text += &format!(
        "\n{}\nas good: within 5% of the best, and for evict within 10 ms of it\n",
        table::render(goals)
    );
    text
}

fn drawing(score: &Score) -> String {
    calibration_svg(
        &format!("{} forecasts: measured over expected", score.migrations),
        &calibration_panels(score),
    )
}
