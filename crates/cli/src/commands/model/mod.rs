//! `vmferry model`: regression models of migration time, from what earlier migrations left.

mod answer;
mod chosen;
mod fit;
mod size;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use vmferry_core::{Strategy, Workload};
use vmferry_forecast::model::{Axis, Setting};

use crate::cli::Common;
use crate::units;

/// Says how long migrations take by what they may use, as earlier ones show. Every migration from a host leaves a record in
/// its history; `vmferry bench profile FILE` measures a whole grid, which --from FILE reads.
///
/// Migrations that differ in workload (`vmferry migrate --workload`), strategy, backend or encoding have a model of their own. Time counts by
/// the data that a guest holds, so that guests of several sizes teach the same model. A model is of this host and of the hosts
/// it sends to: others have their own.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    #[command(subcommand)]
    then: Then,
}

#[derive(Debug, Subcommand)]
enum Then {
    /// Fit a model to each kind of migration, and show them
    Fit(Chosen),
    /// Show the models of some migrations: measured beside expected, and how five points foretell the others
    Show(Chosen),
    /// Say how long a migration takes with the CPU and the bandwidth that it may use
    Predict(PredictArgs),
    /// Say which CPU share or bandwidth a migration needs to be over in time
    Invert(InvertArgs),
}

/// Which migrations.
#[derive(Clone, Debug, Args)]
struct Chosen {
    /// Results of `vmferry bench` to learn from, in place of the history of the host
    #[arg(long, value_name = "FILE")]
    from: Vec<PathBuf>,
    /// Only migrations of guests that did this: CLASS or CLASS:PERCENT, as in cpu:40
    #[arg(long, value_name = "CLASS")]
    workload: Option<Workload>,
    /// Only migrations by this strategy
    #[arg(long, short)]
    strategy: Option<Strategy>,
    /// Only guests of this backend: qemu or synth
    #[arg(long, value_name = "NAME")]
    backend: Option<String>,
    /// Only migrations with this encoding of pages
    #[arg(long, value_name = "ENCODING")]
    encoding: Option<String>,
    /// Form of the model [default: chosen by cross-validation]
    #[arg(long, value_name = "FORM")]
    form: Option<FormName>,
}

/// A form by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FormName {
    /// Does not depend on anything
    Flat,
    /// a * share^p
    Power,
    /// a + b / share
    Inverse,
    /// A power up to a knee, and flat from there
    PowerKnee,
    /// An inverse up to a knee, and flat from there
    InverseKnee,
}

#[derive(Debug, Args)]
struct PredictArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    may_use: MayUse,
    /// Data that the guest holds, as in 512M [default: the median of what the model learned from]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    data: Option<u64>,
    /// So many such migrations at once that share --cpu: a lower bound, and what was measured
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=64))]
    parallel: Option<u32>,
}

#[derive(Debug, Args)]
struct InvertArgs {
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    may_use: MayUse,
    /// The total time to be met, as in 20s
    #[arg(long, value_name = "TIME", value_parser = units::parse_duration)]
    within: Duration,
    /// What to look for
    #[arg(long, value_name = "WHAT", default_value = "source-cpu")]
    of: AxisName,
    /// Data that the guest holds, as in 512M [default: the median of what the model learned from]
    #[arg(long, value_name = "SIZE", value_parser = units::parse_size)]
    data: Option<u64>,
    /// So many such migrations at once: the least that all of them need together
    #[arg(long, value_name = "K", value_parser = clap::value_parser!(u32).range(2..=64))]
    parallel: Option<u32>,
}

/// An axis by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum AxisName {
    /// CPU of the page streams at the source
    SourceCpu,
    /// CPU of the page streams at the destination
    DestinationCpu,
    /// Bandwidth of all streams together
    Bandwidth,
}

impl From<AxisName> for Axis {
    fn from(name: AxisName) -> Self {
        match name {
            AxisName::SourceCpu => Self::SourceCpu,
            AxisName::DestinationCpu => Self::DestinationCpu,
            AxisName::Bandwidth => Self::Bandwidth,
        }
    }
}

/// What a migration may use.
#[derive(Clone, Debug, Args)]
struct MayUse {
    /// CPU of the page streams at the source, in percent of one core
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu: Option<u32>,
    /// CPU of the page streams at the destination, in percent of one core
    #[arg(long, value_name = "PERCENT", value_parser = units::parse_cpu)]
    cpu_destination: Option<u32>,
    /// Bandwidth of all streams together, as in 200mbit
    #[arg(long, value_name = "RATE", value_parser = units::parse_bandwidth)]
    bandwidth: Option<u64>,
}

impl MayUse {
    fn setting(&self) -> Setting {
        Setting {
            source_percent: self.cpu.map(f64::from),
            destination_percent: self.cpu_destination.map(f64::from),
            bandwidth_bytes_per_s: self.bandwidth.map(|rate| rate as f64),
        }
    }
}

pub(super) fn run(common: &Common, args: &ModelArgs) -> Result<ExitCode> {
    match &args.then {
        Then::Fit(chosen) => fit::fit(common, chosen),
        Then::Show(chosen) => fit::show(common, chosen),
        Then::Predict(args) => answer::predict(common, args),
        Then::Invert(args) => answer::invert(common, args),
    }?;
    Ok(ExitCode::SUCCESS)
}
