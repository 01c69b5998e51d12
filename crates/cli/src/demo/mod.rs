//! `vmferry demo`: a guest moves between two host daemons of this machine and back, under load, with every page verified.
//!
//! With QEMU and a guest image it is a Linux guest in a network of namespaces, else the synthetic guest over
//! loopback. Everything it makes goes when it ends, also after Ctrl-C.

mod qemu;
mod result;
mod synthetic;
mod watch;

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use tempfile::TempDir;
use vmferry_api::MigrateRequest;
use vmferry_core::{Limits, Strategy};
use vmferry_lab::hosts::HostSetup;
use vmferry_lab::{Host, Interrupt, LabError, Link, Topology, guards, namespace, requirements};

use self::result::DemoResult;
use crate::cli::Common;
use crate::units;

/// Pre-copy goes on in rounds until the rest takes less than this: a tenth of what is usual, since the guest is idle enough
/// for it and the link fast enough.
const DOWNTIME_GOAL: Duration = Duration::from_millis(30);

/// Exit code after Ctrl-C, as shells give it.
const INTERRUPTED: u8 = 130;

/// Moves a guest between two daemons of this machine, by post-copy-push, and back by pre-copy, under load and with every
/// page verified.
///
/// As root, with QEMU, iproute2 and a guest image (`cargo xtask demo` brings them all) the guest is a Linux with memcached,
/// and its client keeps one TCP connection open across both migrations; the hosts are network namespaces. Where something is
/// missing, that is said and the synthetic guest moves. Nothing is left behind, also after Ctrl-C.
///
/// With --json it prints `{"migrations": [REPORT, REPORT], "client": {"operations", "errors", "longest_gap_ms"}}`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Folder with the guest image [default: guest in $VMFERRY_CACHE or the user's cache folder for vmferry]
    ///
    /// It holds vmlinuz, initramfs.cpio and image.json, as `cargo xtask image` makes them.
    #[arg(long, value_name = "DIR")]
    image: Option<PathBuf>,
    /// Move the synthetic guest, which needs neither QEMU nor root
    #[arg(long)]
    synthetic: bool,
    /// RAM of the guest
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = units::parse_size)]
    memory: u64,
    /// The link between the hosts: its rate as `tc` reads it, or `none` for no limit, and a delay one way (`1gbit+10ms`)
    #[arg(long, value_name = "LINK", default_value = "1gbit")]
    link: Link,
    /// Keep the folder with the logs and the guest's console
    #[arg(long)]
    keep: bool,
}

/// Where guests arrive.
const PORT: u16 = 7120;

/// Carries the demo out.
pub(crate) fn run(common: &Common, args: &DemoArgs) -> Result<ExitCode> {
    match show(args, common.json) {
        Err(error) if is_interrupted(&error) => {
            narrate("interrupted; cleaned up");
            Ok(ExitCode::from(INTERRUPTED))
        }
        other => other,
    }
}

fn show(args: &DemoArgs, json: bool) -> Result<ExitCode> {
    let interrupt = Interrupt::install()?;
    let folder = guards::scratch_folder()?;
    let result = match prepare_qemu(args) {
        Some((image, topology)) => {
            narrate("demo: a Linux guest in QEMU");
            let setup = qemu::Setup {
                image: &image,
                memory_bytes: args.memory,
                folder: folder.path(),
                topology: &topology,
                interrupt: &interrupt,
            };
            setup.run()
        }
        None => {
            narrate("demo: the synthetic guest, over loopback");
            synthetic::run(args.memory, folder.path(), &interrupt)
        }
    };
    if args.keep {
        keep(folder);
    }
    print(&result?, json)
}

/// Image and network for the demo with QEMU. Or none, after one line that says why.
fn prepare_qemu(args: &DemoArgs) -> Option<(PathBuf, Topology)> {
    if args.synthetic {
        return None;
    }
    let image = args.image.clone().or_else(requirements::default_image);
    if let Some(missing) = requirements::missing_for_qemu(image.as_deref()) {
        narrate(&format!("{missing}; running the synthetic guest"));
        return None;
    }
    if args.memory >> 20 < qemu::LEAST_MIB {
        narrate(&format!(
            "the Linux guest needs --memory {}M or more; running the synthetic guest",
            qemu::LEAST_MIB
        ));
        return None;
    }
    let stale = namespace::remove_stale();
    if !stale.is_empty() {
        narrate(&format!(
            "removed what an earlier demo had to leave: {}",
            stale.join(", ")
        ));
    }
    match Topology::create(&std::process::id().to_string(), &args.link, true) {
        Ok(topology) => Some((absolute(&image?), topology)),
        Err(error) => {
            narrate(&format!(
                "no network for the hosts: {}; running the synthetic guest",
                error.chain()
            ));
            None
        }
    }
}

/// The daemons have working directories of their own.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Starts a host daemon of this very program.
fn start_host(
    name: &'static str,
    folder: &Path,
    end: Option<&vmferry_lab::topology::HostEnd>,
    interrupt: &Interrupt,
) -> Result<Host> {
    let program = std::env::current_exe().context("cannot find the program that is running")?;
    let setup = HostSetup {
        program: &program,
        folder,
        address: end.map_or((Ipv4Addr::LOCALHOST, 0), |end| (end.address, PORT)),
        // What is shown here is shown of a guest that is left alone.
        options: &["--no-sampling".to_owned()],
        namespace: end.map(|end| &end.namespace),
        interrupt,
    };
    Ok(Host::start(name, &setup)?)
}

/// How the demo moves guests.
fn request(strategy: Strategy) -> MigrateRequest {
    let limits = Limits {
        downtime: DOWNTIME_GOAL,
        ..Limits::default()
    };
    MigrateRequest {
        limits,
        verify: true,
        ..MigrateRequest::new("", strategy)
    }
}

/// Shows what the daemons logged last, unless it was the user who ended the demo.
fn narrate_logs(hosts: &[Host], error: &anyhow::Error) {
    if is_interrupted(error) {
        return;
    }
    for host in hosts {
        match host.last_log_lines() {
            lines if lines.is_empty() => {}
            lines => narrate(&format!("log of host {}:{lines}", host.name)),
        }
    }
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<LabError>()
        .is_some_and(LabError::is_interrupted)
}

fn keep(folder: TempDir) {
    let from = folder.keep();
    // Under its own name it would be taken for one that was left.
    let to = std::env::temp_dir().join(format!("vmferry-kept-{}", std::process::id()));
    let kept = if std::fs::rename(&from, &to).is_ok() {
        to
    } else {
        from
    };
    narrate(&format!("kept: {}", kept.display()));
}

fn print(result: &DemoResult, json: bool) -> Result<ExitCode> {
    let text = if json {
        serde_json::to_string_pretty(result)? + "\n"
    } else {
        format!("\n{}", result.render())
    };
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot print the result")?;
    let problems = result.problems();
    for problem in &problems {
        narrate(&format!("FAILED: {problem}"));
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Says on stderr what is going on. Nobody is left to tell where that cannot be written.
fn narrate(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
