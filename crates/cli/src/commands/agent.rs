//! `vmferry agent`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::output;
use crate::api::{AgentInfo, AgentRequest};
use crate::cli::Common;
use crate::{names, table, units};

/// Processes shown at most; --json has them all.
const SHOWN: usize = 10;

/// The guest needs a port for it (`vmferry run --agent`) and has to run vmferry-agent as root.
#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    /// Name of the guest
    #[arg(value_parser = names::parse)]
    name: String,
    /// How long it may take to answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = units::parse_duration)]
    timeout: Duration,
    /// Also say how much memory a balloon could take; nothing is ballooned
    #[arg(long)]
    balloon: bool,
    /// Also say what the guest's memory is used for, as a migration by `enlightened` asks
    #[arg(long)]
    classes: bool,
}

pub(super) fn run(common: &Common, args: &AgentArgs) -> Result<ExitCode> {
    let request = AgentRequest {
        timeout_ms: args.timeout.as_millis() as u64,
        balloon: args.balloon,
        classes: args.classes,
    };
    let info = common.client()?.agent(&args.name, &request)?;
    match common.json {
        true => output::json(&info)?,
        false => output::text(&render(&info))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn render(info: &AgentInfo) -> String {
    let load = &info.load;
    let mut about = table::plain();
    let [one, five, fifteen] = load.load_averages;
    about.add_row([
        "load",
        &format!("{one:.2} {five:.2} {fifteen:.2} over 1, 5 and 15 minutes"),
    ]);
    about.add_row([
        "memory",
        &format!(
            "{} of {} free, {} available",
            units::size(load.memory_free_bytes),
            units::size(load.memory_total_bytes),
            units::size(load.memory_available_bytes)
        ),
    ]);
    if let Some(bytes) = info.balloon_bytes {
        about.add_row(["balloon", &format!("could take {}", units::size(bytes))]);
    }
    for found in info.classes.iter().flatten().filter(|found| found.bytes > 0) {
        about.add_row([found.class.name(), &units::size(found.bytes)]);
    }
    let mut processes = table::list(&["pid", "last ran", "name"]);
    for ran in info.last_runs.iter().take(SHOWN) {
        let ago = format!("{:.3} s ago", ran.ago_ms as f64 / 1e3);
        processes.add_row([ran.pid.to_string(), ago, ran.name.clone()]);
    }
    table::align_right(&mut processes, &[0, 1]);
    let more = match info.last_runs.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!("and {more} more\n"),
    };
    format!("{}\n{}{more}", table::render(about), table::render(processes))
}

#[cfg(test)]
mod tests {
    use vmferry_core::hints::Class;
    use vmferry_guest::{GuestLoad, ProcessRan};

    use crate::api::ClassBytes;

    use super::*;

    #[test]
    fn the_latest_processes_are_shown() {
        let ran = |pid| ProcessRan {
            pid,
            name: format!("p{pid}"),
            ago_ms: u64::from(pid) * 500,
        };
        let info = AgentInfo {
            load: GuestLoad {
                load_averages: [1.5, 0.25, 0.0],
                memory_total_bytes: 256 << 20,
                memory_free_bytes: 64 << 20,
                memory_available_bytes: 128 << 20,
            },
            last_runs: (1..=12).map(ran).collect(),
            balloon_bytes: Some(115 << 20),
            classes: Some(vec![ClassBytes {
                class: Class::PageTables,
                bytes: 3 << 20,
            }]),
        };
        let text = render(&info);
        for part in [
            "1.50 0.25 0.00",
            "64 MiB of 256",
            "could take 115",
            "page tables  3 MiB",
            "0.500 s ago  p1",
            "and 2 more",
        ] {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        assert!(!text.contains("p11"), "{text}");
    }
}
