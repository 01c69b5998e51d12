//! `vmferry simulate`.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;
use vmferry_core::report::Outcome as Ended;
use vmferry_core::{Encoding, Limits, MigrationRequest, Strategy};
use vmferry_forecast::simulated::{few, of_values};
use vmferry_report::standalone::{OutcomeRow, Span, outcomes_svg};
use vmferry_sim::{Outcome, PathModel, Simulator};
use vmferry_trace::Trace;

use super::output;
use super::trace;
use crate::cli::Common;
use crate::{table, units};

const MIB: f64 = (1 << 20) as f64;

/// Simulates migrations of a guest that was recorded (`vmferry trace`), by the very algorithms that would move it, in virtual
/// time: what each would take over a link.
///
/// What link and hosts take is --link and --rtt, on hosts as vmferry was measured on; or what `vmferry calibrate --to HOST`
/// measured (--to); or the JSON of that in a file (--path). The same trace, options and seed give the same result. With --runs
/// each strategy is simulated so many times, with parts of the trace drawn anew and a path that varies: then medians are
/// printed, and what nine of ten runs to come lie within.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    /// A trace
    #[arg(value_name = "TRACE")]
    trace: PathBuf,
    /// What the link carries, as in 1gbit or 125MB/s
    #[arg(long, value_name = "RATE", value_parser = units::parse_bandwidth)]
    link: Option<u64>,
    /// Its round trip time [default: 0.2ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    rtt: Option<Duration>,
    /// The path to this host, as calibrated; --link and --rtt change it
    #[arg(long, value_name = "HOST", conflicts_with = "path")]
    to: Option<String>,
    /// A file with the JSON of a path; --link and --rtt change it
    #[arg(long, value_name = "FILE")]
    path: Option<PathBuf>,
    /// Strategies, with commas between them, or all
    #[arg(long, short, default_value = "all", value_parser = strategies)]
    strategy: Strategies,
    /// Decides what chance decides
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Simulated migrations of each strategy
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: u32,
    /// Goal for the downtime of pre-copy [default: 300ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    downtime: Option<Duration>,
    /// Most rounds of pre-copy [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: Option<u32>,
    /// Most that all streams together send [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = units::parse_bandwidth)]
    bandwidth: Option<u64>,
    /// Most CPU that the streams use, in percent of one core [default: no limit]
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu: Option<u32>,
    /// Most CPU that the streams of the destination use, in percent of one core [default: no limit]
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu_destination: Option<u32>,
    /// Streams for pages; half of the processors where absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,
    /// How pages cross, as for migrate
    #[arg(long, value_name = "ENCODING", default_value_t)]
    encoding: Encoding,
    /// As if the host's sampler knew the guest already: hybrid-learning does not learn first, pre-copy-filter has a model to try
    #[arg(long)]
    sampled: bool,
    /// Also draw it, as SVG
    #[arg(long, value_name = "OUT")]
    svg: Option<PathBuf>,
    /// Use what is whole of a trace that is cut short or damaged
    #[arg(long)]
    partial: bool,
}

/// Some of them.
#[derive(Clone, Debug)]
struct Strategies(Vec<Strategy>);

fn strategies(text: &str) -> Result<Strategies, String> {
    if text == "all" {
        return Ok(Strategies(Strategy::ALL.to_vec()));
    }
    let named = text.split(',').map(|name| name.trim().parse::<Strategy>());
    named
        .collect::<Result<Vec<_>, _>>()
        .map(Strategies)
        .map_err(|error| format!("{error}; or all"))
}

/// What came of one strategy.
#[derive(Debug, Serialize)]
struct Simulated {
    strategy: Strategy,
    /// One a run.
    outcomes: Vec<Outcome>,
}

/// Everything, for scripts.
#[derive(Debug, Serialize)]
struct Answer<'a> {
    trace: &'a PathBuf,
    path: &'a PathModel,
    strategies: &'a [Simulated],
}

pub(super) fn run(common: &Common, args: &SimulateArgs) -> Result<ExitCode> {
    let mut path = path(common, args)?;
    path.sampled |= args.sampled;
    path.check()?;
    let trace = trace::read(&args.trace, args.partial)?;
    let simulator = Simulator::new(&trace)?;
    let simulated = args
        .strategy
        .0
        .iter()
        .map(|&strategy| {
            let request = request(args, strategy);
            let outcomes = match args.runs {
                1 => vec![simulator.run(&request, &path, args.seed)?],
                runs => simulator.many(&request, &path, args.seed, runs as usize)?,
            };
            Ok(Simulated { strategy, outcomes })
        })
        .collect::<Result<Vec<_>>>()?;
    if let Some(svg) = &args.svg {
        let rows: Vec<OutcomeRow> = simulated.iter().map(row_of).collect();
        let title = format!(
            "{}, simulated over {}",
            trace.header.vm,
            units::bandwidth(path.link_bytes_per_s as u64)
        );
        fs::write(svg, outcomes_svg(&title, &rows))
            .with_context(|| format!("cannot write {}", svg.display()))?;
    }
    match common.json {
        true => output::json(&Answer {
            trace: &args.trace,
            path: &path,
            strategies: &simulated,
        })?,
        false => output::text(
            &(render(&simulated)
                + &reservations(&simulated, simulator.pages_per_unit())
                + &taken_for(args, &trace)),
        )?,
    }
    Ok(ExitCode::SUCCESS)
}

fn path(common: &Common, args: &SimulateArgs) -> Result<PathModel> {
    let rtt_ms = args.rtt.map(|rtt| rtt.as_secs_f64() * 1e3);
    let known = match (&args.to, &args.path) {
        (Some(to), _) => Some(calibrated(common, to)?),
        (None, Some(file)) => {
            let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            Some(read_path(&text).with_context(|| format!("{} is no path", file.display()))?)
        }
        (None, None) => None,
    };
    let Some(known) = known else {
        let Some(link) = args.link else {
            bail!(
                "over which link? say --link RATE, --to HOST after `vmferry calibrate --to HOST`, or --path FILE"
            );
        };
        return Ok(PathModel::typical(link as f64, rtt_ms.unwrap_or(0.2)));
    };
    Ok(PathModel {
        link_bytes_per_s: args.link.map_or(known.link_bytes_per_s, |link| link as f64),
        rtt_ms: rtt_ms.unwrap_or(known.rtt_ms),
        ..known
    })
}

/// A path, or what `vmferry calibrate --json` printed.
fn read_path(text: &[u8]) -> Result<PathModel> {
    let mut value: serde_json::Value = serde_json::from_slice(text)?;
    if let Some(path) = value.get_mut("path") {
        value = path.take();
    }
    ensure!(
        value.is_object(),
        "a path is a JSON object, as `vmferry calibrate --json` prints it"
    );
    Ok(serde_json::from_value(value)?)
}

fn calibrated(common: &Common, to: &str) -> Result<PathModel> {
    let endpoint: vmferry_transport::Endpoint = to.parse()?;
    let paths = common.client()?.paths()?;
    let known = paths.into_iter().find(|known| known.to == endpoint.to_string());
    match known {
        Some(known) => Ok(known.path),
        None => bail!("the path to {endpoint} was not measured yet: use `vmferry calibrate --to {to}`"),
    }
}

fn request(args: &SimulateArgs, strategy: Strategy) -> MigrationRequest<()> {
    let default = Limits::default();
    MigrationRequest {
        limits: Limits {
            downtime: args.downtime.unwrap_or(default.downtime),
            rounds: args.max_rounds.unwrap_or(default.rounds),
            bandwidth_bytes_per_s: args.bandwidth,
            cpu_percent: args.cpu,
            cpu_destination_percent: args.cpu_destination,
            ..default
        },
        streams: args.streams,
        encoding: args.encoding,
        ..MigrationRequest::new((), strategy)
    }
}

fn figures(outcomes: &[Outcome], figure: impl Fn(&Outcome) -> f64) -> Span {
    let expected = of_values(outcomes.iter().map(figure));
    Span {
        value: expected.likely,
        interval: (outcomes.len() > 1).then_some((expected.low, expected.high)),
    }
}

fn row_of(simulated: &Simulated) -> OutcomeRow {
    let outcomes = &simulated.outcomes;
    let phases = outcomes[0].report.phases.iter();
    OutcomeRow {
        name: simulated.strategy.to_string(),
        total_ms: figures(outcomes, |outcome| outcome.report.total_ms),
        downtime_ms: figures(outcomes, |outcome| outcome.report.downtime_ms),
        wire_mib: figures(outcomes, |outcome| outcome.report.bytes_on_wire as f64 / MIB),
        phases: phases
            .map(|phase| (phase.name.clone(), phase.start_ms, phase.end_ms))
            .collect(),
    }
}

fn render(simulated: &[Simulated]) -> String {
    let mut table = table::list(&[
        "strategy",
        "total",
        "transfer",
        "downtime",
        "on the wire",
        "rounds",
        "faults",
        "slow-down",
    ]);
    let shown = |outcomes: &[Outcome], figure: fn(&Outcome) -> f64, show: fn(f64) -> String| {
        let span = figures(outcomes, figure);
        match span.interval {
            None => show(span.value),
            Some((low, high)) => format!("{} ({} to {})", show(span.value), show(low), show(high)),
        }
    };
    for Simulated { strategy, outcomes } in simulated {
        let failed = outcomes
            .iter()
            .filter(|outcome| outcome.report.outcome != Ended::Completed);
        let name = match failed.count() {
            0 => strategy.to_string(),
            count => format!("{strategy} (gave up {count} of {})", outcomes.len()),
        };
        table.add_row([
            name,
            shown(outcomes, |outcome| outcome.report.total_ms, units::millis),
            shown(
                outcomes,
                |outcome| outcome.report.execution_transfer_ms,
                units::millis,
            ),
            shown(outcomes, |outcome| outcome.report.downtime_ms, units::millis),
            shown(
                outcomes,
                |outcome| outcome.report.bytes_on_wire as f64,
                |bytes| units::size(bytes as u64),
            ),
            shown(
                outcomes,
                |outcome| outcome.report.rounds.len() as f64,
                |count| units::count(count as u64),
            ),
            shown(
                outcomes,
                |outcome| outcome.report.faults.network as f64,
                |count| units::count(count as u64),
            ),
            shown(
                outcomes,
                |outcome| outcome.slow_down_percent,
                |percent| format!("{percent:.1} %"),
            ),
        ]);
    }
    table::align_right(&mut table, &[1, 2, 3, 4, 5, 6, 7]);
    table::render(table)
}

/// What nobody measured of this guest and these hosts.
fn taken_for(args: &SimulateArgs, trace: &Trace) -> String {
    let mut text = String::new();
    if args.to.is_none() && args.path.is_none() {
        text += "what hosts take is that of the machine vmferry was measured on; for yours: `vmferry calibrate --to HOST`, then --to HOST\n";
    }
    if trace.hints.is_none() && args.strategy.0.contains(&Strategy::Enlightened) {
        text += "the recording does not say what the guest uses its pages for: enlightened moves as by post-copy-push\n";
    }
    text
}

/// What the figures are to be taken with.
fn reservations(simulated: &[Simulated], pages_per_unit: u64) -> String {
    let mut text = String::new();
    let extended_ms = simulated
        .iter()
        .flat_map(|simulated| &simulated.outcomes)
        .map(|outcome| outcome.extended_ms)
        .fold(0.0, f64::max);
    if extended_ms > 0.0 {
        text += &format!(
            "up to {} lie beyond the recording: there the guest does what its model makes likely\n",
            units::millis(extended_ms)
        );
    }
    let runs = simulated.first().map_or(0, |simulated| simulated.outcomes.len());
    if runs > 1
        && let Some(few) = few(runs)
    {
        text += &format!("{few}\n");
    }
    if pages_per_unit > 1 {
        text += &format!("simulated in units of {}\n", units::size(pages_per_unit * 4096));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_are_named_one_by_one_or_all_at_once() {
        assert_eq!(strategies("all").unwrap().0, Strategy::ALL);
        let some = strategies("pre-copy, hybrid").unwrap().0;
        assert_eq!(some, [Strategy::PreCopy, Strategy::Hybrid]);
        let why = strategies("pre-copy,teleport").unwrap_err();
        assert!(why.contains("teleport") && why.contains("or all"), "{why}");
    }

    #[test]
    fn a_path_is_read_from_what_calibrate_prints_or_by_itself() {
        for text in [
            r#"{"link_bytes_per_s": 5e7, "rtt_ms": 1}"#,
            r#"{"to": "b", "path": {"link_bytes_per_s": 5e7, "rtt_ms": 1}}"#,
        ] {
            assert_eq!(read_path(text.as_bytes()).unwrap(), PathModel::typical(5e7, 1.0));
        }
        assert!(read_path(b"[]").is_err());
    }
}
