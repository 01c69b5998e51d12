//! `vmferry resolve`.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::json;

use super::output;
use crate::api::Owner;
use crate::cli::Common;
use crate::names;

const HERE: &str = "This host takes the guest back and runs it.
Right only if the destination does not run it and never will: its host is down for good, or the guest was ended there.
Otherwise two copies of the guest run, and both write to its disks.";
const THERE: &str = "This host gives the guest up and ends what is left of it here.
Right only if the destination runs it. It is refused while the destination still needs pages that only this host has.
Otherwise the guest is lost.";

/// Past the commit point the source never runs a guest again by itself. Where the two hosts cannot reach each other any
/// more, the guest waits at the source until they can, or until you say, at the source, whose it is.
#[derive(Debug, Args)]
pub(crate) struct ResolveArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    name: String,
    /// This host takes the guest back; the destination must never run it
    #[arg(long, required_unless_present = "there", conflicts_with = "there")]
    here: bool,
    /// This host gives the guest up; the destination has it
    #[arg(long)]
    there: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

pub(super) fn run(common: &Common, args: &ResolveArgs) -> Result<ExitCode> {
    let (owner, meaning) = match args.here {
        true => (Owner::Here, HERE),
        false => (Owner::There, THERE),
    };
    if !args.yes && !confirmed(&args.name, meaning)? {
        bail!("nothing was done");
    }
    common.client()?.resolve(&args.name, owner)?;
    match common.json {
        true => output::json(&json!({"resolved": args.name, "owner": owner}))?,
        false => output::text(&format!(
            "{}: settled; see `vmferry status {}`\n",
            args.name, args.name
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn confirmed(name: &str, meaning: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to ask at: read `vmferry resolve --help`, then repeat it with --yes");
    }
    let mut stderr = std::io::stderr();
    write!(
        stderr,
        "{meaning}\nType the name of the guest ({name}) to go on: "
    )?;
    stderr.flush()?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    Ok(answer.trim() == name)
}
