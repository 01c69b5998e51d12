//! The command and two daemons, in namespaces joined by a shaped link, with a real Linux guest.

use std::process::{Command, Stdio};

use serde_json::Value;
use vmferry_tests::{Answer, Hosts, TestGuest, eventually, is_alive, need, shared_turn};

const STRATEGIES: [&str; 4] = ["stop-and-copy", "pre-copy", "post-copy", "post-copy-push"];
/// Slow enough that a migration of a small guest can be disturbed.
const SLOW: &str = "80mbit";

fn guest(hosts: &Hosts) -> TestGuest {
    TestGuest::new(
        "vm",
        hosts.dir.path(),
        192,
        "write:16:20",
        &["-device", "virtio-rng-pci"],
    )
}

fn assert_completed(report: &Value) {
    assert_eq!(report["outcome"], "completed", "{report:#}");
}

fn assert_verified(report: &Value) {
    assert_completed(report);
    assert_eq!(report["verified"]["pages"], 192 * 256, "{report:#}");
    assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
}

#[test]
fn every_strategy_moves_a_guest_between_daemons() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    hosts.network.shape("1gbit");
    let guest = guest(&hosts);
    let started = hosts.run(&guest);
    assert_eq!(started["role"], "owner", "{started}");
    for strategy in STRATEGIES {
        let report = hosts
            .migrate(
                "vm",
                &["--strategy", strategy, "--drain-after", "300ms", "--verify"],
            )
            .expect_json();
        assert_verified(&report);
        assert_eq!(report["strategy"], strategy);
        println!(
            "{strategy}: total {} ms, down {} ms, {} bytes on the wire",
            report["total_ms"], report["downtime_ms"], report["bytes_on_wire"]
        );
        guest.console.assert_healthy(2);
        assert!(hosts.source.guest("vm").is_none(), "the source let go");
        assert!(!hosts.source.guest_dir("vm").exists(), "and left nothing behind");
        hosts.destination.assert_owns("vm");
        // Both hosts keep what they know of it.
        let sent = hosts.source.call(&["status", "vm"]).expect_json();
        assert_eq!(sent["migration"]["stage"], "sent", "{sent}");
        assert_verified(&sent["migration"]["report"]);
        let received = hosts.destination.call(&["status", "vm"]).expect_json();
        assert_eq!(received["migration"]["stage"], "received", "{received}");
        assert_completed(&received["migration"]["report"]);
        hosts.swap();
    }
}

#[test]
fn a_migration_can_be_watched_and_cancelled() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    hosts.network.shape(SLOW);
    hosts.begin("vm", &["--strategy", "pre-copy"]);
    eventually("pages cross", || {
        let status = hosts.source.call(&["status", "vm"]).expect_json();
        assert_eq!(status["migration"]["stage"], "outgoing", "{status}");
        status["migration"]["progress"]["sent_pages"].as_u64() > Some(100)
    });
    assert_eq!(hosts.source.guest("vm").unwrap()["role"], "source");
    assert_eq!(hosts.destination.guest("vm").unwrap()["role"], "destination");
    hosts
        .migrate("vm", &[])
        .expect_refusal(&["vm", "already", "vmferry cancel"]);
    hosts
        .source
        .call(&["stop", "vm"])
        .expect_refusal(&["vm", "being moved"]);
    let cancelled = hosts.source.call(&["cancel", "vm"]);
    assert_eq!(cancelled.code, Some(0), "{cancelled:?}");
    assert_eq!(hosts.wait_for_report("vm")["outcome"], "cancelled");
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(2);
    eventually("the destination lets go", || {
        hosts.destination.guest("vm").is_none()
    });
    assert!(!hosts.destination.guest_dir("vm").exists());
    hosts
        .source
        .call(&["cancel", "vm"])
        .expect_refusal(&["vm", "not being moved"]);
}

#[test]
fn a_guest_outlives_its_daemon() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    let pid = hosts.source.guest_pid("vm");
    hosts.source.crash();
    guest.console.assert_healthy(2);
    hosts.restart_source();
    assert_eq!(hosts.source.guest_pid("vm"), pid, "the same QEMU");
    hosts.source.assert_owns("vm");
    // The new daemon can do with it all that the old one could; twice, so that the first left nothing that hinders.
    hosts.crash_source();
    let report = hosts
        .migrate("vm", &["--strategy", "pre-copy", "--verify"])
        .expect_json();
    assert_verified(&report);
    guest.console.assert_healthy(2);
}

#[test]
fn a_destination_that_crashes_in_post_copy_takes_the_faults_over() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    hosts.network.shape(SLOW);
    hosts.begin("vm", &["--strategy", "post-copy-push", "--verify"]);
    runs_at_the_destination(&hosts);
    let pid = hosts.destination.guest_pid("vm");
    hosts.crash_destination();
    let found = hosts.destination.guest("vm").expect("it is found again");
    assert_eq!(found["role"], "receiving", "{found}");
    assert_eq!(hosts.destination.guest_pid("vm"), pid, "the same QEMU");
    // Once more: the second daemon has to keep what it took over.
    eventually("pages arrive again", || {
        let found = hosts.destination.guest("vm").expect("it is here");
        assert_eq!(
            found["role"], "receiving",
            "the link is too fast for this test: {found}"
        );
        found["migration"]["progress"]["received_pages"].as_u64() > Some(200)
    });
    hosts.crash_destination();
    hosts.network.unshape();
    let report = hosts.wait_for_report("vm");
    assert_completed(&report);
    // Hashes of pages that arrived before died with the daemon: what is reported must not claim more than was compared.
    println!("verified: {}, notes: {}", report["verified"], report["notes"]);
    assert!(
        matches!(report["verified"]["mismatches"].as_u64(), None | Some(0)),
        "{report:#}"
    );
    hosts.destination.assert_owns("vm");
    assert!(hosts.source.guest("vm").is_none());
    guest.console.assert_healthy(3);
    // Nothing of the recovery is left that would stand against the next move.
    hosts.swap();
    assert_verified(
        &hosts
            .migrate("vm", &["--strategy", "pre-copy", "--verify"])
            .expect_json(),
    );
    guest.console.assert_healthy(2);
}

#[test]
fn a_source_that_crashes_in_post_copy_takes_the_migration_up_again() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    hosts.network.shape(SLOW);
    hosts.begin("vm", &["--strategy", "post-copy-push"]);
    runs_at_the_destination(&hosts);
    hosts.crash_source();
    let found = hosts.source.guest("vm").expect("its memory is still needed");
    assert_eq!(
        (&found["role"], &found["state"]),
        (&"source".into(), &"paused".into()),
        "{found}"
    );
    hosts
        .source
        .call(&["cancel", "vm"])
        .expect_refusal(&["belongs to the destination"]);
    hosts.network.unshape();
    let report = hosts.wait_for_report("vm");
    assert_completed(&report);
    hosts.destination.assert_owns("vm");
    assert!(hosts.source.guest("vm").is_none());
    guest.console.assert_healthy(3);
}

#[test]
fn a_destination_that_crashes_in_the_rounds_leaves_the_guest_at_the_source() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    hosts.network.shape(SLOW);
    hosts.begin("vm", &["--strategy", "pre-copy"]);
    eventually("it is on its way", || {
        let found = hosts.destination.guest("vm");
        found.is_some_and(|found| found["migration"]["progress"]["received_pages"].as_u64() > Some(100))
    });
    let pid = hosts.destination.guest_pid("vm");
    hosts.crash_destination();
    let report = hosts.wait_for_report("vm");
    assert_eq!(report["outcome"], "failed", "{report:#}");
    let error = report["error"].as_str().unwrap();
    assert!(!error.is_empty() && !error.contains('\n'), "{error}");
    println!("{error}");
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(2);
    // The new daemon ended what the old one had begun.
    assert!(hosts.destination.guest("vm").is_none());
    assert!(!hosts.destination.guest_dir("vm").exists());
    eventually("its QEMU ends", || !is_alive(pid));
    hosts.network.unshape();
    assert_verified(
        &hosts
            .migrate("vm", &["--strategy", "post-copy-push", "--verify"])
            .expect_json(),
    );
    guest.console.assert_healthy(2);
}

#[test]
fn a_source_that_crashes_in_the_rounds_keeps_the_guest() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    hosts.network.shape(SLOW);
    // Once in the rounds, where the guest runs, and once in the stop, where it stands still.
    for strategy in ["pre-copy", "stop-and-copy"] {
        hosts.begin("vm", &["--strategy", strategy]);
        eventually("it is on its way", || {
            let found = hosts.destination.guest("vm");
            found.is_some_and(|found| found["migration"]["progress"]["received_pages"].as_u64() > Some(100))
        });
        hosts.crash_source();
        hosts.source.assert_owns("vm");
        guest.console.assert_healthy(2);
        // The destination keeps what it has for a source that comes back; this one will not.
        if hosts.destination.guest("vm").is_some() {
            assert_eq!(hosts.destination.call(&["cancel", "vm"]).code, Some(0));
        }
        eventually("the destination lets go", || {
            hosts.destination.guest("vm").is_none()
        });
    }
    hosts.network.unshape();
    assert_verified(
        &hosts
            .migrate("vm", &["--strategy", "pre-copy", "--verify"])
            .expect_json(),
    );
    guest.console.assert_healthy(2);
}

/// Waits until the guest runs at the destination, where most of its pages are missing.
fn runs_at_the_destination(hosts: &Hosts) {
    eventually("it runs at the destination", || {
        hosts
            .destination
            .guest("vm")
            .is_some_and(|found| found["role"] == "receiving")
    });
}

#[test]
fn a_qemu_that_somebody_else_started_is_taken_over_and_moved() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let guest = guest(&hosts);
    let memory = [
        "-object",
        "memory-backend-memfd,id=mem0,size=192M,share=on",
        "-machine",
        "q35,memory-backend=mem0",
    ];
    let qemu = by_hand(&hosts, &guest, "shared", &memory);
    guest.console.wait_for("guest-load: ok");
    let attached = hosts
        .source
        .call(&["attach", "--pid", &qemu.0.id().to_string(), "--name", "vm"])
        .expect_json();
    assert_eq!(attached["pid"], qemu.0.id(), "{attached}");
    hosts.source.assert_owns("vm");
    let report = hosts
        .migrate("vm", &["--strategy", "post-copy-push", "--verify"])
        .expect_json();
    assert_verified(&report);
    hosts.destination.assert_owns("vm");
    guest.console.assert_healthy(2);
}

/// The port for the agent is one that its owner gave it.
#[test]
fn a_qemu_of_somebody_else_moves_by_what_its_agent_says() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let chardev = format!(
        "socket,id=a,path={},server=on,wait=off",
        hosts.dir.path().join("a.sock").display()
    );
    let port = [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &chardev,
        "-device",
        "virtserialport,chardev=a,name=org.vmferry.agent.0",
    ];
    let guest = TestGuest::new("vm", hosts.dir.path(), 192, "write:16:20 vmferry.agent", &port);
    let memory = [
        "-object",
        "memory-backend-memfd,id=mem0,size=192M,share=on",
        "-machine",
        "q35,memory-backend=mem0",
    ];
    let qemu = by_hand(&hosts, &guest, "agent", &memory);
    guest.console.wait_for("guest-load: ok");
    hosts
        .source
        .call(&["attach", "--pid", &qemu.0.id().to_string(), "--name", "vm"])
        .expect_json();
    // From here on the daemon has its connection: the QEMU at the destination, on the same machine, listens in the same place.
    eventually("the agent answers", || {
        hosts.source.call(&["agent", "vm"]).code == Some(0)
    });
    let report = hosts
        .migrate(
            "vm",
            &["--strategy", "enlightened", "--agent-timeout", "20s", "--verify"],
        )
        .expect_json();
    assert_verified(&report);
    let notes = report["notes"].to_string();
    assert!(notes.contains("kernel code"), "{report:#}");
    assert!(
        report["pages"]["free"].as_u64() > Some((192 << 8) / 20),
        "{report:#}"
    );
    assert!(report["pages"]["ahead"].as_u64() > Some(0), "{report:#}");
    hosts.destination.assert_owns("vm");
    guest.console.assert_healthy(2);
}

#[test]
fn what_is_missing_to_take_a_qemu_over_is_said() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let attach = |pid: u32| {
        hosts
            .source
            .call(&["attach", "--pid", &pid.to_string(), "--name", "vm"])
    };
    let cases: [(&str, &[&str], &[&str]); 3] = [
        (
            "plain",
            &["-machine", "q35"],
            &["RAM is not shared", "memory-backend-file", "share=on"],
        ),
        (
            "private",
            &[
                "-object",
                "memory-backend-memfd,id=mem0,size=192M,share=off",
                "-machine",
                "q35,memory-backend=mem0",
            ],
            &[
                "RAM mem0 is not shared",
                "memory-backend-file",
                "size=192M",
                "share=on",
            ],
        ),
        (
            "ram",
            &[
                "-object",
                "memory-backend-ram,id=mem0,size=192M",
                "-machine",
                "q35,memory-backend=mem0",
            ],
            &["RAM mem0 is not shared", "share=on"],
        ),
    ];
    for (name, memory, words) in cases {
        let guest = TestGuest::new(name, hosts.dir.path(), 192, "write:4:4", &[]);
        let qemu = by_hand(&hosts, &guest, name, memory);
        let line = attach(qemu.0.id()).expect_refusal(words);
        println!("{line}");
        assert!(hosts.source.guest("vm").is_none() && !hosts.source.guest_dir("vm").exists());
        // It was not disturbed: it goes on to boot, and its monitor is free.
        if name == "private" {
            guest.console.wait_for("guest-load: ok");
        }
        attach(qemu.0.id()).expect_refusal(words);
    }
    println!("{}", attach(std::process::id()).expect_refusal(&["no QEMU"]));
    println!("{}", attach(u32::MAX / 4).expect_refusal(&["process"]));
}

/// A QEMU that ends with its test.
struct ByHand(std::process::Child);

impl Drop for ByHand {
    fn drop(&mut self) {
        // It may have ended, as it does when it was moved away.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts QEMU at the source as an operator would, without vmferry.
fn by_hand(hosts: &Hosts, guest: &TestGuest, name: &str, memory: &[&str]) -> ByHand {
    let monitor = hosts.dir.path().join(format!("{name}.qmp"));
    let args = guest.spec.config["args"].as_array().unwrap();
    let mut command: Command = hosts.network.command(0, "qemu-system-x86_64");
    command
        .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-m", "192M"])
        .args(memory)
        .args(args.iter().map(|arg| arg.as_str().unwrap()))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", monitor.display()))
        .stdin(Stdio::null());
    let qemu = ByHand(command.spawn().unwrap());
    eventually("its monitor is there", || monitor.exists());
    qemu
}

/// Whoever asks a daemon that is not there is told how to start one.
#[test]
fn without_a_daemon_the_command_says_so() {
    let mut command = Command::new(vmferry_tests::vmferry::program());
    let line = Answer::of(command.args(["list", "--host-socket", "/nonexistent/api.sock"]))
        .expect_refusal(&["/nonexistent/api.sock", "vmferry host"]);
    println!("{line}");
}
