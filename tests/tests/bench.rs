//! `vmferry bench` with a Linux guest and its client, over a shaped link.

use std::process::{Command, Stdio};

use vmferry_tests::{Answer, need, require, turn, vmferry};

const SMALL: &str = r#"
title = "small"
repetitions = 1
warm_up_s = 1
links = ["1gbit"]

[[guest]]
name = "Linux"
kind = "qemu"
memory = "256M"
workload = { kind = "memcached", mib = 32, values = 1024, value_bytes = 4096, operations_per_s = 500, set_get = "1:4" }

[[variant]]
strategy = "pre-copy"

[[variant]]
strategy = "post-copy-push"
options = { streams = 2 }
"#;

#[test]
fn a_linux_under_load_is_measured_by_two_strategies() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("small.toml");
    std::fs::write(&scenario, SMALL).unwrap();
    let mut command = Command::new(vmferry::program());
    command
        .arg("bench")
        .arg(&scenario)
        .arg("--json")
        .arg("--image")
        .arg(require::image_dir())
        .stdin(Stdio::null());
    let results = Answer::of(&mut command).expect_json();
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 2, "{results:#}");
    for run in runs {
        let measured = &run["outcome"]["measured"];
        assert!(measured.is_object(), "{run:#}");
        let report = &measured["report"];
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
    let left = std::fs::read_dir("/run/netns").unwrap().flatten();
    let run = format!("-{}", std::process::id());
    let left = left.filter(|name| name.file_name().to_string_lossy().ends_with(&run));
    assert_eq!(left.count(), 0);
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
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("contention.toml");
    std::fs::write(&scenario, CONTENTION).unwrap();
    let mut command = Command::new(vmferry::program());
    command
        .arg("bench")
        .arg(&scenario)
        .arg("--json")
        .stdin(Stdio::null());
    let results = Answer::of(&mut command).expect_json();
    let measured = &results["runs"][0]["outcome"]["measured"];
    let kept = &measured["link_delay"];
    assert_eq!(
        (&kept["wanted_ms"], &kept["lost"]),
        (&2.0.into(), &0.into()),
        "{results:#}"
    );
    // Offer and Accept alone go there and back, and so do Prepare and Ready.
    let transfer_ms = measured["report"]["execution_transfer_ms"].as_f64().unwrap();
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
