//! Starting, pausing, finding again, ending; and command lines that cannot work.

use std::time::{Duration, Instant};

use vmferry_core::{PAGE_SIZE, PageBitmap, RamLayout};
use vmferry_guest::{Backend, Guest, GuestError, GuestState, MigrateIn, MigrateOut};
use vmferry_guest_qemu::spec::MAIN_RAM_ID;
use vmferry_guest_qemu::{QemuBackend, QemuConfig};

use crate::bench_guest::{Host, MIB, RAM_BYTES, Running, userfaultfds};

#[test]
fn a_guest_runs_pauses_and_ends() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(&[]);
    assert_eq!(guest.state(), GuestState::Running);
    guest.pause().unwrap();
    guest.pause().unwrap();
    assert_eq!(guest.state(), GuestState::Paused);
    let passes = guest.passes();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(guest.passes(), passes);
    guest.resume().unwrap();
    guest.wait_for_progress();

    let map = guest.physical_map().unwrap();
    assert_eq!(map.page_at(0x10_0000), Some(0x100));
    assert_eq!(map.page_at(RAM_BYTES), None);

    let pid = guest.pid().unwrap();
    guest.destroy();
    guest.destroy();
    assert_eq!(guest.state(), GuestState::Gone);
    assert!(matches!(guest.pause(), Err(GuestError::Gone { .. })));
    let start = Instant::now();
    while std::path::Path::new(&format!("/proc/{pid}")).exists() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "QEMU is left as a zombie"
        );
    }
    assert!(!guest.qmp().path().exists());
}

#[test]
fn ram_above_4_gib_is_mapped() {
    let Some(_host) = Host::new() else { return };
    let host = Host::new().unwrap();
    let config = QemuConfig {
        memory_bytes: 3 << 30,
        ..host.config(&[])
    };
    let guest = Running::new(
        QemuBackend
            .start(&config.into_spec("large"), &host.folder("large"))
            .unwrap(),
    );
    // Before firmware has run, its own copy covers RAM below 1 MiB.
    guest.wait_for_progress();
    let map = guest.physical_map().unwrap();
    assert_eq!(
        map.page_at((4 << 30) + 5 * PAGE_SIZE),
        Some((2 << 30) / PAGE_SIZE + 5)
    );
    assert_eq!(
        map.ranges().iter().map(|range| range.pages.count).sum::<u64>(),
        (3 << 30) / PAGE_SIZE
    );
}

#[test]
fn a_dimm_is_a_second_block() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(&[
        "-m",
        "slots=2,maxmem=1G",
        "-object",
        "memory-backend-ram,id=d0,size=128M",
        "-device",
        "pc-dimm,memdev=d0",
    ]);
    assert_eq!(guest.ram().layout().pages() * PAGE_SIZE, RAM_BYTES + 128 * MIB);
    let map = guest.physical_map().unwrap();
    let dimm = map
        .ranges()
        .iter()
        .find(|range| range.pages.first == RAM_BYTES / PAGE_SIZE)
        .unwrap();
    assert_eq!(dimm.pages.bytes(), 128 * MIB);
    let mut tracker = guest.dirty_tracker().unwrap();
    guest.pause().unwrap();
    tracker.arm().unwrap();
    guest.resume().unwrap();
    guest.wait_for_progress();
    let mut dirty = PageBitmap::new(guest.ram().layout().pages());
    tracker.scan(&mut dirty).unwrap();
    assert!(dirty.count() > 100);
}

#[test]
fn a_later_daemon_finds_the_guest_again() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(&[]);
    let (pid, spec) = (guest.pid(), guest.spec().clone());
    let dir = host.folder("source");
    // A daemon that dies leaves tracking on.
    let mut tracker = guest.dirty_tracker().unwrap();
    tracker.arm().unwrap();
    std::mem::forget(tracker);
    guest.leave();

    let guest = Running::new(QemuBackend.find(&spec, &dir).unwrap());
    assert_eq!((guest.pid(), guest.state()), (pid, GuestState::Running));
    guest.wait_for_progress();
    let mut scanner = vmferry_memory::PagemapScanner::open(pid.unwrap()).unwrap();
    let ram = vmferry_memory::FileId::of(guest.ram().block(0).fd()).unwrap();
    let mapped = vmferry_memory::mappings_of(pid.unwrap(), ram).unwrap();
    let scan = scanner.scan_written(mapped[0].addresses.clone(), false, |_| ());
    assert!(
        matches!(scan, Err(vmferry_memory::Error::NotTracked { .. })),
        "tracking was left on"
    );
    guest.prepare_out().unwrap();
    guest.dirty_tracker().unwrap().arm().unwrap();
    assert_eq!(userfaultfds(pid.unwrap()), 1);
    guest.destroy();
    assert_eq!(guest.state(), GuestState::Gone);
}

#[test]
fn what_is_gone_is_not_found() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(&[]);
    let (spec, dir) = (guest.spec().clone(), host.folder("source"));
    let record = std::fs::read(dir.join("guest.json")).unwrap();
    guest.destroy();
    assert!(QemuBackend.reopen(&spec, &dir).is_err());
    std::fs::write(dir.join("guest.json"), record).unwrap();
    let error = QemuBackend.reopen(&spec, &dir).err().unwrap();
    assert!(matches!(error, GuestError::Gone { .. }), "{error:?}");
}

#[test]
fn what_qemu_says_at_a_failed_start_is_in_the_error() {
    let Some(host) = Host::new() else { return };
    let spec = QemuConfig::new(RAM_BYTES, ["-device", "no-such-device"]).into_spec("bad");
    let error = QemuBackend.launch(&spec, &host.folder("bad")).err().unwrap();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("no-such-device"), "{error}: {source}");
    let missing = QemuConfig {
        binary: "qemu-system-none".into(),
        ..QemuConfig::new(RAM_BYTES, [""; 0])
    };
    let error = QemuBackend
        .launch(&missing.into_spec("bad"), &host.folder("bad"))
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("qemu-system-none is not installed"),
        "{error}"
    );
}

#[test]
fn another_layout_than_the_sources_is_refused() {
    let Some(host) = Host::new() else { return };
    let spec = host.config(&[]).into_spec("bench");
    let layout = RamLayout::single(MAIN_RAM_ID, 2 * RAM_BYTES).unwrap();
    let error = QemuBackend
        .launch_incoming(&spec, &layout, &host.folder("other"))
        .err()
        .unwrap();
    assert!(matches!(error, GuestError::Unsuitable { .. }), "{error}");
}

#[test]
fn an_incoming_guest_is_empty_and_cannot_run() {
    let Some(host) = Host::new() else { return };
    let spec = host.config(&[]).into_spec("bench");
    let layout = RamLayout::single(MAIN_RAM_ID, RAM_BYTES).unwrap();
    let guest = Running::new(
        QemuBackend
            .start_incoming(&spec, &layout, &host.folder("incoming"))
            .unwrap(),
    );
    assert_eq!(guest.state(), GuestState::Incoming);
    assert!(guest.ram().data_pages().unwrap().is_empty());
    for refused in [
        guest.resume(),
        guest.prepare_out(),
        guest.save_device_state().map(drop),
    ] {
        assert!(matches!(refused, Err(GuestError::WrongState { .. })));
    }
    // Garbage in place of device state: QEMU gives up, the guest with it.
    let error = guest.load_device_state(&[0x5a; 5000]).unwrap_err();
    assert!(
        matches!(error, GuestError::Gone { .. } | GuestError::Operation { .. }),
        "{error}"
    );
    assert!(guest.resume().is_err());
}

#[test]
fn disks_that_bypass_the_page_cache_and_balloons_are_noticed() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(&[]);
    assert!(!guest.has_pinned_io() && !guest.may_discard_pages());
    drop(guest);
    let other = host.dir.path().join("other.img");
    std::fs::write(&other, vec![0; MIB as usize]).unwrap();
    let drive = format!("file={},format=raw,if=virtio,cache=none", other.display());
    let guest = host.boot(&["-drive", &drive, "-device", "virtio-balloon-pci"]);
    assert!(guest.has_pinned_io() && guest.may_discard_pages());
    guest.before_stop().unwrap();
}

#[test]
fn one_userfaultfd_serves_all_trackers() {
    let Some(host) = Host::new() else { return };
    let guest = host.boot(&[]);
    for _ in 0..3 {
        let mut tracker = guest.dirty_tracker().unwrap();
        tracker.arm().unwrap();
        drop(tracker);
    }
    assert_eq!(userfaultfds(guest.pid().unwrap()), 1);
    guest.wait_for_progress();
}
