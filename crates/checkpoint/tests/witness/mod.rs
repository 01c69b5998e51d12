//! A guest whose memory is written down whenever it is resumed: what a checkpoint taken in that pause must hold.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(unreachable_pub, reason = "a module of several test crates")]

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{
    DirtyTracker, FaultMode, Guest, GuestError, GuestRam, GuestSpec, GuestState, MigrateIn, MigrateOut,
    PageFaults, Result, Vm, WriteHolds,
};
use vmferry_guest_synth::{FaultMechanism, Fill, LoadConfig, SynthBackend, SynthConfig, SynthGuest};
use vmferry_store::{CheckpointId, Store};

/// All memory, page by page.
pub type Memory = Vec<u8>;

pub struct Witness {
    pub guest: Arc<SynthGuest>,
    /// At the last resume.
    pub seen: Mutex<Memory>,
    /// So many pauses, once they are made, are said to have failed.
    pub failing_pauses: AtomicU32,
    /// So many resumes are refused.
    pub refused_resumes: AtomicU32,
}

/// Takes one away where there is one.
fn is_next(count: &AtomicU32) -> bool {
    count
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
        .is_ok()
}

impl Witness {
    pub fn start(config: &SynthConfig) -> Arc<Self> {
        let guest = SynthBackend::new()
            .launch_guest(&SynthBackend::spec("web", config))
            .unwrap();
        Self::of(guest)
    }

    pub fn of(guest: Arc<SynthGuest>) -> Arc<Self> {
        Arc::new(Self {
            guest,
            seen: Mutex::default(),
            failing_pauses: AtomicU32::new(0),
            refused_resumes: AtomicU32::new(0),
        })
    }

    pub fn vm(self: &Arc<Self>) -> Arc<dyn Vm> {
        self.clone()
    }

    /// That the guest runs on and finds nothing wrong with its memory.
    pub fn check_guest(&self) {
        let operations = || {
            self.guest
                .stats()
                .loads
                .iter()
                .map(|load| load.operations)
                .sum::<u64>()
        };
        let before = operations();
        let begun = std::time::Instant::now();
        while operations() == before {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the guest does not go on"
            );
            std::thread::sleep(Duration::from_millis(2));
        }
        self.guest.pause().unwrap();
        let found = self.guest.verify().unwrap();
        assert!(found.is_empty(), "{found:?}");
        assert!(
            self.guest.stats().violations_seen.is_empty(),
            "{:?}",
            self.guest.stats()
        );
        self.guest.resume().unwrap();
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.guest.destroy();
    }
}

/// All memory of a guest that stands still. Holes are not made pages by looking at them.
pub fn memory_of(ram: &GuestRam) -> Memory {
    let mut memory = vec![0; (ram.layout().pages() * PAGE_SIZE) as usize];
    for run in ram.data_pages().unwrap().runs() {
        let start = (run.first * PAGE_SIZE) as usize;
        ram.read(run, &mut memory[start..start + run.bytes() as usize]);
    }
    memory
}

/// All memory of a checkpoint.
pub fn checkpoint_memory(store: &Store, id: &CheckpointId) -> Memory {
    let reader = store.reader(id).unwrap();
    let pages = reader.manifest().layout.pages();
    let mut memory = vec![0xee; (pages * PAGE_SIZE) as usize];
    reader.read(PageRun::new(0, pages), &mut memory).unwrap();
    memory
}

/// That both are equal; names pages that are not.
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    let page = PAGE_SIZE as usize;
    let pairs = found.chunks(page).zip(expected.chunks(page)).enumerate();
    let differing: Vec<_> = pairs.filter(|(_, (a, b))| a != b).map(|(page, _)| page).collect();
    assert!(
        found.len() == expected.len() && differing.is_empty(),
        "{what}: {} pages differ: {:?}",
        differing.len(),
        &differing[..differing.len().min(8)]
    );
}

/// A guest that writes here and there, all the time.
pub fn busy(mib: u64, faults: FaultMechanism) -> SynthConfig {
    SynthConfig {
        loads: vec![
            LoadConfig::Write {
                region_mib: 2,
                rate_mib_per_s: None,
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
            mib: mib / 2,
            zero_percent: 20,
            uniform_percent: 10,
            compressible_percent: 30,
        },
        faults,
        seed: 11,
        ..SynthConfig::new(mib << 20)
    }
}

/// The mechanisms of holding up writes that this machine has.
pub fn mechanisms() -> Vec<FaultMechanism> {
    let config = SynthConfig {
        faults: FaultMechanism::Userfaultfd,
        ..SynthConfig::new(1 << 20)
    };
    match SynthBackend::new().launch_guest(&SynthBackend::spec("probe", &config)) {
        Ok(_) => vec![FaultMechanism::Software, FaultMechanism::Userfaultfd],
        Err(error) => {
            println!("skipped: userfaultfd: {error}");
            vec![FaultMechanism::Software]
        }
    }
}

impl Guest for Witness {
    fn spec(&self) -> &GuestSpec {
        self.guest.spec()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.guest.ram()
    }

    fn state(&self) -> GuestState {
        self.guest.state()
    }

    fn pid(&self) -> Option<u32> {
        self.guest.pid()
    }

    fn pause(&self) -> Result<()> {
        self.guest.pause()?;
        match is_next(&self.failing_pauses) {
            true => Err(GuestError::operation("pausing", "a disk does not answer")),
            false => Ok(()),
        }
    }

    fn resume(&self) -> Result<()> {
        if is_next(&self.refused_resumes) {
            return Err(GuestError::operation("resuming", "somebody else has a disk"));
        }
        *self.seen.lock().unwrap() = memory_of(self.ram());
        self.guest.resume()
    }

    fn destroy(&self) {
        self.guest.destroy();
    }
}

impl MigrateOut for Witness {
    fn prepare_out(&self) -> Result<()> {
        self.guest.prepare_out()
    }

    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        self.guest.dirty_tracker()
    }

    fn hold_writes(&self) -> Result<Arc<dyn WriteHolds>> {
        self.guest.hold_writes()
    }

    fn has_pinned_io(&self) -> bool {
        self.guest.has_pinned_io()
    }

    fn may_discard_pages(&self) -> bool {
        self.guest.may_discard_pages()
    }

    fn before_stop(&self) -> Result<()> {
        self.guest.before_stop()
    }

    fn save_device_state(&self) -> Result<Vec<u8>> {
        self.guest.save_device_state()
    }
}

impl MigrateIn for Witness {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        self.guest.page_faults(mode)
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        self.guest.reopen_page_faults()
    }

    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        self.guest.load_device_state(state)
    }

    fn announce(&self) -> Result<()> {
        self.guest.announce()
    }
}
