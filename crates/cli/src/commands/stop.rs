//! `vmferry stop`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::output;
use crate::cli::Common;
use crate::names;

/// The guest gets no chance to shut down: do that in the guest beforehand.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    name: String,
    /// End it even where pages of it have not arrived yet, or where the daemon cannot reach it
    ///
    /// A guest that the daemon cannot reach is forgotten: its directory is removed, a process of it is left alone.
    #[arg(long)]
    force: bool,
}

pub(super) fn run(common: &Common, args: &StopArgs) -> Result<ExitCode> {
    common.client()?.stop(&args.name, args.force)?;
    match common.json {
        true => output::json(&json!({"stopped": args.name}))?,
        false => output::text(&format!("{} was ended\n", args.name))?,
    }
    Ok(ExitCode::SUCCESS)
}
