//! Two hosts in one process, joined by loopback: the runtime on real QEMU without the daemon around it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use vmferry_core::report::Report;
use vmferry_core::{Limits, RamLayout, Strategy};
use vmferry_guest::{Backend as _, GuestSpec, Vm};
use vmferry_guest_qemu::QemuBackend;
use vmferry_runtime::{Admitted, GuestDir, Host, Incoming, IncomingReport, Outgoing, Request};
use vmferry_transport::{Endpoint, Listener};

/// A host.
pub struct TestHost {
    root: tempfile::TempDir,
    guests: Mutex<HashMap<String, Arc<dyn Vm>>>,
    discarded: Mutex<Vec<String>>,
}

impl TestHost {
    fn new() -> Arc<Self> {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        Arc::new(Self {
            root,
            guests: Mutex::default(),
            discarded: Mutex::default(),
        })
    }

    /// The directory of a guest, created where there is none.
    pub fn dir(&self, name: &str) -> GuestDir {
        let path: PathBuf = self.root.path().join(name);
        std::fs::create_dir_all(&path).expect("a directory can be made");
        GuestDir::new(path)
    }

    /// A guest that is here.
    ///
    /// # Panics
    /// When it is not.
    pub fn guest(&self, name: &str) -> Arc<dyn Vm> {
        self.guests
            .lock()
            .expect("not poisoned")
            .get(name)
            .expect("the guest is here")
            .clone()
    }

    /// Why guests were given up here.
    pub fn discarded(&self) -> Vec<String> {
        self.discarded.lock().expect("not poisoned").clone()
    }

    /// Ends all guests of this host.
    fn destroy_all(&self) {
        self.guests
            .lock()
            .expect("not poisoned")
            .values()
            .for_each(|vm| vm.destroy());
    }
}

impl Host for TestHost {
    fn admit(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Admitted, String> {
        let dir = self.dir(&spec.name);
        let vm = QemuBackend
            .launch_incoming(spec, layout, dir.path())
            .map_err(|e| e.to_string())?;
        self.guests
            .lock()
            .expect("not poisoned")
            .insert(spec.name.clone(), vm.clone());
        Ok(Admitted { vm, dir })
    }

    fn arrived(&self, _name: &str) {}

    fn discarded(&self, name: &str, reason: &str) {
        self.guests.lock().expect("not poisoned").remove(name);
        self.discarded
            .lock()
            .expect("not poisoned")
            .push(format!("{name}: {reason}"));
        let _ = std::fs::remove_dir_all(self.root.path().join(name));
    }

    fn finished(&self, _name: &str, _report: IncomingReport) {}
}

/// A source and a destination. Guests end with it.
pub struct Pair {
    /// Where guests start.
    pub source: Arc<TestHost>,
    /// Where they go.
    pub destination: Arc<TestHost>,
    /// The destination's port.
    pub endpoint: Endpoint,
    incoming: Incoming,
}

impl Pair {
    /// Two hosts without guests.
    ///
    /// # Panics
    /// When the destination cannot listen on loopback.
    #[allow(clippy::new_without_default, reason = "it opens sockets")]
    pub fn new() -> Self {
        let destination = TestHost::new();
        let listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0)).expect("loopback can be listened on");
        let endpoint = listener.local_endpoint().clone();
        let incoming = Incoming::new(listener, destination.clone(), destination.root.path())
            .expect("a fresh directory has a fresh log");
        incoming.serve();
        Self {
            source: TestHost::new(),
            destination,
            endpoint,
            incoming,
        }
    }

    /// Starts a guest at the source.
    ///
    /// # Panics
    /// When QEMU does not start.
    pub fn launch(&self, spec: &GuestSpec) -> Arc<dyn Vm> {
        let dir = self.source.dir(&spec.name);
        let vm = QemuBackend
            .launch(spec, dir.path())
            .unwrap_or_else(|e| panic!("{e}"));
        self.source
            .guests
            .lock()
            .expect("not poisoned")
            .insert(spec.name.clone(), vm.clone());
        vm
    }

    /// A verified migration by `strategy`.
    pub fn request(&self, strategy: Strategy) -> Request {
        Request {
            destination: self.endpoint.clone(),
            strategy,
            limits: Limits::default(),
            streams: None,
            verify: true,
        }
    }

    /// Migrates a guest and waits for the end.
    ///
    /// # Panics
    /// When the migration cannot be started.
    pub fn migrate(&self, vm: &Arc<dyn Vm>, request: Request) -> Report {
        let dir = self.source.dir(&vm.spec().name);
        Outgoing::start(vm.clone(), dir, request)
            .unwrap_or_else(|e| panic!("{e}"))
            .wait()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.incoming.stop();
        self.source.destroy_all();
        self.destination.destroy_all();
    }
}
