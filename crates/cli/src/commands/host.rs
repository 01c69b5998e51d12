//! `vmferry host`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use vmferry_core::sampling::Budget;
use vmferry_runtime::MAX_STREAMS;
use vmferry_transport::Endpoint;

use super::output;
use crate::cli::Common;
use crate::daemon::{Daemon, Options, shutdown};
use crate::units;

/// Guests of QEMU survive the daemon: the next one finds them again. Synthetic guests live in the daemon and end with
/// it.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Where guests arrive: tcp:HOST:PORT or unix:/PATH
    ///
    /// Traffic over tcp is neither encrypted nor authenticated: anyone who reaches the port can start a guest here, with
    /// the daemon's rights. Use it on networks you trust. Port 0 lets the system choose.
    #[arg(long, value_name = "ENDPOINT", default_value = "tcp:0.0.0.0:7120")]
    listen: Endpoint,
    /// Directory for guests, journals and reports; one daemon at a time uses it
    #[arg(
        long,
        value_name = "DIR",
        env = "VMFERRY_STATE_DIR",
        default_value = "/var/lib/vmferry"
    )]
    state_dir: PathBuf,
    /// Unix socket for the other commands, for its owner only [default: api.sock in the state directory]
    #[arg(long, value_name = "PATH")]
    api: Option<PathBuf>,
    /// Most page streams of a guest that arrives; a source that wants more goes on with as many
    #[arg(long, value_name = "N", default_value_t = MAX_STREAMS,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_STREAMS)))]
    max_streams: u16,
    /// Share of each guest's time that learning about it may cost, as in 3%
    ///
    /// While a guest runs normally the daemon looks now and then which pages it writes: in bursts of 21 samples 50 ms apart,
    /// of all its pages, with pauses between them that are the longer the more it writes. So it keeps a model for
    /// pre-copy-filter, which is tested for fit after each burst (chi-square of states and of transitions) and rebuilt when
    /// it fails, and the writable working set for hybrid-learning: migrations with default --interval, --regions and
    /// --alpha begin with them. `vmferry status NAME` shows what was learned and what it cost.
    #[arg(long, value_name = "PERCENT", default_value = "3%", value_parser = budget)]
    sampling_budget: Budget,
    /// Learn nothing about guests before they are moved
    #[arg(long, conflicts_with = "sampling_budget")]
    no_sampling: bool,
    /// Where checkpoints are: a folder, or s3://BUCKET/PREFIX [default: checkpoints in the state directory]
    #[arg(long, value_name = "STORE", env = "VMFERRY_STORE")]
    store: Option<String>,
}

fn budget(text: &str) -> Result<Budget> {
    Ok(Budget::percent(units::parse_percent(text)?)?)
}

pub(super) fn run(common: &Common, args: &HostArgs) -> Result<ExitCode> {
    log_to_stderr();
    let signals = shutdown::Signals::watch()?;
    let daemon = Daemon::start(&Options {
        listen: args.listen.clone(),
        state_dir: args.state_dir.clone(),
        api: args.api.clone(),
        max_streams: args.max_streams,
        sampling: (!args.no_sampling).then_some(args.sampling_budget),
        store: args.store.clone(),
    })?;
    let info = daemon.info();
    match common.json {
        true => output::json(&info)?,
        false => output::text(&format!(
            "vmferry {} takes guests at {} and commands at {}\n",
            info.version,
            info.listen,
            daemon.api().display()
        ))?,
    }
    let signal = signals.wait();
    tracing::info!("got {signal}: stopping");
    daemon.stop();
    Ok(ExitCode::SUCCESS)
}

/// `RUST_LOG` chooses what is logged, from `info` upwards where it is not set.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    // Somebody in this process logs already: then that is where it goes.
    let _ = subscriber.try_init();
}
