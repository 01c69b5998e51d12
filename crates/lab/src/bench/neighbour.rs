//! A guest beside the one that is moved: it suffers from it, and stays.
//!
//! It is like the other one and does the same. At the source it has a daemon of its own, so that it is the same whoever moves the
//! other; it shares the source's processor and link. Source: Abe et al., "Urgent virtual machine eviction with enlightened
//! post-copy" (2015), section 5.

use std::path::{Path, PathBuf};

use super::ground::PORT;
use super::measure::Workbench;
use super::operations::{self, Counters, Moments, Operations};
use super::plan::{GUEST, PlannedRun};
use super::scenario::{GuestKind, words};
use crate::error::{LabError, Result};
use crate::hosts::{Host, HostSetup};
use crate::linux::{self, LinuxGuest, Place as _};
use crate::load::Load;
use crate::topology::{Seat, Topology};

/// Of its daemon, and of its folder in that of the run.
const NAME: &str = "neighbour";

/// The guest, its daemon and its clients. All go when it is dropped.
pub(super) struct Neighbour {
    client: Client,
    host: Host,
}

/// Who sees what it does.
enum Client {
    /// Its own counters, of a synthetic guest.
    Counters(Counters),
    /// Clients outside.
    Load(Load),
    /// Nobody: it is idle.
    None,
}

impl Neighbour {
    /// Starts it at the source, and its clients.
    ///
    /// # Errors
    /// When it does not start; without namespaces.
    pub(super) fn start(
        bench: &Workbench<'_>,
        run: &PlannedRun,
        topology: Option<&Topology>,
        folder: &Path,
    ) -> Result<Self> {
        let Some(topology) = topology else {
            let why = "no network namespaces, which guests that contend need";
            return Err(LabError::Missing(why.into()));
        };
        let source = &topology.hosts[0];
        // They were checked with the rest of the scenario.
        let options = words(&bench.scenario.host_options).unwrap_or_default();
        let setup = HostSetup {
            program: bench.program,
            folder,
            address: (source.address, PORT + 1),
            options: &options,
            namespace: Some(&source.namespace),
            interrupt: bench.interrupt,
        };
        let host = Host::start(NAME, &setup)?;
        let client = match run.guest.kind {
            GuestKind::Synth => {
                let mut spec = bench.spec(run, &[])?;
                spec.config["seed"] = run.seed.wrapping_add(1).into();
                host.run(&spec)?;
                Client::Counters(Counters::watch_at(&host)?)
            }
            GuestKind::Qemu => start_linux(bench, run, topology, &host, &folder.join(NAME))?,
        };
        Ok(Self { client, host })
    }

    /// The migration is about to begin.
    ///
    /// # Errors
    /// When the guest cannot be asked.
    pub(super) fn about_to_begin(&self) -> Result<()> {
        match &self.client {
            Client::Counters(_) => self.host.reset_gap(GUEST),
            Client::Load(_) | Client::None => Ok(()),
        }
    }

    /// What was seen of it; nothing where it is idle.
    ///
    /// # Errors
    /// When it did something wrong.
    pub(super) fn seen(&self, moments: &Moments) -> Result<Option<Operations>> {
        let seen = match &self.client {
            Client::Counters(counters) => counters.seen(&self.host.stats(GUEST)?, moments),
            Client::Load(load) => operations::of_client(&load.record(), moments),
            Client::None => return Ok(None),
        };
        match seen.errors {
            0 => Ok(Some(seen)),
            errors => Err(LabError::Guest(format!(
                "beside it gave its client {errors} errors: {}",
                seen.descriptions.join("; ")
            ))),
        }
    }
}

fn start_linux(
    bench: &Workbench<'_>,
    run: &PlannedRun,
    topology: &Topology,
    host: &Host,
    folder: &Path,
) -> Result<Client> {
    let image: Option<PathBuf> = bench
        .image
        .as_deref()
        .map(std::path::absolute)
        .transpose()
        .map_err(LabError::system("find the guest image"))?;
    let image = image.ok_or_else(|| LabError::Missing("no guest image".into()))?;
    let guest = LinuxGuest {
        seat: Seat::NEIGHBOUR,
        workload: run.guest.workload.clone(),
        load: run.guest.load.clone(),
        agent: run.guest.agent,
        disk: run.guest.disk,
    };
    topology.hosts[0].add_tap(guest.seat)?;
    host.run(&bench.spec(run, &guest.args(&image, folder)?)?)?;
    linux::wait_for_text(host, GUEST, folder, "vmferry-guest: ready", bench.interrupt)?;
    let alive = || host.check_alive(GUEST);
    let load = guest.workload.start_clients(
        guest.seat.address,
        &topology.client,
        bench.interrupt,
        bench.scenario.client_patience(),
        alive,
    )?;
    Ok(load.map_or(Client::None, Client::Load))
}
