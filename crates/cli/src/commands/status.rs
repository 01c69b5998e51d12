//! `vmferry list`, `vmferry status` and `vmferry cancel`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use vmferry_core::sampling::{SamplingReport, SamplingState};
use vmferry_guest::GuestState;

use super::output;
use crate::api::{GuestInfo, HostInfo, Migration, ResumeState, Role, Stage};
use crate::cli::Common;
use crate::client::{Client, ClientError};
use crate::{names, progress, report_table, resume_table, table, take_table, units};

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// Name of a guest; the host and all its guests where absent
    #[arg(value_parser = names::parse)]
    name: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CancelArgs {
    /// Name of the guest whose migration to cancel; it goes on running at the source
    #[arg(value_parser = names::parse)]
    name: String,
}

pub(super) fn list(common: &Common) -> Result<ExitCode> {
    let guests = common.client()?.guests()?;
    match common.json {
        true => output::json(&guests)?,
        false => output::text(&guest_table(&guests))?,
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn status(common: &Common, args: &StatusArgs) -> Result<ExitCode> {
    let client = common.client()?;
    match &args.name {
        Some(name) => guest_status(common, &client, name),
        None => host_status(common, &client),
    }?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn cancel(common: &Common, args: &CancelArgs) -> Result<ExitCode> {
    common.client()?.cancel(&args.name)?;
    match common.json {
        true => output::json(&json!({"cancelled": args.name}))?,
        false => output::text(&format!("the migration of {} is being cancelled\n", args.name))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn host_status(common: &Common, client: &Client) -> Result<()> {
    let (host, guests) = (client.host()?, client.guests()?);
    if common.json {
        return output::json(&json!({"host": host, "guests": guests}));
    }
    output::text(&(host_table(&host) + "\n" + &guest_table(&guests)))
}

/// A guest that left is not there any more; its last migration is.
fn guest_status(common: &Common, client: &Client, name: &str) -> Result<()> {
    let guest = known(client.guest(name))?;
    let migration = known(client.migration(name))?;
    let resume = known(client.resume_state(name))?;
    let checkpoints = known(client.checkpoint_state(name))?;
    if guest.is_none() && migration.is_none() && resume.is_none() {
        bail!("there is no guest {name} on this host and no report of one; see `vmferry list`");
    }
    if common.json {
        let status =
            json!({"guest": guest, "migration": migration, "resume": resume, "checkpoints": checkpoints});
        return output::json(&status);
    }
    let guest = guest.map_or_else(
        || format!("{name} is not on this host\n"),
        |guest| {
            let learned = guest.learned.as_ref().map(learned_table).unwrap_or_default();
            guest_table(&[guest]) + &learned
        },
    );
    let migration = migration
        .map(|migration| format!("\n{}", describe(&migration)))
        .unwrap_or_default();
    let resume = resume
        .map(|resume| format!("\n{}", describe_resume(&resume)))
        .unwrap_or_default();
    let checkpoints = checkpoints
        .map(|checkpoints| format!("\n{}", take_table::render_state(&checkpoints)))
        .unwrap_or_default();
    output::text(&(guest + &migration + &resume + &checkpoints))
}

/// None for what the daemon does not know.
fn known<T>(answer: Result<T, ClientError>) -> Result<Option<T>> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.refusal().is_some_and(|refusal| refusal.status == 404) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn describe(migration: &Migration) -> String {
    match &migration.stage {
        Stage::Outgoing { to, progress } => format!("moving to {to}: {}\n", progress::line(progress)),
        Stage::Incoming { progress } => format!("moving here: {}\n", progress::arrival_line(progress)),
        Stage::Sent { report } => format!("last migration:\n{}", report_table::render(report)),
        Stage::Received { report } => {
            format!("arrived by migration:\n{}", report_table::render_received(report))
        }
    }
}

fn describe_resume(resume: &ResumeState) -> String {
    let under_way = match &resume.progress {
        Some(progress) => format!("being resumed: {}\n", progress::resume_line(progress)),
        None => "last resume:\n".into(),
    };
    under_way + &resume_table::render(&resume.report)
}

fn host_table(host: &HostInfo) -> String {
    let mut table = table::plain();
    table.add_row(["version", &host.version]);
    table.add_row(["process", &host.pid.to_string()]);
    table.add_row(["guests arrive at", &host.listen]);
    table.add_row(["state directory", &host.state_dir.display().to_string()]);
    table.add_row(["backends", &host.backends.join(", ")]);
    let sampling = host.sampling_budget_percent;
    let sampling = sampling.map_or("off".into(), |percent| {
        format!("for at most {percent:.2} % of their time")
    });
    table.add_row(["learns about guests", &sampling]);
    for note in &host.notes {
        table.add_row(["note", note]);
    }
    table::render(table)
}

fn guest_table(guests: &[GuestInfo]) -> String {
    if guests.is_empty() {
        return "no guests\n".into();
    }
    let mut table = table::list(&["name", "backend", "state", "ram", "pid", "remarks"]);
    for guest in guests {
        table.add_row([
            guest.name.clone(),
            guest.backend.clone(),
            guest.state.map_or("-", state).to_owned(),
            units::size(guest.ram_bytes),
            guest.pid.map_or("-".into(), |pid| pid.to_string()),
            remark(guest),
        ]);
    }
    table::align_right(&mut table, &[3, 4]);
    table::render(table)
}

/// What was learned of a guest while it runs.
fn learned_table(learned: &SamplingReport) -> String {
    let SamplingReport {
        burst_samples,
        interval_ms,
        ..
    } = *learned;
    let mut table = table::plain();
    let mut row = |name: &str, value: String| {
        table.add_row([name.to_owned(), value]);
    };
    let age = learned
        .age_ms
        .map(|ms| format!(", the last {} ago", units::millis(ms)))
        .unwrap_or_default();
    row(
        "samples",
        format!(
            "{} in {} bursts{age}",
            units::count(learned.samples),
            learned.bursts
        ),
    );
    let now = match learned.state {
        SamplingState::Burst => "one is under way".into(),
        SamplingState::Pause => format!("the next in {}", units::millis(learned.next_scan_ms)),
    };
    row(
        "sampled",
        format!("all pages, in bursts of {burst_samples} samples {interval_ms:.0} ms apart; {now}"),
    );
    row(
        "states",
        format!("{} seen, of {} regions", learned.states_seen, learned.regions),
    );
    row("model", model_verdict(learned));
    if let Some(test) = &learned.last_test {
        row("last test", test.clone());
    }
    row(
        "writable working set",
        format!(
            "{} pages, {}",
            units::count(learned.working_set_pages),
            units::size(learned.working_set_bytes)
        ),
    );
    row(
        "cost",
        format!(
            "about {:.2} % of the guest's time, at most {:.2} %, at {:.1} us a page; {} of memory",
            learned.cost_percent,
            learned.budget_percent,
            learned.page_cost_us,
            units::size(learned.memory_bytes)
        ),
    );
    if let Some(problem) = &learned.problem {
        row("problem", problem.clone());
    }
    format!("\nlearned while it runs:\n{}", table::render(table))
}

fn model_verdict(learned: &SamplingReport) -> String {
    let verdict = match learned.fits {
        Some(true) => "fits the guest",
        Some(false) => "does not fit the guest",
        None => "is being built",
    };
    let tests = format!("{} of {} tests failed", learned.tests_failed, learned.tests);
    match learned.rebuilt {
        0 => format!("{verdict}; {tests}"),
        rebuilt => format!("{verdict}; {tests}; rebuilt {rebuilt} times"),
    }
}

fn state(state: GuestState) -> &'static str {
    match state {
        GuestState::Running => "running",
        GuestState::Paused => "paused",
        GuestState::Incoming => "incoming",
        GuestState::Gone => "gone",
    }
}

fn remark(guest: &GuestInfo) -> String {
    if let Some(problem) = &guest.problem {
        return problem.clone();
    }
    match (
        guest.role,
        guest.migration.as_ref().map(|migration| &migration.stage),
    ) {
        (_, Some(Stage::Outgoing { to, progress })) => format!("moving to {to}: {}", progress.phase),
        (Role::Destination, Some(Stage::Incoming { progress })) => format!("arriving: {}", progress.phase),
        (_, Some(Stage::Incoming { progress })) => {
            format!(
                "{} pages still to arrive",
                units::count(progress.outstanding_pages)
            )
        }
        (Role::Busy, _) => "busy".into(),
        _ => {
            let resume = guest.resume.as_ref().map(progress::resume_line);
            let checkpoints = guest.checkpoints.as_ref().map(|state| match state.every_ms {
                Some(every_ms) => format!("a checkpoint every {}", units::millis(every_ms as f64)),
                None => "a checkpoint is being taken".into(),
            });
            resume.or(checkpoints).unwrap_or_default()
        }
    }
}
