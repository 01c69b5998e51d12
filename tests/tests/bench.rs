//! `vmferry bench` with a Linux guest and its client, over a shaped link, moved by vmferry and by QEMU itself.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use vmferry_tests::{need, require, turn, vmferry};

/// A Linux with memcached, moved once by each of what follows.
const LINUX: &str = r#"
title = "a server"
repetitions = 1
warm_up_s = 1
links = ["1gbit"]

[[guest]]
name = "Linux"
kind = "qemu"
memory = "256M"
workload = { kind = "memcached", mib = 32, values = 1024, value_bytes = 4096, operations_per_s = 500, set_get = "1:4" }
"#;

const STRATEGIES: &str = r#"
[[variant]]
strategy = "pre-copy"

[[variant]]
strategy = "post-copy-push"
options = { streams = 2 }
"#;

const PEERS: &str = r#"
[[variant]]
peer = "qemu-pre-copy"

[[variant]]
peer = "qemu-post-copy"

[[variant]]
name = "too many channels"
peer = "qemu-multifd"
options = { multifd-channels = 300 }

[[variant]]
name = "never over"
peer = "qemu-auto-converge"
options = { max-bandwidth = 1000000 }
limit_s = 2
"#;

/// Measures a scenario; then nothing of it is left but its results.
fn bench(name: &str, scenario: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(name);
    std::fs::write(&file, scenario).unwrap();
    let bench = Command::new(vmferry::program())
        .arg("bench")
        .arg(&file)
        .arg("--json")
        .arg("--image")
        .arg(require::image_dir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let id = bench.id();
    let output = bench.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).unwrap().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let (networks, files) = (format!("-{id}"), format!("vmferry-lab-{id}-"));
    let left = names(Path::new("/run/netns"))
        .into_iter()
        .filter(|name| name.ends_with(&networks));
    let left = left.chain(
        names(&std::env::temp_dir())
            .into_iter()
            .filter(|name| name.starts_with(&files)),
    );
    let processes = names(Path::new("/proc")).into_iter().filter(|process| {
        let line = std::fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&files)
    });
    let left: Vec<_> = left.chain(processes).collect();
    assert!(left.is_empty(), "{left:?} {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn qemus_own_migration_is_measured_by_the_same_clock_and_client() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let results = bench("peers.toml", &format!("{LINUX}{PEERS}"));
    let run = |variant: &str| {
        let mut runs = results["runs"].as_array().unwrap().iter();
        let found = runs.find(|run| run["key"]["variant"] == variant);
        found.unwrap_or_else(|| panic!("{results:#}"))
    };
    for variant in ["qemu-pre-copy", "qemu-post-copy"] {
        let measured = &run(variant)["outcome"]["measured"];
        let report = &measured["account"]["qemu"];
        assert_eq!(report["peer"], variant, "{:#}", run(variant));
        let ms = |name: &str| report[name].as_f64().unwrap();
        assert!(
            0.0 < ms("downtime_ms") && ms("downtime_ms") < ms("execution_transfer_ms"),
            "{report:#}"
        );
        assert!(ms("execution_transfer_ms") <= ms("total_ms"), "{report:#}");
        assert!(ms("perceived_downtime_ms") > 0.0, "{report:#}");
        let sent = report["figures"]["ram"]["transferred"].as_u64().unwrap();
        let link = measured["link_bytes"].as_u64().unwrap();
        assert!(link > sent && sent > 32 << 20, "{link} {sent}");
        let seen = &measured["operations"];
        assert_eq!(seen["errors"], 0, "{seen:#}");
        assert!(seen["before_per_s"].as_f64().unwrap() > 50.0, "{seen:#}");
        let had = |event: &str| {
            let events = report["events"].as_array().unwrap();
            events.iter().any(|moment| moment["event"] == event)
        };
        assert_eq!(
            had("MIGRATION postcopy-active"),
            variant == "qemu-post-copy",
            "{report:#}"
        );
    }
    // A QEMU that refuses, and one that does not come to an end, are lines with their causes.
    let why = |variant: &str| {
        run(variant)["outcome"]["failed"]["why"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let refused = why("too many channels");
    assert!(
        refused.contains("migrate-set-parameters") && refused.contains("channels"),
        "{refused}"
    );
    let endless = why("never over");
    assert!(
        endless.contains("did not end within 2 s") && endless.contains("MiB left"),
        "{endless}"
    );
}

#[test]
fn a_linux_under_load_is_measured_by_two_strategies() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let results = bench("strategies.toml", &format!("{LINUX}{STRATEGIES}"));
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{results:#}");
    for run in runs {
        let measured = &run["outcome"]["measured"];
        assert!(measured.is_object(), "{run:#}");
        let report = &measured["account"]["vmferry"];
        assert_eq!(
            (&report["backend"], &report["strategy"]),
            (&"qemu".into(), &run["key"]["variant"])
        );
        assert!(
            report["perceived_downtime_ms"].as_f64().unwrap() > 0.0,
            "{report:#}"
        );
        // By another counter than vmferry's own, and with the headers.
        let (link, wire) = (measured["link_bytes"].as_u64(), report["bytes_on_wire"].as_u64());
        assert!(link.unwrap() > wire.unwrap(), "{link:?} {wire:?}");
        assert!(
            measured["link"].as_str().unwrap().starts_with("1gbit by "),
            "{measured:#}"
        );
        let seen = &measured["operations"];
        assert_eq!(seen["errors"], 0, "{seen:#}");
        assert!(seen["before_per_s"].as_f64().unwrap() > 50.0, "{seen:#}");
    }
}

const CONTENTION: &str = r#"
title = "contention"
repetitions = 1
warm_up_s = 1
links = ["1gbit+2ms"]

[[guest]]
name = "synthetic"
kind = "synth"
memory = "64M"
load = "key-value:16M,get=90,value=1000"
neighbour = true

[[variant]]
strategy = "post-copy-push"
"#;

#[test]
fn a_guest_leaves_its_neighbour_over_a_link_with_a_delay() {
    need!(Root, Userfaultfd);
    let _turn = turn();
    let results = bench("contention", CONTENTION);
    let measured = &results["runs"][0]["outcome"]["measured"];
    let kept = &measured["link_delay"];
    assert_eq!(
        (&kept["wanted_ms"], &kept["lost"]),
        (&2.0.into(), &0.into()),
        "{results:#}"
    );
    // Offer and Accept alone go there and back, and so do Prepare and Ready.
    let transfer_ms = measured["account"]["vmferry"]["execution_transfer_ms"]
        .as_f64()
        .unwrap();
    assert!(transfer_ms > 8.0, "{measured:#}");
    let [moved, stayed] = ["operations", "neighbour"].map(|whose| &measured[whose]);
    for seen in [moved, stayed] {
        assert_eq!(seen["errors"], 0, "{seen:#}");
        assert!(seen["before_per_s"].as_f64().unwrap() > 0.0, "{seen:#}");
    }
    let windows = [moved, stayed].map(|seen| {
        (
            seen["windows"].as_array().unwrap().len(),
            &seen["windows_start_ms"],
        )
    });
    assert_eq!(windows[0], windows[1]);
}

const BESIDE: &str = r#"
title = "contention with a peer"
repetitions = 1
warm_up_s = 1
cool_down_s = 1
links = ["1gbit"]

[[guest]]
name = "Linux"
kind = "qemu"
memory = "192M"
workload = { kind = "cpu", percent = 80 }
neighbour = true

[[guest]]
name = "with a disk"
kind = "qemu"
memory = "192M"
workload = { kind = "disk-read", mib = 32 }

[[variant]]
peer = "qemu-pre-copy"
"#;

#[test]
fn a_peer_moves_a_guest_from_beside_another_and_one_with_a_disk() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let results = bench("beside.toml", BESIDE);
    for (guest, unit) in [("Linux", "loops"), ("with a disk", "bytes")] {
        let runs = results["runs"].as_array().unwrap();
        let run = runs.iter().find(|run| run["key"]["guest"] == guest).unwrap();
        let measured = &run["outcome"]["measured"];
        assert_eq!(measured["account"]["qemu"]["peer"], "qemu-pre-copy", "{run:#}");
        let seen = &measured["operations"];
        assert_eq!(
            (&seen["unit"], &seen["errors"]),
            (&unit.into(), &0.into()),
            "{seen:#}"
        );
        // It goes on afterwards, where it has gone.
        assert!(seen["after_per_s"].as_f64().unwrap() > 0.0, "{seen:#}");
        let neighbour = &measured["neighbour"];
        assert_eq!(neighbour.is_object(), guest == "Linux", "{measured:#}");
        if neighbour.is_object() {
            assert_eq!(neighbour["errors"], 0, "{neighbour:#}");
            for phase in ["before_per_s", "during_per_s", "after_per_s"] {
                assert!(neighbour[phase].as_f64().unwrap() > 0.0, "{neighbour:#}");
            }
        }
    }
}

const AGENT: &str = r#"
title = "an experiment and a way back"
repetitions = 1
warm_up_s = 1
cool_down_s = 1
links = ["1gbit"]

[[guest]]
name = "Linux"
kind = "qemu"
memory = "256M"
workload = { kind = "allocate", kib = 64 }

[[variant]]
name = "asked"
experiment = { kind = "agent", agent = "asked", for_s = 3 }

[[variant]]
name = "back"
strategy = "pre-copy"
options = { verify = true, max-rounds = 5 }
there_and_back = true
"#;

#[test]
fn a_guest_is_asked_and_not_moved_and_another_comes_back() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let results = bench("agent.toml", AGENT);
    let measured = |variant: &str| {
        let runs = results["runs"].as_array().unwrap();
        let run = runs.iter().find(|run| run["key"]["variant"] == variant).unwrap();
        let measured = run["outcome"]["measured"].clone();
        assert!(measured.is_object(), "{run:#}");
        let seen = &measured["operations"];
        assert_eq!(
            (&seen["unit"], &seen["errors"]),
            (&"blocks".into(), &0.into()),
            "{seen:#}"
        );
        assert!(seen["after_per_s"].as_f64().unwrap() > 0.0, "{seen:#}");
        measured
    };
    let asked = measured("asked");
    let report = &asked["account"]["experiment"];
    assert_eq!(report["experiment"], "agent", "{report:#}");
    assert!(report["figures"]["questions"].as_f64() >= Some(1.0), "{report:#}");
    assert!(report["figures"]["answer_ms"].as_f64() > Some(0.0), "{report:#}");
    let back = measured("back");
    let report = &back["account"]["vmferry"];
    assert_eq!(
        (&report["strategy"], &report["verified"]["mismatches"]),
        (&"pre-copy".into(), &0.into())
    );
    // By the counter of the host that it comes back from.
    assert!(
        back["link_bytes"].as_u64() > report["bytes_on_wire"].as_u64(),
        "{back:#}"
    );
}
