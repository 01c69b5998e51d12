//! A guest's life at one place, and its way to another one.

mod common;

use std::time::Duration;

use common::{all_loads, incoming, launch, mechanisms, move_paused, run_for};
use vmferry_core::{PAGE_SIZE, PageRun};
use vmferry_guest::{Backend, FaultMode, Guest, GuestError, GuestState, MigrateIn, MigrateOut};
use vmferry_guest_synth::{FaultMechanism, LoadConfig, SynthBackend, SynthConfig};

/// Every load operates, checks, and finds its data as it left it.
#[test]
fn loads_run_and_find_nothing_wrong() {
    for mechanism in mechanisms() {
        let guest = launch(&all_loads(mechanism));
        run_for(&guest, Duration::from_millis(300));
        guest.pause().unwrap();
        let stats = guest.stats();
        println!("{mechanism:?}: {stats:?}");
        assert_eq!(stats.violations, 0, "{:?}", stats.violations_seen);
        for load in stats.loads.iter().filter(|load| load.kind != "idle") {
            assert!(load.operations > 0 && load.checks > 0, "{load:?}");
        }
        assert_eq!(guest.verify().unwrap(), Vec::<String>::new());
        let before = stats.operations;
        guest.resume().unwrap();
        run_for(&guest, Duration::from_millis(20));
        assert!(guest.stats().operations > before);
    }
}

/// Every page of a load's data is guarded: whichever is damaged, one of the checks notices.
#[test]
fn each_damaged_page_is_noticed() {
    for kind in ["write", "key-value", "oltp", "compress"] {
        let config = common::one_load(kind, FaultMechanism::Software);
        let guest = launch(&config);
        run_for(&guest, Duration::from_millis(30));
        guest.pause().unwrap();
        let data = guest.ram().data_pages().unwrap();
        let (mut damaged, mut noticed) = (0, 0);
        for page in data.pages().step_by(3) {
            let run = PageRun::single(page);
            let mut content = vec![0; PAGE_SIZE as usize];
            guest.ram().read(run, &mut content);
            let mut bad = content.clone();
            bad[100..132].iter_mut().for_each(|byte| *byte ^= 0x55);
            guest.ram().write(run, &bad);
            damaged += 1;
            noticed += u64::from(!guest.verify().unwrap().is_empty());
            guest.ram().write(run, &content);
        }
        // Some words of a page may be in no use: free entries of the index, the rest of a result's last page.
        println!("{kind}: {noticed} of {damaged} noticed");
        assert!(noticed * 10 >= damaged * 6, "{kind}: {noticed} of {damaged}");
        assert_eq!(guest.verify().unwrap(), Vec::<String>::new());
    }
}

/// A page that is put back to what it was a moment ago is noticed while the guest runs on, by each load.
#[test]
fn a_stale_page_is_noticed_by_the_running_guest() {
    for kind in ["write", "key-value", "oltp", "compress"] {
        let guest = launch(&common::one_load(kind, FaultMechanism::Software));
        run_for(&guest, Duration::from_millis(20));
        guest.pause().unwrap();
        let old = common::contents(guest.ram());
        guest.resume().unwrap();
        run_for(&guest, Duration::from_millis(60));
        guest.pause().unwrap();
        let new = common::contents(guest.ram());
        let changed: Vec<u64> = old
            .iter()
            .zip(&new)
            .filter(|(old, new)| old != new)
            .map(|(old, _)| old.0)
            .collect();
        assert!(!changed.is_empty(), "{kind}");
        let page = changed[changed.len() / 2];
        guest.ram().write(PageRun::single(page), &old[page as usize].1);
        assert!(
            !guest.verify().unwrap().is_empty(),
            "{kind}: page {page} of {}",
            changed.len()
        );
        guest.resume().unwrap();
        common::until(|| guest.stats().violations > 0, &format!("{kind} notices"));
        println!("{kind}: {}", guest.stats().violations_seen[0]);
    }
}

/// What is behind the guest's data, and its static pages, are looked at too.
#[test]
fn static_and_untouched_pages_are_checked() {
    let mut config = SynthConfig::new(8 << 20);
    config.fill.mib = 2;
    config.fill.zero_percent = 25;
    config.fill.uniform_percent = 25;
    config.fill.compressible_percent = 25;
    let guest = launch(&config);
    guest.pause().unwrap();
    assert_eq!(guest.verify().unwrap(), Vec::<String>::new());
    assert_eq!(
        guest.ram().data_pages().unwrap().count(),
        config.configured_bytes() / PAGE_SIZE
    );
    for page in [0, 1, 100, 512, 513, 2047] {
        let mut content = vec![0; PAGE_SIZE as usize];
        guest.ram().read(PageRun::single(page), &mut content);
        content[8] ^= 1;
        guest.ram().write(PageRun::single(page), &content);
        assert_eq!(guest.verify().unwrap().len(), 1, "page {page}");
        content[8] ^= 1;
        guest.ram().write(PageRun::single(page), &content);
    }
}

/// The shares of content are as configured.
#[test]
fn static_content_has_the_shares_asked_for() {
    let mut config = SynthConfig::new(17 << 20);
    config.fill.mib = 16;
    config.fill.zero_percent = 20;
    config.fill.uniform_percent = 30;
    let guest = launch(&config);
    let (mut zero, mut uniform) = (0, 0);
    for page in 1..=4096 {
        match guest.ram().uniform_byte(page) {
            Some(0) => zero += 1,
            Some(_) => uniform += 1,
            None => {}
        }
    }
    assert!(
        (700..940).contains(&zero) && (1080..1380).contains(&uniform),
        "{zero} zero, {uniform} uniform"
    );
}

/// A rate is kept.
#[test]
fn a_paced_load_keeps_its_pace() {
    let mut config = SynthConfig::new(8 << 20);
    config.workers = 2;
    config.loads = vec![LoadConfig::Write {
        region_mib: 4,
        rate_mib_per_s: Some(40),
    }];
    let guest = launch(&config);
    let start = std::time::Instant::now();
    run_for(&guest, Duration::from_millis(500));
    guest.pause().unwrap();
    let expected = start.elapsed().as_secs_f64() * 40.0 * 256.0;
    let operations = guest.stats().operations as f64;
    // Never faster; slower only where the machine does not let it.
    assert!(operations <= expected * 1.01 + 4.0, "{operations} of {expected}");
    assert!(operations > expected * 0.2, "{operations} of {expected}");
}

/// What the guest does at the destination continues what it did at the source.
#[test]
fn a_guest_goes_on_elsewhere() {
    for (from, to) in [
        (FaultMechanism::Software, FaultMechanism::Software),
        (FaultMechanism::Auto, FaultMechanism::Software),
        (FaultMechanism::Software, FaultMechanism::Auto),
    ] {
        let source = launch(&all_loads(from));
        run_for(&source, Duration::from_millis(50));
        source.pause().unwrap();
        source.reset_longest_gap();
        let destination = incoming(&all_loads(to), &source);
        assert_eq!(destination.state(), GuestState::Incoming);
        std::thread::sleep(Duration::from_millis(30));
        move_paused(&source, &destination);
        assert_eq!(destination.stats().operations, source.stats().operations);
        assert_eq!(destination.verify().unwrap(), Vec::<String>::new());
        destination.resume().unwrap();
        run_for(&destination, Duration::from_millis(50));
        destination.pause().unwrap();
        assert!(destination.stats().operations > source.stats().operations);
        assert_eq!(
            destination.stats().violations,
            0,
            "{:?}",
            destination.stats().violations_seen
        );
        assert_eq!(destination.verify().unwrap(), Vec::<String>::new());
        let gap = destination.stats().longest_gap_us;
        assert!(gap >= 30_000, "the stop of 30 ms is a gap, found {gap} us");
    }
}

/// Device states that are not this guest's leave it waiting for the right one.
#[test]
fn wrong_device_states_are_refused() {
    let source = launch(&all_loads(FaultMechanism::Software));
    assert!(
        matches!(source.save_device_state(), Err(GuestError::WrongState { .. })),
        "it runs"
    );
    source.pause().unwrap();
    let state = source.save_device_state().unwrap();
    let other = launch(&common::one_load("write", FaultMechanism::Software));
    other.pause().unwrap();
    let destination = incoming(&all_loads(FaultMechanism::Software), &source);
    for (bad, named) in [
        (vec![], "bytes"),
        (vec![0; 2 << 20], "bytes"),
        (b"no state at all".to_vec(), "no device state"),
        (other.save_device_state().unwrap(), "another configuration"),
        (state[..state.len() - 1].to_vec(), "damaged"),
        (state.clone(), "page 0"),
    ] {
        let error = destination.load_device_state(&bad).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(named), "{cause}");
        assert_eq!(destination.state(), GuestState::Incoming);
        assert!(matches!(destination.resume(), Err(GuestError::WrongState { .. })));
    }
    move_paused(&source, &destination);
    assert!(
        matches!(
            destination.load_device_state(&state),
            Err(GuestError::WrongState { .. })
        ),
        "it has one"
    );
    destination.resume().unwrap();
}

/// Guests are found by name as long as they are held, and names are not used twice.
#[test]
fn guests_are_found_by_name() {
    let backend = SynthBackend::new();
    let spec = SynthBackend::spec("one", &SynthConfig::new(1 << 20));
    let dir = std::env::temp_dir();
    let guest = backend.launch(&spec, &dir).unwrap();
    assert_eq!(backend.find("one").unwrap().spec(), guest.spec());
    let again = backend.launch(&spec, &dir).map(|_| ()).unwrap_err().to_string();
    assert!(again.contains("here already"), "{again}");
    guest.destroy();
    assert_eq!(guest.state(), GuestState::Gone);
    assert!(matches!(guest.pause(), Err(GuestError::Gone { .. })));
    drop(guest);
    assert!(backend.find("one").is_none());
    assert!(matches!(
        backend.reopen(&spec, &dir),
        Err(GuestError::Gone { .. })
    ));
    drop(backend.launch(&spec, &dir).unwrap());
}

/// What cannot run here is refused with a reason and a remedy.
#[test]
fn unsuitable_guests_are_refused() {
    let backend = SynthBackend::new();
    let mut config = SynthConfig::new(200 << 30);
    config.fill.mib = 199 << 10;
    let huge = backend
        .launch_guest(&SynthBackend::spec("huge", &config))
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(huge.contains("memory"), "{huge}");
    let mut spec = SynthBackend::spec("odd", &SynthConfig::new(1 << 20));
    let other = vmferry_core::RamLayout::single("ram", 2 << 20).unwrap();
    let layout = backend
        .launch_incoming_guest(&spec, &other)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert!(layout.contains("announced"), "{layout}");
    spec.config = serde_json::json!({"memory_bytes": "much"});
    let syntax = backend.launch_guest(&spec).map(|_| ()).unwrap_err().to_string();
    assert!(syntax.contains("not understood"), "{syntax}");
}

/// A vCPU that waits for a page cannot stand still; whoever waits for that is told when the guest is ended.
#[test]
fn a_pause_that_waits_for_a_fault_ends_with_the_guest() {
    for mechanism in mechanisms() {
        let source = launch(&common::one_load("write", mechanism));
        source.pause().unwrap();
        let destination = incoming(&common::one_load("write", mechanism), &source);
        let faults = destination.page_faults(FaultMode::Missing).unwrap();
        let mut first = vec![0; PAGE_SIZE as usize];
        source.ram().read(PageRun::single(0), &mut first);
        faults.install(PageRun::single(0), &first).unwrap();
        destination
            .load_device_state(&source.save_device_state().unwrap())
            .unwrap();
        destination.resume().unwrap();
        let mut pages = Vec::new();
        common::until(
            || {
                faults.wait(Duration::ZERO, &mut pages).unwrap();
                !pages.is_empty()
            },
            "the first fault",
        );
        std::thread::scope(|scope| {
            let pausing = scope.spawn(|| destination.pause());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!pausing.is_finished(), "{mechanism:?}: it cannot stand still");
            destination.destroy();
            assert!(matches!(pausing.join().unwrap(), Err(GuestError::Gone { .. })));
        });
        assert_eq!(destination.stats().violations, 0);
    }
}
