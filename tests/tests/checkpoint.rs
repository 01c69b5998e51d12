//! Checkpoints of QEMU guests that run: what they hold, what they cost the guest, and what becomes of it when something ends
//! in the middle.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use vmferry_checkpoint::take::{Session, TakeControl, TakeOptions};
use vmferry_core::PageRun;
use vmferry_core::take::{TakeOutcome, TakeReport};
use vmferry_store::{CheckpointId, Store, StoreOptions};
use vmferry_tests::witness::{Witness, differing};
use vmferry_tests::{Hosts, Pair, TestGuest, eventually, is_alive, need, shared_turn};

const MIB: u64 = 1 << 20;
const RAM_MIB: u64 = 256;

/// A guest under load whose checkpoints are compared with its memory at each pause.
struct Scene {
    guest: TestGuest,
    witness: Arc<Witness>,
    store: Store,
    _pair: Pair,
}

impl Scene {
    fn new(dir: &Path, load: &str, args: &[&str]) -> Self {
        let pair = Pair::new();
        let guest = TestGuest::new("vm", dir, RAM_MIB, load, args);
        let witness = Witness::of(pair.launch(&guest.spec));
        guest.console.wait_for("guest-load: ok");
        let store = dir.join("store");
        let store = Store::open(store.to_str().unwrap(), StoreOptions::default()).unwrap();
        Self {
            guest,
            witness,
            store,
            _pair: pair,
        }
    }

    fn session(&self) -> Session {
        let options = TakeOptions::for_guest(RAM_MIB * MIB);
        Session::begin(self.witness.clone(), self.store.clone(), options).unwrap()
    }

    /// Takes one and compares all of it.
    fn take(&self, session: &mut Session) -> TakeReport {
        let report = session.take(&TakeControl::default());
        assert_eq!(report.outcome, TakeOutcome::Completed, "{report:?}");
        let id: CheckpointId = report.id.as_deref().unwrap().parse().unwrap();
        let reader = self.store.reader(&id).unwrap();
        let pages = reader.manifest().layout.pages();
        let mut memory = vec![0xee; (RAM_MIB * MIB) as usize];
        reader.read(PageRun::new(0, pages), &mut memory).unwrap();
        let wrong = differing(&memory, &self.witness.seen());
        assert!(
            wrong.is_empty(),
            "{id}: {} pages: {:?}",
            wrong.len(),
            &wrong[..wrong.len().min(9)]
        );
        println!(
            "{id}: pause {:.2} ms, {} of {} pages saved, {} written, {} accessed, {:?}",
            report.pause_ms,
            report.saved_pages,
            report.data_pages,
            report.written_pages,
            report.accessed_pages,
            report.faults
        );
        report
    }
}

#[test]
fn each_checkpoint_is_the_memory_of_its_pause() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir().unwrap();
    let scene = Scene::new(dir.path(), "write:32:40", &[]);
    let mut session = scene.session();
    session.watch().unwrap();
    let mut written = Vec::new();
    for round in 0..4 {
        thread::sleep(Duration::from_millis(700));
        let report = scene.take(&mut session);
        assert!(
            report.written_pages > 0 && report.accessed_pages > report.written_pages,
            "{report:?}"
        );
        assert!(report.device_state_bytes > 10_000, "{report:?}");
        assert_eq!(report.parent.is_some(), round > 0);
        written.push(report.saved_pages);
    }
    assert!(
        written[1..].iter().all(|&pages| pages < written[0] / 2),
        "{written:?}"
    );
    drop(session);
    scene.guest.console.assert_healthy(3);
}

/// A disk that passes the page cache by writes into pages that it pinned earlier.
#[test]
fn direct_io_is_part_of_the_moment() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    // Not in a tmpfs, which knows no O_DIRECT.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = dir.path().join("disk.img");
    File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    let drive = format!(
        "file={},format=raw,if=none,id=d,cache=none,aio=threads",
        disk.display()
    );
    let args = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d"];
    let scene = Scene::new(dir.path(), "disk:32,write:2:10", &args);
    let mut session = scene.session();
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(300));
        scene.take(&mut session);
    }
    drop(session);
    scene.guest.console.assert_healthy(3);
}

/// With a balloon the kernel tells of every drop of pages, and changes no protection until that was heard: our own drops, of all
/// memory just when most writes are held up, stand in nobody's way.
#[test]
fn a_balloon_costs_no_checkpoint() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir().unwrap();
    let args = ["-smp", "2", "-device", "virtio-balloon-pci"];
    let scene = Scene::new(dir.path(), "write:48:200,write:48:200", &args);
    let mut session = scene.session();
    session.watch().unwrap();
    for _ in 0..12 {
        thread::sleep(Duration::from_millis(100));
        scene.take(&mut session);
        assert!(!session.is_broken());
    }
    drop(session);
    scene.guest.console.assert_healthy(3);
}

/// As a user does it: one, then one after the other, then no more; and what is refused meanwhile.
#[test]
fn the_command_takes_one_and_a_series() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let dir = tempfile::tempdir().unwrap();
    let guest = TestGuest::new("vm", dir.path(), RAM_MIB, "write:16:20", &[]);
    hosts.run(&guest);
    let source = &hosts.source;
    let store = dir.path().join("store").display().to_string();
    let one = source
        .call(&["checkpoint", "vm", "--store", &store])
        .expect_json();
    assert_eq!(
        (&one["outcome"], &one["id"]),
        (&"completed".into(), &"vm/1".into()),
        "{one}"
    );
    assert!(
        one["accessed_pages"].as_u64() > one["written_pages"].as_u64(),
        "{one}"
    );

    source
        .call(&["checkpoint", "missing", "--store", &store])
        .expect_refusal(&["missing"]);
    let series = [
        "checkpoint",
        "vm",
        "--store",
        &store,
        "--every",
        "400ms",
        "--keep",
        "3",
    ];
    source.call(&series).expect_json();
    source.call(&series).expect_refusal(&["being taken", "--stop"]);
    hosts
        .migrate("vm", &[])
        .expect_refusal(&["checkpoints", "--stop"]);
    let taken = || source.call(&["status", "vm"]).expect_json()["checkpoints"].clone();
    eventually("five are taken", || taken()["completed"].as_u64() >= Some(5));
    let state = taken();
    assert_eq!(
        (&state["failed"], &state["last"]["outcome"]),
        (&0.into(), &"completed".into()),
        "{state}"
    );
    assert!(state["last"]["parent"].is_string(), "{state}");
    let ended = source.call(&["checkpoint", "vm", "--stop"]).expect_json();
    assert_eq!(ended["ended"], true, "{ended}");
    source
        .call(&["checkpoint", "vm", "--stop"])
        .expect_refusal(&["no checkpoints"]);

    let listed = source
        .call(&["checkpoints", "--store", &store, "list", "vm"])
        .expect_json();
    assert_eq!(listed.as_array().map(Vec::len), Some(3), "{listed}");
    verify(&hosts, &store);
    guest.console.assert_healthy(2);
    // Nothing is in the way of a migration any more.
    let report = hosts.migrate("vm", &["--verify"]).expect_json();
    assert_eq!(report["outcome"], "completed", "{report}");
    guest.console.assert_healthy(2);
}

/// The guest never depends on the daemon, in a series neither: when that is killed, whatever it is just doing, the guest goes on
/// at once, by itself.
#[test]
fn a_daemon_that_is_killed_leaves_a_guest_that_goes_on() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let dir = tempfile::tempdir().unwrap();
    let guest = TestGuest::new("vm", dir.path(), RAM_MIB, "write:16:20", &[]);
    hosts.run(&guest);
    let store = dir.path().join("store").display().to_string();
    for delay_ms in [0, 230, 560, 1100] {
        let series = ["checkpoint", "vm", "--store", &store, "--every", "100ms"];
        hosts.source.call(&series).expect_json();
        thread::sleep(Duration::from_millis(delay_ms));
        let pid = hosts.source.guest_pid("vm");
        hosts.source.crash();
        assert!(is_alive(pid));
        // In the few milliseconds of a pause it waits for the next daemon, which is the only one to know that it was to run.
        let was_paused = !goes_on(&guest);
        hosts.restart_source();
        hosts.source.assert_owns("vm");
        guest.console.assert_healthy(2);
        println!("after {delay_ms} ms: paused {was_paused}");
    }
    let one = hosts
        .source
        .call(&["checkpoint", "vm", "--store", &store])
        .expect_json();
    assert_eq!(one["outcome"], "completed", "{one}");
    verify(&hosts, &store);
}

/// Whether the guest's load says something within a few seconds.
fn goes_on(guest: &TestGuest) -> bool {
    let before = guest.console.text().len();
    (0..300).any(|_| {
        thread::sleep(Duration::from_millis(20));
        guest.console.text().len() > before
    })
}

#[test]
fn a_full_disk_costs_the_checkpoint_and_not_the_guest() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let dir = tempfile::tempdir().unwrap();
    // Before the daemons: their namespaces have what is mounted then.
    let small = SmallDisk::mount(&dir.path().join("small"), 8);
    let hosts = Hosts::new();
    let guest = TestGuest::new("vm", dir.path(), RAM_MIB, "write:16:20", &[]);
    hosts.run(&guest);
    let store = small.path().join("store").display().to_string();
    let failed = hosts.source.call(&["checkpoint", "vm", "--store", &store]);
    assert_ne!(failed.code, Some(0), "{failed:?}");
    let report = failed.json();
    assert_eq!(report["outcome"], "failed", "{report}");
    assert!(
        report["error"].as_str().unwrap_or_default().contains("no room"),
        "{report}"
    );
    let listed = hosts
        .source
        .call(&["checkpoints", "--store", &store, "list"])
        .expect_json();
    assert_eq!(listed.as_array().map(Vec::len), Some(0), "{listed}");
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(2);
    let store = dir.path().join("store").display().to_string();
    let one = hosts
        .source
        .call(&["checkpoint", "vm", "--store", &store])
        .expect_json();
    assert_eq!(one["outcome"], "completed", "{one}");
}

fn verify(hosts: &Hosts, store: &str) {
    let verified: Value = hosts
        .source
        .call(&["checkpoints", "--store", store, "verify"])
        .expect_json();
    println!("{verified}");
}

/// A file system of a few MiB, unmounted with this value.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path, mib: u32) -> Self {
        std::fs::create_dir(at).unwrap();
        let size = format!("size={mib}m");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(at)
            .status()
            .unwrap();
        assert!(mounted.success());
        Self(at.to_owned())
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the daemon may still be in it.
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}
