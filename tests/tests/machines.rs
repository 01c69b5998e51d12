//! Machines of other shapes than the one in `strategies.rs`: with the usual devices, with memory above 4 GiB, with
//! more than one memory backend.

use std::fs::File;

use vmferry_core::report::{Outcome, Report};
use vmferry_core::{Limits, Strategy};
use vmferry_guest::GuestState;
use vmferry_runtime::Request;
use vmferry_tests::{Pair, TestGuest, need, shared_turn};

/// Moves a guest there, and checks that all of it arrived and goes on.
fn moves(pair: &Pair, guest: &TestGuest, strategy: Strategy) -> Report {
    let vm = pair.source.guest("vm");
    let report = pair.migrate(&vm, pair.request(strategy));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let verified = report.verified.expect("it was asked for");
    assert_eq!(
        (verified.pages, verified.mismatches),
        (report.ram_bytes / 4096, 0)
    );
    assert_eq!(pair.destination.guest("vm").state(), GuestState::Running);
    guest.console.assert_healthy(2);
    println!(
        "{strategy}: total {:.0} ms, down {:.1} ms, data {} MiB, wire {} MiB, state {} KiB, {:?}",
        report.total_ms,
        report.downtime_ms,
        report.data_bytes >> 20,
        report.bytes_on_wire >> 20,
        report.device_state_bytes >> 10,
        report.faults,
    );
    report
}

#[test]
fn disk_network_and_serial_move_by_post_copy_and_back() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = dir.path().join("disk.img");
    File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let drive = format!("file={},format=raw,if=none,id=d,cache=none", disk.display());
    let args = [
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=d",
        "-netdev",
        "user,id=n,restrict=on",
        "-device",
        "virtio-net-pci,netdev=n",
        "-device",
        "virtio-serial-pci",
        "-device",
        "virtio-rng-pci",
        "-smp",
        "2",
    ];
    let guest = TestGuest::new("vm", dir.path(), 256, "disk:16,write:16:20", &args);
    let mut pair = Pair::new();
    pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    let report = moves(&pair, &guest, Strategy::PostCopyPush);
    // Each device has a ring of a page or more; QEMU tells of them since 7.2.
    assert!(report.pages.ahead >= 5, "{:?}", report.pages);
    pair.turn_round("vm");
    let request = Request {
        limits: Limits {
            drain_after: std::time::Duration::from_millis(300),
            ..Limits::default()
        },
        ..pair.request(Strategy::PostCopy)
    };
    let report = pair.migrate(&pair.source.guest("vm"), request);
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.map(|verified| verified.mismatches), Some(0));
    assert_eq!(report.pages.ahead, 0, "what is demanded crosses, nothing else");
    guest.console.assert_healthy(2);
}

#[test]
fn memory_above_4_gib_costs_what_is_used_of_it() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir().unwrap();
    let guest = TestGuest::new("vm", dir.path(), 6 << 10, "write:24:20", &[]);
    let mut pair = Pair::new();
    let vm = pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    // The load's memory comes from the top, which is beyond the hole below 4 GiB: q35 has 2 GiB in front of it.
    let used = vm.ram().data_pages().unwrap();
    let high = (2u64 << 30) / 4096;
    assert!(
        used.pages().any(|page| page >= high),
        "nothing is used above 4 GiB"
    );
    assert!(used.count() * 4096 < 1 << 30, "most of it is not touched");
    for strategy in [Strategy::PostCopyPush, Strategy::PreCopy] {
        let report = moves(&pair, &guest, strategy);
        assert_eq!(report.ram_bytes, 6 << 30);
        // What crossed is what is used, and what changed meanwhile, never all of it.
        assert!(report.bytes_on_wire < 1 << 30, "{} bytes", report.bytes_on_wire);
        let there = pair.destination.guest("vm").ram().data_pages().unwrap().count();
        assert!(
            there * 4096 < 1 << 30,
            "{there} pages are allocated at the destination"
        );
        pair.turn_round("vm");
    }
}

#[test]
fn a_dimm_moves_with_the_main_memory() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "-m",
        "slots=2,maxmem=1G",
        "-object",
        "memory-backend-ram,id=d0,size=128M",
        "-device",
        "pc-dimm,id=dimm0,memdev=d0",
    ];
    // The last word is for the kernel, which else leaves the DIMM to a daemon that the image does not have.
    let guest = TestGuest::new(
        "vm",
        dir.path(),
        128,
        "write:140:40 memhp_default_state=online",
        &args,
    );
    let mut pair = Pair::new();
    let vm = pair.launch(&guest.spec);
    assert_eq!(vm.ram().layout().blocks().len(), 2);
    guest.console.wait_for("guest-load: ok");
    let dimm = vm.ram().layout().block_run(1);
    let used = vm.ram().data_pages().unwrap();
    assert!(
        used.pages().filter(|&page| dimm.contains(page)).count() > 1000,
        "the load writes into the DIMM"
    );
    for strategy in [Strategy::PreCopy, Strategy::PostCopyPush] {
        let report = moves(&pair, &guest, strategy);
        assert_eq!(report.ram_bytes, 256 << 20);
        pair.turn_round("vm");
    }
}

#[test]
fn memory_of_two_nodes_moves() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "-smp",
        "2",
        "-object",
        "memory-backend-ram,id=m0,size=128M",
        "-object",
        "memory-backend-ram,id=m1,size=128M",
        "-numa",
        "node,nodeid=0,cpus=0,memdev=m0",
        "-numa",
        "node,nodeid=1,cpus=1,memdev=m1",
    ];
    let guest = TestGuest::new("vm", dir.path(), 256, "write:100:40", &args);
    let pair = Pair::new();
    let vm = pair.launch(&guest.spec);
    assert_eq!(vm.ram().layout().blocks().len(), 2);
    guest.console.wait_for("guest-load: ok");
    moves(&pair, &guest, Strategy::PreCopy);
}
