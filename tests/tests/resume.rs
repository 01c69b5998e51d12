//! Guests of checkpoints, on real QEMU, through the command and the daemon.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use vmferry_store::{CheckpointId, PageSource};
use vmferry_tests::{Hosts, TestGuest, checkpoint, eventually, is_alive, need, shared_turn};

/// A guest whose load checks its memory, and a checkpoint of it.
struct Scene {
    hosts: Hosts,
    guest: TestGuest,
    checkpoint: CheckpointId,
    store: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let hosts = Hosts::new();
        let guest = TestGuest::new(
            "vm",
            hosts.dir.path(),
            192,
            "write:16:20,churn:8",
            &["-device", "virtio-rng-pci"],
        );
        let store = hosts.dir.path().join("store");
        let checkpoint = checkpoint::of_guest(&guest, Duration::from_secs(2), &store);
        Self {
            hosts,
            guest,
            checkpoint,
            store,
        }
    }

    /// `vmferry resume vm ... --json`.
    fn resume(&self, options: &[&str]) -> vmferry_tests::Answer {
        let store = self.store.to_str().unwrap();
        self.hosts
            .source
            .call(&[&["resume", "vm", "--store", store], options].concat())
    }

    fn stop(&self, name: &str) {
        let stopped = self.hosts.source.call(&["stop", name]);
        assert_eq!(stopped.code, Some(0), "{stopped:?}");
        assert!(!self.hosts.source.guest_dir(name).exists());
    }

    fn progress(&self, name: &str) -> Value {
        let status = self.hosts.source.call(&["status", name]).expect_json();
        status["resume"]["progress"].clone()
    }

    /// The file of the chunk that holds the `index`th page that has one.
    fn chunk(&self, index: usize) -> PathBuf {
        let reader = checkpoint::store(&self.store).reader(&self.checkpoint).unwrap();
        let pages = 0..reader.manifest().layout.pages();
        let chunk = |page| match reader.page_source(page).unwrap() {
            PageSource::Stored { chunk, .. } => Some(chunk.to_string()),
            _ => None,
        };
        let name = pages.filter_map(chunk).nth(index).unwrap();
        self.store.join("chunks").join(&name[..2]).join(name)
    }
}

fn damage(file: &Path) -> Vec<u8> {
    let whole = fs::read(file).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(file, damaged).unwrap();
    whole
}

#[test]
fn a_linux_guest_goes_on_in_every_mode() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new();
    let mut faults = Vec::new();
    for mode in ["eager", "lazy", "predictive"] {
        let report = scene.resume(&["--mode", mode]).expect_json();
        scene.guest.console.assert_healthy(3);
        assert!(report["start_ms"].as_f64().unwrap() > 0.0, "{report:#}");
        let pages = &report["pages"];
        let (before_start, data) = (pages["before_start"].as_u64(), pages["data"].as_u64());
        match mode {
            "eager" => assert_eq!(
                (before_start, &report["outcome"]),
                (data, &Value::from("completed"))
            ),
            "lazy" => assert_eq!((before_start, &report["outcome"]), (Some(0), &Value::Null)),
            _ => assert!(before_start > Some(0) && before_start < data, "{report:#}"),
        }
        if mode == "lazy" {
            scene
                .hosts
                .migrate("vm", &[])
                .expect_refusal(&["vm", "in its store", "vmferry fill"]);
            let filled = scene.hosts.source.call(&["fill", "vm"]);
            assert_eq!(filled.code, Some(0), "{filled:?}");
        }
        scene.hosts.source.assert_owns("vm");
        scene.guest.console.assert_healthy(2);
        let status = scene.hosts.source.call(&["status", "vm"]).expect_json();
        let report = &status["resume"]["report"];
        assert_eq!(report["outcome"], "completed", "{report:#}");
        println!(
            "{mode}: start {} ms, all {} ms, {} faults from the store",
            report["start_ms"], report["total_ms"], report["faults"]["store"]
        );
        faults.push(report["faults"]["store"].as_u64().unwrap());
        scene.stop("vm");
    }
    assert_eq!(faults[0], 0, "an eager guest has everything");
    assert!(faults[2] < faults[1], "{faults:?}");
}

#[test]
fn a_second_guest_of_a_checkpoint_is_refused_unless_it_is_a_clone() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new();
    scene.resume(&[]).expect_json();
    scene
        .resume(&[])
        .expect_refusal(&["vm", "already", "another name"]);
    scene
        .resume(&["--name", "other"])
        .expect_refusal(&["vm", "same disks", "--clone"]);
    let elsewhere = [
        "resume",
        "vm/1",
        "--store",
        scene.store.to_str().unwrap(),
        "--name",
        "other",
    ];
    let destination = &scene.hosts.destination;
    destination
        .call(&elsewhere)
        .expect_refusal(&["vm/1", "resumed on host", "--clone"]);
    let clone = destination
        .call(&[&elsewhere[..], &["--clone"]].concat())
        .expect_json();
    assert_eq!(
        (&clone["vm"], &clone["outcome"]),
        (&"other".into(), &"completed".into())
    );
    destination.assert_owns("other");
    // Once the first is ended the checkpoint is free again.
    scene.stop("vm");
    let again = destination.call(&elsewhere[..4]).expect_json();
    assert_eq!(again["outcome"], "completed");
    scene.guest.console.assert_healthy(2);
}

#[test]
fn a_damaged_checkpoint_fails_before_the_start_and_leaves_nothing() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new();
    let chunk = scene.chunk(5000);
    let whole = damage(&chunk);
    let name = chunk.file_name().unwrap().to_str().unwrap();
    let failed = scene.resume(&["--mode", "eager"]);
    failed.expect_refusal(&["vm/1", "failed", name, "damaged"]);
    assert_eq!(failed.json()["outcome"], "failed");
    eventually("nothing is left", || scene.hosts.source.guest("vm").is_none());
    assert!(!scene.hosts.source.guest_dir("vm").exists());
    fs::write(&chunk, whole).unwrap();
    scene.resume(&["--mode", "eager"]).expect_json();
    scene.guest.console.assert_healthy(2);
}

#[test]
fn a_lazy_guest_is_paused_by_a_damaged_store_and_goes_on_when_it_is_whole() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut scene = Scene::new();
    scene.resume(&["--mode", "lazy"]).expect_json();
    let chunks = scene.store.join("chunks");
    let away = scene.store.join("away");
    fs::rename(&chunks, &away).unwrap();
    eventually("it is paused", || !scene.progress("vm")["stalled"].is_null());
    let guest = scene.hosts.source.guest("vm").unwrap();
    assert_eq!(
        (&guest["state"], &guest["role"]),
        (&"paused".into(), &"resuming".into())
    );
    let problem = guest["problem"].as_str().unwrap();
    assert!(
        problem.contains("missing") && problem.contains("goes on by itself"),
        "{problem}"
    );
    let printed = scene.guest.console.text();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(scene.guest.console.text(), printed, "it stands still");
    // A QEMU that was told to stop while a vCPU waits for a page talks to nobody; it is found again all the same.
    scene.hosts.crash_source();
    assert!(!scene.progress("vm")["stalled"].is_null());
    assert_eq!(scene.guest.console.text(), printed, "it stands still");
    fs::rename(&away, &chunks).unwrap();
    eventually("it goes on", || scene.progress("vm")["stalled"].is_null());
    scene.guest.console.assert_healthy(3);
    assert!(scene.resume_report()["stalled_ms"].as_f64().unwrap() > 0.0);
    scene.stop("vm");
}

#[test]
fn a_resume_outlives_its_daemon_also_in_the_middle() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut scene = Scene::new();
    scene.resume(&["--mode", "lazy"]).expect_json();
    let pid = scene.hosts.source.guest_pid("vm");
    scene.guest.console.assert_healthy(1);
    scene.hosts.crash_source();
    assert!(is_alive(pid));
    assert_eq!(scene.hosts.source.guest("vm").unwrap()["role"], "resuming");
    scene.guest.console.assert_healthy(3);
    // As an operator ends it as well.
    scene.hosts.renew_source();
    scene.guest.console.assert_healthy(2);
    assert_eq!(scene.hosts.source.guest_pid("vm"), pid, "the same QEMU");
    assert_eq!(scene.hosts.source.call(&["fill", "vm"]).code, Some(0));
    scene.hosts.source.assert_owns("vm");
    scene.guest.console.assert_healthy(2);
    let report = scene.resume_report();
    assert!(
        report["pages"]["by_earlier_daemon"].as_u64() > Some(0),
        "{report:#}"
    );
    scene.stop("vm");
}

#[test]
fn a_guest_may_stand_until_it_is_told_to_go_on() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut scene = Scene::new();
    let printed = scene.guest.console.text();
    let report = scene.resume(&["--paused"]).expect_json();
    assert_eq!(
        (&report["start_ms"], &report["outcome"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(scene.hosts.source.guest("vm").unwrap()["state"], "paused");
    scene.hosts.crash_source();
    assert_eq!(scene.progress("vm")["standing"], true);
    assert_eq!(scene.guest.console.text(), printed);
    assert_eq!(scene.hosts.source.call(&["continue", "vm"]).code, Some(0));
    scene.hosts.source.assert_owns("vm");
    scene.guest.console.assert_healthy(2);
    scene
        .hosts
        .source
        .call(&["continue", "vm"])
        .expect_refusal(&["vm", "runs already"]);
}

#[test]
fn what_cannot_be_resumed_is_told_clearly() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new();
    let call = |arguments: &[&str]| {
        let store = scene.store.to_str().unwrap();
        let call = [&["resume"], arguments, &["--store", store]].concat();
        scene.hosts.source.call(&call)
    };
    call(&["vm/9"]).expect_refusal(&["no checkpoint vm/9"]);
    call(&["nobody"]).expect_refusal(&["no checkpoint of nobody", "--store"]);
    call(&["vm/x"]).expect_refusal(&["vm/x", "VM/NUMBER"]);
    scene
        .hosts
        .source
        .call(&["resume", "vm", "--store", "ftp://nowhere"])
        .expect_refusal(&["ftp://nowhere", "no store"]);
    assert!(scene.hosts.source.guest("vm").is_none());
    // Another machine type: QEMU itself notices while it loads.
    let store = checkpoint::store(&scene.store);
    let manifest = store.manifest(&scene.checkpoint).unwrap();
    let spec = manifest.spec.to_string().replace("\"q35\"", "\"pc\"");
    assert!(spec.contains("\"pc\""));
    let spec: Value = serde_json::from_str(&spec).unwrap();
    let other = checkpoint::with_spec(&store, &scene.checkpoint, spec);
    call(&[&other.to_string()]).expect_refusal(&["failed", "loading the device state"]);
    assert!(!scene.hosts.source.guest_dir("vm").exists());
}

impl Scene {
    fn resume_report(&self) -> Value {
        let status = self.hosts.source.call(&["status", "vm"]).expect_json();
        status["resume"]["report"].clone()
    }
}
