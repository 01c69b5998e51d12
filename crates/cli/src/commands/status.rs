//! `vmferry list`, `vmferry status` and `vmferry cancel`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use serde_json::json;
use vmferry_guest::GuestState;

use super::output;
use crate::api::{GuestInfo, HostInfo, Migration, Role, Stage};
use crate::cli::Common;
use crate::client::{Client, ClientError};
use crate::{names, progress, report_table, table, units};

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
    if guest.is_none() && migration.is_none() {
        bail!("there is no guest {name} on this host and no report of one; see `vmferry list`");
    }
    if common.json {
        return output::json(&json!({"guest": guest, "migration": migration}));
    }
    let guest = guest.map_or_else(
        || format!("{name} is not on this host\n"),
        |guest| guest_table(&[guest]),
    );
    let migration = migration
        .map(|migration| format!("\n{}", describe(&migration)))
        .unwrap_or_default();
    output::text(&(guest + &migration))
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

fn host_table(host: &HostInfo) -> String {
    let mut table = table::plain();
    table.add_row(["version", &host.version]);
    table.add_row(["process", &host.pid.to_string()]);
    table.add_row(["guests arrive at", &host.listen]);
    table.add_row(["state directory", &host.state_dir.display().to_string()]);
    table.add_row(["backends", &host.backends.join(", ")]);
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
        _ => String::new(),
    }
}
