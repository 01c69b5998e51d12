//! `vmferry resume`, `vmferry continue` and `vmferry fill`.

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;
use vmferry_core::report::Outcome;
use vmferry_core::resume::{ResumeMode, ResumeProgress, ResumeReport, Service};

use super::interrupts::Interrupts;
use super::output;
use crate::api::{ResumeRequest, ResumeState};
use crate::cli::Common;
use crate::client::{Client, ClientError};
use crate::progress::{ProgressLine, resume_line};
use crate::{names, resume_table, units};

/// How often the daemon is asked how far it is.
const POLL: Duration = Duration::from_millis(50);

/// Resumes a guest from a checkpoint: it goes on from the moment the checkpoint was taken.
///
/// Every piece of memory is compared with its hash before the guest sees a byte of it. What the store does not give, or gives
/// damaged, fails the resume while the guest does not run, and leaves nothing behind; once it runs, the guest is paused when it
/// needs such a page, and goes on by itself as soon as the store has it again.
///
/// Ctrl-C gives the guest up until it runs; from then on it leaves the rest to the daemon.
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// VM/NUMBER; or VM or VM@latest for its latest checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,
    /// Store of the checkpoint: a folder, or s3://BUCKET/PREFIX [default: that of the daemon]
    #[arg(long, value_name = "STORE", env = "VMFERRY_STORE")]
    store: Option<String>,
    /// What is loaded before the guest starts: eager, lazy or predictive
    ///
    /// eager: everything. lazy: the state of its devices; each page is fetched when the guest first needs it, and the guest stays
    /// bound to its store until it has touched all (see --drain-after). predictive: what it wrote or read in the last interval
    /// before the checkpoint; then the rest follows by itself, what the guest waits for first and what lies around that next.
    #[arg(long, default_value_t)]
    mode: ResumeMode,
    /// Allow a second guest of the same checkpoint or VM
    ///
    /// Without it a checkpoint is resumed once until that guest is stopped, and not beside its VM on this host. Clones have the
    /// same disks, MAC and IP addresses and keys: give them networks of their own, and disks nobody else writes to.
    #[arg(long)]
    clone: bool,
    /// Name for the guest [default: that of the VM]
    #[arg(long, value_name = "NAME", value_parser = names::parse)]
    name: Option<String>,
    /// Leave it paused when it could run; `vmferry continue` starts it
    #[arg(long)]
    paused: bool,
    /// Put the disks that are in the checkpoint back to what they were: what was written to them since is lost
    ///
    /// Memory and disks of a guest belong together. A checkpoint that has the disks is resumed with this, or with --without-disks.
    #[arg(long, conflicts_with = "without_disks")]
    overwrite_disks: bool,
    /// Leave the disks alone: you have seen to it that they are as they were at the moment of the checkpoint
    #[arg(long)]
    without_disks: bool,
    /// With --mode lazy, bring the rest once the guest has asked for nothing during this time, as in 5s
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    drain_after: Option<Duration>,
    /// How long the store may fail before the resume does, or the guest is paused, as in 30s [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    patience: Option<Duration>,
    /// How many read from the store at the same time; chosen from the number of processors where absent
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    readers: Option<u16>,
    /// Wait until a service of the guest answers, and report when: the moment a connection is accepted, unless --wait-send says
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    wait_tcp: Option<String>,
    /// What to send to the service of --wait-tcp: then the first byte it says is its answer; \r and \n stand for themselves
    #[arg(long, value_name = "TEXT", requires = "wait_tcp")]
    wait_send: Option<String>,
    /// Start it and return; `vmferry status NAME` shows how far it is
    #[arg(long)]
    detach: bool,
}

/// A guest whose resume is to be steered.
#[derive(Debug, Args)]
pub(crate) struct ResumedArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    name: String,
}

/// How following a resume ended.
enum End {
    Report(Box<ResumeReport>),
    Detached,
}

pub(super) fn run(common: &Common, args: &ResumeArgs) -> Result<ExitCode> {
    let client = common.client()?;
    // From before the start, so that no Ctrl-C leaves a guest behind that nobody meant.
    let interrupts = Interrupts::watch()?;
    let started = client.resume(&request(args))?;
    let name = &started.name;
    if args.detach {
        match common.json {
            true => output::json(&started)?,
            false => output::text(&format!(
                "{} is being resumed as {name}; see `vmferry status {name}`\n",
                started.checkpoint
            ))?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let line = ProgressLine::new(name, common.json);
    let end = follow(&client, args, name, &started.id, &interrupts, &line)?;
    drop(line);
    let End::Report(report) = end else {
        return Ok(ExitCode::SUCCESS);
    };
    match common.json {
        true => output::json(&report)?,
        false if report.outcome.is_none_or(|outcome| outcome == Outcome::Completed) => {
            output::text(&resume_table::render(&report))?;
        }
        false => {}
    }
    match report.outcome {
        None | Some(Outcome::Completed) => Ok(ExitCode::SUCCESS),
        Some(_) => bail!("{}", resume_table::headline(&report)),
    }
}

pub(super) fn go_on(common: &Common, args: &ResumedArgs) -> Result<ExitCode> {
    common.client()?.go_on(&args.name)?;
    match common.json {
        true => output::json(&json!({"continued": args.name}))?,
        false => output::text(&format!("{} runs\n", args.name))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn fill(common: &Common, args: &ResumedArgs) -> Result<ExitCode> {
    common.client()?.fill(&args.name)?;
    let name = &args.name;
    match common.json {
        true => output::json(&json!({"filling": name}))?,
        false => output::text(&format!(
            "the rest of {name} is being brought; see `vmferry status {name}`\n"
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What the daemon is asked for.
fn request(args: &ResumeArgs) -> ResumeRequest {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    ResumeRequest {
        checkpoint: args.checkpoint.clone(),
        store: args.store.as_deref().map(absolute),
        mode: args.mode,
        clone: args.clone,
        name: args.name.clone(),
        paused: args.paused,
        overwrite_disks: args.overwrite_disks,
        without_disks: args.without_disks,
        drain_after_ms: args.drain_after.map(millis),
        patience_ms: args.patience.map(millis),
        readers: args.readers,
        service: args.wait_tcp.clone().map(|address| Service {
            address,
            send: args.wait_send.as_deref().map(unescape),
        }),
    }
}

/// The daemon may run in another folder.
pub(super) fn absolute(store: &str) -> String {
    match std::path::absolute(store) {
        Ok(path) if !store.contains(':') => path.to_string_lossy().into_owned(),
        _ => store.to_owned(),
    }
}

/// Shows how far it is until there is nothing to wait for. The first Ctrl-C cancels a guest that does not run, or leaves.
fn follow(
    client: &Client,
    args: &ResumeArgs,
    name: &str,
    id: &str,
    interrupts: &Interrupts,
    line: &ProgressLine,
) -> Result<End> {
    let (mut cancelled, mut shown_lack) = (false, None);
    loop {
        let state = client.resume_state(name).with_context(|| {
            format!("lost sight of the resume, which goes on if its daemon does; see `vmferry status {name}`")
        })?;
        if state.id != id {
            bail!("another resume of {name} has begun meanwhile; see `vmferry status {name}`");
        }
        let Some(progress) = &state.progress else {
            return Ok(End::Report(Box::new(state.report)));
        };
        if nothing_to_wait_for(args, progress, &state) {
            return Ok(End::Report(Box::new(state.report)));
        }
        line.show_text(&resume_line(progress));
        if progress.stalled != shown_lack {
            shown_lack.clone_from(&progress.stalled);
            if let Some(why) = &shown_lack {
                line.say(&format!(
                    "{name} is paused: its store does not give a page it needs: {why}"
                ));
            }
        }
        match interrupts.count() {
            0 => {}
            1 if !cancelled && !progress.ours => {
                cancelled = true;
                line.say("giving it up; press Ctrl-C again to leave it to the daemon");
                if let Err(error @ ClientError::Refused(_)) = client.cancel(name) {
                    line.say(&format!("not given up: {error}"));
                }
            }
            1 if cancelled => {}
            _ => {
                line.say(&format!("the daemon goes on; see `vmferry status {name}`"));
                return Ok(End::Detached);
            }
        }
        thread::sleep(POLL);
    }
}

/// A guest that stands has all that was asked for, and so has a lazy one that runs: it may never have all of its pages.
fn nothing_to_wait_for(args: &ResumeArgs, progress: &ResumeProgress, state: &ResumeState) -> bool {
    let stays_lazy = args.mode == ResumeMode::Lazy && args.drain_after.is_none();
    let answered = args.wait_tcp.is_none() || state.report.first_answer_ms.is_some();
    match progress.standing {
        true => stays_lazy || progress.missing_pages == 0,
        false => stays_lazy && progress.ours && answered && progress.stalled.is_none(),
    }
}

fn address(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is no HOST:PORT")),
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\r", "\r").replace("\\n", "\n")
}
