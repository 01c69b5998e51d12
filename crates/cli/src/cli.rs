//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use vmferry_forecast::history::Record;

use crate::client::{Client, DEFAULT_SOCKET};
use crate::commands::{
    agent, attach, bench, calibrate, checkpoint, checkpoints, completions, forecast, host, limit, migrate,
    model, resolve, resume, run, simulate, status, stop, trace,
};
use crate::demo::DemoArgs;

/// Moves running virtual machines between hosts.
///
/// vmferry works on stock QEMU from outside. A daemon runs on each host (`vmferry host`); the other commands talk to
/// it over a unix socket. `vmferry demo` shows a migration without any preparation, `vmferry doctor` says what this
/// machine can do.
#[derive(Debug, Parser)]
#[command(
    name = "vmferry",
    version,
    propagate_version = true,
    max_term_width = 110,
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage."
)]
pub struct Cli {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options of all commands.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// API socket of the daemon to talk to
    ///
    /// The daemon of this host makes it, by default in its state directory.
    #[arg(long, global = true, value_name = "PATH", env = "VMFERRY_SOCKET", default_value = DEFAULT_SOCKET)]
    pub(crate) host_socket: PathBuf,
    /// Print JSON and nothing else on stdout
    ///
    /// `migrate` prints the report of the migration, also when it failed. Messages go to stderr.
    #[arg(long, global = true, help_heading = "Common options")]
    pub(crate) json: bool,
}

impl Common {
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::new(&self.host_socket)?)
    }

    /// What the migrations of this host left for models and forecasts; records of another version are counted on stderr.
    pub(crate) fn history(&self) -> anyhow::Result<Vec<Record>> {
        let kept = self.client()?.history()?;
        if kept.not_understood > 0 {
            eprintln!(
                "{} records of the history are not understood",
                kept.not_understood
            );
        }
        Ok(kept.records)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say what this machine can do, and what to change
    Doctor,
    /// Show a migration between two daemons of this machine
    Demo(DemoArgs),
    /// Measure scenarios: strategies beside each other, again and again
    Bench(bench::BenchArgs),
    /// Run the daemon of this host
    Host(host::HostArgs),
    /// Start a guest
    Run(run::RunArgs),
    /// List the guests of this host
    List,
    /// Take over a QEMU that already runs
    Attach(attach::AttachArgs),
    /// Move a guest to another host
    Migrate(migrate::MigrateArgs),
    /// Forecast a migration: what every strategy would take, and which suits a goal
    Forecast(forecast::ForecastArgs),
    /// Say how long migrations take, by the CPU and the bandwidth they may use
    Model(model::ModelArgs),
    /// Show the host, or a guest and its migration
    Status(status::StatusArgs),
    /// Ask the agent in a guest how it does
    Agent(agent::AgentArgs),
    /// Change the limits of a migration under way
    Limit(limit::LimitArgs),
    /// Cancel the migration of a guest
    Cancel(status::CancelArgs),
    /// Settle by hand who owns a guest after a broken handover
    Resolve(resolve::ResolveArgs),
    /// Take a checkpoint of a guest that runs, or one at every interval
    Checkpoint(checkpoint::CheckpointArgs),
    /// Resume a guest from a checkpoint
    Resume(resume::ResumeArgs),
    /// Let a guest run that was resumed to stand paused
    Continue(resume::ResumedArgs),
    /// Bring the rest of the pages of a guest that was resumed
    Fill(resume::ResumedArgs),
    /// End a guest, like pulling its power cord
    Stop(stop::StopArgs),
    /// List, verify and delete checkpoints of a store
    Checkpoints(checkpoints::CheckpointsArgs),
    /// Record which pages a guest writes, or show such a trace
    Trace(trace::TraceArgs),
    /// Measure the way to another host
    Calibrate(calibrate::CalibrateArgs),
    /// Simulate migrations of a guest that was recorded
    Simulate(simulate::SimulateArgs),
    /// Print completions for a shell
    Completions(completions::CompletionsArgs),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_help() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{} {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn common_options_may_stand_anywhere() {
        for line in ["vmferry --json list", "vmferry list --json"] {
            assert!(Cli::parse_from(line.split(' ')).common.json, "{line}");
        }
    }
}
