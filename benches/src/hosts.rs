//! Two hosts in one process, joined by loopback.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use vmferry_core::{RamLayout, Strategy};
use vmferry_guest::{Backend, GuestSpec, Vm};
use vmferry_runtime::{Admitted, GuestDir, Host, Incoming, IncomingReport, Outgoing, Request};
use vmferry_transport::{Endpoint, Listener};

/// A host with one backend.
pub struct TestHost {
    backend: Box<dyn Backend>,
    root: tempfile::TempDir,
    guests: Mutex<HashMap<String, Arc<dyn Vm>>>,
}

impl TestHost {
    fn new(backend: Box<dyn Backend>) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            backend,
            root: tempfile::tempdir()?,
            guests: Mutex::default(),
        }))
    }

    fn dir(&self, name: &str) -> std::io::Result<GuestDir> {
        let path = self.root.path().join(name);
        std::fs::create_dir_all(&path)?;
        Ok(GuestDir::new(path))
    }

    /// A guest that is here.
    pub fn guest(&self, name: &str) -> Option<Arc<dyn Vm>> {
        self.guests.lock().expect("not poisoned").get(name).cloned()
    }

    /// Ends and forgets all guests.
    pub fn clear(&self) {
        for (name, vm) in self.guests.lock().expect("not poisoned").drain() {
            vm.destroy();
            let _ = std::fs::remove_dir_all(self.root.path().join(name));
        }
    }
}

impl Host for TestHost {
    fn admit(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Admitted, String> {
        let dir = self.dir(&spec.name).map_err(|e| e.to_string())?;
        let vm = self
            .backend
            .launch_incoming(spec, layout, dir.path())
            .map_err(|e| e.to_string())?;
        self.guests
            .lock()
            .expect("not poisoned")
            .insert(spec.name.clone(), vm.clone());
        Ok(Admitted { vm, dir })
    }

    fn arrived(&self, _name: &str) {}

    fn discarded(&self, name: &str, _reason: &str) {
        self.guests.lock().expect("not poisoned").remove(name);
    }

    fn finished(&self, _name: &str, _report: IncomingReport) {}
}

/// A source and a destination.
pub struct Pair {
    /// Where guests start.
    pub source: Arc<TestHost>,
    /// Where they go.
    pub destination: Arc<TestHost>,
    endpoint: Endpoint,
    incoming: Incoming,
}

impl Pair {
    /// Hosts with a backend each.
    ///
    /// # Errors
    /// When loopback cannot be listened on.
    pub fn new(backend: impl Fn() -> Box<dyn Backend>) -> Result<Self> {
        let destination = TestHost::new(backend())?;
        let listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0))?;
        let endpoint = listener.local_endpoint().clone();
        let incoming = Incoming::new(listener, destination.clone(), destination.root.path())?;
        incoming.serve();
        Ok(Self {
            source: TestHost::new(backend())?,
            destination,
            endpoint,
            incoming,
        })
    }

    /// Starts a guest at the source.
    ///
    /// # Errors
    /// When it does not start.
    pub fn launch(&self, spec: &GuestSpec) -> Result<Arc<dyn Vm>> {
        let dir = self.source.dir(&spec.name)?;
        let vm = self.source.backend.launch(spec, dir.path())?;
        self.source
            .guests
            .lock()
            .expect("not poisoned")
            .insert(spec.name.clone(), vm.clone());
        Ok(vm)
    }

    /// A migration to the destination with default limits, over one stream.
    pub fn request(&self, strategy: Strategy) -> Request {
        Request {
            destination: self.endpoint.clone(),
            strategy,
            limits: vmferry_core::Limits::default(),
            tuning: Default::default(),
            streams: Some(1),
            verify: false,
            encoding: Default::default(),
            delta_cache_bytes: vmferry_core::encoding::DEFAULT_DELTA_CACHE_BYTES,
        }
    }

    /// Migrates and waits.
    ///
    /// # Errors
    /// When it does not complete.
    pub fn migrate(&self, vm: &Arc<dyn Vm>, request: Request) -> Result<vmferry_core::report::Report> {
        let dir = self.source.dir(&vm.spec().name)?;
        let report = Outgoing::start(vm.clone(), dir, request)?.wait();
        anyhow::ensure!(
            report.outcome == vmferry_core::report::Outcome::Completed,
            "the migration ended as {:?}: {}",
            report.outcome,
            report.error.as_deref().unwrap_or_default()
        );
        Ok(report)
    }

    /// Ends all guests.
    pub fn clear(&self) {
        self.source.clear();
        self.destination.clear();
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.incoming.stop();
        self.clear();
    }
}

/// Runs of a bench: the environment variable `VMFERRY_BENCH_RUNS`, or this many.
///
/// # Errors
/// When the variable is no number.
pub fn runs(default: usize) -> Result<usize> {
    match std::env::var("VMFERRY_BENCH_RUNS") {
        Ok(runs) => runs.parse().context("VMFERRY_BENCH_RUNS is no number"),
        Err(_) => Ok(default),
    }
}
