//! `vmferry limit`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::json;

use super::output;
use crate::api::{Cap, LimitsRequest};
use crate::cli::Common;
use crate::names;
use crate::units::{self, UnitError};

/// Changes the limits of a migration under way, at the host it leaves. They hold at once.
#[derive(Debug, Args)]
pub(crate) struct LimitArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    name: String,
    /// Most that all streams together send, as in 200mbit or 25MB/s, or none
    #[arg(long, value_name = "RATE|none", value_parser = bandwidth, required_unless_present = "cpu")]
    bandwidth: Option<Cap>,
    /// Most CPU that the streams of this host use, in percent of one core, as in 50%, or none
    #[arg(long, value_name = "PERCENT|none", value_parser = cpu)]
    cpu: Option<Cap>,
}

pub(super) fn run(common: &Common, args: &LimitArgs) -> Result<ExitCode> {
    let request = LimitsRequest {
        bandwidth_bytes_per_s: args.bandwidth,
        cpu_percent: args.cpu,
    };
    common.client()?.limit(&args.name, &request)?;
    match common.json {
        true => output::json(&json!({"limited": args.name, "limits": request}))?,
        false => output::text(&format!("{}: {}\n", args.name, described(&request)))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn described(request: &LimitsRequest) -> String {
    let mut parts = Vec::new();
    match request.bandwidth_bytes_per_s {
        Some(Cap::To(rate)) => parts.push(format!("bandwidth limited to {}", units::bandwidth(rate))),
        Some(Cap::None) => parts.push("bandwidth not limited any more".to_owned()),
        None => {}
    }
    match request.cpu_percent {
        Some(Cap::To(percent)) => parts.push(format!("CPU limited to {percent}% of a core")),
        Some(Cap::None) => parts.push("CPU not limited any more".to_owned()),
        None => {}
    }
    parts.join(", ")
}

fn bandwidth(text: &str) -> Result<Cap, UnitError> {
    cap(text, units::parse_bandwidth)
}

fn cpu(text: &str) -> Result<Cap, UnitError> {
    cap(text, |text| units::parse_cpu(text).map(u64::from))
}

fn cap(text: &str, parse: impl FnOnce(&str) -> Result<u64, UnitError>) -> Result<Cap, UnitError> {
    match text {
        "none" => Ok(Cap::None),
        text => parse(text).map(Cap::To),
    }
}
