//! Hosts, link and mover of a run.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use vmferry_api::{CheckpointRequest, MigrateRequest};
use vmferry_core::report::Progress;
use vmferry_guest::GuestSpec;

use super::account::Account;
use super::experiment::{self, Bed};
use super::measure::{Workbench, check_report};
use super::neighbour::Neighbour;
use super::plan::{GUEST, PlannedRun, Request};
use super::scenario::{Experiment, GuestKind, words};
use crate::error::{LabError, Result};
use crate::forecasting::Past;
use crate::guards::{self, Interrupt};
use crate::hosts::{Host, HostSetup};
use crate::link::{BadLink, Link};
use crate::linux::Place;
use crate::load::Load;
use crate::peer::Qemus;
use crate::requirements;
use crate::topology::{HostEnd, Seat, Topology};
use crate::workload::Workload;

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
    Vmferry(Box<[Host; 2]>, Asked),
    /// Two plain QEMUs.
    Qemu(Box<Qemus>),
}

/// Who watches a guest from outside.
#[derive(Clone, Copy, Default)]
pub(super) struct Watched<'a> {
    /// What it does.
    pub(super) workload: Option<&'a Workload>,
    /// Its clients.
    pub(super) load: Option<&'a Load>,
    /// How it was started, where it is synthetic.
    pub(super) spec: Option<&'a GuestSpec>,
}

/// What two daemons are asked for.
pub(super) enum Asked {
    /// To move the guest.
    Move(Box<MigrateRequest>),
    /// To move it there and back again.
    MoveBack {
        /// Both ways.
        request: Box<MigrateRequest>,
        /// Whether a checkpoint is left behind before it goes.
        leaves_checkpoint: bool,
    },
    /// To do something else to it.
    Experiment(Experiment),
}

impl Asked {
    /// Where the guest is in the end.
    pub(super) fn last_host(&self) -> usize {
        match self {
            Self::Move(_) | Self::Experiment(Experiment::Parallel { .. }) => 1,
            Self::MoveBack { .. } | Self::Experiment(_) => 0,
        }
    }
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
        let by_daemons = |asked| -> Result<Mover> {
            let hosts = bench.start_hosts(folder.path(), topology.as_ref())?;
            Ok(Mover::Vmferry(Box::new(hosts), asked))
        };
        let mover = match &run.request {
            Request::Vmferry(request) => by_daemons(Asked::Move(with_disk_folder(request, folder.path())?))?,
            Request::Back {
                request,
                leaves_checkpoint,
            } => by_daemons(Asked::MoveBack {
                request: request.clone(),
                leaves_checkpoint: *leaves_checkpoint,
            })?,
            Request::Experiment(experiment) => by_daemons(Asked::Experiment(experiment.clone()))?,
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

    /// Makes everything ready for what is measured, as far as its user has to: the second host, or the guest at it.
    pub(super) fn expect(&self, limit: Duration, interrupt: &Interrupt) -> Result<()> {
        match &self.mover {
            Mover::Vmferry(
                hosts,
                Asked::MoveBack {
                    request,
                    leaves_checkpoint,
                },
            ) => {
                let [here, there] = hosts.as_ref();
                if *leaves_checkpoint {
                    // In the daemon's own store, where it looks when the guest comes back.
                    experiment::take(here, CheckpointRequest::default(), limit, interrupt)?;
                }
                check_report(&here.migrate(GUEST, there, request, Some(limit), |_| {})?)
            }
            Mover::Vmferry(..) => Ok(()),
            Mover::Qemu(qemus) => qemus.prepare(self.network()?),
        }
    }

    /// What vmferry is asked for, with a forecast where one is wanted.
    pub(super) fn forecast(&self, past: &Past, seed: u64) -> Result<Option<MigrateRequest>> {
        let Mover::Vmferry(hosts, asked) = &self.mover else {
            return Ok(None);
        };
        let [a, b] = hosts.as_ref();
        let (from, to, request) = match asked {
            Asked::Move(request) => (a, b, request),
            Asked::MoveBack { request, .. } => (b, a, request),
            Asked::Experiment(_) => return Ok(None),
        };
        from.forecast(GUEST, to, request, RECORD, past, seed).map(Some)
    }

    /// Moves the guest, as it was forecast where it was, within `limit`, or does to it what else there is to do.
    pub(super) fn act(
        &self,
        forecast: Option<&MigrateRequest>,
        limit: Duration,
        interrupt: &Interrupt,
        watched: Watched<'_>,
        watch: impl FnMut(&Progress),
    ) -> Result<Account> {
        let (hosts, asked) = match &self.mover {
            Mover::Vmferry(hosts, asked) => (hosts.as_ref(), asked),
            Mover::Qemu(qemus) => return Ok(Account::Qemu(Box::new(qemus.migrate(limit, watch)?))),
        };
        let [a, b] = hosts;
        let report = match asked {
            Asked::Move(request) => a.migrate(GUEST, b, forecast.unwrap_or(request), Some(limit), watch)?,
            Asked::MoveBack { request, .. } => {
                b.migrate(GUEST, a, forecast.unwrap_or(request), Some(limit), watch)?
            }
            Asked::Experiment(experiment) => {
                let client = self.topology.as_ref().map(|topology| &topology.client);
                let bed = Bed {
                    hosts,
                    interrupt,
                    folder: self.folder.path(),
                    spec: watched.spec,
                    limit,
                    client: client
                        .zip(watched.workload)
                        .filter(|(_, workload)| workload.has_client()),
                    address: Seat::MOVED.address,
                    load: watched.load,
                };
                let found = bed.carry_out(experiment)?;
                return Ok(Account::Experiment(Box::new(found)));
            }
        };
        Ok(Account::Vmferry(Box::new(report)))
    }

    /// The host that sends: whose link is looked at.
    pub(super) fn sender(&self) -> Option<&HostEnd> {
        let index = match &self.mover {
            Mover::Vmferry(_, Asked::MoveBack { .. }) => 1,
            _ => 0,
        };
        self.topology.as_ref().map(|topology| &topology.hosts[index])
    }

    fn network(&self) -> Result<&Topology> {
        let missing = || LabError::Missing("QEMU's own migration is measured in network namespaces".into());
        self.topology.as_ref().ok_or_else(missing)
    }
}

/// Both hosts are one machine: disks that move go to a folder of the destination's own.
fn with_disk_folder(request: &MigrateRequest, folder: &Path) -> Result<Box<MigrateRequest>> {
    let mut request = request.clone();
    if let Some(disks) = &mut request.disks
        && disks.folder.is_none()
    {
        let own = folder.join("disks-of-b");
        std::fs::create_dir(&own).map_err(LabError::system(format!("make {}", own.display())))?;
        disks.folder = Some(own);
    }
    Ok(Box::new(request))
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
