//! `vmferry forecast`.

mod score;

use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use vmferry_core::forecast::{Expected, Forecast, Goal};
use vmferry_core::{Encoding, Limits, Strategy};
use vmferry_forecast::history::Beside;
use vmferry_forecast::simulated::SIMULATIONS;
use vmferry_lab::forecasting::{self, ForecastStep, ForecastWish, Past};
use vmferry_trace::Trace;
use vmferry_transport::Endpoint;

use super::interrupts::Interrupts;
use super::output;
use super::trace;
use crate::api::MigrateRequest;
use crate::cli::Common;
use crate::client::Client;
use crate::{names, table, units};

/// Forecasts the migration of a guest: what each strategy would take, with the interval that holds it in nine of ten cases, and which
/// one suits --goal.
///
/// The guest is recorded for --record (as by `vmferry trace`, at no more than 3% of its time), the path to the host measured
/// where that was not done in the last ten minutes, and what was recorded replayed by the very algorithms that would move
/// it, again and again. Forecasts of migrations that were made (`vmferry migrate --forecast`, `--strategy auto`) correct later
/// ones; `vmferry forecast score` says what they were worth.
#[derive(Debug, Args)]
#[command(
    override_usage = "vmferry forecast [OPTIONS] VM --to HOST\n       vmferry forecast score [--from FILE] [--svg FILE]",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub(crate) struct ForecastArgs {
    #[command(subcommand)]
    then: Option<Then>,
    /// Name of the guest
    #[arg(required = true, value_parser = names::parse)]
    vm: Option<String>,
    /// Where to: HOST, HOST:PORT, tcp:HOST:PORT or unix:/PATH
    #[arg(long, value_name = "HOST", required = true)]
    to: Option<Endpoint>,
    /// What the migration is to be good at: downtime=TIME as in downtime=50ms, evict, bytes, total or balanced
    #[arg(long, value_name = "GOAL", default_value = "balanced")]
    goal: Goal,
    /// How long to record the guest
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::parse_duration)]
    record: Duration,
    /// Use this trace of the guest in place of recording it
    #[arg(long, value_name = "FILE", conflicts_with = "record")]
    trace: Option<PathBuf>,
    /// Simulated migrations of each strategy
    #[arg(long, value_name = "N", default_value_t = SIMULATIONS as u32, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    simulations: u32,
    /// Decides what chance decides
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Goal for the downtime of pre-copy [default: that of --goal, else 300ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    downtime: Option<Duration>,
    /// Most rounds of pre-copy [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: Option<u32>,
    /// Most that all streams together send, as in 200mbit [default: no limit]
    #[arg(long, value_name = "RATE", value_parser = units::parse_bandwidth)]
    bandwidth: Option<u64>,
    /// Most CPU that the streams of this host use, in percent of one core, as in 50% [default: no limit]
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu: Option<u32>,
    /// Most CPU that the streams of the destination use, in percent of one core, as in 50% [default: no limit]
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu_destination: Option<u32>,
    /// Streams for pages; chosen from the number of cores where absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,
    /// How pages cross, as for migrate
    #[arg(long, value_name = "ENCODING", default_value_t)]
    encoding: Encoding,
}

#[derive(Debug, Subcommand)]
enum Then {
    /// Say what earlier forecasts were worth
    Score(score::ScoreArgs),
}

pub(super) fn run(common: &Common, args: &ForecastArgs) -> Result<ExitCode> {
    if let Some(Then::Score(args)) = &args.then {
        return score::run(common, args);
    }
    let (Some(vm), Some(to)) = (&args.vm, &args.to) else {
        bail!("name a guest and a host: vmferry forecast VM --to HOST");
    };
    let request = request(args, to);
    let wish = ForecastWish {
        vm,
        request: &request,
        goal: args.goal,
        record: args.record,
        trace: args
            .trace
            .as_deref()
            .map(|file| read_trace(file, vm))
            .transpose()?,
        past: &Past::default(),
        simulations: args.simulations as usize,
        seed: args.seed,
    };
    let forecast = make(common, &common.client()?, &wish)?;
    match common.json {
        true => output::json(&forecast)?,
        false => output::text(&render(&forecast))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A trace of `vm`, or of another guest, which is said: it may well be the same under another name.
fn read_trace(file: &Path, vm: &str) -> Result<Trace> {
    let trace = trace::read(file, false)?;
    let of = &trace.header.vm;
    if of != vm {
        eprintln!(
            "{}: it was recorded of {of}; the forecast takes {vm} to do the same",
            file.display()
        );
    }
    Ok(trace)
}

/// A request with the forecast that it wants, by the strategy that was chosen where one was to be.
pub(super) fn made(
    common: &Common,
    client: &Client,
    vm: &str,
    mut request: MigrateRequest,
    record: Duration,
) -> Result<MigrateRequest> {
    let Some(goal) = request.goal else {
        return Ok(request);
    };
    let beside = Beside::asked(&request);
    if !beside.is_nothing() {
        eprintln!("the forecast is not of all that was asked for: {beside}");
    }
    let wish = ForecastWish {
        vm,
        request: &request,
        goal,
        record,
        trace: None,
        past: &Past::default(),
        simulations: SIMULATIONS,
        seed: 1,
    };
    let forecast = make(common, client, &wish)?;
    if request.auto {
        request.strategy = forecast.recommended;
    }
    if !common.json {
        output::text(&render(&forecast))?;
    }
    request.forecast = Some(Box::new(forecast));
    Ok(request)
}

fn make(common: &Common, client: &Client, wish: &ForecastWish<'_>) -> Result<Forecast> {
    let interrupts = Interrupts::watch()?;
    let bar = match !common.json && std::io::stderr().is_terminal() {
        true => ProgressBar::new_spinner(),
        false => ProgressBar::hidden(),
    };
    bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a template that is correct"));
    bar.enable_steady_tick(Duration::from_millis(100));
    let made = forecasting::forecast(client, wish, |step| {
        bar.set_message(match step {
            ForecastStep::Records(so_far, of) => {
                format!(
                    "recording {}: {} of {}",
                    wish.vm,
                    units::millis(so_far),
                    units::millis(of)
                )
            }
            ForecastStep::Calibrates => format!("measuring the path to {}", wish.request.to),
            ForecastStep::Simulates(strategy) => format!("simulating {strategy}"),
        });
        interrupts.count() == 0
    });
    bar.finish_and_clear();
    Ok(made?)
}

fn request(args: &ForecastArgs, to: &Endpoint) -> MigrateRequest {
    let default = Limits::default();
    let of_goal = match args.goal {
        Goal::Downtime(most) => Some(most),
        _ => None,
    };
    MigrateRequest {
        limits: Limits {
            downtime: args.downtime.or(of_goal).unwrap_or(default.downtime),
            rounds: args.max_rounds.unwrap_or(default.rounds),
            bandwidth_bytes_per_s: args.bandwidth,
            cpu_percent: args.cpu,
            cpu_destination_percent: args.cpu_destination,
            ..default
        },
        streams: args.streams,
        encoding: args.encoding,
        ..MigrateRequest::new(to.to_string(), Strategy::PreCopy)
    }
}

fn render(forecast: &Forecast) -> String {
    let mut table = table::list(&[
        "strategy",
        "total",
        "transfer",
        "downtime",
        "on the wire",
        "slow-down",
    ]);
    let show = |expected: &Expected, show: &dyn Fn(f64) -> String| {
        format!(
            "{} ({} to {})",
            show(expected.likely),
            show(expected.low),
            show(expected.high)
        )
    };
    for of in &forecast.strategies {
        let mut name = of.strategy.to_string();
        if of.completes < 1.0 {
            name += &format!(" (gives up in {:.0}%)", 100.0 * (1.0 - of.completes));
        }
        if of.strategy == forecast.recommended {
            name += " *";
        }
        table.add_row([
            name,
            show(&of.total_ms, &units::millis),
            show(&of.execution_transfer_ms, &units::millis),
            show(&of.downtime_ms, &units::millis),
            show(&of.bytes_on_wire, &|bytes| units::size(bytes as u64)),
            show(&of.slow_down_percent, &|percent| format!("{percent:.1}%")),
        ]);
    }
    table::align_right(&mut table, &[1, 2, 3, 4, 5]);
    format!(
        "{}\nfor {}: {}, since {}\nin brackets: what holds in nine of ten cases; from {}, {} simulations each\n",
        table::render(table),
        forecast.goal,
        forecast.recommended,
        forecast.why,
        forecast.basis,
        forecast.simulations
    )
}

#[cfg(test)]
mod tests {
    use vmferry_core::forecast::StrategyForecast;

    use super::*;

    #[test]
    fn every_figure_is_shown_with_its_interval_and_what_is_recommended_is_marked() {
        let about = |likely: f64| Expected {
            likely,
            low: likely * 0.5,
            high: likely * 2.0,
        };
        let of = |strategy, completes| StrategyForecast {
            strategy,
            total_ms: about(4000.0),
            execution_transfer_ms: about(3000.0),
            downtime_ms: about(20.0),
            bytes_on_wire: about(f64::from(1 << 30)),
            slow_down_percent: about(8.0),
            rounds: about(3.0),
            completes,
            typical_rounds: Vec::new(),
        };
        let mut forecast = Forecast {
            goal: Goal::Evict,
            recommended: Strategy::Hybrid,
            why: "it is away soonest".into(),
            strategies: vec![of(Strategy::PreCopy, 0.9), of(Strategy::Hybrid, 1.0)],
            simulated: Vec::new(),
            simulations: 40,
            basis: "5.0 s of web".into(),
        };
        let text = render(&forecast);
        for part in [
            "pre-copy (gives up in 10%)",
            "hybrid *",
            "4 s (2 s to 8 s)",
            "1 GiB (512 MiB to 2 GiB)",
            "8.0% (4.0% to 16.0%)",
            "for evict: hybrid, since it is away soonest",
            "5.0 s of web, 40 simulations",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        // Where nothing is sure to complete, what is recommended may give up too.
        forecast.recommended = Strategy::PreCopy;
        assert!(render(&forecast).contains("pre-copy (gives up in 10%) *"));
    }
}
