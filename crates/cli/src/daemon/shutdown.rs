//! How a daemon ends: signals, and what becomes of migrations and guests.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use vmferry_runtime::Incoming;

use super::host::LocalHost;
use super::registry::Slot;

/// How long migrations may take to be cancelled, or those past the commit point to complete.
const PATIENCE: Duration = Duration::from_secs(10);

/// The signals that end a daemon.
pub struct Signals {
    runtime: Runtime,
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on SIGINT and SIGTERM do not end the process by themselves.
    ///
    /// # Errors
    /// When the system does not allow it.
    pub fn watch() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let context = runtime.enter();
        let interrupt = signal(SignalKind::interrupt()).context("cannot watch for SIGINT")?;
        let terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
        drop(context);
        Ok(Self {
            runtime,
            interrupt,
            terminate,
        })
    }

    /// Waits for one of them and names it.
    pub fn wait(mut self) -> &'static str {
        self.runtime.block_on(async {
            tokio::select! {
                _ = self.interrupt.recv() => "SIGINT",
                _ = self.terminate.recv() => "SIGTERM",
            }
        })
    }
}

/// Brings migrations to an end: cancelled before the commit point, given time to complete after it.
pub(super) fn end_migrations(host: &LocalHost, incoming: &Incoming) {
    incoming.stop();
    for (name, slot) in host.registry.all() {
        if let Slot::Leaving { outgoing, .. } = slot {
            match outgoing.cancel() {
                Ok(()) => tracing::info!("cancelled the migration of {name}"),
                Err(error) => tracing::info!("the migration of {name} goes on: {error}"),
            }
        }
    }
    let deadline = Instant::now() + PATIENCE;
    while still_moving(host, incoming) {
        if Instant::now() > deadline {
            tracing::warn!("migrations are still under way: the next daemon takes them up");
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What arrives is cancelled again and again: a guest that was just admitted has no session yet.
fn still_moving(host: &LocalHost, incoming: &Incoming) -> bool {
    let mut moving = false;
    for (name, slot) in host.registry.all() {
        match slot {
            Slot::Leaving { .. } => moving = true,
            Slot::Arriving { .. } => {
                moving = true;
                if incoming.cancel(&name).is_ok() {
                    tracing::info!("cancelled the arrival of {name}");
                }
            }
            Slot::Resuming { resuming, .. } => {
                let progress = resuming.progress();
                if !progress.ours && !progress.standing {
                    moving = true;
                    if resuming.cancel().is_ok() {
                        tracing::info!("cancelled the resume of {name}");
                    }
                }
            }
            _ => {}
        }
    }
    moving
}

/// Lets go of all guests. Those of QEMU go on; synthetic ones live in this process, so they end here.
pub(super) fn release_guests(host: &LocalHost) {
    for (name, slot) in host.registry.drain() {
        let Some(member) = slot.member() else { continue };
        if let Slot::Resuming { resuming, .. } = &slot {
            // It waits for pages until the next daemon brings them.
            resuming.release();
        }
        if member.vm.spec().backend == "synth" {
            tracing::info!("{name} is synthetic: it ends with this daemon");
            member.vm.destroy();
        } else {
            tracing::info!("{name} goes on; the next daemon finds it again");
        }
    }
}
