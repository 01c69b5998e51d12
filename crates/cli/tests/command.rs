//! The binary, as people and scripts use it.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

fn vmferry(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vmferry"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("COLUMNS")
        .env_remove("VMFERRY_SOCKET")
        .env_remove("VMFERRY_STATE_DIR");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}{}", stdout(output), stderr(output)))
}

/// Waits for something that takes a moment; the limit ends a hang.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "not in two minutes: {what}"
        );
        thread::sleep(Duration::from_millis(10));
    }
}

/// A daemon of its own process; killed when dropped.
struct Host {
    child: Child,
    listen: String,
    socket: String,
}

impl Host {
    fn start(dir: &Path) -> Self {
        let socket = dir.join("api.sock").to_str().unwrap().to_owned();
        let state = dir.to_str().unwrap();
        let arguments = [
            "host",
            "--json",
            "--listen",
            "tcp:127.0.0.1:0",
            "--state-dir",
            state,
        ];
        let mut child = command(&arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        for line in out.lines() {
            let line = line.unwrap();
            text.push_str(&line);
            if line == "}" {
                break;
            }
        }
        let info: Value = serde_json::from_str(&text).expect("the daemon says where it listens");
        Self {
            child,
            listen: info["listen"].as_str().unwrap().to_owned(),
            socket,
        }
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        vmferry(&[arguments, &["--host-socket", &self.socket]].concat())
    }

    fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_is_readable() {
    let output = vmferry(&["--help"]);
    assert!(output.status.success());
    insta::assert_snapshot!("help", stdout(&output));
    let output = vmferry(&["migrate", "-h"]);
    insta::assert_snapshot!("help_migrate", stdout(&output));
}

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    for (arguments, named) in [
        (
            &["migrate", "web", "--to", "b", "--strategy", "teleport"][..],
            "known are stop-and-copy, pre-copy",
        ),
        (
            &["migrate", "web", "--to", "b", "--downtime", "300"],
            "write a number and a unit",
        ),
        (
            &["migrate", "web", "--to", "unix:relative", "--verify"],
            "absolute",
        ),
        (
            &["migrate", "web", "--to", "b", "--at-limit", "pray"],
            "post-copy",
        ),
        (
            &["migrate", "web", "--to", "b", "--alpha", "NaN"],
            "not a number between 0 and 1",
        ),
        (
            &["migrate", "web", "--to", "b", "--encoding", "gzip"],
            "known are auto, raw, lz4, zstd, zstd:LEVEL and delta",
        ),
        (
            &["migrate", "web", "--to", "b", "--encoding", "zstd:99"],
            "choose -7 to 19",
        ),
        (
            &["migrate", "web", "--to", "b", "--bandwidth", "200M"],
            "write 200Mbit or 200MB/s",
        ),
        (
            &["migrate", "web", "--to", "b", "--cpu", "0.5"],
            "percent of one core",
        ),
        (
            &["migrate", "web", "--to", "b", "--timeout", "60"],
            "write a number and a unit",
        ),
        (&["limit", "web"], "--bandwidth"),
        (&["limit", "web", "--bandwidth", "fast"], "200mbit"),
        (&["migrate", "web"], "--to"),
        (&["run", "web", "--memory", "lots"], "512M"),
        (
            &["host", "--sampling-budget", "0%"],
            "more than 0 and at most 100",
        ),
        (&["host", "--sampling-budget", "some"], "as in 3%"),
        (
            &["host", "--sampling-budget", "1%", "--no-sampling"],
            "cannot be used with",
        ),
        (&["run", "../web", "--memory", "1G"], "letters, digits"),
        (
            &[
                "run",
                "web",
                "--memory",
                "1G",
                "--synthetic",
                "idle",
                "--accel",
                "kvm",
            ],
            "cannot be used with",
        ),
        (&["resolve", "web"], "--here"),
        (&["resolve", "web", "--here", "--there"], "cannot be used with"),
        (&["teleport"], "unrecognized"),
    ] {
        let output = vmferry(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            stderr(&output).contains(named),
            "{arguments:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn without_a_daemon_one_line_says_how_to_start_it() {
    let temp = tempfile::tempdir().unwrap();
    let socket = temp.path().join("none.sock");
    for arguments in [
        &["list"][..],
        &["status"],
        &["run", "web", "-m", "64M", "--synthetic", "idle"],
        &["cancel", "web"],
    ] {
        let output = command(arguments)
            .env("VMFERRY_SOCKET", &socket)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let error = stderr(&output);
        assert!(error.starts_with("error: no daemon answers at"), "{error}");
        assert!(
            error.contains("start it with `vmferry host`") && error.lines().count() == 1,
            "{error}"
        );
    }
}

#[test]
fn a_script_runs_moves_and_ends_a_guest() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (Host::start(one.path()), Host::start(two.path()));
    let run = [
        "run",
        "web",
        "--memory",
        "64M",
        "--synthetic",
        "write:4M,rate=8M",
        "--json",
    ];
    assert_eq!(json(&from.ask(&run))["name"], "web");
    let again = from.ask(&run);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        stderr(&again).starts_with("error: a guest named web is on this host already; "),
        "{}",
        stderr(&again)
    );

    let moved = from.ask(&[
        "migrate",
        "web",
        "--to",
        &to.listen,
        "-s",
        "post-copy-push",
        "--verify",
        "--json",
    ]);
    assert!(moved.status.success(), "{}", stderr(&moved));
    let report = json(&moved);
    assert_eq!(
        (&report["outcome"], &report["verified"]["mismatches"]),
        (&"completed".into(), &0.into())
    );
    assert!(stderr(&moved).is_empty(), "{}", stderr(&moved));

    let back = to.ask(&["migrate", "web", "--to", &from.listen]);
    assert!(back.status.success(), "{}", stderr(&back));
    let text = stdout(&back);
    assert!(
        text.starts_with("web (synth): pre-copy completed") && text.contains("downtime"),
        "{text}"
    );
    assert!(stdout(&from.ask(&["list"])).contains("running"));
    assert!(stdout(&to.ask(&["status", "web"])).contains("pre-copy completed"));
    assert!(stdout(&from.ask(&["stop", "web"])).contains("ended"));
    assert_eq!(stdout(&from.ask(&["list"])), "no guests\n");
}

#[test]
fn a_migration_that_fails_gives_a_report_and_1() {
    let temp = tempfile::tempdir().unwrap();
    let host = Host::start(temp.path());
    let unknown = host.ask(&["migrate", "web", "--to", "127.0.0.1:1", "--json"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert_eq!(json(&unknown)["outcome"], "failed");
    assert!(
        json(&unknown)["error"]
            .as_str()
            .unwrap()
            .contains("there is no guest web")
    );
    assert!(stderr(&unknown).starts_with("error: there is no guest web"));

    host.ask(&["run", "web", "-m", "32M", "--synthetic", "write:4M,rate=8M"]);
    let unreachable = host.ask(&["migrate", "web", "--to", "127.0.0.1:1", "--json"]);
    assert_eq!(unreachable.status.code(), Some(1));
    let why = json(&unreachable)["error"].as_str().unwrap().to_owned();
    assert!(why.contains("nothing listens at tcp:127.0.0.1:1"), "{why}");
    let people = host.ask(&["migrate", "web", "--to", "127.0.0.1:1"]);
    assert_eq!((people.status.code(), stdout(&people).as_str()), (Some(1), ""));
    let line = stderr(&people);
    assert!(
        line.starts_with("error: web (synth): pre-copy failed, the guest runs at the source: "),
        "{line}"
    );
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(json(&host.ask(&["list", "--json"]))[0]["state"], "running");
}

#[test]
fn a_first_interrupt_cancels() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (Host::start(one.path()), Host::start(two.path()));
    // The first round alone takes far longer than the interrupt needs to come.
    from.ask(&["run", "web", "-m", "1G", "--synthetic", "write:64M + fill:896M"]);
    let endless = [
        "migrate",
        "web",
        "--to",
        &to.listen,
        "--downtime",
        "0ms",
        "--max-rounds",
        "4000000000",
        "--json",
    ];
    let moving = command(&[&endless[..], &["--host-socket", &from.socket]].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It watches for Ctrl-C from before the start of the migration.
    eventually("it is on its way", || {
        stdout(&from.ask(&["list", "--json"])).contains("\"source\"")
    });
    rustix::process::kill_process(Pid::from_child(&moving), Signal::INT).unwrap();
    let ended = moving.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", stderr(&ended));
    assert_eq!(json(&ended)["outcome"], "cancelled");
    assert_eq!(json(&from.ask(&["list", "--json"]))[0]["state"], "running");
}

#[test]
fn a_guest_is_taken_back_from_a_host_that_died() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (Host::start(one.path()), Host::start(two.path()));
    from.ask(&[
        "run",
        "web",
        "-m",
        "64M",
        "--synthetic",
        "write:4M,rate=4M + fill:16M",
    ]);
    let resolve = ["resolve", "web", "--here", "--yes"];
    let early = from.ask(&resolve);
    assert!(stderr(&early).contains("not being moved"), "{}", stderr(&early));

    // Demand only: the migration stays in its pull phase.
    from.ask(&[
        "migrate",
        "web",
        "--to",
        &to.listen,
        "-s",
        "post-copy",
        "--drain-after",
        "1h",
        "--detach",
    ]);
    let phase = |wanted: &str| {
        eventually(wanted, || {
            json(&from.ask(&["status", "web", "--json"]))["migration"]["progress"]["phase"] == wanted
        });
    };
    phase("pull and push");
    let early = from.ask(&resolve);
    assert!(
        stderr(&early).contains("nothing to resolve"),
        "{}",
        stderr(&early)
    );
    let late = from.ask(&["cancel", "web"]);
    assert!(
        stderr(&late).contains("belongs to the destination already"),
        "{}",
        stderr(&late)
    );
    to.signal(Signal::KILL);
    phase("reconnect");
    let resolved = from.ask(&resolve);
    assert!(resolved.status.success(), "{}", stderr(&resolved));
    eventually("it is ours again", || {
        json(&from.ask(&["list", "--json"]))[0]["role"] == "owner"
    });
    assert_eq!(json(&from.ask(&["list", "--json"]))[0]["state"], "running");
}

#[test]
fn a_daemon_ends_orderly_on_sigterm() {
    let temp = tempfile::tempdir().unwrap();
    let mut host = Host::start(temp.path());
    host.ask(&["run", "web", "-m", "16M", "--synthetic", "idle"]);
    host.signal(Signal::TERM);
    assert!(host.child.wait().unwrap().success());
    assert!(!Path::new(&host.socket).exists());
    // The lock is free, and nothing stands in the way of the next one.
    let next = Host::start(temp.path());
    let status = json(&next.ask(&["status", "--json"]));
    assert_eq!(status["guests"], serde_json::json!([]));
}

#[test]
fn resolving_without_a_terminal_wants_a_yes() {
    let output = vmferry(&["resolve", "web", "--here", "--host-socket", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("--yes"), "{}", stderr(&output));
}

#[test]
fn the_doctor_says_what_works() {
    let output = vmferry(&["doctor", "--json"]);
    let findings = json(&output);
    assert_eq!(output.status.success(), findings["synthetic"].as_bool().unwrap());
    for finding in findings["findings"].as_array().unwrap() {
        assert!(
            finding["ok"].as_bool().unwrap() || finding["mend"].is_string(),
            "{finding}"
        );
    }
}

#[test]
fn completions_know_the_commands() {
    let output = vmferry(&["completions", "bash"]);
    assert!(output.status.success());
    assert!(stdout(&output).contains("migrate"));
}

#[test]
fn limits_are_set_shown_and_changed() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (Host::start(one.path()), Host::start(two.path()));
    from.ask(&["run", "web", "-m", "64M", "--synthetic", "fill:32M,zero=0"]);
    let early = from.ask(&["limit", "web", "--bandwidth", "1gbit"]);
    assert!(stderr(&early).contains("not being moved"), "{}", stderr(&early));
    let absurd = from.ask(&["migrate", "web", "--to", &to.listen, "--bandwidth", "8bit/s"]);
    assert!(stderr(&absurd).contains("1 Mbit/s"), "{}", stderr(&absurd));

    // Minutes at this rate.
    let slow = [
        "migrate",
        "web",
        "--to",
        &to.listen,
        "--bandwidth",
        "1mbit",
        "--encoding",
        "raw",
        "--timeout",
        "1h",
        "--detach",
    ];
    assert!(from.ask(&slow).status.success());
    let limit = || {
        json(&from.ask(&["status", "web", "--json"]))["migration"]["progress"]["bandwidth_limit_bytes_per_s"]
            .clone()
    };
    eventually("it is limited", || limit() == 125_000);
    let text = stdout(&from.ask(&["status", "web"]));
    assert!(text.contains("limited to 1 Mbit/s"), "{text}");
    eventually("it is on its way in", || {
        to.ask(&["list", "--json"]).stdout != b"[]\n"
    });
    let there = to.ask(&["limit", "web", "--bandwidth", "none"]);
    assert!(
        stderr(&there).contains("at the host it comes from"),
        "{}",
        stderr(&there)
    );
    let low = from.ask(&["limit", "web", "--bandwidth", "1kbit"]);
    assert!(stderr(&low).contains("1 Mbit/s"), "{}", stderr(&low));
    let raised = from.ask(&["limit", "web", "--bandwidth", "2mbit", "--cpu", "50%"]);
    assert_eq!(
        stdout(&raised),
        "web: bandwidth limited to 2 Mbit/s, CPU limited to 50% of a core\n"
    );
    assert_eq!(limit(), 250_000);
    let lifted = from.ask(&["limit", "web", "--bandwidth", "none", "--json"]);
    assert_eq!(json(&lifted)["limits"]["bandwidth_bytes_per_s"], "none");
    eventually("it has arrived", || {
        from.ask(&["list", "--json"]).stdout == b"[]\n"
    });
    let report = stdout(&from.ask(&["status", "web"]));
    assert!(
        report.contains("completed")
            && report.contains("waited")
            && report.contains("bandwidth limit lifted"),
        "{report}"
    );
}
