//! Hosts, link and mover of a run.

use std::net::Ipv4Addr;
use std::time::Duration;

use vmferry_api::MigrateRequest;
use vmferry_core::report::Progress;
use vmferry_guest::GuestSpec;

use super::account::Account;
use super::measure::Workbench;
use super::neighbour::Neighbour;
use super::plan::{GUEST, PlannedRun, Request};
use super::scenario::{GuestKind, words};
use crate::error::{LabError, Result};
use crate::forecasting::Past;
use crate::guards;
use crate::hosts::{Host, HostSetup};
use crate::link::{BadLink, Link};
use crate::linux::Place;
use crate::peer::Qemus;
use crate::requirements;
use crate::topology::Topology;

/// Where guests arrive, in namespaces.
pub(super) const PORT: u16 = 7120;
/// How long a guest is recorded for a forecast.
const RECORD: Duration = Duration::from_secs(4);

/// Hosts and link of a run. Fields go in their order: what runs in a network before it.
pub(super) struct Ground {
    pub(super) neighbour: Option<Neighbour>,
    pub(super) mover: Mover,
    pub(super) topology: Option<Topology>,
    pub(super) link: String,
    pub(super) folder: tempfile::TempDir,
}

/// What runs the guest at both hosts and moves it.
pub(super) enum Mover {
    /// Two daemons, and what they are asked for.
    Vmferry(Box<[Host; 2]>, Box<MigrateRequest>),
    /// Two plain QEMUs.
    Qemu(Box<Qemus>),
}

impl Ground {
    pub(super) fn prepare(bench: &Workbench<'_>, run: &PlannedRun) -> Result<Self> {
        let folder = guards::scratch_folder()?;
        let wrong = |error: BadLink| LabError::Missing(error.to_string());
        let link: Link = run.key.link.parse().map_err(wrong)?;
        let made = match requirements::missing_for_network() {
            None => {
                let taps = run.guest.workload.has_client();
                Topology::create(&std::process::id().to_string(), &link, taps)
            }
            Some(why) => Err(LabError::Missing(why)),
        };
        let (topology, link) = match (made, run.guest.kind) {
            (Ok(topology), _) => {
                let link = topology.link.clone();
                (Some(topology), link)
            }
            // It needs no network of its own.
            (Err(error), GuestKind::Synth) => (None, format!("loopback, not shaped ({})", error.chain())),
            (Err(error), GuestKind::Qemu) => return Err(error),
        };
        if let (true, Some(topology)) = (run.guest.neighbour, &topology) {
            topology.one_core_each()?;
        }
        let mover = match &run.request {
            Request::Vmferry(request) => {
                let hosts = bench.start_hosts(folder.path(), topology.as_ref())?;
                Mover::Vmferry(Box::new(hosts), request.clone())
            }
            Request::Qemu(request) => {
                let qemus = Qemus::new(request.clone(), folder.path(), PORT, bench.interrupt);
                Mover::Qemu(Box::new(qemus))
            }
        };
        let neighbour = match run.guest.neighbour {
            true => Some(Neighbour::start(bench, run, topology.as_ref(), folder.path())?),
            false => None,
        };
        Ok(Self {
            neighbour,
            mover,
            topology,
            link,
            folder,
        })
    }

    /// Starts the guest at the first host.
    pub(super) fn run(&self, spec: &GuestSpec) -> Result<()> {
        match &self.mover {
            Mover::Vmferry(hosts, _) => hosts[0].run(spec).map(drop),
            Mover::Qemu(qemus) => qemus.run(spec, self.network()?),
        }
    }

    /// Makes the second host ready, as far as its user has to.
    pub(super) fn expect(&self) -> Result<()> {
        match &self.mover {
            Mover::Vmferry(..) => Ok(()),
            Mover::Qemu(qemus) => qemus.prepare(self.network()?),
        }
    }

    /// What vmferry is asked for, with a forecast where one is wanted.
    pub(super) fn forecast(&self, past: &Past, seed: u64) -> Result<Option<MigrateRequest>> {
        match &self.mover {
            Mover::Vmferry(hosts, request) => {
                let [source, destination] = hosts.as_ref();
                source
                    .forecast(GUEST, destination, request, RECORD, past, seed)
                    .map(Some)
            }
            Mover::Qemu(_) => Ok(None),
        }
    }

    /// Moves the guest, within `limit`, as it was forecast.
    pub(super) fn migrate(
        &self,
        forecast: Option<&MigrateRequest>,
        limit: Duration,
        watch: impl FnMut(&Progress),
    ) -> Result<Account> {
        match &self.mover {
            Mover::Vmferry(hosts, request) => {
                let [source, destination] = hosts.as_ref();
                let request = forecast.unwrap_or(request);
                let report = source.migrate(GUEST, destination, request, Some(limit), watch)?;
                Ok(Account::Vmferry(Box::new(report)))
            }
            Mover::Qemu(qemus) => Ok(Account::Qemu(Box::new(qemus.migrate(limit, watch)?))),
        }
    }

    fn network(&self) -> Result<&Topology> {
        let missing = || LabError::Missing("QEMU's own migration is measured in network namespaces".into());
        self.topology.as_ref().ok_or_else(missing)
    }
}

impl Place for Ground {
    fn check_alive(&self, name: &str) -> Result<()> {
        match &self.mover {
            Mover::Vmferry(hosts, _) => hosts[0].check_alive(name),
            Mover::Qemu(qemus) => qemus.check_alive(name),
        }
    }
}

impl Workbench<'_> {
    fn start_hosts(&self, folder: &std::path::Path, topology: Option<&Topology>) -> Result<[Host; 2]> {
        // They were checked with the rest of the scenario.
        let options = words(&self.scenario.host_options).unwrap_or_default();
        let start = |name, index: usize| {
            let end = topology.map(|topology| &topology.hosts[index]);
            let setup = HostSetup {
                program: self.program,
                folder,
                address: end.map_or((Ipv4Addr::LOCALHOST, 0), |end| (end.address, PORT)),
                options: &options,
                namespace: end.map(|end| &end.namespace),
                interrupt: self.interrupt,
            };
            Host::start(name, &setup)
        };
        Ok([start("a", 0)?, start("b", 1)?])
    }
}
