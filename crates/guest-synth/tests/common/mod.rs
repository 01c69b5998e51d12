//! Guests to test with.
#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{Guest, GuestRam, MigrateIn, MigrateOut};
use vmferry_guest_synth::{FaultMechanism, LoadConfig, SynthBackend, SynthConfig, SynthGuest};

/// The mechanisms this machine has.
pub(crate) fn mechanisms() -> Vec<FaultMechanism> {
    let config = SynthConfig {
        faults: FaultMechanism::Userfaultfd,
        ..SynthConfig::new(1 << 20)
    };
    match SynthBackend::new().launch_guest(&SynthBackend::spec("probe", &config)) {
        Ok(_) => vec![FaultMechanism::Software, FaultMechanism::Userfaultfd],
        Err(e) => {
            println!("skipped: userfaultfd: {e}");
            vec![FaultMechanism::Software]
        }
    }
}

/// The load of that kind, on a MiB.
pub(crate) fn load(kind: &str) -> LoadConfig {
    serde_json::from_value(serde_json::json!({"kind": kind, "region_mib": 1})).unwrap()
}

/// A guest with one load.
pub(crate) fn one_load(kind: &str, faults: FaultMechanism) -> SynthConfig {
    SynthConfig {
        loads: vec![load(kind)],
        faults,
        ..SynthConfig::new(4 << 20)
    }
}

/// Two workers with every load, static pages, and memory that is not used.
pub(crate) fn all_loads(faults: FaultMechanism) -> SynthConfig {
    let mut config = SynthConfig::new(16 << 20);
    config.workers = 2;
    config.loads = ["write", "key-value", "oltp", "compress"].map(load).into();
    config.loads.push(LoadConfig::Idle);
    config.fill.mib = 4;
    config.fill.zero_percent = 30;
    config.faults = faults;
    config
}

/// A running guest.
pub(crate) fn launch(config: &SynthConfig) -> Arc<SynthGuest> {
    SynthBackend::new()
        .launch_guest(&SynthBackend::spec("guest", config))
        .unwrap()
}

/// A guest that waits for what `source` is.
pub(crate) fn incoming(config: &SynthConfig, source: &SynthGuest) -> Arc<SynthGuest> {
    let spec = SynthBackend::spec("guest", config);
    SynthBackend::new()
        .launch_incoming_guest(&spec, source.ram().layout())
        .unwrap()
}

/// Copies RAM and device state of a paused guest.
pub(crate) fn move_paused(source: &SynthGuest, destination: &SynthGuest) {
    for run in source.ram().data_pages().unwrap().runs() {
        copy(source.ram(), destination.ram(), run);
    }
    destination
        .load_device_state(&source.save_device_state().unwrap())
        .unwrap();
}

/// Copies the pages of `run`.
pub(crate) fn copy(source: &GuestRam, destination: &GuestRam, run: PageRun) {
    let mut data = vec![0; run.bytes() as usize];
    source.read(run, &mut data);
    destination.write(run, &data);
}

/// All pages with their numbers.
pub(crate) fn contents(ram: &GuestRam) -> Vec<(u64, Vec<u8>)> {
    let read = |page| {
        let mut data = vec![0; PAGE_SIZE as usize];
        ram.read(PageRun::single(page), &mut data);
        (page, data)
    };
    (0..ram.layout().pages()).map(read).collect()
}

/// Lets a guest run for a while, and until each of its loads has done something more.
pub(crate) fn run_for(guest: &SynthGuest, time: Duration) {
    let before = guest.stats();
    std::thread::sleep(time);
    let all_moved = || {
        let now = guest.stats();
        before
            .loads
            .iter()
            .zip(&now.loads)
            .all(|(before, now)| now.kind == "idle" || now.operations > before.operations)
    };
    until(all_moved, "every load operates");
}

/// Waits for something that is sure to come; a minute without it is a failure.
pub(crate) fn until(mut condition: impl FnMut() -> bool, what: &str) {
    let start = Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "not within a minute: {what}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}
