//! Two hosts in one process, joined by loopback: the runtime without the daemon around it, on QEMU or another backend.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmferry_core::report::Report;
use vmferry_core::{RamLayout, Strategy};
use vmferry_guest::disks::Before;
use vmferry_guest::{Backend, DiskInfo, DiskPlan, GuestSpec, PlacedDisk, Vm};
use vmferry_guest_qemu::QemuBackend;
use vmferry_runtime::{Admitted, GuestDir, Host, Incoming, IncomingReport, Outgoing, Request};
use vmferry_transport::{Endpoint, Listener};

/// A guest that ends with its guard, also when what is done with it fails.
pub struct Ends(pub Arc<dyn Vm>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

/// The guests of a host.
#[derive(Default)]
struct Guests {
    here: HashMap<String, Arc<dyn Vm>>,
    /// The host is gone: what is still being started ends at once.
    closed: bool,
}

/// A host.
pub struct TestHost {
    backend: Box<dyn Backend>,
    root: tempfile::TempDir,
    guests: Mutex<Guests>,
    arrived: Mutex<Vec<String>>,
    discarded: Mutex<Vec<String>>,
}

impl TestHost {
    fn new(backend: Box<dyn Backend>) -> Arc<Self> {
        let root = tempfile::tempdir().expect("a temporary directory can be made");
        Arc::new(Self {
            backend,
            root,
            guests: Mutex::default(),
            arrived: Mutex::default(),
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
        let guest = self.guests().here.get(name).cloned();
        guest.unwrap_or_else(|| panic!("guest {name} is not here"))
    }

    /// Also after a test panicked: its guests have to end all the same.
    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a guest was admitted here and not given up since.
    pub fn has(&self, name: &str) -> bool {
        self.guests().here.contains_key(name)
    }

    /// Names of the guests that ran here after a migration.
    pub fn arrived(&self) -> Vec<String> {
        self.arrived.lock().expect("not poisoned").clone()
    }

    /// Why guests were given up here.
    pub fn discarded(&self) -> Vec<String> {
        self.discarded.lock().expect("not poisoned").clone()
    }

    /// Ends all guests of this host.
    fn destroy_all(&self) {
        let mut guests = self.guests();
        guests.closed = true;
        guests.here.values().for_each(|vm| vm.destroy());
    }
}

impl Host for TestHost {
    fn admit(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Admitted, String> {
        let dir = self.dir(&spec.name);
        let vm = self
            .backend
            .launch_incoming(spec, layout, dir.path())
            .map_err(|e| e.to_string())?;
        let mut guests = self.guests();
        if guests.closed {
            vm.destroy();
            return Err("the host is gone".to_owned());
        }
        guests.here.insert(spec.name.clone(), vm.clone());
        Ok(Admitted { vm, dir })
    }

    fn admit_with_disks(
        &self,
        spec: &GuestSpec,
        layout: &RamLayout,
        plan: &DiskPlan,
    ) -> Result<(Admitted, Vec<PlacedDisk>), String> {
        let folder = plan.folder.as_ref().ok_or("a test names a folder")?;
        let disks: Vec<DiskInfo> = plan.disks.iter().map(|planned| planned.disk.clone()).collect();
        let mut places = Vec::new();
        for disk in &disks {
            let path = folder.join(disk.path.file_name().ok_or("a disk has a name")?);
            let _ = std::fs::remove_file(&path);
            self.backend
                .create_disk(spec, disk, &path)
                .map_err(|e| e.to_string())?;
            let (id, was) = (disk.id.clone(), Before::Nothing);
            places.push(PlacedDisk { id, path, was });
        }
        let placed = self.backend.place_disks(spec, &disks, &places);
        let admitted = self.admit(&placed.map_err(|e| e.to_string())?, layout)?;
        Ok((admitted, places))
    }

    fn arrived(&self, name: &str) {
        self.arrived.lock().expect("not poisoned").push(name.into());
    }

    fn discarded(&self, name: &str, reason: &str) {
        self.guests().here.remove(name);
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
    other_endpoint: Endpoint,
    incoming: [Incoming; 2],
}

impl Pair {
    /// Two hosts for QEMU, without guests.
    ///
    /// # Panics
    /// See [`Pair::with`].
    #[allow(clippy::new_without_default, reason = "it opens sockets")]
    pub fn new() -> Self {
        Self::with(|| Box::new(QemuBackend))
    }

    /// Two hosts with a backend each, without guests.
    ///
    /// # Panics
    /// When loopback cannot be listened on.
    pub fn with(backend: impl Fn() -> Box<dyn Backend>) -> Self {
        let (source, from_source, other_endpoint) = open(backend());
        let (destination, incoming, endpoint) = open(backend());
        Self {
            source,
            destination,
            endpoint,
            other_endpoint,
            incoming: [from_source, incoming],
        }
    }

    /// From now on guests go the other way; `name` arrived and is forgotten where it came from.
    ///
    /// # Panics
    /// When its old directory cannot be removed.
    pub fn turn_round(&mut self, name: &str) {
        self.source.guests().here.remove(name);
        std::fs::remove_dir_all(self.source.dir(name).path()).expect("it is there");
        std::mem::swap(&mut self.source, &mut self.destination);
        std::mem::swap(&mut self.endpoint, &mut self.other_endpoint);
    }

    /// Starts a guest at the source.
    ///
    /// # Panics
    /// When it does not start.
    pub fn launch(&self, spec: &GuestSpec) -> Arc<dyn Vm> {
        let dir = self.source.dir(&spec.name);
        let vm = self
            .source
            .backend
            .launch(spec, dir.path())
            .unwrap_or_else(|e| panic!("{e}"));
        let mut guests = self.source.guests();
        guests.here.insert(spec.name.clone(), vm.clone());
        vm
    }

    /// A verified migration by `strategy`.
    pub fn request(&self, strategy: Strategy) -> Request {
        Request {
            verify: true,
            ..Request::new(self.endpoint.clone(), strategy)
        }
    }

    /// Starts a migration and returns while it goes on.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn begin(&self, vm: &Arc<dyn Vm>, request: Request) -> Outgoing {
        let dir = self.source.dir(&vm.spec().name);
        Outgoing::start(vm.clone(), dir, request).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Migrates a guest and waits for the end.
    ///
    /// # Panics
    /// When the migration cannot be started.
    pub fn migrate(&self, vm: &Arc<dyn Vm>, request: Request) -> Report {
        self.begin(vm, request).wait()
    }
}

/// A host that takes guests in at a port of its own.
fn open(backend: Box<dyn Backend>) -> (Arc<TestHost>, Incoming, Endpoint) {
    let host = TestHost::new(backend);
    let listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0)).expect("loopback can be listened on");
    let endpoint = listener.local_endpoint().clone();
    let incoming =
        Incoming::new(listener, host.clone(), host.root.path()).expect("a fresh directory has a fresh log");
    incoming.serve();
    (host, incoming, endpoint)
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.incoming.iter().for_each(Incoming::stop);
        self.source.destroy_all();
        self.destination.destroy_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use vmferry_guest::GuestState;
    use vmferry_guest_synth::{SynthBackend, SynthConfig};

    use super::*;

    #[test]
    fn guests_end_with_their_hosts_whatever_happened_before() {
        let pair = Pair::with(|| Box::new(SynthBackend::new()));
        let vm = pair.launch(&SynthBackend::spec("vm", &SynthConfig::new(4 << 20)));
        let looked = catch_unwind(AssertUnwindSafe(|| drop(pair.source.guest("nobody"))));
        assert!(looked.is_err());
        let late = SynthBackend::spec("late", &SynthConfig::new(4 << 20));
        let destination = pair.destination.clone();
        drop(pair);
        assert_eq!(vm.state(), GuestState::Gone);
        let refused = destination.admit(&late, vm.ram().layout()).err();
        assert_eq!(refused.as_deref(), Some("the host is gone"));
        assert!(!destination.has("late"));
    }
}
