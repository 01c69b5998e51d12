//! `vmferry host`.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use vmferry_transport::Endpoint;

use super::output;
use crate::cli::Common;
use crate::daemon::{Daemon, Options, shutdown};

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
}

pub(super) fn run(common: &Common, args: &HostArgs) -> Result<ExitCode> {
    log_to_stderr();
    let signals = shutdown::Signals::watch()?;
    let daemon = Daemon::start(&Options {
        listen: args.listen.clone(),
        state_dir: args.state_dir.clone(),
        api: args.api.clone(),
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
