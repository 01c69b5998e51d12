//! `vmferry bench`.

mod compare;
mod render;
mod report;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser as _, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use vmferry_api::MigrateRequest;
use vmferry_guest::GuestSpec;
use vmferry_lab::bench::{
    Bench, CommandLine, Event, GuestKind, Outcome, PlannedRun, Results, Run, catalog, count_runs,
};
use vmferry_lab::{Interrupt, LabError, requirements};

use super::{migrate, output};
use crate::cli::{Cli, Command, Common};
use crate::{progress, units};

/// Exit code after Ctrl-C, as shells give it.
const INTERRUPTED: u8 = 130;

/// Measures a scenario: every variant (strategy with options, or a way in which QEMU migrates by itself) with every guest over
/// every link, again and again, mixed, so that what else the machine does concerns all alike. Each run has two host daemons in
/// network namespaces, joined by a shaped link, and a fresh guest; where QEMU itself is measured, two plain QEMUs.
///
/// As root, with QEMU, iproute2 and a guest image (`cargo xtask image`), everything is measured. Not as root, the synthetic guest
/// moves over loopback, which is not shaped; the result says so. A run that fails is a line of the result.
///
/// FILE keeps every run, with its report, the client's throughput in windows of 100 ms, versions and machine. It is written
/// after each run: the same command goes on where it was ended, and runs that a changed scenario still asks for are kept. With --json and
/// no FILE, JSON goes to stdout.
///
/// `vmferry bench report` makes a page of results, `vmferry bench compare` says what changed between two of them.
#[derive(Debug, Args)]
#[command(
    override_usage = "vmferry bench [OPTIONS] SCENARIO [--json FILE]\n       vmferry bench --list\n       vmferry bench report FILE... [--html OUT]\n       vmferry bench compare A B",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    then: Option<Then>,
    /// Name of a scenario, or path of a file (SCENARIO.toml)
    #[arg(required_unless_present = "list")]
    scenario: Option<String>,
    /// File of the results: what it has already is not measured again
    file: Option<PathBuf>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Of the scenario profile: how much of it, small (minutes) or paper (hours) [default: small]
    #[arg(long, value_name = "GRID")]
    grid: Option<Grid>,
    /// Guests to measure
    #[arg(long, value_name = "KIND", default_value = "both")]
    guest: Guests,
    /// Scaled down, to see that it works: the figures say little
    #[arg(long)]
    quick: bool,
    /// Runs of each, in place of what the scenario says
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    repetitions: Option<u32>,
    /// Throw away what FILE has
    #[arg(long)]
    fresh: bool,
    /// Folder with the guest image [default: guest in $VMFERRY_CACHE or the user's cache folder for vmferry]
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
}

/// What becomes of results.
#[derive(Debug, Subcommand)]
enum Then {
    Report(report::ReportArgs),
    Compare(compare::CompareArgs),
}

/// Grids of CPU shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Grid {
    /// Nine shares, guests of 256 MiB
    Small,
    /// Fifteen shares, guests of 1 GiB, three times
    Paper,
}

/// Kinds of guests.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Guests {
    /// The synthetic guest
    Synth,
    /// Linux in QEMU
    Qemu,
    /// Both
    Both,
}

impl Guests {
    fn kinds(self) -> &'static [GuestKind] {
        match self {
            Self::Synth => &[GuestKind::Synth],
            Self::Qemu => &[GuestKind::Qemu],
            Self::Both => &[GuestKind::Synth, GuestKind::Qemu],
        }
    }
}

pub(super) fn run(common: &Common, args: &BenchArgs) -> Result<ExitCode> {
    match &args.then {
        Some(Then::Report(args)) => return report::run(common, args),
        Some(Then::Compare(args)) => return compare::run(common, args),
        None => {}
    }
    let scenario = match &args.scenario {
        Some(scenario) if !args.list => scenario,
        _ => return list(common),
    };
    let scenario = match (scenario.as_str(), args.grid) {
        ("profile", Some(Grid::Paper)) => "profile-paper",
        ("profile", _) | (_, None) => scenario,
        _ => bail!("--grid is of the scenario profile; {scenario} has none"),
    };
    let program = std::env::current_exe().context("cannot find the program that is running")?;
    let interrupt = Interrupt::install()?;
    let bench = Bench {
        scenario,
        kinds: args.guest.kinds(),
        quick: args.quick,
        repetitions: args.repetitions,
        file: args.file.as_deref(),
        fresh: args.fresh,
        program: &program,
        image: args.image.clone().or_else(requirements::default_image),
        command: &Words,
        interrupt: &interrupt,
    };
    let mut watch = Watch::new(common.json);
    match bench.run(|event| watch.see(&event)) {
        Ok(results) => {
            drop(watch);
            print(common, args, &results)
        }
        Err(LabError::Interrupted) => {
            let then = match &args.file {
                Some(file) => format!(
                    "; {} has what was measured, the same command goes on",
                    file.display()
                ),
                None => String::new(),
            };
            watch.say(&format!("interrupted{then}"));
            Ok(ExitCode::from(INTERRUPTED))
        }
        Err(error) => Err(error.into()),
    }
}

fn list(common: &Common) -> Result<ExitCode> {
    let mut scenarios = Vec::new();
    for name in catalog::names() {
        let scenario = catalog::find(name)?.1;
        let runs = count_runs(name, &scenario, &Words).ok();
        scenarios.push((name, scenario, runs));
    }
    match common.json {
        true => {
            let contents = scenarios.iter().map(|(name, scenario, _)| (name, scenario));
            output::json(&std::collections::BTreeMap::from_iter(contents))?;
        }
        false => output::text(&render::list(&scenarios))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn print(common: &Common, args: &BenchArgs, results: &Results) -> Result<ExitCode> {
    match (common.json, &args.file) {
        (true, None) => output::json(results)?,
        _ => output::text(&render::results(results))?,
    }
    if results.runs.iter().all(|run| run.outcome.measured().is_none()) {
        bail!("no run of {} has figures", results.scenario);
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the options of scenarios as this program's command line.
struct Words;

impl Words {
    fn parse(command: &str, words: &[String]) -> std::result::Result<Command, String> {
        let line = ["vmferry", command].into_iter().map(str::to_owned);
        let cli = Cli::try_parse_from(line.chain(words.iter().cloned())).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            let line = line.strip_prefix("error: ").unwrap_or(line);
            format!("`vmferry {command}` does not understand it: {line}")
        })?;
        Ok(cli.command)
    }
}

impl CommandLine for Words {
    fn guest(&self, words: &[String]) -> std::result::Result<GuestSpec, String> {
        match Self::parse("run", words)? {
            Command::Run(args) => super::run::spec(args).map_err(|error| crate::failure::chain(&error)),
            other => Err(format!("{other:?} starts no guest")),
        }
    }

    fn host(&self, words: &[String]) -> std::result::Result<(), String> {
        Self::parse("host", words).map(drop)
    }

    fn migration(&self, words: &[String]) -> std::result::Result<MigrateRequest, String> {
        match Self::parse("migrate", words)? {
            Command::Migrate(args) => Ok(migrate::request(&args)),
            other => Err(format!("{other:?} moves no guest")),
        }
    }
}

/// How far a bench is: on a live line where stderr is a terminal, else in a line at the end of each run.
struct Watch {
    bar: ProgressBar,
    live: bool,
    title: String,
}

impl Watch {
    fn new(json: bool) -> Self {
        let live = !json && std::io::stderr().is_terminal();
        let bar = if live {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{spinner} {pos}/{len} [{elapsed}] {wide_msg}");
        bar.set_style(style.expect("a template that is correct"));
        if live {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Self {
            bar,
            live,
            title: String::new(),
        }
    }

    fn see(&mut self, event: &Event<'_>) {
        match event {
            Event::Planned { runs, known, dropped } => {
                self.bar.set_length(*runs as u64);
                dropped.iter().for_each(|dropped| self.say(&dropped.to_string()));
                let known = match known {
                    0 => String::new(),
                    known => format!(", {known} are known already"),
                };
                self.say(&format!("{runs} runs to make{known}"));
            }
            Event::Begins { run, eta_s } => {
                self.title = match eta_s {
                    Some(eta_s) => format!("{}, all in {}", title(run), units::millis(eta_s * 1e3)),
                    None => title(run),
                };
                self.bar.set_message(self.title.clone());
            }
            Event::Moves(look) => {
                self.bar
                    .set_message(format!("{}: {}", self.title, progress::line(look)));
            }
            Event::Ended(run) => {
                self.bar.inc(1);
                let position = format!("{}/{}", self.bar.position(), self.bar.length().unwrap_or(0));
                self.say(&format!("{position} {}", ended(run)));
            }
        }
    }

    /// A line that stays.
    fn say(&self, line: &str) {
        match self.live {
            true => self.bar.println(line),
            // Nobody is left to tell where that cannot be written.
            false => drop(std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("{line}\n").as_bytes(),
            )),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn title(run: &PlannedRun) -> String {
    format!("{}, {}, {}", run.key.guest, run.key.link, run.key.variant)
}

fn ended(run: &Run) -> String {
    let what = format!("{}, {}, {}", run.key.guest, run.key.link, run.key.variant);
    match &run.outcome {
        Outcome::Measured(measured) => {
            let (account, took) = (&measured.account, units::millis(measured.account.total_ms()));
            match (account.bytes_sent(), account.downtime_ms()) {
                (Some(bytes), Some(downtime_ms)) => format!(
                    "{what}: {} in {took}, downtime {}",
                    units::size(bytes),
                    units::millis(downtime_ms)
                ),
                _ => format!("{what}: {took}"),
            }
        }
        Outcome::Failed { why } => format!("{what}: FAILED: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scenario_that_comes_with_it_can_be_measured() {
        for name in catalog::names() {
            let (_, scenario) = catalog::find(name).unwrap();
            let runs = count_runs(name, &scenario, &Words).unwrap();
            assert!(runs >= 12, "{name}: {runs}");
            count_runs(name, &scenario.quick(), &Words).unwrap();
        }
    }

    #[test]
    fn options_of_scenarios_are_those_of_the_command() {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let request = Words.migration(&words("x --to=unix:/d --strategy=hybrid --streams=3 --verify"));
        let request = request.unwrap();
        assert_eq!((request.streams, request.verify), (Some(3), true));
        let error = Words.migration(&words("x --to=unix:/d --turbo=3")).unwrap_err();
        assert!(error.contains("--turbo") && error.lines().count() == 1, "{error}");
        let guest = Words
            .guest(&words("x --memory=64M --smp=2 --synthetic=write:8M"))
            .unwrap();
        assert_eq!(
            (guest.backend.as_str(), &guest.config["workers"]),
            ("synth", &2.into())
        );
        let guest = Words
            .guest(&words("x --memory=64M -- -device virtio-rng-pci"))
            .unwrap();
        assert_eq!(guest.config["args"][1], "virtio-rng-pci");
    }
}
