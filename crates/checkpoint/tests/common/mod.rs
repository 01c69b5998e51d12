//! Checkpoints of synthetic guests, written page by page while they stand still.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(unreachable_pub, reason = "a module of several test crates")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_checkpoint::resume::{Request, Resuming, Survey};
use vmferry_core::resume::ResumeMode;
use vmferry_core::{PageBitmap, PageRun};
use vmferry_guest::{Backend, Guest, GuestSpec, MigrateOut, Vm};
use vmferry_guest_synth::{Fill, LoadConfig, SynthBackend, SynthConfig, SynthGuest};
use vmferry_runtime::GuestDir;
use vmferry_store::{CheckpointId, Draft, Store, StoreOptions, Taken};

/// Pages read at once.
const STEP_PAGES: u64 = 64;

/// A store in a folder, a checkpoint of a guest in it, and where resumed guests live.
pub struct World {
    pub root: tempfile::TempDir,
    pub store: Store,
    pub backend: SynthBackend,
    pub checkpoint: CheckpointId,
    /// Of every page at the moment of the checkpoint.
    pub hashes: Vec<u128>,
}

/// 32 MiB that write, read keys, and hold data that nobody touches.
pub fn busy() -> SynthConfig {
    SynthConfig {
        loads: vec![
            LoadConfig::Write {
                region_mib: 2,
                rate_mib_per_s: Some(40),
            },
            LoadConfig::KeyValue {
                region_mib: 4,
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
        ..SynthConfig::new(32 << 20)
    }
}

impl World {
    /// Runs a guest, takes a checkpoint with the interval before it, and ends the guest.
    pub fn new(config: &SynthConfig) -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = root.path().join("store");
        let store = Store::open(store.to_str().unwrap(), StoreOptions::default()).unwrap();
        Self::on(root, store, config)
    }

    /// The same with another store.
    pub fn on(root: tempfile::TempDir, store: Store, config: &SynthConfig) -> Self {
        let backend = SynthBackend::new();
        let vm = backend.launch_guest(&SynthBackend::spec("web", config)).unwrap();
        let mut written = PageBitmap::new(vm.ram().layout().pages());
        let mut tracker = vm.dirty_tracker().unwrap();
        tracker.arm_running().unwrap();
        run_for(&vm, Duration::from_millis(300));
        vm.pause().unwrap();
        tracker.scan(&mut written).unwrap();
        let hashes = hashes(&*vm);
        let checkpoint = write(&store, &*vm, written);
        drop(tracker);
        vm.destroy();
        Self {
            root,
            store,
            backend,
            checkpoint,
            hashes,
        }
    }

    pub fn spec(&self, name: &str) -> GuestSpec {
        let manifest = self.store.manifest(&self.checkpoint).unwrap();
        let spec: GuestSpec = serde_json::from_value(manifest.spec).unwrap();
        GuestSpec {
            name: name.into(),
            ..spec
        }
    }

    pub fn dir(&self, name: &str) -> GuestDir {
        let path = self.root.path().join(name);
        fs::create_dir_all(&path).unwrap();
        GuestDir::new(path)
    }

    pub fn request(&self, mode: ResumeMode) -> Request {
        Request {
            store: self.store.name().to_owned(),
            checkpoint: self.checkpoint.clone(),
            mode,
            drain_after: None,
            paused: false,
            put_disks_back: false,
            patience: Duration::from_secs(10),
            readers: 2,
            service: None,
        }
    }

    /// Begins to resume the checkpoint as a guest called `name`.
    pub fn resume(&self, name: &str, request: Request) -> (Arc<SynthGuest>, Resuming) {
        let reader = self.store.reader(&self.checkpoint).unwrap();
        let layout = reader.manifest().layout.clone();
        let survey = Survey::begin(reader);
        let dir = self.dir(name);
        let vm: Arc<dyn Vm> = self
            .backend
            .launch_incoming(&self.spec(name), &layout, dir.path())
            .unwrap();
        let guest = self.backend.find(name).unwrap();
        let own = Box::new(|| Ok(()));
        let resuming = Resuming::start(vm, dir, survey, request, Instant::now(), own).unwrap();
        (guest, resuming)
    }

    /// Where the chunks of the store lie.
    pub fn chunks(&self) -> PathBuf {
        self.root.path().join("store/chunks")
    }

    /// The file of the chunk that holds `page`.
    pub fn chunk_of(&self, page: u64) -> Option<PathBuf> {
        let reader = self.store.reader(&self.checkpoint).unwrap();
        match reader.page_source(page).unwrap() {
            vmferry_store::PageSource::Stored { chunk, .. } => {
                let name = chunk.to_string();
                Some(self.chunks().join(&name[..2]).join(&name))
            }
            _ => None,
        }
    }
}

/// Writes the whole of a paused guest.
pub fn write(store: &Store, vm: &dyn Vm, written: PageBitmap) -> CheckpointId {
    let draft = Draft {
        vm: vm.spec().name.clone(),
        spec: serde_json::to_value(vm.spec()).unwrap(),
        layout: vm.ram().layout().clone(),
        parent: None,
    };
    let writer = store.begin(draft).unwrap();
    let data = vm.ram().data_pages().unwrap();
    let mut from = 0;
    let mut buffer = Vec::new();
    while let Some(run) = data.next_run(from, STEP_PAGES) {
        buffer.resize(run.bytes() as usize, 0);
        vm.ram().read(run, &mut buffer);
        writer.pages(run, &buffer).unwrap();
        from = run.end();
    }
    let device_state = writer.blob(&vm.save_device_state().unwrap()).unwrap();
    let taken = Taken {
        created_ms: 0,
        device_state,
        disks: Vec::new(),
        accessed: written.clone(),
        written,
        interval_ms: Some(300),
        pause_ms: 0.0,
    };
    writer.commit(taken).unwrap().id
}

pub fn hashes(vm: &dyn Vm) -> Vec<u128> {
    (0..vm.ram().layout().pages())
        .map(|page| vm.ram().hash(page))
        .collect()
}

/// Lets a guest run for a while, and until it has done something.
pub fn run_for(guest: &SynthGuest, time: Duration) {
    let before = guest.stats().operations;
    std::thread::sleep(time);
    eventually("the guest operates", || guest.stats().operations > before + 100);
}

/// Waits until `what` holds.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < until, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The guest makes progress, and all its data is right.
pub fn assert_healthy(guest: &SynthGuest) {
    run_for(guest, Duration::from_millis(100));
    assert_eq!(guest.stats().violations, 0, "{:?}", guest.stats());
}

/// Changes a byte in the middle of a file.
pub fn damage(file: &Path) -> Vec<u8> {
    let whole = fs::read(file).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 0x40;
    fs::write(file, damaged).unwrap();
    whole
}

/// All pages of a guest, for messages.
pub fn all(vm: &dyn Vm) -> PageRun {
    PageRun::new(0, vm.ram().layout().pages())
}
