//! `vmferry bench` on a small synthetic guest.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const SMALL: &str = r#"
title = "small"
repetitions = 2
warm_up_s = 0.3
cool_down_s = 0.1
links = ["none"]

[[guest]]
name = "little"
kind = "synth"
memory = "16M"
load = "write:2M,rate=20M + fill:4M"

[[variant]]
strategy = "stop-and-copy"

[[variant]]
strategy = "post-copy-push"
options = { verify = true }

[[variant]]
name = "impossible"
strategy = "pre-copy-filter"
options = { regions = 7 }

[[claim]]
text = "post-copy sends what stop-and-copy does"
metric = "pages_sent"
variant = "post-copy-push"
relative_to = "stop-and-copy"
at_most = 1.1
at_least = 0.9

[[claim]]
text = "nothing crosses"
metric = "data_bytes"
variant = "stop-and-copy"
at_most = 1
"#;

struct Ground {
    folder: tempfile::TempDir,
}

impl Ground {
    fn new(scenario: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("small.toml"), scenario).unwrap();
        Self { folder }
    }

    fn results(&self) -> PathBuf {
        self.folder.path().join("results.json")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmferry"));
        command.arg("bench").arg(self.folder.path().join("small.toml"));
        command.args(arguments).stdin(Stdio::null());
        command
    }

    fn bench(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

#[test]
fn a_scenario_is_measured_kept_and_not_measured_again() {
    let ground = Ground::new(SMALL);
    let file = ground.results();
    let file = file.to_str().unwrap();
    let output = ground.bench(&["--json", file]);
    let (said, shown) = (text(&output.stderr), text(&output.stdout));
    assert!(output.status.success(), "{said}{shown}");
    assert!(said.starts_with("6 runs to make\n"), "{said}");
    assert!(
        shown.contains("holds   post-copy sends what stop-and-copy does"),
        "{shown}"
    );
    assert!(shown.contains("DIFFERS nothing crosses"), "{shown}");
    // A run that cannot be is a line with its cause, and the others go on.
    assert!(
        shown.contains("failed: little, none, impossible: ") && shown.contains("7 regions"),
        "{shown}"
    );

    let results = json(Path::new(file));
    let runs = results["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 6, "{results:#}");
    let measured: Vec<_> = runs
        .iter()
        .filter_map(|run| run["outcome"].get("measured"))
        .collect();
    assert_eq!(measured.len(), 4);
    for run in &measured {
        assert_eq!(run["account"]["vmferry"]["outcome"], "completed");
        let seen = &run["operations"];
        assert!(seen["count"].as_u64().unwrap() > 1000, "{seen:#}");
        assert_eq!(seen["errors"], 0);
        assert!(seen["windows"].as_array().unwrap().len() >= 3, "{seen:#}");
    }
    let line = &results["summary"][0];
    assert_eq!(
        (line["variant"].as_str(), line["measured"].as_u64()),
        (Some("stop-and-copy"), Some(2))
    );
    let pages = &line["figures"]["pages_sent"];
    assert!(pages["least"].as_f64().unwrap() >= 6.0 * 256.0, "{pages:#}");
    assert_eq!(results["verdicts"][0]["holds"], true);

    // Only what failed is tried again, and one more of each is added.
    let output = ground.bench(&["--json", file, "--repetitions", "3"]);
    let said = text(&output.stderr);
    assert!(
        said.starts_with("5 runs to make, 4 are known already\n"),
        "{said}"
    );
    assert_eq!(json(Path::new(file))["summary"][0]["measured"], 3);
}

#[test]
fn json_goes_to_stdout_where_no_file_is_named() {
    let output = Ground::new(SMALL).bench(&["--json", "--repetitions", "1"]);
    let results: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(results["scenario"], "small");
    assert_eq!(results["runs"].as_array().unwrap().len(), 3, "{results:#}");
}

#[test]
fn ctrl_c_ends_it_and_what_was_measured_is_kept() {
    let ground = Ground::new(SMALL);
    let file = ground.results();
    let mut child = ground
        .command(&["--repetitions", "500", "--json", file.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(said.any(|line| line.unwrap().starts_with("1/1500 ")));
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<_> = said.map(Result::unwrap).collect();
    assert!(
        rest.last().unwrap().contains("the same command goes on"),
        "{rest:?}"
    );
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!json(&file)["runs"].as_array().unwrap().is_empty());
}

#[test]
fn what_cannot_be_measured_is_refused_in_a_line() {
    let refusal = |scenario: &str, arguments: &[&str]| {
        let output = Ground::new(scenario).bench(arguments);
        let line = text(&output.stderr);
        assert!(!output.status.success() && line.lines().count() == 1, "{line}");
        line
    };
    let line = refusal(&SMALL.replace("links = ", "linsk = "), &[]);
    assert!(line.contains("small.toml:6") && line.contains("linsk"), "{line}");
    let line = refusal(&SMALL.replace("verify = true", "turbo = true"), &[]);
    assert!(
        line.contains("post-copy-push") && line.contains("--turbo"),
        "{line}"
    );
    let line = refusal(&SMALL.replace("\"16M\"", "\"16X\""), &[]);
    assert!(line.contains("little") && line.contains("16X"), "{line}");
    let line = refusal(SMALL, &["--guest", "qemu"]);
    assert!(line.contains("no guest of the kind"), "{line}");
}

#[test]
fn a_file_of_something_else_is_left_alone() {
    let ground = Ground::new(SMALL);
    std::fs::write(ground.results(), "my diary").unwrap();
    let output = ground.bench(&["--json", ground.results().to_str().unwrap()]);
    let line = text(&output.stderr);
    assert!(!output.status.success() && line.contains("--fresh"), "{line}");
    assert_eq!(std::fs::read(ground.results()).unwrap(), b"my diary");
}

#[test]
fn scenarios_are_listed_and_an_unknown_one_is_refused() {
    let vmferry = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmferry"));
        command.arg("bench").args(arguments).output().unwrap()
    };
    let listed = text(&vmferry(&["--list"]).stdout);
    assert!(
        listed.lines().any(|line| line.starts_with("write-loop-filter ")),
        "{listed}"
    );
    let listed: Value = serde_json::from_slice(&vmferry(&["--list", "--json"]).stdout).unwrap();
    assert_eq!(listed["server-strategies"]["repetitions"], 5);
    let unknown = vmferry(&["no-such"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("filter-states"));
    assert_eq!(vmferry(&[]).status.code(), Some(2));
}
