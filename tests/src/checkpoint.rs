//! Checkpoints of guests that stand still, written page by page: what a resume is tested with apart from how checkpoints of
//! running guests are taken.

use std::path::Path;
use std::time::Duration;

use vmferry_core::PageBitmap;
use vmferry_guest::{Guest as _, MigrateOut as _, Vm};
use vmferry_guest_qemu::QemuBackend;
use vmferry_store::{CheckpointId, Draft, Store, StoreOptions, Taken};

use crate::guest::TestGuest;

/// Pages read at once.
const STEP_PAGES: u64 = 256;

/// Opens the store in a folder.
///
/// # Panics
/// When it cannot be opened.
pub fn store(folder: &Path) -> Store {
    let folder = folder.to_str().expect("a folder of the test");
    Store::open(folder, StoreOptions::default()).expect("the store opens")
}

/// Runs `guest` in a QEMU of its own until its load runs, and for `interval` on; then takes a checkpoint of it with what it wrote
/// in that time, and ends it.
///
/// # Panics
/// When anything fails.
pub fn of_guest(guest: &TestGuest, interval: Duration, folder: &Path) -> CheckpointId {
    let dir = tempfile::tempdir().expect("a temporary directory can be made");
    let vm = QemuBackend.start(&guest.spec, dir.path()).expect("QEMU starts");
    guest.console.wait_for("guest-load: ok");
    let mut tracker = vm.dirty_tracker().expect("its writes can be tracked");
    tracker.arm_running().expect("the tracker arms");
    std::thread::sleep(interval);
    vm.pause().expect("it pauses");
    let mut written = PageBitmap::new(vm.ram().layout().pages());
    tracker.scan(&mut written).expect("the tracker scans");
    drop(tracker);
    let checkpoint = write(&store(folder), &vm, written, interval);
    vm.destroy();
    checkpoint
}

/// Writes the whole of a paused guest. Pages of zeros are left out like holes.
///
/// # Panics
/// When the store or the guest refuses.
pub fn write(store: &Store, vm: &dyn Vm, written: PageBitmap, interval: Duration) -> CheckpointId {
    vm.prepare_out().expect("it could leave");
    let draft = Draft {
        vm: vm.spec().name.clone(),
        spec: serde_json::to_value(vm.spec()).expect("a specification serializes"),
        layout: vm.ram().layout().clone(),
        parent: None,
    };
    let writer = store.begin(draft).expect("nobody else writes");
    let device_state = vm.save_device_state().expect("device state is saved");
    let device_state = writer.blob(&device_state).expect("the store takes it");
    let data = vm.ram().data_pages().expect("the memory file tells its holes");
    let (mut from, mut buffer) = (0, Vec::new());
    while let Some(run) = data.next_run(from, STEP_PAGES) {
        buffer.resize(usize::try_from(run.bytes()).expect("a few pages"), 0);
        vm.ram().read(run, &mut buffer);
        writer.pages(run, &buffer).expect("the store takes them");
        from = run.end();
    }
    let taken = Taken {
        created_ms: 0,
        device_state,
        disks: Vec::new(),
        accessed: written.clone(),
        written,
        interval_ms: Some(u64::try_from(interval.as_millis()).expect("a short time")),
        pause_ms: 0.0,
    };
    writer.commit(taken).expect("the store takes it all").id
}

/// The same checkpoint of a guest that is said to be of another specification.
///
/// # Panics
/// When the store refuses.
pub fn with_spec(store: &Store, id: &CheckpointId, spec: serde_json::Value) -> CheckpointId {
    let reader = store.reader(id).expect("it is there");
    let manifest = reader.manifest();
    let draft = Draft {
        vm: id.vm().to_owned(),
        spec,
        layout: manifest.layout.clone(),
        parent: Some(id.clone()),
    };
    let writer = store.begin(draft).expect("nobody else writes");
    let all = PageBitmap::full(manifest.layout.pages());
    writer.inherit(&all).expect("there is a parent");
    let state = reader.blob(&manifest.device_state).expect("it is whole");
    let taken = Taken {
        created_ms: 0,
        device_state: writer.blob(&state).expect("the store takes it"),
        disks: Vec::new(),
        accessed: manifest.accessed.clone(),
        written: manifest.written.clone(),
        interval_ms: manifest.interval_ms,
        pause_ms: 0.0,
    };
    writer.commit(taken).expect("the store takes it all").id
}
