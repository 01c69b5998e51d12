//! Two hosts in one process, with synthetic guests.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(unreachable_pub, reason = "a module of several test crates")]

pub mod proxy;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vmferry_core::report::Report;
use vmferry_core::{RamLayout, Strategy};
use vmferry_guest::{Backend, GuestSpec, Vm};
use vmferry_guest_synth::{Fill, LoadConfig, SynthBackend, SynthConfig, SynthGuest};
use vmferry_runtime::{Admitted, GuestDir, Holdings, Host, Incoming, IncomingReport, Outgoing, Request};
use vmferry_transport::{Endpoint, Listener};

/// A host: a backend, directories, and what arrived.
pub struct TestHost {
    pub backend: SynthBackend,
    pub root: tempfile::TempDir,
    /// Guests live as long as somebody holds them.
    pub held: Mutex<HashMap<String, Arc<dyn Vm>>>,
    pub arrived: Mutex<Vec<String>>,
    pub discarded: Mutex<Vec<String>>,
    pub finished: Mutex<HashMap<String, IncomingReport>>,
    /// What a store of this host has.
    pub holdings: Mutex<Option<Arc<dyn Holdings>>>,
}

impl TestHost {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            backend: SynthBackend::new(),
            root: tempfile::tempdir().unwrap(),
            held: Mutex::default(),
            arrived: Mutex::default(),
            discarded: Mutex::default(),
            finished: Mutex::default(),
            holdings: Mutex::default(),
        })
    }

    pub fn dir(&self, name: &str) -> GuestDir {
        let path: PathBuf = self.root.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        GuestDir::new(path)
    }

    pub fn guest(&self, name: &str) -> Arc<SynthGuest> {
        self.backend.find(name).expect("the guest is here")
    }
}

impl Host for TestHost {
    fn admit(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Admitted, String> {
        let dir = self.dir(&spec.name);
        let vm = self
            .backend
            .launch_incoming(spec, layout, dir.path())
            .map_err(|e| e.to_string())?;
        self.held.lock().unwrap().insert(spec.name.clone(), vm.clone());
        Ok(Admitted { vm, dir })
    }

    fn holdings(&self, _name: &str, _most: u64) -> Option<Arc<dyn Holdings>> {
        self.holdings.lock().unwrap().clone()
    }

    fn arrived(&self, name: &str) {
        self.arrived.lock().unwrap().push(name.into());
    }

    fn discarded(&self, name: &str, reason: &str) {
        self.discarded.lock().unwrap().push(format!("{name}: {reason}"));
        self.held.lock().unwrap().remove(name);
        let _ = std::fs::remove_dir_all(self.root.path().join(name));
    }

    fn finished(&self, name: &str, report: IncomingReport) {
        self.finished.lock().unwrap().insert(name.into(), report);
    }
}

/// A source and a destination, joined by loopback.
pub struct Pair {
    pub source: Arc<TestHost>,
    pub destination: Arc<TestHost>,
    pub incoming: Incoming,
    pub endpoint: Endpoint,
}

impl Pair {
    pub fn new() -> Self {
        let destination = TestHost::new();
        let listener = Listener::bind(&"tcp:127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = listener.local_endpoint().clone();
        let incoming = Incoming::new(listener, destination.clone(), destination.root.path()).unwrap();
        incoming.serve();
        Self {
            source: TestHost::new(),
            destination,
            incoming,
            endpoint,
        }
    }

    /// Starts a guest at the source.
    pub fn launch(&self, name: &str, config: &SynthConfig) -> (Arc<dyn Vm>, GuestDir) {
        let dir = self.source.dir(name);
        let vm = self
            .source
            .backend
            .launch(&SynthBackend::spec(name, config), dir.path())
            .unwrap();
        self.source.held.lock().unwrap().insert(name.into(), vm.clone());
        (vm, dir)
    }

    pub fn request(&self, strategy: Strategy) -> Request {
        Request {
            streams: Some(2),
            verify: true,
            delta_cache_bytes: Some(64 << 20),
            ..Request::new(self.endpoint.clone(), strategy)
        }
    }

    pub fn migrate(&self, vm: Arc<dyn Vm>, dir: GuestDir, request: Request) -> Report {
        Outgoing::start(vm, dir, request).unwrap().wait()
    }
}

/// A guest of 64 MiB that writes and serves keys, and checks both.
pub fn busy() -> SynthConfig {
    SynthConfig {
        loads: vec![
            LoadConfig::Write {
                region_mib: 8,
                rate_mib_per_s: Some(40),
            },
            LoadConfig::KeyValue {
                region_mib: 8,
                get_percent: 50,
                zipf_exponent: 0.9,
                value_bytes: 512,
                operations_per_s: Some(20_000),
            },
        ],
        fill: Fill {
            mib: 16,
            zero_percent: 20,
            uniform_percent: 10,
            compressible_percent: 30,
        },
        seed: 7,
        ..SynthConfig::new(64 << 20)
    }
}

/// Waits until `what` holds.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The guest runs at `host`, makes progress, and all its data is right.
pub fn assert_healthy(host: &TestHost, name: &str) {
    let guest = host.guest(name);
    let before = guest.stats().operations;
    eventually("the guest makes progress", || {
        guest.stats().operations > before + 100
    });
    assert_eq!(guest.stats().violations, 0, "{:?}", guest.stats());
}
