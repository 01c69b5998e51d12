//! `vmferry trace`.

mod show;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use vmferry_trace::{Partial, Summary, Trace};

use super::interrupts::Interrupts;
use super::output;
use crate::api::{TraceInfo, TraceRequest, TraceState};
use crate::cli::Common;
use crate::client::Client;
use crate::{names, units};

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(100);
/// Where there is no terminal: how often it is said that it goes on.
const LONG: Duration = Duration::from_secs(3600);

/// Records which pages a guest writes, and what they hold, while it runs on: for `vmferry simulate`, and to be looked at with
/// `vmferry trace show`.
///
/// A page that is looked at costs the guest a fault when it writes it next. So by default as many pages are looked at, as
/// often, as --budget allows: all of them where the guest writes little, one in some where it writes much. What it cost is
/// said at the end. The guest is never paused. Where it is moved or ended meanwhile, what was recorded is kept.
///
/// Ctrl-C ends the recording early; so does --stop, from elsewhere.
#[derive(Debug, Args)]
#[command(
    override_usage = "vmferry trace [OPTIONS] VM\n       vmferry trace --stop VM [--out FILE]\n       vmferry trace show FILE [--svg FILE] [--partial]",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true
)]
pub(crate) struct TraceArgs {
    #[command(subcommand)]
    then: Option<Then>,
    /// Name of the guest
    #[arg(required = true, value_parser = names::parse)]
    vm: Option<String>,
    /// For how long
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = units::parse_duration)]
    length: Duration,
    /// Time from one sample to the next
    #[arg(long, value_name = "TIME", default_value = "50ms", value_parser = units::parse_duration)]
    interval: Duration,
    /// Share of the guest's time that recording may cost
    #[arg(long, value_name = "PERCENT", default_value = "3%", value_parser = units::parse_percent, allow_negative_numbers = true)]
    budget: f64,
    /// Look at every page in every sample, whatever that costs
    #[arg(long, conflicts_with = "budget")]
    full: bool,
    /// The file to write [default: VM-SECONDS.vmtrace, with the seconds since 1970]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// End the recording of VM that is under way. Who began it has the trace; with --out it is written here as well
    #[arg(long, conflicts_with_all = ["length", "interval", "budget", "full"])]
    stop: bool,
}

/// What becomes of traces.
#[derive(Debug, Subcommand)]
enum Then {
    Show(show::ShowArgs),
}

/// What was recorded, for scripts.
#[derive(Serialize)]
struct Recorded<'a> {
    file: &'a Path,
    file_bytes: usize,
    summary: &'a Summary,
}

pub(super) fn run(common: &Common, args: &TraceArgs) -> Result<ExitCode> {
    if let Some(Then::Show(args)) = &args.then {
        return show::run(common, args);
    }
    let Some(vm) = &args.vm else {
        bail!("name a guest, or a file with `vmferry trace show FILE`");
    };
    if args.stop {
        return stop(common, vm, args.out.as_deref());
    }
    let file = args.out.clone().unwrap_or_else(|| default_file(vm));
    // Before the guest is bothered.
    check_writable(&file)?;
    let client = common.client()?;
    let interrupts = Interrupts::watch()?;
    client.begin_trace(
        vm,
        &TraceRequest {
            length_ms: args.length.as_millis() as u64,
            interval_ms: args.interval.as_secs_f64() * 1e3,
            full: args.full,
            budget_percent: args.budget,
        },
    )?;
    let info = follow(&client, vm, &interrupts, common.json)?;
    keep(common, &client, vm, &info, &file)
}

/// Ends the recording of a guest that somebody began, and writes it to `file`.
fn stop(common: &Common, vm: &str, file: Option<&Path>) -> Result<ExitCode> {
    file.map_or(Ok(()), check_writable)?;
    let client = common.client()?;
    // One that is over already is not ended, but can still be had.
    if file.is_none() && client.trace(vm)?.state != TraceState::Recording {
        bail!("guest {vm} is not being recorded; the last recording of it is written with --stop --out FILE");
    }
    let info = client.end_trace(vm)?;
    if let Some(file) = file {
        return keep(common, &client, vm, &info, file);
    }
    match common.json {
        true => output::json(&info)?,
        false => {
            let (elapsed, samples) = (units::millis(info.elapsed_ms), info.samples);
            output::text(&format!(
                "{vm}: no longer recorded, {samples} samples in {elapsed}\n"
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes what was recorded of a guest to `file`, and says what that is.
fn keep(common: &Common, client: &Client, vm: &str, info: &TraceInfo, file: &Path) -> Result<ExitCode> {
    if let (TraceState::Failed, Some(why)) = (info.state, &info.problem) {
        bail!("{why}");
    }
    let bytes = client.trace_file(vm)?;
    fs::write(file, &bytes).with_context(|| format!("cannot write {}", file.display()))?;
    let trace = Trace::read(&mut &bytes[..])?;
    let summary = trace.summary();
    match common.json {
        true => output::json(&Recorded {
            file,
            file_bytes: bytes.len(),
            summary: &summary,
        })?,
        false => {
            let size = units::size(bytes.len() as u64);
            output::text(&format!("{}: {size}\n{}", file.display(), show::render(&summary)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a trace; what is wrong with it is an error, or with `partial` a line on stderr where something is whole.
pub(super) fn read(file: &Path, partial: bool) -> Result<Trace> {
    let opened = fs::File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let mut reader = std::io::BufReader::new(opened);
    let context = || format!("cannot use {}", file.display());
    if !partial {
        return Trace::read(&mut reader).with_context(context);
    }
    let Partial { trace, problem } = Trace::read_partial(&mut reader).with_context(context)?;
    if let Some(problem) = problem {
        eprintln!("{}: only a part of it is used: {problem}", file.display());
    }
    Ok(trace)
}

fn default_file(vm: &str) -> PathBuf {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    PathBuf::from(format!("{vm}-{}.vmtrace", since_1970.as_secs()))
}

fn check_writable(file: &Path) -> Result<()> {
    let new = !file.exists();
    fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)
        .with_context(|| format!("cannot write {}", file.display()))?;
    if new {
        // Nothing is left behind where the recording fails.
        let _ = fs::remove_file(file);
    }
    Ok(())
}

/// Waits for the end, and shows how far it is.
fn follow(client: &Client, vm: &str, interrupts: &Interrupts, hidden: bool) -> Result<TraceInfo> {
    let target = match hidden {
        true => ProgressDrawTarget::hidden(),
        false => ProgressDrawTarget::stderr(),
    };
    let bar = ProgressBar::with_draw_target(Some(1), target);
    let style = ProgressStyle::with_template("{spinner} {prefix} [{bar:24}] {msg}");
    bar.set_style(style.context("the style of progress")?.progress_chars("=> "));
    bar.set_prefix(vm.to_owned());
    bar.enable_steady_tick(LONG.min(POLL));
    let mut ended = false;
    loop {
        if interrupts.count() > 0 && !ended {
            ended = true;
            client.end_trace(vm)?;
        }
        let info = client.trace(vm)?;
        if info.state != TraceState::Recording {
            bar.finish_and_clear();
            return Ok(info);
        }
        bar.set_length(info.length_ms as u64);
        bar.set_position(info.elapsed_ms as u64);
        bar.set_message(line(&info));
        thread::sleep(POLL);
    }
}

fn line(info: &TraceInfo) -> String {
    let looked = match info.one_in {
        0 | 1 => "all pages".to_owned(),
        one_in => format!("one page in {one_in}"),
    };
    let problem = info
        .problem
        .as_deref()
        .map(|why| format!("; {why}"))
        .unwrap_or_default();
    format!(
        "{} of {}, {} samples of {looked}, dirtied at {}, costs {:.1} % of the guest's time{problem}",
        units::millis(info.elapsed_ms),
        units::millis(info.length_ms),
        info.samples,
        units::rate(info.dirty_bytes_per_s),
        info.cost_percent,
    )
}
