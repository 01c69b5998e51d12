//! A guest whose memory is written down whenever it is resumed: what a checkpoint taken in that pause must hold.

use std::sync::{Arc, Mutex, PoisonError};

use vmferry_core::PAGE_SIZE;
use vmferry_guest::{
    DirtyTracker, Disks, FaultMode, Guest, GuestRam, GuestSpec, GuestState, MigrateIn, MigrateOut,
    PageFaults, Result, Vm, WriteHolds,
};

/// It, around any guest.
pub struct Witness {
    vm: Arc<dyn Vm>,
    seen: Mutex<Vec<u8>>,
}

impl Witness {
    /// Of a guest that runs.
    pub fn of(vm: Arc<dyn Vm>) -> Arc<Self> {
        Arc::new(Self {
            vm,
            seen: Mutex::default(),
        })
    }

    /// All memory at the last resume.
    pub fn seen(&self) -> Vec<u8> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// All memory of a guest that stands still. Holes are not made pages by looking at them.
///
/// # Panics
/// When its memory file does not tell what is a hole.
pub fn memory_of(ram: &GuestRam) -> Vec<u8> {
    let mut memory = vec![0; (ram.layout().pages() * PAGE_SIZE) as usize];
    for run in ram.data_pages().expect("a memory file").runs() {
        let start = (run.first * PAGE_SIZE) as usize;
        ram.read(run, &mut memory[start..start + run.bytes() as usize]);
    }
    memory
}

/// The numbers of the pages in which two memories differ.
///
/// # Panics
/// When they are not of one size.
pub fn differing(a: &[u8], b: &[u8]) -> Vec<usize> {
    assert_eq!(a.len(), b.len(), "bytes of memory");
    let page = PAGE_SIZE as usize;
    let pairs = a.chunks(page).zip(b.chunks(page)).enumerate();
    pairs.filter(|(_, (a, b))| a != b).map(|(page, _)| page).collect()
}

impl Guest for Witness {
    fn spec(&self) -> &GuestSpec {
        self.vm.spec()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.vm.ram()
    }

    fn state(&self) -> GuestState {
        self.vm.state()
    }

    fn pid(&self) -> Option<u32> {
        self.vm.pid()
    }

    fn pause(&self) -> Result<()> {
        self.vm.pause()
    }

    fn resume(&self) -> Result<()> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = memory_of(self.ram());
        self.vm.resume()
    }

    fn destroy(&self) {
        self.vm.destroy();
    }
}

impl MigrateOut for Witness {
    fn prepare_out(&self) -> Result<()> {
        self.vm.prepare_out()
    }

    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        self.vm.dirty_tracker()
    }

    fn hold_writes(&self) -> Result<Arc<dyn WriteHolds>> {
        self.vm.hold_writes()
    }

    fn has_pinned_io(&self) -> bool {
        self.vm.has_pinned_io()
    }

    fn may_discard_pages(&self) -> bool {
        self.vm.may_discard_pages()
    }

    fn before_stop(&self) -> Result<()> {
        self.vm.before_stop()
    }

    fn save_device_state(&self) -> Result<Vec<u8>> {
        self.vm.save_device_state()
    }

    fn disks(&self) -> Option<&dyn Disks> {
        self.vm.disks()
    }
}

impl MigrateIn for Witness {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        self.vm.page_faults(mode)
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        self.vm.reopen_page_faults()
    }

    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        self.vm.load_device_state(state)
    }

    fn announce(&self) -> Result<()> {
        self.vm.announce()
    }
}
