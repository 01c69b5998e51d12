//! `vmferry checkpoint`.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use vmferry_core::take::{TakeOutcome, TakeReport};

use super::interrupts::Interrupts;
use super::output;
use crate::api::{CheckpointRequest, CheckpointState};
use crate::cli::Common;
use crate::client::{Client, ClientError};
use crate::progress::ProgressLine;
use crate::{names, take_table, units};

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// Takes a checkpoint of a guest that runs. The guest stands still for a few milliseconds, whatever the size of its memory; it is
/// saved while the guest goes on. With --every the daemon goes on taking them, each of what was written since the one before.
#[derive(Debug, Args)]
pub(crate) struct CheckpointArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    vm: String,
    /// Where to put it: a folder, or s3://BUCKET/PREFIX; the daemon's own store where absent
    #[arg(long, value_name = "URL", env = "VMFERRY_STORE")]
    store: Option<String>,
    /// Take one at every interval, as in 5s or 10m, until --stop
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "stop")]
    every: Option<Duration>,
    /// Keep only so many checkpoints of the guest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "stop")]
    keep: Option<u32>,
    /// Keep only those that are not older, as in 1h; the newest always stays
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "stop")]
    keep_for: Option<Duration>,
    /// Watch what the guest reads and writes for so long before the first one: a resume brings that first [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration, conflicts_with = "stop")]
    watch: Option<Duration>,
    /// Leave the guest's disks out: then you see to it that they are as they were when it is resumed
    #[arg(long, conflicts_with = "stop")]
    without_disks: bool,
    /// Take no more; one under way is cancelled
    #[arg(long)]
    stop: bool,
}

pub(super) fn run(common: &Common, args: &CheckpointArgs) -> Result<ExitCode> {
    let client = common.client()?;
    if args.stop {
        let state = client.end_checkpoints(&args.vm)?;
        match common.json {
            true => output::json(&state)?,
            false => output::text(&format!(
                "no more checkpoints of {} are taken; {} were\n",
                args.vm, state.run.completed
            ))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    // From before the start, so that no Ctrl-C leaves a checkpoint behind that nobody meant.
    let interrupts = Interrupts::watch()?;
    let state = client.checkpoint(&args.vm, &request(args))?;
    if args.every.is_some() {
        match common.json {
            true => output::json(&state)?,
            false => output::text(&series_line(&args.vm, &state))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let line = ProgressLine::new(&args.vm, common.json);
    let report = follow(&client, &args.vm, &interrupts, &line)?;
    drop(line);
    match common.json {
        true => output::json(&report)?,
        false if report.outcome == TakeOutcome::Completed => output::text(&take_table::render(&report))?,
        false => {}
    }
    match report.outcome {
        TakeOutcome::Completed => Ok(ExitCode::SUCCESS),
        TakeOutcome::Cancelled => bail!("the checkpoint of {} was cancelled; it goes on", args.vm),
        TakeOutcome::Failed => bail!(
            "no checkpoint of {}, which goes on: {}",
            args.vm,
            report.error.as_deref().unwrap_or("see the log of the daemon")
        ),
    }
}

fn request(args: &CheckpointArgs) -> CheckpointRequest {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    CheckpointRequest {
        store: args.store.as_deref().map(super::resume::absolute),
        every_ms: args.every.map(millis),
        keep: args.keep,
        keep_for_ms: args.keep_for.map(millis),
        watch_ms: args.watch.map(millis),
        without_disks: args.without_disks,
    }
}

fn series_line(vm: &str, state: &CheckpointState) -> String {
    let every = units::millis(state.every_ms.unwrap_or_default() as f64);
    format!(
        "a checkpoint of {vm} every {every} into {}; see `vmferry status {vm}`, end it with `vmferry checkpoint {vm} --stop`\n",
        state.store
    )
}

/// Shows how far it is until it has ended. The first Ctrl-C cancels it.
fn follow(client: &Client, vm: &str, interrupts: &Interrupts, line: &ProgressLine) -> Result<TakeReport> {
    let mut cancelled = false;
    loop {
        let state = client.checkpoint_state(vm).with_context(|| {
            format!(
                "lost sight of the checkpoint, which goes on if its daemon does; see `vmferry status {vm}`"
            )
        })?;
        if state.ended {
            return state
                .last
                .with_context(|| format!("the checkpoint of {vm} ended before it began"));
        }
        line.show_text(&take_table::progress_line(&state));
        if interrupts.count() > 0 && !cancelled {
            cancelled = true;
            line.say("cancelling it");
            if let Err(error @ ClientError::Refused(_)) = client.end_checkpoints(vm) {
                line.say(&format!("not cancelled: {error}"));
            }
        }
        thread::sleep(POLL);
    }
}
