//! The two QEMUs of a migration.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vmferry_core::report::Progress;
use vmferry_guest::GuestSpec;
use vmferry_guest_qemu::QemuConfig;
use vmferry_guest_qemu::qmp::commands::{MigrateIncoming, QueryStatus};

use super::migration;
use super::qemu::Qemu;
use super::report::{PeerReport, Side};
use super::request::PeerRequest;
use crate::error::{LabError, Result};
use crate::guards::Interrupt;
use crate::linux::Place;
use crate::topology::Topology;

/// Two QEMUs, one in each host's namespace, that move a guest between them. They end when this is dropped.
pub struct Qemus {
    request: PeerRequest,
    folder: PathBuf,
    port: u16,
    interrupt: Interrupt,
    config: OnceCell<QemuConfig>,
    source: OnceCell<Qemu>,
    destination: OnceCell<Destination>,
}

struct Destination {
    qemu: Qemu,
    uri: String,
    start: Duration,
}

impl Qemus {
    /// None yet. Their files will be in the folder; the guest arrives at the port.
    pub fn new(request: PeerRequest, folder: &Path, port: u16, interrupt: &Interrupt) -> Self {
        Self {
            request,
            folder: folder.to_owned(),
            port,
            interrupt: interrupt.clone(),
            config: OnceCell::new(),
            source: OnceCell::new(),
            destination: OnceCell::new(),
        }
    }

    /// Starts the guest at the first host, once this QEMU has said that it can do what is asked for.
    ///
    /// # Errors
    /// When it cannot, or does not start; or interrupted.
    pub fn run(&self, spec: &GuestSpec, topology: &Topology) -> Result<()> {
        let config = QemuConfig::from_spec(spec).map_err(|error| LabError::Guest(error.to_string()))?;
        let namespace = &topology.hosts[0].namespace;
        let source = Qemu::start(Side::Source, &config, &self.folder, namespace, &self.interrupt)?;
        source.set_up(&self.request)?;
        put(&self.config, config)?;
        put(&self.source, source)
    }

    /// Starts the second host's QEMU, which waits for the guest.
    ///
    /// # Errors
    /// As [`Qemus::run`].
    pub fn prepare(&self, topology: &Topology) -> Result<()> {
        let begin = Instant::now();
        let (config, host) = (get(&self.config)?, &topology.hosts[1]);
        let side = Side::Destination;
        let qemu = Qemu::start(side, config, &self.folder, &host.namespace, &self.interrupt)?;
        qemu.set_up(&self.request)?;
        let uri = format!("tcp:{}:{}", host.address, self.port);
        qemu.run(&MigrateIncoming { uri: uri.clone() })?;
        let start = begin.elapsed();
        put(&self.destination, Destination { qemu, uri, start })
    }

    /// Moves the guest and waits until that has ended. `watch` sees how it goes. One that takes longer than `limit` is
    /// cancelled.
    ///
    /// # Errors
    /// When it fails or takes longer, with how far it was; or interrupted.
    pub fn migrate(&self, limit: Duration, watch: impl FnMut(&Progress)) -> Result<PeerReport> {
        let (source, destination) = (get(&self.source)?, get(&self.destination)?);
        let ends = migration::Ends {
            source,
            destination: &destination.qemu,
            interrupt: &self.interrupt,
        };
        let mut report = ends.migrate(&self.request, &destination.uri, limit, watch)?;
        report.destination_start_ms = destination.start.as_secs_f64() * 1e3;
        Ok(report)
    }
}

impl Place for Qemus {
    fn check_alive(&self, _: &str) -> Result<()> {
        get(&self.source)?.run(&QueryStatus {}).map(drop)
    }
}

fn put<T>(cell: &OnceCell<T>, value: T) -> Result<()> {
    cell.set(value).map_err(|_| LabError::Lost)
}

fn get<T>(cell: &OnceCell<T>) -> Result<&T> {
    cell.get().ok_or(LabError::Lost)
}
