//! The synthetic guest and both directions of its migration.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun, RamLayout};
use vmferry_guest::{
    DirtyTracker, FaultMode, Guest, GuestError, GuestRam, GuestSpec, GuestState, MigrateIn, MigrateOut,
    PageFaults, Result, WriteHolds,
};
use vmferry_memory::{SharedMemory, WpAsyncTracker};

use crate::config::{FaultMechanism, LoadConfig, SynthConfig};
use crate::fill::{in_parallel, populate};
use crate::holding::{HoldLife, KernelHolds, SoftwareHolds};
use crate::kernel::{self, KernelFaults};
use crate::loads::Checks;
use crate::memory::GuestMemory;
use crate::plan::Plan;
use crate::software::{SoftwareFaults, SoftwarePaging};
use crate::state::{DeviceState, StateError};
use crate::stats::{Stats, WorkerCounters};
use crate::vcpu::{Vcpu, Vcpus};

/// A synthetic guest: see the [crate's documentation](crate).
///
/// RAM is mapped twice. The vCPUs use one mapping, on which the kernel tracks and faults; migration uses the
/// other, as it would from another process. A vCPU that waits for a missing page cannot stand still: pausing a
/// guest at the destination of a post-copy returns once the faults it waits for have been served, and destroying
/// it lets them go with zeros.
pub struct SynthGuest {
    spec: GuestSpec,
    config: SynthConfig,
    plan: Plan,
    ram: Arc<GuestRam>,
    /// RAM as the vCPUs see it.
    memory: Arc<GuestMemory>,
    /// `None`: by the kernel.
    software: Option<Arc<SoftwarePaging>>,
    counters: Vec<Arc<WorkerCounters>>,
    vcpus: Arc<Vcpus>,
    faults: Mutex<Option<Arc<dyn PageFaults>>>,
    /// Whoever holds up its writes: they go on when the guest is to end.
    held_by: Mutex<Option<Weak<dyn WriteHolds>>>,
    /// Whether a tracker exists.
    tracked: Arc<AtomicBool>,
}

/// How a guest comes to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Start {
    /// Paused, with the data of its configuration in RAM.
    Fresh,
    /// Waiting for its device state, with RAM one hole.
    Incoming,
}

impl SynthGuest {
    pub(crate) fn create(spec: &GuestSpec, config: SynthConfig, start: Start) -> Result<Self> {
        let layout = RamLayout::single("ram", config.memory_bytes)
            .map_err(|e| GuestError::operation("laying out RAM", e))?;
        let (outside, inside) = map_twice(&spec.name, config.memory_bytes)
            .map_err(|e| GuestError::operation("allocating RAM", e))?;
        let software =
            mechanism(&spec.name, config.faults)?.then(|| Arc::new(SoftwarePaging::new(outside.clone())));
        let memory = Arc::new(GuestMemory::new(inside, software.clone()));
        let plan = Plan::new(&config);
        let counters: Vec<_> = (0..config.workers)
            .map(|_| Arc::new(WorkerCounters::new(config.loads.len())))
            .collect();
        let vcpus = vcpus(&config, &plan, &memory, &counters);
        if start == Start::Fresh {
            write_data(&memory, &plan, &vcpus).map_err(|e| GuestError::operation("filling RAM", e))?;
        }
        let vcpus = match start {
            Start::Fresh => Vcpus::paused(&spec.name, vcpus),
            Start::Incoming => Vcpus::incoming(&spec.name, vcpus),
        };
        Ok(Self {
            spec: spec.clone(),
            plan,
            ram: Arc::new(GuestRam::new(layout, vec![outside])),
            memory,
            software,
            counters,
            vcpus: Arc::new(vcpus),
            faults: Mutex::new(None),
            held_by: Mutex::new(None),
            tracked: Arc::new(AtomicBool::new(false)),
            config,
        })
    }

    /// Its configuration.
    pub fn config(&self) -> &SynthConfig {
        &self.config
    }

    /// Whether writes are tracked and faults served by [`FaultMechanism::Userfaultfd`] or by
    /// [`FaultMechanism::Software`].
    pub fn mechanism(&self) -> FaultMechanism {
        if self.software.is_some() {
            FaultMechanism::Software
        } else {
            FaultMechanism::Userfaultfd
        }
    }

    /// What its loads have done so far; at any time.
    pub fn stats(&self) -> Stats {
        let kinds = self.config.loads.iter().map(LoadConfig::kind);
        Stats::sum(kinds, self.counters.iter().map(|counters| &**counters))
    }

    /// Starts the measurement of [`Stats::longest_gap_us`] anew. What is measured moves with the guest.
    pub fn reset_longest_gap(&self) {
        self.counters
            .iter()
            .for_each(|counters| counters.set_longest_gap_ns(0));
    }

    /// Checks all of RAM: the data of the loads, the static content, and that the remainder is zero. The guest
    /// is paused and all its pages are there. Answers what is wrong, in words (not more than a few dozen).
    ///
    /// # Errors
    /// When the guest is not paused, or RAM cannot be asked for its holes.
    pub fn verify(&self) -> Result<Vec<String>> {
        let untouched = self
            .untouched_data()
            .map_err(|e| GuestError::operation("looking for holes in RAM", e))?;
        let ram = GuestMemory::unchecked(self.ram.block(0).clone());
        self.vcpus.with_paused(|vcpus| {
            let mut checks = Checks::default();
            checks.expect(self.plan.is_first_page_right(&ram), || {
                "page 0 is not what was written".into()
            });
            for load in vcpus.iter().flat_map(Vcpu::loads) {
                load.verify(&ram, &mut checks);
            }
            self.plan.fill().verify(&ram, &mut checks);
            for page in untouched {
                checks.expect(self.ram.uniform_byte(page) == Some(0), || {
                    format!("untouched memory: page {page} is not zero")
                });
            }
            checks.descriptions
        })
    }

    /// Pages behind what is configured that are no holes all the same.
    fn untouched_data(&self) -> std::io::Result<Vec<u64>> {
        let mut data = self.ram.data_pages()?;
        data.remove_run(PageRun::new(0, self.plan.configured_pages()));
        Ok(data.pages().collect())
    }

    fn held_by(&self) -> MutexGuard<'_, Option<Weak<dyn WriteHolds>>> {
        self.held_by.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn faults(&self) -> MutexGuard<'_, Option<Arc<dyn PageFaults>>> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn restore(&self, vcpus: &mut [Vcpu], state: &DeviceState) -> std::result::Result<(), StateError> {
        if state.identity != self.config.identity() {
            return Err(StateError::Identity);
        }
        let check = |what, found, expected| match found == expected {
            true => Ok(()),
            false => Err(StateError::Count {
                what,
                found,
                expected,
            }),
        };
        check("vCPUs", state.vcpus.len(), vcpus.len())?;
        for (vcpu, saved) in vcpus.iter().zip(&state.vcpus) {
            check("loads", saved.loads.len(), vcpu.load_count())?;
        }
        for (index, (vcpu, saved)) in vcpus.iter_mut().zip(&state.vcpus).enumerate() {
            vcpu.restore(saved)
                .map_err(|load| StateError::Cursor { vcpu: index, load })?;
        }
        if !self.plan.is_first_page_right(&self.memory) {
            return Err(StateError::FirstPage);
        }
        Ok(())
    }
}

/// RAM as a memfd, mapped for migration and for the vCPUs.
fn map_twice(name: &str, bytes: u64) -> vmferry_memory::Result<(Arc<SharedMemory>, Arc<SharedMemory>)> {
    let outside = SharedMemory::create(&format!("vmferry-{name}"), bytes)?;
    let fd = outside
        .fd()
        .try_clone_to_owned()
        .map_err(|source| vmferry_memory::Error::System {
            what: "duplicate the descriptor of RAM".into(),
            source,
        })?;
    let inside = SharedMemory::from_fd(fd, 0, bytes)?;
    Ok((Arc::new(outside), Arc::new(inside)))
}

/// Whether it is to be done by software.
fn mechanism(name: &str, wanted: FaultMechanism) -> Result<bool> {
    if wanted == FaultMechanism::Software {
        return Ok(true);
    }
    match (wanted, kernel::missing()) {
        (_, None) => Ok(false),
        (FaultMechanism::Auto | FaultMechanism::Software, Some(why)) => {
            tracing::info!("guest {name} tracks writes and serves faults by software: {why}");
            Ok(true)
        }
        (FaultMechanism::Userfaultfd, Some(why)) => Err(GuestError::Unsuitable {
            name: name.into(),
            problem: format!("its configuration demands userfaultfd, but {why}"),
            mend: "set faults to auto, or see `vmferry doctor`".into(),
        }),
    }
}

fn vcpus(
    config: &SynthConfig,
    plan: &Plan,
    memory: &Arc<GuestMemory>,
    counters: &[Arc<WorkerCounters>],
) -> Vec<Vcpu> {
    let create = |(index, counters): (usize, &Arc<WorkerCounters>)| {
        let seed = config.seed.wrapping_add(index as u64);
        let loads = plan.loads(config, index);
        Vcpu::new(
            memory.clone(),
            loads,
            &config.loads,
            config.workers,
            seed,
            counters.clone(),
        )
    };
    counters.iter().enumerate().map(create).collect()
}

/// The data a guest starts with.
fn write_data(memory: &GuestMemory, plan: &Plan, vcpus: &[Vcpu]) -> vmferry_memory::Result<()> {
    populate(memory, plan.configured_pages(), plan.fill())?;
    plan.write_first_page(memory);
    let loads: Vec<_> = vcpus.iter().flat_map(Vcpu::loads).collect();
    in_parallel(&loads, |load| load.prefill(memory));
    Ok(())
}

impl Guest for SynthGuest {
    fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn state(&self) -> GuestState {
        self.vcpus.state()
    }

    fn pid(&self) -> Option<u32> {
        Some(std::process::id())
    }

    fn pause(&self) -> Result<()> {
        self.vcpus.pause()
    }

    fn resume(&self) -> Result<()> {
        self.vcpus.resume()
    }

    fn destroy(&self) {
        let was_there = self.vcpus.end(|| {
            if let Some(faults) = self.faults().take() {
                let _ = faults.release();
            }
            let held_by = self.held_by().take().and_then(|holds| holds.upgrade());
            if let Some(holds) = held_by {
                let _ = holds.end();
            }
        });
        if was_there {
            // Whoever still holds the guest does not hold its memory.
            if let Err(e) = self.ram.punch(PageRun::new(0, self.ram.layout().pages())) {
                tracing::warn!("the RAM of guest {} is freed later: {e}", self.spec.name);
            }
        }
    }
}

impl Drop for SynthGuest {
    fn drop(&mut self) {
        self.destroy();
    }
}

impl MigrateOut for SynthGuest {
    fn prepare_out(&self) -> Result<()> {
        match self.state() {
            GuestState::Running | GuestState::Paused => Ok(()),
            GuestState::Incoming | GuestState::Gone => Err(self.vcpus.wrong_state_now("running or paused")),
        }
    }

    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        self.prepare_out()?;
        let claim = TrackerClaim::new(&self.spec.name, &self.tracked)?;
        let vcpus = self.vcpus.clone();
        match &self.software {
            Some(paging) => Ok(Box::new(SoftwareTracker {
                paging: paging.clone(),
                vcpus,
                armed: false,
                _claim: claim,
            })),
            None => {
                let tracker = kernel::tracker(self.memory.mapping())
                    .map_err(|e| GuestError::operation("preparing to track writes", e))?;
                let mapping = self.memory.mapping().clone();
                Ok(Box::new(KernelTracker {
                    tracker,
                    vcpus,
                    _mapping: mapping,
                    _claim: claim,
                }))
            }
        }
    }

    fn hold_writes(&self) -> Result<Arc<dyn WriteHolds>> {
        self.prepare_out()?;
        let claim = TrackerClaim::new(&self.spec.name, &self.tracked)?;
        let life = HoldLife {
            vcpus: self.vcpus.clone(),
            _claim: claim,
        };
        let holds: Arc<dyn WriteHolds> = match &self.software {
            Some(paging) => Arc::new(SoftwareHolds::begin(paging.clone(), life)),
            None => {
                let holds = KernelHolds::begin(self.memory.mapping().clone(), life);
                Arc::new(holds.map_err(|e| GuestError::operation("preparing to hold up writes", e))?)
            }
        };
        *self.held_by() = Some(Arc::downgrade(&holds));
        Ok(holds)
    }

    fn has_pinned_io(&self) -> bool {
        false
    }

    fn may_discard_pages(&self) -> bool {
        false
    }

    fn before_stop(&self) -> Result<()> {
        Ok(())
    }

    fn save_device_state(&self) -> Result<Vec<u8>> {
        self.vcpus.with_paused(|vcpus| {
            let vcpus = vcpus.iter().map(Vcpu::save).collect();
            DeviceState {
                identity: self.config.identity(),
                vcpus,
            }
            .encode()
        })
    }
}

impl MigrateIn for SynthGuest {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        if self.state() != GuestState::Incoming {
            return Err(self.vcpus.wrong_state_now("waiting for its device state"));
        }
        let mut slot = self.faults();
        if slot.is_some() {
            return Err(GuestError::WrongState {
                name: self.spec.name.clone(),
                found: "serving page faults already".into(),
                expected: "without page faults (an existing mechanism is found by reopen_page_faults)",
            });
        }
        let faults: Arc<dyn PageFaults> = match &self.software {
            Some(paging) => {
                paging.enable_faults(mode);
                Arc::new(SoftwareFaults {
                    paging: paging.clone(),
                })
            }
            None => Arc::new(
                KernelFaults::register(self.memory.mapping().clone(), mode)
                    .map_err(|e| GuestError::operation("registering for page faults", e))?,
            ),
        };
        *slot = Some(faults.clone());
        Ok(faults)
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        let Some(faults) = self.faults().clone() else {
            return Err(GuestError::WrongState {
                name: self.spec.name.clone(),
                found: "not serving page faults".into(),
                expected: "serving page faults",
            });
        };
        faults.wake(PageRun::new(0, self.ram.layout().pages()))?;
        Ok(faults)
    }

    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        self.vcpus.load(|vcpus| {
            DeviceState::decode(state)
                .and_then(|state| self.restore(vcpus, &state))
                .map_err(|e| GuestError::operation("loading the device state", e))
        })
    }

    fn announce(&self) -> Result<()> {
        Ok(())
    }
}

/// That there is one tracker at most.
pub(crate) struct TrackerClaim(Arc<AtomicBool>);

impl TrackerClaim {
    fn new(name: &str, tracked: &Arc<AtomicBool>) -> Result<Self> {
        if tracked.swap(true, Ordering::AcqRel) {
            return Err(GuestError::WrongState {
                name: name.into(),
                found: "tracked already".into(),
                expected: "without a tracker",
            });
        }
        Ok(Self(tracked.clone()))
    }
}

impl Drop for TrackerClaim {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

struct SoftwareTracker {
    paging: Arc<SoftwarePaging>,
    vcpus: Arc<Vcpus>,
    armed: bool,
    _claim: TrackerClaim,
}

impl DirtyTracker for SoftwareTracker {
    fn arm(&mut self) -> Result<()> {
        self.vcpus.with_paused(|_| self.paging.arm())?;
        self.armed = true;
        Ok(())
    }

    fn arm_running(&mut self) -> Result<()> {
        self.paging.arm();
        self.armed = true;
        Ok(())
    }

    fn scan(&mut self, dirty: &mut PageBitmap) -> Result<()> {
        if !self.armed {
            return Err(GuestError::operation(
                "scanning for writes",
                "tracking is off: arm it first",
            ));
        }
        self.paging.take_dirty(dirty);
        Ok(())
    }

    fn disarm(&mut self) -> Result<()> {
        self.paging.disarm();
        self.armed = false;
        Ok(())
    }
}

impl Drop for SoftwareTracker {
    fn drop(&mut self) {
        self.paging.disarm();
    }
}

struct KernelTracker {
    /// Dropped, and so disarmed, before what follows.
    tracker: WpAsyncTracker,
    vcpus: Arc<Vcpus>,
    _mapping: Arc<SharedMemory>,
    _claim: TrackerClaim,
}

impl DirtyTracker for KernelTracker {
    fn arm(&mut self) -> Result<()> {
        let tracker = &mut self.tracker;
        self.vcpus
            .with_paused(|_| tracker.arm())?
            .map_err(|e| GuestError::operation("arming the dirty tracker", e))
    }

    fn arm_running(&mut self) -> Result<()> {
        self.tracker
            .arm()
            .map_err(|e| GuestError::operation("arming the dirty tracker of a running guest", e))
    }

    fn arm_running_only(&mut self, runs: &[PageRun]) -> Result<()> {
        let ranges = runs
            .iter()
            .map(|run| run.first * PAGE_SIZE..run.end() * PAGE_SIZE);
        self.tracker
            .arm_only(ranges)
            .map_err(|e| GuestError::operation("arming the dirty tracker for some pages", e))
    }

    fn scan(&mut self, dirty: &mut PageBitmap) -> Result<()> {
        let mut found = |bytes: std::ops::Range<u64>| {
            let first = bytes.start / PAGE_SIZE;
            dirty.insert_run(PageRun::new(first, bytes.end.div_ceil(PAGE_SIZE) - first));
        };
        self.tracker
            .scan(&mut found)
            .map(|_| ())
            .map_err(|e| GuestError::operation("scanning for writes", e))
    }

    fn disarm(&mut self) -> Result<()> {
        self.tracker
            .disarm()
            .map_err(|e| GuestError::operation("disarming the dirty tracker", e))
    }
}
