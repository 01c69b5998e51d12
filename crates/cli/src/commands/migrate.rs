//! `vmferry migrate`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use vmferry_core::forecast::Goal;
use vmferry_core::report::{Outcome, Report};
use vmferry_core::{AtLimit, DiskRequest, DiskWrites, Encoding, Limits, Strategy, Tuning, Workload};
use vmferry_transport::Endpoint;

use super::forecast;
use super::interrupts::Interrupts;
use super::output;
use crate::api::{MigrateRequest, Stage};
use crate::cli::Common;
use crate::client::{Client, ClientError};
use crate::failure;
use crate::progress::ProgressLine;
use crate::{names, report_table, units};

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(100);

/// Moves a guest to another host, where `vmferry host` has to run. Until the destination runs the guest, any failure
/// leaves it running here.
///
/// Ctrl-C cancels the migration; a second one leaves it to the daemon.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    name: String,
    /// Where to: HOST, HOST:PORT, tcp:HOST:PORT or unix:/PATH
    #[arg(long, value_name = "HOST")]
    to: Endpoint,
    /// Algorithm: stop-and-copy, pre-copy, pre-copy-filter, post-copy, post-copy-push, hybrid,
    /// hybrid-learning, enlightened or auto
    ///
    /// stop-and-copy: everything while the guest is stopped. pre-copy: rounds while it runs, until the rest crosses
    /// within --downtime. pre-copy-filter: the same, but rounds leave out pages that a model of the guest's writes expects to
    /// be dirtied again. post-copy: it resumes at the destination at once and fetches pages when it needs them.
    /// post-copy-push: the same, and all pages are pushed, those around a fault first. hybrid: one round while it
    /// runs, then it resumes at the destination and what it dirtied follows. hybrid-learning: the same, but the pages it
    /// writes most are learned beforehand and cross only after the resume. enlightened: the guest's agent says what its
    /// pages are used for; it resumes at the destination at once, free pages never cross, and all others follow in the
    /// order of their worth. Without an agent it moves as by post-copy-push.
    /// auto: a forecast chooses the one that suits --goal; where it chose pre-copy and reality leaves the forecast, the rest
    /// follows the guest, as in post-copy, once few pages are dirty.
    #[arg(long, short, default_value = "pre-copy")]
    strategy: Asked,
    /// What auto is to be good at: downtime=TIME as in downtime=50ms, evict (away from here soonest), bytes, total or balanced
    /// [default: balanced]
    #[arg(long, value_name = "GOAL")]
    goal: Option<Goal>,
    /// Forecast the migration before it begins, also where --strategy is named; the report keeps what was expected
    ///
    /// The guest is recorded for --record, as by `vmferry trace`, and the path measured where it was not lately. A forecast is of
    /// memory: what disks (--with-disks), --reuse and --verify take or spare is not in it. What such forecasts were worth says
    /// `vmferry forecast score`.
    #[arg(long)]
    forecast: bool,
    /// How long to record the guest for a forecast
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = units::parse_duration)]
    record: Duration,
    /// Goal for the downtime of pre-copy, as in 300ms [default: 300ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    downtime: Option<Duration>,
    /// Most rounds of pre-copy before --at-limit [default: 30]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_rounds: Option<u32>,
    /// Longest time in rounds of pre-copy before --at-limit, as in 30s [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    max_time: Option<Duration>,
    /// Most data sent in rounds of pre-copy before --at-limit, as in 8G [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    max_bytes: Option<u64>,
    /// What to do when a limit is reached before the goal: stop, post-copy or abort [default: stop]
    ///
    /// stop: stop the guest and send the rest, however long that takes. post-copy: resume it at the destination and
    /// send the rest after it. abort: give up; the guest stays here.
    #[arg(long, value_name = "ACTION", value_parser = at_limit(), hide_possible_values = true)]
    at_limit: Option<AtLimit>,
    /// Push the rest when post-copy saw no fault for this long [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    drain_after: Option<Duration>,
    /// Give up if the guest is not handed over within this time, as in 60s; it goes on here [default: no limit]
    ///
    /// From the handover on, when the guest runs at the destination, a migration can only be completed.
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    timeout: Option<Duration>,
    /// Most that all streams together send, in bits as in 200mbit or in bytes as in 25MB/s [default: no limit]
    ///
    /// Holds while the guest runs, while it is stopped and after it resumed; the downtime goal is judged by it. Pages that the
    /// guest at the destination waits for, and its device state, are sent at once and count. `vmferry limit` changes it under
    /// way.
    #[arg(long, value_name = "RATE", value_parser = units::parse_bandwidth)]
    bandwidth: Option<u64>,
    /// Most CPU that the streams of this host use, in percent of one core, as in 50% [default: no limit]
    ///
    /// Enforced by a control group where there is one, and by pauses between batches of pages. Pages that the guest waits for
    /// are sent at once.
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu: Option<u32>,
    /// Most CPU that the streams of the destination use, in percent of one core, as in 50% [default: no limit]
    ///
    /// Pages that the guest waits for are taken in at once.
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu_destination: Option<u32>,
    /// Weight of the newest sample of dirty pages, 0 to 1, for hybrid-learning [default: 0.5]
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, value_parser = number)]
    alpha: Option<f64>,
    /// Samples to learn from, for hybrid-learning and pre-copy-filter [default: 20]
    #[arg(long, value_name = "N")]
    samples: Option<u32>,
    /// Time from one sample to the next, as in 50ms [default: 50ms]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    interval: Option<Duration>,
    /// Regions that pre-copy-filter cuts RAM into; they have to divide it [default: 256, if need be uneven]
    #[arg(long, value_name = "N")]
    regions: Option<u32>,
    /// How long the guest's agent may take to answer, for enlightened; then it moves without [default: 2s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    agent_timeout: Option<Duration>,
    /// Processes that ran within this time count as active, for enlightened [default: 16s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    active_within: Option<Duration>,
    /// Streams for pages; chosen from the number of cores where absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    streams: Option<u16>,
    /// How pages cross: auto, raw, lz4, zstd, zstd:LEVEL or delta; also combined, as in lz4+delta
    ///
    /// auto: whatever finishes soonest at each time, by what link, processors and content allow. raw: as they are. lz4,
    /// zstd: compressed; zstd takes more processor time and is shorter, LEVEL is -7 to 19 [default: 1]. delta: pages that
    /// cross again, as the difference to the version sent before. Pages that do not shrink cross raw, pages of equal
    /// bytes as one byte, all the same.
    #[arg(long, value_name = "ENCODING", default_value_t)]
    encoding: Encoding,
    /// Memory for versions of pages sent before, from which differences are made; 0 makes none [default: a 256th of the guest, at most 64M]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    delta_cache: Option<u64>,
    /// What the guest does, for the models: CLASS or CLASS:PERCENT as in memory-write or cpu:40
    ///
    /// Classes are cpu, memory-read, memory-write, disk-read, net-send and net-receive, PERCENT is how hard it is at work. What
    /// the migration teaches is kept under it, see `vmferry model`.
    #[arg(long, value_name = "CLASS")]
    workload: Option<Workload>,
    /// Pages that the destination has in its store of checkpoints cross as their hashes
    ///
    /// Worth it for a guest that returns, or one that is like others there: the destination looks into its newest checkpoints
    /// (`vmferry host --store`), of this guest first. Each page is checked against its hash; one that turns out to be missing there
    /// crosses after all. Costs time of a processor at both sides.
    #[arg(long)]
    reuse: bool,
    /// Move the guest's disks too: the destination makes files for them, the guest goes on while they are copied
    ///
    /// Disks in files and block devices of this host move, network storage does not. The files here stay as they were at
    /// the stop. Data is not encrypted on its way.
    #[arg(long, help_heading = "Disks")]
    with_disks: bool,
    /// Folder at the destination for the disks [default: the same paths as here]
    #[arg(long, value_name = "FOLDER", requires = "with_disks", help_heading = "Disks")]
    disk_dir: Option<PathBuf>,
    /// Overwrite disks that are at the destination already
    #[arg(long, requires = "with_disks", help_heading = "Disks")]
    overwrite_disks: bool,
    /// Copy only what changed since the guest left its disks at the destination
    ///
    /// After a move with its disks a guest's changes to them are recorded, and where it came from they are kept as of that
    /// move. This brings them up to date. A raw image has no room for the record, which then lasts as long as QEMU.
    #[arg(
        long,
        requires = "with_disks",
        conflicts_with = "overwrite_disks",
        help_heading = "Disks"
    )]
    incremental: bool,
    /// Carry the disks through a tunnel that spares bytes, for slow links: zstd+dedup
    ///
    /// Data is compressed, zeros do not cross, and blocks of 64 KiB that the destination has in these disks cross as their
    /// hash; with --overwrite-disks also those that lie at their place already.
    #[arg(long, value_name = "KIND", requires = "with_disks", value_parser = ["zstd+dedup"], hide_possible_values = true, help_heading = "Disks")]
    disk_tunnel: Option<String>,
    /// How what the guest writes meanwhile is copied: background or blocking [default: background]
    ///
    /// background: its writes are as fast as ever, and the stop waits for what lags behind. blocking: a write ends when it
    /// is in both places, so that nothing is left for the stop.
    #[arg(long, value_name = "HOW", requires = "with_disks", value_parser = disk_writes(), hide_possible_values = true, help_heading = "Disks")]
    disk_writes: Option<DiskWrites>,
    /// Compare every page at the end, or as it arrives, with the source's
    #[arg(long)]
    verify: bool,
    /// Start it and return; `vmferry status NAME` shows how far it is
    #[arg(long)]
    detach: bool,
}

/// What `--strategy` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Auto,
    One(Strategy),
}

impl Asked {
    /// The one to go by; of `auto`, until the forecast has chosen.
    fn strategy(self) -> Strategy {
        match self {
            Self::Auto => Strategy::PreCopy,
            Self::One(strategy) => strategy,
        }
    }
}

impl std::str::FromStr for Asked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text
                .parse()
                .map(Self::One)
                .map_err(|error| format!("{error}, and auto")),
        }
    }
}

impl MigrateArgs {
    /// The goal, where a forecast is wanted.
    fn wanted_goal(&self) -> Option<Goal> {
        let wanted = self.forecast || self.strategy == Asked::Auto;
        wanted.then(|| self.goal.unwrap_or_default())
    }

    /// The downtime that pre-copy is to keep to.
    fn downtime(&self) -> Option<Duration> {
        match self.wanted_goal() {
            Some(Goal::Downtime(most)) => Some(self.downtime.unwrap_or(most)),
            _ => self.downtime,
        }
    }
}

/// How following a migration ended.
enum End {
    Report(Box<Report>),
    Detached,
}

pub(super) fn run(common: &Common, args: &MigrateArgs) -> Result<ExitCode> {
    match start_and_follow(common, args) {
        Ok(End::Detached) => Ok(ExitCode::SUCCESS),
        Ok(End::Report(report)) => {
            print(common, &report)?;
            verdict(&report).map(|()| ExitCode::SUCCESS)
        }
        // It never began: scripts get a report all the same.
        Err(error) if common.json && !args.detach => {
            output::json(&never_begun(args, failure::chain(&error)))?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

/// A table of a migration that moved nothing would say nothing beside the error.
fn print(common: &Common, report: &Report) -> Result<()> {
    match common.json {
        true => output::json(report),
        false if report.outcome == Outcome::Completed || report.pages.sent > 0 => {
            output::text(&report_table::render(report))
        }
        false => Ok(()),
    }
}

fn verdict(report: &Report) -> Result<()> {
    let mismatches = report.verified.map_or(0, |verified| verified.mismatches);
    if report.outcome != Outcome::Completed {
        bail!("{}", report_table::headline(report));
    }
    if mismatches > 0 {
        bail!(
            "{mismatches} pages of {} differ at the destination: do not trust the guest",
            report.vm
        );
    }
    Ok(())
}

fn start_and_follow(common: &Common, args: &MigrateArgs) -> Result<End> {
    let client = common.client()?;
    // From before the start, so that no Ctrl-C leaves a migration behind that nobody meant.
    let interrupts = Interrupts::watch()?;
    if args.goal.is_some() && args.wanted_goal().is_none() {
        bail!("--goal is for --strategy auto or --forecast: without a forecast nothing looks at it");
    }
    let request = forecast::made(common, &client, &args.name, request(args), args.record)?;
    let started = client.migrate(&args.name, &request)?;
    if args.detach {
        match common.json {
            true => output::json(&started)?,
            false => output::text(&format!(
                "{} is on its way to {}; see `vmferry status {}`\n",
                args.name, args.to, args.name
            ))?,
        }
        return Ok(End::Detached);
    }
    follow(
        &client,
        args,
        &started.id,
        &interrupts,
        &ProgressLine::new(&args.name, common.json),
    )
}

/// What the daemon is asked for.
pub(super) fn request(args: &MigrateArgs) -> MigrateRequest {
    let default = Limits::default();
    let tuning = Tuning::default();
    MigrateRequest {
        to: args.to.to_string(),
        strategy: args.strategy.strategy(),
        limits: Limits {
            downtime: args.downtime().unwrap_or(default.downtime),
            rounds: args.max_rounds.unwrap_or(default.rounds),
            time: args.max_time.or(default.time),
            bytes: args.max_bytes.or(default.bytes),
            at_limit: args.at_limit.unwrap_or(default.at_limit),
            drain_after: args.drain_after.unwrap_or(default.drain_after),
            timeout: args.timeout.or(default.timeout),
            bandwidth_bytes_per_s: args.bandwidth.or(default.bandwidth_bytes_per_s),
            cpu_percent: args.cpu.or(default.cpu_percent),
            cpu_destination_percent: args.cpu_destination.or(default.cpu_destination_percent),
        },
        tuning: Tuning {
            alpha: args.alpha.unwrap_or(tuning.alpha),
            samples: args.samples.unwrap_or(tuning.samples),
            interval: args.interval.unwrap_or(tuning.interval),
            regions: args.regions,
            agent_timeout: args.agent_timeout.unwrap_or(tuning.agent_timeout),
            active_within: args.active_within.unwrap_or(tuning.active_within),
            ..tuning
        },
        streams: args.streams,
        verify: args.verify,
        encoding: args.encoding,
        delta_cache_bytes: args.delta_cache,
        goal: args.wanted_goal(),
        auto: args.strategy == Asked::Auto,
        forecast: None,
        reuse: args.reuse,
        workload: args.workload,
        disks: args.with_disks.then(|| DiskRequest {
            folder: args.disk_dir.clone(),
            overwrite: args.overwrite_disks,
            incremental: args.incremental,
            writes: args.disk_writes.unwrap_or_default(),
            tunnel: args.disk_tunnel.is_some(),
        }),
    }
}

/// Shows how far it is until it has ended. The first Ctrl-C cancels, the second leaves.
fn follow(
    client: &Client,
    args: &MigrateArgs,
    id: &str,
    interrupts: &Interrupts,
    line: &ProgressLine,
) -> Result<End> {
    let mut cancelled = false;
    loop {
        let migration = client.migration(&args.name).with_context(|| {
            format!(
                "lost sight of the migration, which goes on if its daemon does; see `vmferry status {}`",
                args.name
            )
        })?;
        match migration.stage {
            Stage::Sent { report } if migration.id == id => return Ok(End::Report(report)),
            Stage::Outgoing { progress, .. } if migration.id == id => line.show(&progress),
            _ => bail!(
                "another migration of {} has begun meanwhile; see `vmferry status`",
                args.name
            ),
        }
        match interrupts.count() {
            0 => {}
            1 if !cancelled => {
                cancelled = true;
                line.say("cancelling; press Ctrl-C again to leave the migration to the daemon");
                if let Err(error @ ClientError::Refused(_)) = client.cancel(&args.name) {
                    line.say(&format!("not cancelled: {error}"));
                }
            }
            1 => {}
            _ => {
                line.say(&format!("the daemon goes on; see `vmferry status {}`", args.name));
                return Ok(End::Detached);
            }
        }
        thread::sleep(POLL);
    }
}

/// The report of a migration that was refused.
fn never_begun(args: &MigrateArgs, error: String) -> Report {
    Report {
        vm: args.name.clone(),
        strategy: args.strategy.strategy().to_string(),
        backend: String::new(),
        outcome: Outcome::Failed,
        error: Some(error),
        total_ms: 0.0,
        execution_transfer_ms: 0.0,
        downtime_ms: 0.0,
        perceived_downtime_ms: None,
        micro_stops_ms: 0.0,
        ram_bytes: 0,
        data_bytes: 0,
        bytes_on_wire: 0,
        device_state_bytes: 0,
        pages: Default::default(),
        reuse: None,
        encoding: Default::default(),
        rounds: Vec::new(),
        faults: Default::default(),
        phases: Vec::new(),
        cpu_seconds: Default::default(),
        memory_bytes: Default::default(),
        limits: Default::default(),
        filter: None,
        disks: None,
        verified: None,
        forecast: None,
        notes: Vec::new(),
    }
}

/// What is no number cannot be told to the daemon; whether it is a share, the daemon says.
fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite());
    number.ok_or_else(|| format!("{text:?} is not a number between 0 and 1"))
}

fn at_limit() -> impl clap::builder::TypedValueParser<Value = AtLimit> {
    PossibleValuesParser::new(["stop", "post-copy", "abort"]).map(|name| match name.as_str() {
        "post-copy" => AtLimit::PostCopy,
        "abort" => AtLimit::Abort,
        _ => AtLimit::Stop,
    })
}

fn disk_writes() -> impl clap::builder::TypedValueParser<Value = DiskWrites> {
    PossibleValuesParser::new(["background", "blocking"]).map(|name| match name.as_str() {
        "blocking" => DiskWrites::Blocking,
        _ => DiskWrites::Background,
    })
}
