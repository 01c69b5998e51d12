//! The commands, one a file.

pub(crate) mod agent;
pub(crate) mod attach;
pub(crate) mod bench;
pub(crate) mod calibrate;
pub(crate) mod checkpoint;
pub(crate) mod checkpoints;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod forecast;
pub(crate) mod host;
mod interrupts;
pub(crate) mod limit;
pub(crate) mod migrate;
pub(crate) mod model;
mod output;
pub(crate) mod resolve;
pub(crate) mod resume;
pub(crate) mod run;
pub(crate) mod simulate;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod trace;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{Cli, Command};

pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let common = &cli.common;
    match cli.command {
        Command::Doctor => doctor::run(common),
        Command::Demo(args) => crate::demo::run(common, &args),
        Command::Bench(args) => bench::run(common, &args),
        Command::Host(args) => host::run(common, &args),
        Command::Run(args) => run::run(common, args),
        Command::List => status::list(common),
        Command::Attach(args) => attach::run(common, args),
        Command::Migrate(args) => migrate::run(common, &args),
        Command::Forecast(args) => forecast::run(common, &args),
        Command::Model(args) => model::run(common, &args),
        Command::Status(args) => status::status(common, &args),
        Command::Agent(args) => agent::run(common, &args),
        Command::Limit(args) => limit::run(common, &args),
        Command::Cancel(args) => status::cancel(common, &args),
        Command::Resolve(args) => resolve::run(common, &args),
        Command::Resume(args) => resume::run(common, &args),
        Command::Continue(args) => resume::go_on(common, &args),
        Command::Fill(args) => resume::fill(common, &args),
        Command::Stop(args) => stop::run(common, &args),
        Command::Checkpoint(args) => checkpoint::run(common, &args),
        Command::Checkpoints(args) => checkpoints::run(common, &args),
        Command::Trace(args) => trace::run(common, &args),
        Command::Calibrate(args) => calibrate::run(common, &args),
        Command::Simulate(args) => simulate::run(common, &args),
        Command::Completions(args) => completions::run(&args),
    }
}
