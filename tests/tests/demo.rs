//! `vmferry demo`, whole: what it prints, and that it leaves nothing behind.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmferry_tests::{Answer, need, require, turn, vmferry};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(vmferry::program());
    command.arg("demo").args(arguments).stdin(Stdio::null());
    command
}

/// What the issue promises of the JSON, and that all is well.
fn assert_sound(result: &Value, backend: &str, ram_mib: u64) {
    let names = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(names(result), ["client", "migrations"]);
    let client = &result["client"];
    assert_eq!(names(client), ["errors", "longest_gap_ms", "operations"]);
    assert_eq!(client["errors"], 0, "{result:#}");
    assert!(client["operations"].as_u64().unwrap() > 100, "{result:#}");

    let migrations = result["migrations"].as_array().unwrap();
    let strategies: Vec<_> = migrations
        .iter()
        .map(|report| report["strategy"].as_str().unwrap())
        .collect();
    assert_eq!(strategies, ["post-copy-push", "pre-copy"]);
    for report in migrations {
        assert_eq!(report["backend"], backend);
        assert_eq!(report["outcome"], "completed", "{report:#}");
        assert_eq!(report["verified"]["pages"], ram_mib * 256, "{report:#}");
        assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
        let perceived_ms = report["perceived_downtime_ms"].as_f64().unwrap();
        assert!(perceived_ms > 0.0, "{report:#}");
        assert!(
            client["longest_gap_ms"].as_f64().unwrap() >= perceived_ms,
            "{result:#}"
        );
    }
}

/// Namespaces, processes in them and folders go with the run.
fn assert_nothing_is_left(run: u32) {
    let named = |folder: &str, part: &str| -> Vec<_> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.filter(|name| name.contains(part)).collect()
    };
    // A process keeps a namespace alive, not its name; but no namespace is removed before its processes are gone.
    assert_eq!(named("/run/netns", &format!("-{run}")), [""; 0]);
    let folder = std::env::temp_dir();
    assert_eq!(
        named(&folder.to_string_lossy(), &format!("vmferry-lab-{run}-")),
        [""; 0]
    );
    let commands = std::fs::read_dir("/proc").unwrap().flatten();
    let ours = commands.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    let ours: Vec<_> = ours
        .filter(|line| line.contains(&format!("vmferry-lab-{run}-")))
        .collect();
    assert_eq!(ours, [""; 0]);
}

#[test]
fn without_qemu_it_says_so_and_moves_the_synthetic_guest() {
    let _turn = turn();
    let empty = tempfile::tempdir().unwrap();
    let mut command = demo(&["--json", "--memory", "64M"]);
    let answer = Answer::of(command.env("PATH", empty.path()));
    assert_sound(&answer.expect_json(), "synth", 64);
    let why = answer.stderr.lines().next().unwrap();
    assert!(why.ends_with("; running the synthetic guest"), "{why}");
    assert!(
        why.starts_with("not root") || why.contains("is not installed"),
        "{why}"
    );
}

#[test]
fn a_linux_under_load_moves_there_and_back() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let image = require::image_dir();
    let mut command = demo(&["--json", "--image", image.to_str().unwrap()]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let run = child.id();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert_sound(&serde_json::from_slice(&output.stdout).unwrap(), "qemu", 512);
    assert_nothing_is_left(run);
}

#[test]
fn ctrl_c_leaves_nothing_behind() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let image = require::image_dir();
    // While the guest boots, and in the middle of a migration that takes seconds.
    for (link, moment) in [
        ("1gbit", "guest: booting"),
        ("200mbit", "a -> b by post-copy-push: pull and push"),
    ] {
        let mut command = demo(&["--image", image.to_str().unwrap(), "--link", link]);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = wait_for_line(&mut child, moment);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let mut rest = String::new();
        child.stderr.take().unwrap().read_to_string(&mut rest).unwrap();
        let run = child.id();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{said}{rest}");
        assert_eq!(output.stdout, b"", "{said}{rest}");
        assert_nothing_is_left(run);
    }
}

/// Reads what the child says until a line begins with `start`.
fn wait_for_line(child: &mut Child, start: &str) -> String {
    let mut said = String::new();
    let mut lines = BufReader::with_capacity(1, child.stderr.as_mut().unwrap());
    loop {
        let before = said.len();
        assert!(
            lines.read_line(&mut said).unwrap() > 0,
            "{start:?} was never said: {said}"
        );
        if said[before..].starts_with(start) {
            return said;
        }
    }
}
