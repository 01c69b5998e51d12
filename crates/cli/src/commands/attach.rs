//! `vmferry attach`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::output;
use crate::api::AttachRequest;
use crate::cli::Common;
use crate::{names, units};

/// The guest goes on as it is; its memory has to be shared (`memory-backend-file` or `memory-backend-memfd` with
/// `share=on`). What is missing is said.
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Process id of the QEMU
    #[arg(long)]
    pid: u32,
    /// Its QMP socket, which nobody else may be using; the one on its command line where absent
    #[arg(long, value_name = "PATH")]
    qmp: Option<PathBuf>,
    /// Name for the guest; QEMU's own (`-name`) where it has one
    #[arg(long, value_parser = names::parse)]
    name: Option<String>,
}

pub(super) fn run(common: &Common, args: AttachArgs) -> Result<ExitCode> {
    // The daemon has another working directory.
    let qmp = args.qmp.map(std::path::absolute).transpose()?;
    let guest = common.client()?.attach(&AttachRequest {
        name: args.name,
        pid: args.pid,
        qmp,
    })?;
    match common.json {
        true => output::json(&guest)?,
        false => output::text(&format!(
            "attached to {}: process {}, {} of RAM\n",
            guest.name,
            args.pid,
            units::size(guest.ram_bytes)
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
