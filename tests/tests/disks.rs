//! Disks that move with their guest, on real QEMU: as equal files at the stop, there and back, and in a stated condition
//! whatever breaks. The guest keeps writing to its disk and checks what it reads.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use vmferry_core::disks::{DiskRequest, DiskWrites};
use vmferry_core::report::Outcome;
use vmferry_core::{RamLayout, Strategy};
use vmferry_guest::{
    Backend, DirtyTracker, DiskInfo, Disks, FaultMode, Guest, GuestError, GuestRam, GuestSpec, GuestState,
    MigrateIn, MigrateOut, PageFaults, PlacedDisk, Result, Vm,
};
use vmferry_guest_qemu::{QemuBackend, QemuConfig};
use vmferry_runtime::Request;
use vmferry_tests::{Hosts, Pair, TestGuest, eventually, need, shared_turn};

/// Size of the disk.
const DISK_MIB: u64 = 192;
const MIB: u64 = 1 << 20;

/// A guest that writes to and checks the first 24 MiB of its disk, which lies in `folder`.
fn guest(dir: &Path, folder: &Path, format: &str) -> TestGuest {
    fs::create_dir_all(folder).unwrap();
    let path = folder.join(format!("disk.{format}"));
    let drive = format!("file={},format={format},if=none,id=d", path.display());
    let args = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d"];
    let guest = TestGuest::new("vm", dir, 192, "disk:24,write:2:5", &args);
    let disk = DiskInfo {
        id: "d".into(),
        path: path.clone(),
        format: format.into(),
        bytes: DISK_MIB * MIB,
        has_backing: false,
    };
    QemuBackend.create_disk(&guest.spec, &disk, &path).unwrap();
    guest
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The disk's part of a report.
fn disk(report: &Value) -> &Value {
    &report["disks"]["disks"][0]
}

/// A guest that checks what it wrote to its disk finds that as of its memory, whatever was written since.
#[test]
fn disks_are_put_back_to_the_moment_of_a_checkpoint() {
    need!(Qemu, Root, Userfaultfd);
    for format in ["raw", "qcow2"] {
        let _turn = shared_turn();
        let hosts = Hosts::new();
        let folder = hosts.dir.path().join("here");
        let guest = guest(hosts.dir.path(), &folder, format);
        hosts.run(&guest);
        let store = hosts.dir.path().join("store");
        let call = |words: &[&str], options: &[&str]| {
            let call = [words, &["--store", text(&store)], options].concat();
            hosts.source.call(&call)
        };
        let taken = call(&["checkpoint", "vm"], &[]).expect_json();
        assert!(taken["disk_bytes"].as_u64() >= Some(24 * MIB), "{taken}");
        guest.console.assert_healthy(2);
        assert_eq!(hosts.source.call(&["stop", "vm"]).code, Some(0));
        if format == "raw" {
            let disk = fs::File::options().write(true).open(folder.join("disk.raw"));
            disk.unwrap().write_all_at(&[0xA5; 1 << 20], 5 * MIB).unwrap();
        }
        let resume = |options: &[&str]| call(&["resume", "vm"], options);
        resume(&[]).expect_refusal(&["disks d", "--overwrite-disks", "--without-disks"]);
        resume(&["--overwrite-disks"]).expect_json();
        guest.console.assert_healthy(3);
    }
}

#[test]
fn disks_move_there_and_only_their_changes_come_back() {
    need!(Qemu, Root, Userfaultfd);
    for (format, there_by, back_by) in [
        ("raw", "pre-copy", "post-copy-push"),
        ("qcow2", "hybrid", "pre-copy"),
    ] {
        let _turn = shared_turn();
        let mut hosts = Hosts::new();
        let (here, there) = (hosts.dir.path().join("here"), hosts.dir.path().join("there"));
        fs::create_dir(&there).unwrap();
        let guest = guest(hosts.dir.path(), &here, format);
        hosts.run(&guest);
        let options = [
            "--with-disks",
            "--disk-dir",
            text(&there),
            "--strategy",
            there_by,
            "--verify",
        ];
        let report = hosts.migrate("vm", &options).expect_json();
        assert_eq!(report["outcome"], "completed", "{report}");
        assert_eq!(report["verified"]["mismatches"], 0);
        let moved = disk(&report);
        assert_eq!((&moved["id"], &moved["format"]), (&"d".into(), &format.into()));
        assert_eq!(moved["bytes"], DISK_MIB * MIB);
        assert!(
            moved["copied_bytes"].as_u64().unwrap() >= 20 * MIB,
            "what it holds: {moved}"
        );
        let on_wire = report["disks"]["bytes_on_wire"].as_u64().unwrap();
        assert!(
            on_wire > 10 * MIB && on_wire < 150 * MIB,
            "what holds nothing does not cross: {on_wire}"
        );
        assert_eq!(moved["source_is"], "kept as of the stop, not written any more");
        guest.console.assert_healthy(2);
        let name = format!("disk.{format}");
        let left = stamp(&here.join(&name));
        thread::sleep(Duration::from_millis(300));
        assert_eq!(
            stamp(&here.join(&name)),
            left,
            "nobody writes to the source's file"
        );

        hosts.swap();
        hosts.destination.call(&["status"]).expect_json();
        let back = [
            "--with-disks",
            "--incremental",
            "--disk-dir",
            text(&here),
            "--strategy",
            back_by,
            "--verify",
        ];
        let report = hosts.migrate("vm", &back).expect_json();
        assert_eq!(report["outcome"], "completed", "{report}");
        let moved = disk(&report);
        let copied = moved["copied_bytes"].as_u64().unwrap();
        assert!(copied > 0 && copied < 100 * MIB, "only what changed: {moved}");
        hosts.destination.assert_owns("vm");
        guest.console.assert_healthy(2);

        // The state there is used up: a second time only all of it would do.
        hosts.swap();
        let again = ["--with-disks", "--disk-dir", text(&there)];
        let refused = hosts.migrate("vm", &again);
        refused.expect_refusal(&["is there already", "--overwrite-disks"]);
        let over = [&again[..], &["--overwrite-disks"]].concat();
        assert_eq!(hosts.migrate("vm", &over).expect_json()["outcome"], "completed");
        guest.console.assert_healthy(2);
    }
}

fn stamp(path: &Path) -> (u64, std::time::SystemTime) {
    let found = fs::metadata(path).unwrap();
    (found.len(), found.modified().unwrap())
}

/// Waits until the mirror has copied something.
fn until_copying(hosts: &Hosts) {
    eventually("the disk is being copied", || {
        let status = hosts.source.call(&["status", "vm"]).expect_json();
        status["migration"]["progress"]["disks"]["done_bytes"].as_u64() > Some(MIB)
    });
}

/// Slow enough that a copy is met in the middle.
const SLOW: &[&str] = &["--with-disks", "--bandwidth", "16mbit"];

#[test]
fn a_cancelled_copy_leaves_nothing_and_the_guest_goes_on() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let (here, there) = (hosts.dir.path().join("here"), hosts.dir.path().join("there"));
    fs::create_dir(&there).unwrap();
    let guest = guest(hosts.dir.path(), &here, "qcow2");
    hosts.run(&guest);
    let options = [SLOW, &["--disk-dir", text(&there)]].concat();
    hosts.begin("vm", &options);
    until_copying(&hosts);
    assert!(
        fs::read_dir(&there).unwrap().count() >= 2,
        "the disk and its mark"
    );
    assert_eq!(hosts.source.call(&["cancel", "vm"]).code, Some(0));
    let report = hosts.wait_for_report("vm");
    assert_eq!(report["outcome"], "cancelled");
    assert_eq!(disk(&report)["source_is"], "in use by the guest");
    hosts.source.assert_owns("vm");
    eventually("the incomplete disk is removed", || {
        fs::read_dir(&there).unwrap().count() == 0
    });
    guest.console.assert_healthy(3);
    // And it can be done again, with the limit lifted under way.
    hosts.begin("vm", &options);
    until_copying(&hosts);
    assert_eq!(
        hosts.source.call(&["limit", "vm", "--bandwidth", "none"]).code,
        Some(0)
    );
    assert_eq!(hosts.wait_for_report("vm")["outcome"], "completed");
    guest.console.assert_healthy(3);
}

#[test]
fn a_destination_that_dies_in_the_copy_costs_the_guest_nothing() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let (here, there) = (hosts.dir.path().join("here"), hosts.dir.path().join("there"));
    fs::create_dir(&there).unwrap();
    let guest = guest(hosts.dir.path(), &here, "raw");
    hosts.run(&guest);
    hosts.begin("vm", &[SLOW, &["--disk-dir", text(&there)]].concat());
    until_copying(&hosts);
    hosts.destination.crash();
    let report = hosts.wait_for_report("vm");
    assert_eq!(report["outcome"], "failed");
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(3);
    assert!(there.join("disk.raw.vmferry").exists(), "marked: it is nobody's");
    // Its daemon clears up when it comes back.
    hosts.restart_destination();
    eventually("the incomplete disk is removed", || {
        fs::read_dir(&there).unwrap().count() == 0
    });
}

#[test]
fn a_full_disk_at_the_destination_fails_the_migration_and_nothing_else() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts =
        Hosts::with_destination("mkdir -p $DIR/small; mount -t tmpfs -o size=8m vmferry-test $DIR/small");
    let small = hosts.dir.path().join("small");
    let guest = guest(hosts.dir.path(), &hosts.dir.path().join("here"), "raw");
    hosts.run(&guest);
    let answer = hosts.migrate("vm", &["--with-disks", "--disk-dir", text(&small)]);
    let report = answer.json();
    assert_eq!(report["outcome"], "failed", "{report}");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("No space left"), "{error}");
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(3);
}

#[test]
fn what_cannot_move_is_refused_with_what_to_do() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let here = hosts.dir.path().join("here");
    let guest = guest(hosts.dir.path(), &here, "qcow2");
    hosts.run(&guest);
    // Both hosts see the same file system here: the guest's own disk is in the way.
    let same = hosts.migrate("vm", &["--with-disks"]);
    same.expect_refusal(&["is there already", "--disk-dir"]);
    let nowhere = hosts.migrate("vm", &["--with-disks", "--disk-dir", "/no/such/folder"]);
    nowhere.expect_refusal(&["/no/such/folder/disk.qcow2"]);
    let nothing_recorded = hosts.migrate("vm", &["--with-disks", "--incremental"]);
    nothing_recorded.expect_refusal(&["was not recorded", "without --incremental"]);
    // Even where overwriting is allowed: QEMU holds its own disk.
    let own = hosts.migrate("vm", &["--with-disks", "--overwrite-disks"]);
    own.expect_refusal(&["lock"]);
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(3);
    let memory = ["run", "synth", "--memory", "16M", "--synthetic", "idle"];
    assert_eq!(hosts.source.call(&memory).code, Some(0));
    let synthetic = hosts.migrate("synth", &["--with-disks"]);
    synthetic.expect_refusal(&["no disks that could move"]);
}

/// Over a slow link: what is known or zero does not cross, and what crosses is compressed.
#[test]
fn a_tunnel_spares_what_the_destination_has() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let (here, there) = (hosts.dir.path().join("here"), hosts.dir.path().join("there"));
    fs::create_dir(&there).unwrap();
    let guest = guest(hosts.dir.path(), &here, "raw");
    // Behind what the guest writes: 24 MiB of text, and the same again.
    let path = here.join("disk.raw");
    let text_of =
        |seed: u64| (0..).flat_map(move |line: u64| format!("line {line} of {seed}\n").into_bytes());
    let block: Vec<u8> = text_of(7).take(24 << 20).collect();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(&block, 64 * MIB).unwrap();
    file.write_all_at(&block, 96 * MIB).unwrap();
    drop(file);
    hosts.run(&guest);
    let tunnel = [
        "--with-disks",
        "--disk-tunnel",
        "zstd+dedup",
        "--disk-dir",
        text(&there),
        "--verify",
    ];
    let report = hosts.migrate("vm", &tunnel).expect_json();
    assert_eq!(report["outcome"], "completed", "{report}");
    let crossed = |report: &Value, what: &str| report["disks"]["tunnel"][what].as_u64().unwrap();
    println!("{}", report["disks"]);
    assert!(
        crossed(&report, "deduplicated_bytes") >= 23 * MIB,
        "{}",
        report["disks"]
    );
    assert!(crossed(&report, "zero_bytes") >= 50 * MIB, "{}", report["disks"]);
    let saved = crossed(&report, "data_bytes") - crossed(&report, "compressed_bytes");
    assert!(saved > 15 * MIB, "text shrinks: {}", report["disks"]);
    guest.console.assert_healthy(2);
    let copy = fs::File::open(there.join("disk.raw")).unwrap();
    for at in [64, 96] {
        let mut arrived = vec![0; block.len()];
        copy.read_exact_at(&mut arrived, at * MIB).unwrap();
        assert!(arrived == block, "at {at} MiB");
    }

    // Back over what was left there: all of it is put as a question, and only what changed crosses.
    hosts.swap();
    let back = [
        "--with-disks",
        "--disk-tunnel",
        "zstd+dedup",
        "--disk-dir",
        text(&here),
        "--overwrite-disks",
        "--strategy",
        "post-copy-push",
        "--verify",
    ];
    let report = hosts.migrate("vm", &back).expect_json();
    assert_eq!(report["outcome"], "completed", "{report}");
    println!("{}", report["disks"]);
    assert!(
        crossed(&report, "deduplicated_bytes") >= 46 * MIB,
        "{}",
        report["disks"]
    );
    guest.console.assert_healthy(2);
}

#[test]
fn a_tunnel_that_breaks_says_why_and_the_guest_goes_on() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts =
        Hosts::with_destination("mkdir -p $DIR/small; mount -t tmpfs -o size=8m vmferry-test $DIR/small");
    let small = hosts.dir.path().join("small");
    let guest = guest(hosts.dir.path(), &hosts.dir.path().join("here"), "raw");
    hosts.run(&guest);
    let tunnel = [
        "--with-disks",
        "--disk-tunnel",
        "zstd+dedup",
        "--disk-dir",
        text(&small),
    ];
    let report = hosts.migrate("vm", &tunnel).json();
    assert_eq!(report["outcome"], "failed", "{report}");
    let error = report["error"].as_str().unwrap();
    assert!(
        error.contains("destination") && error.contains("No space left"),
        "{error}"
    );
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(3);
}

/// What is seen at the destination just before the guest runs there.
#[derive(Default)]
struct Witness {
    source: Mutex<PathBuf>,
    compared: Mutex<Vec<bool>>,
    fail_load: AtomicBool,
}

/// QEMU, watched.
struct Watched(Arc<Witness>);

impl Backend for Watched {
    fn name(&self) -> &'static str {
        "qemu"
    }
    fn launch(&self, spec: &GuestSpec, dir: &Path) -> Result<Arc<dyn Vm>> {
        QemuBackend.launch(spec, dir)
    }
    fn launch_incoming(&self, spec: &GuestSpec, layout: &RamLayout, dir: &Path) -> Result<Arc<dyn Vm>> {
        let vm = QemuBackend.launch_incoming(spec, layout, dir)?;
        Ok(Arc::new(WatchedVm(vm, self.0.clone())))
    }
    fn reopen(&self, spec: &GuestSpec, dir: &Path) -> Result<Arc<dyn Vm>> {
        QemuBackend.reopen(spec, dir)
    }
    fn place_disks(&self, spec: &GuestSpec, disks: &[DiskInfo], places: &[PlacedDisk]) -> Result<GuestSpec> {
        QemuBackend.place_disks(spec, disks, places)
    }
    fn create_disk(&self, spec: &GuestSpec, disk: &DiskInfo, path: &Path) -> Result<()> {
        QemuBackend.create_disk(spec, disk, path)
    }
}

struct WatchedVm(Arc<dyn Vm>, Arc<Witness>);

impl Guest for WatchedVm {
    fn spec(&self) -> &GuestSpec {
        self.0.spec()
    }
    fn ram(&self) -> &Arc<GuestRam> {
        self.0.ram()
    }
    fn state(&self) -> GuestState {
        self.0.state()
    }
    fn pid(&self) -> Option<u32> {
        self.0.pid()
    }
    fn pause(&self) -> Result<()> {
        self.0.pause()
    }
    fn resume(&self) -> Result<()> {
        let here = QemuBackend.disk_files(self.0.spec()).remove(0);
        let there = self.1.source.lock().unwrap().clone();
        self.1.compared.lock().unwrap().push(equal(&there, &here));
        self.0.resume()
    }
    fn destroy(&self) {
        self.0.destroy();
    }
}

impl MigrateOut for WatchedVm {
    fn prepare_out(&self) -> Result<()> {
        self.0.prepare_out()
    }
    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        self.0.dirty_tracker()
    }
    fn has_pinned_io(&self) -> bool {
        self.0.has_pinned_io()
    }
    fn may_discard_pages(&self) -> bool {
        self.0.may_discard_pages()
    }
    fn before_stop(&self) -> Result<()> {
        self.0.before_stop()
    }
    fn save_device_state(&self) -> Result<Vec<u8>> {
        self.0.save_device_state()
    }
    fn disks(&self) -> Option<&dyn Disks> {
        self.0.disks()
    }
}

impl MigrateIn for WatchedVm {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        self.0.page_faults(mode)
    }
    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        self.0.reopen_page_faults()
    }
    fn prepare_load(&self) -> Result<()> {
        self.0.prepare_load()
    }
    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        if self.1.fail_load.load(Ordering::Relaxed) {
            return Err(GuestError::operation(
                "loading the device state",
                "the test wants it so",
            ));
        }
        self.0.load_device_state(state)
    }
    fn announce(&self) -> Result<()> {
        self.0.announce()
    }
}

/// Whether two images hold the same.
fn equal(one: &Path, other: &Path) -> bool {
    if one.extension().is_some_and(|format| format == "raw") {
        return fs::read(one).unwrap() == fs::read(other).unwrap();
    }
    let compared = Command::new("qemu-img")
        .args(["compare", "-U"])
        .args([one, other])
        .output();
    compared.unwrap().status.success()
}

fn formats() -> Vec<&'static str> {
    match Command::new("qemu-img").arg("--version").output() {
        Ok(_) => vec!["raw", "qcow2"],
        Err(_) => {
            println!("skipped: qcow2 images are not compared without qemu-img");
            vec!["raw"]
        }
    }
}

#[test]
fn both_disks_are_equal_when_the_guest_resumes() {
    need!(Qemu, Root, Userfaultfd);
    for format in formats() {
        for writes in [DiskWrites::Background, DiskWrites::Blocking] {
            for strategy in [Strategy::PreCopy, Strategy::PostCopyPush] {
                let _turn = shared_turn();
                let dir = tempfile::tempdir().unwrap();
                let guest = guest(dir.path(), &dir.path().join("here"), format);
                let witness = Arc::new(Witness::default());
                *witness.source.lock().unwrap() = QemuBackend.disk_files(&guest.spec).remove(0);
                let pair = Pair::with(|| Box::new(Watched(witness.clone())));
                let vm = pair.launch(&guest.spec);
                guest.console.wait_for("guest-load: ok");
                let disks = DiskRequest {
                    folder: Some(dir.path().join("there")),
                    writes,
                    ..DiskRequest::default()
                };
                fs::create_dir(dir.path().join("there")).unwrap();
                let request = Request {
                    disks: Some(disks),
                    ..pair.request(strategy)
                };
                // A failure after the disks have settled: the source's guest goes on, and the next attempt succeeds.
                witness.fail_load.store(true, Ordering::Relaxed);
                let failed = pair.migrate(&vm, request.clone());
                assert_eq!(failed.outcome, Outcome::Failed, "{:?}", failed.error);
                assert_eq!(vm.state(), GuestState::Running);
                assert!(witness.compared.lock().unwrap().is_empty());
                guest.console.assert_healthy(2);
                witness.fail_load.store(false, Ordering::Relaxed);
                let report = pair.migrate(&vm, request);
                assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
                assert_eq!(
                    *witness.compared.lock().unwrap(),
                    [true],
                    "{format}, {writes:?}, {strategy}"
                );
                guest.console.assert_healthy(2);
                let config = QemuConfig::from_spec(pair.destination.guest("vm").spec()).unwrap();
                assert!(config.args.iter().any(|arg| arg.contains("/there/disk.")));
            }
        }
    }
}
