//! `vmferry run`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use vmferry_guest::GuestSpec;
use vmferry_guest_qemu::QemuConfig;

use super::output;
use crate::cli::Common;
use crate::{loadspec, names, units};

/// Starts a QEMU guest with its RAM in shared memory, so that it can be moved. What follows `--` goes to QEMU: disks,
/// network, kernel. Its files have to exist on every host the guest shall move to.
///
/// With --synthetic it is a guest without a hypervisor: real memory and a real load that checks its own data.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Name for the guest, unique on each host
    #[arg(value_parser = names::parse)]
    name: String,
    /// Size of its RAM, as in 512M or 4G
    #[arg(long, short, value_name = "SIZE", value_parser = units::parse_size)]
    memory: u64,
    /// Virtual CPUs, in the syntax of QEMU's -smp [default: 1]
    #[arg(long, value_name = "CPUS")]
    smp: Option<String>,
    /// Machine type of QEMU [default: q35]
    #[arg(long, conflicts_with = "synthetic")]
    machine: Option<String>,
    /// Accelerator: kvm or tcg [default: tcg]
    #[arg(long, conflicts_with = "synthetic")]
    accel: Option<String>,
    /// CPU model; the same on all hosts the guest shall move to
    #[arg(long, value_name = "MODEL", conflicts_with = "synthetic")]
    cpu: Option<String>,
    /// QEMU to run [default: qemu-system-x86_64]
    #[arg(long, value_name = "BINARY", conflicts_with = "synthetic")]
    qemu: Option<String>,
    /// Give it QEMU's default devices (VGA, a network card, ...) beside those you name
    #[arg(long, conflicts_with = "synthetic")]
    default_devices: bool,
    /// Give it a port for vmferry-agent, which then says what its pages are used for
    ///
    /// The port is a virtio-serial port called org.vmferry.agent.0. The agent is a static program to start as root in a Linux
    /// guest. `vmferry migrate --strategy enlightened` and `vmferry agent` ask it.
    #[arg(long, conflicts_with = "synthetic")]
    agent: bool,
    /// Run a synthetic guest under this load
    ///
    /// idle, write:SIZE[,rate=SIZE], key-value:SIZE[,rate=N][,get=PERCENT][,value=SIZE][,zipf=X],
    /// oltp:SIZE[,rate=N][,read=PERCENT], compress:SIZE[,rate=N], fill:SIZE[,zero=PERCENT][,uniform=PERCENT]
    /// [,compressible=PERCENT]; several are joined with +. Or the JSON of the guest's configuration.
    #[arg(long, value_name = "LOAD", verbatim_doc_comment)]
    synthetic: Option<String>,
    /// Further arguments of QEMU
    #[arg(last = true, value_name = "QEMU ARGUMENTS", conflicts_with = "synthetic")]
    args: Vec<String>,
}

pub(super) fn run(common: &Common, args: RunArgs) -> Result<ExitCode> {
    let guest = common.client()?.run(&spec(args)?)?;
    if common.json {
        output::json(&guest)?;
    } else {
        let process = guest
            .pid
            .map(|pid| format!(", process {pid}"))
            .unwrap_or_default();
        output::text(&format!(
            "{} runs: {} guest, {} of RAM{process}\n",
            guest.name,
            guest.backend,
            units::size(guest.ram_bytes)
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The guest that was asked for.
pub(super) fn spec(args: RunArgs) -> Result<GuestSpec> {
    match &args.synthetic {
        Some(load) => synthetic(&args, load),
        None => Ok(qemu(args)),
    }
}

fn synthetic(args: &RunArgs, load: &str) -> Result<GuestSpec> {
    let workers = args.smp.as_deref().unwrap_or("1");
    let workers = workers
        .parse()
        .with_context(|| format!("--smp of a synthetic guest is a number, not {workers:?}"))?;
    let config = loadspec::parse(load, args.memory, workers)?;
    Ok(GuestSpec {
        name: args.name.clone(),
        backend: "synth".into(),
        config: config.to_json(),
    })
}

fn qemu(args: RunArgs) -> GuestSpec {
    let defaults = QemuConfig::new(args.memory, args.args);
    QemuConfig {
        binary: args.qemu.unwrap_or(defaults.binary),
        machine: args.machine.unwrap_or(defaults.machine),
        accel: args.accel.unwrap_or(defaults.accel),
        cpu: args.cpu,
        smp: args.smp.unwrap_or(defaults.smp),
        default_devices: args.default_devices,
        agent: args.agent,
        ..defaults
    }
    .into_spec(args.name)
}
