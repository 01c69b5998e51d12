//! Recording, looking, measuring and simulating, as people and scripts do it, with synthetic guests.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vmferry_cli::Client;
use vmferry_cli::api::{MigrateRequest, TraceRequest, TraceState};
use vmferry_cli::daemon::{Daemon, Options};
use vmferry_core::Strategy;
use vmferry_core::sampling::Budget;
use vmferry_guest_synth::SynthBackend;
use vmferry_transport::Endpoint;

/// Ends a hang; nothing here takes nearly as long.
const LONG: Duration = Duration::from_secs(120);

struct Host {
    daemon: Daemon,
    client: Client,
    dir: TempDir,
}

impl Host {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&Options {
            listen: Endpoint::tcp("127.0.0.1", 0),
            state_dir: dir.path().to_owned(),
            api: None,
            max_streams: 64,
            store: None,
            sampling: Some(Budget::default()),
        })
        .unwrap();
        let client = Client::new(daemon.api()).unwrap();
        Self { daemon, client, dir }
    }

    /// Writes 8 MiB of 32 again and again.
    fn with_guest() -> Self {
        let host = Self::start();
        let config =
            vmferry_cli::loadspec::parse("write:8M,rate=40M+fill:16M,zero=20,compressible=50", 32 << 20, 1);
        host.client
            .run(&SynthBackend::spec("vm", &config.unwrap()))
            .unwrap();
        host
    }

    fn vmferry(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmferry"));
        command
            .args(arguments)
            .arg("--host-socket")
            .arg(self.daemon.api())
            .stdin(Stdio::null())
            .env_remove("VMFERRY_SOCKET")
            .current_dir(self.dir.path());
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.vmferry(&[arguments, &["--json"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails with one line on stderr that has these words.
fn assert_refused(output: &Output, words: &[&str]) {
    let said = stderr(output);
    assert!(!output.status.success(), "it succeeded; expected {words:?}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in {said:?}");
    }
}

#[test]
fn a_guest_is_recorded_shown_and_simulated() {
    let (host, other) = (Host::with_guest(), Host::start());
    let recorded = host.json(&["trace", "vm", "--for", "1500ms", "--full", "--out", "vm.vmtrace"]);
    assert_eq!(recorded["summary"]["vm"], "vm");
    let written_mib = recorded["summary"]["written_bytes"].as_f64().unwrap() / f64::from(1 << 20);
    assert!((7.9..8.5).contains(&written_mib), "{written_mib} MiB");
    assert!(
        recorded["summary"]["loads"][0]["operations"].as_u64() > Some(0),
        "client load"
    );
    // The sampler goes on.
    assert!(host.client.guest("vm").unwrap().learned.is_some());

    let shown = host.json(&["trace", "show", "vm.vmtrace", "--svg", "vm.svg"]);
    assert_eq!(shown, recorded["summary"]);
    assert_svg(&host.file("vm.svg"));
    let drawn = fs::read_to_string(host.file("vm.svg")).unwrap();
    assert!(drawn.contains("% of one core; operations"), "{drawn}");
    let text = host.vmferry(&["trace", "show", "vm.vmtrace"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in [
        "working set",
        "estimated cost",
        "% of one core",
        "operations a second",
        "dirty rate over",
        "wrote most",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }

    let to = other.daemon.info().listen;
    let calibrated = host.json(&["calibrate", "--to", &to, "--load", "200ms"]);
    assert!(
        calibrated["path"]["link_bytes_per_s"].as_f64() > Some(1e6),
        "{calibrated}"
    );
    let simulate = |more: &[&str]| host.json(&[&["simulate", "vm.vmtrace"], more].concat());
    let simulated = simulate(&["--to", &to, "--svg", "all.svg"]);
    assert_eq!(
        simulated["strategies"].as_array().unwrap().len(),
        Strategy::ALL.len()
    );
    assert_eq!(simulated["path"], calibrated["path"]);
    assert_svg(&host.file("all.svg"));
    let slow = [
        "--link",
        "100mbit",
        "--strategy",
        "pre-copy,hybrid",
        "--seed",
        "7",
    ];
    let once = simulate(&slow);
    assert_eq!(once, simulate(&slow), "the same seed, the same result");
    let report = &once["strategies"][0]["outcomes"][0]["report"];
    // The guest writes faster than 12.5 MB/s: all rounds, and the stop.
    assert_eq!(report["rounds"].as_array().unwrap().len(), 31);
    let total_ms = report["total_ms"].as_f64().unwrap();
    assert!((15_000.0..30_000.0).contains(&total_ms), "{total_ms} ms");
    let many = simulate(&[&slow[..], &["--runs", "5"]].concat());
    assert_eq!(many["strategies"][1]["outcomes"].as_array().unwrap().len(), 5);
}

fn assert_svg(file: &Path) {
    let svg = fs::read_to_string(file).unwrap();
    assert!(
        svg.starts_with("<?xml") && svg.trim_end().ends_with("</svg>"),
        "{svg}"
    );
    assert!(
        !svg.contains("NaN") && !svg.contains("inf"),
        "a coordinate is none"
    );
}

#[test]
fn a_guest_that_is_moved_away_leaves_what_was_recorded() {
    let (host, other) = (Host::with_guest(), Host::start());
    let request = TraceRequest {
        length_ms: 3_600_000,
        interval_ms: 20.0,
        full: false,
        budget_percent: 50.0,
    };
    host.client.begin_trace("vm", &request).unwrap();
    let began = Instant::now();
    while host.client.trace("vm").unwrap().samples < 5 {
        assert!(began.elapsed() < LONG, "no samples");
        thread::sleep(Duration::from_millis(10));
    }
    let again = host.client.begin_trace("vm", &request).unwrap_err().to_string();
    assert!(again.contains("recorded already"), "{again}");
    let migrate = MigrateRequest::new(other.daemon.info().listen, Strategy::PreCopy);
    host.client.migrate("vm", &migrate).unwrap();
    while host.client.guest("vm").is_ok() {
        assert!(began.elapsed() < LONG, "it does not go");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(host.client.trace("vm").unwrap().state, TraceState::Done);
    let bytes = host.client.trace_file("vm").unwrap();
    let trace = vmferry_trace::Trace::read(&mut &bytes[..]).unwrap();
    assert!(trace.samples.len() >= 5);
    assert_eq!(other.client.stats("vm").unwrap().violations, 0);
}

#[test]
fn a_recording_is_ended_from_elsewhere_as_the_refusal_says() {
    let host = Host::with_guest();
    assert_refused(&host.vmferry(&["trace", "vm", "--stop"]), &["was not recorded"]);
    let began = Instant::now();
    thread::scope(|scope| {
        let recording = scope.spawn(|| {
            host.json(&[
                "trace",
                "vm",
                "--for",
                "1h",
                "--interval",
                "20ms",
                "--out",
                "vm.vmtrace",
            ])
        });
        while host.client.trace("vm").map_or(0, |info| info.samples) < 5 {
            assert!(began.elapsed() < LONG, "no samples");
            thread::sleep(Duration::from_millis(10));
        }
        let again = host.vmferry(&["trace", "vm", "--for", "1s"]);
        assert_refused(&again, &["recorded already", "vmferry trace vm --stop"]);
        let stopped = host.json(&["trace", "vm", "--stop", "--out", "copy.vmtrace"]);
        let recorded = recording.join().unwrap();
        assert_eq!(stopped["summary"], recorded["summary"]);
        assert!(recorded["summary"]["samples"].as_u64() >= Some(5));
    });
    let file = |name: &str| fs::read(host.file(name)).unwrap();
    assert_eq!(file("vm.vmtrace"), file("copy.vmtrace"));
    assert_refused(
        &host.vmferry(&["trace", "vm", "--stop"]),
        &["not being recorded", "--out FILE"],
    );
    assert_refused(
        &host.vmferry(&["trace", "vm", "--stop", "--full"]),
        &["cannot be used with"],
    );
}

#[test]
fn bad_input_is_refused_with_the_way_to_mend_it() {
    let host = Host::with_guest();
    let out = |name: &str| host.vmferry(&["trace", name, "--for", "1s", "--out", "x.vmtrace"]);
    assert_refused(&out("nobody"), &["nobody"]);
    assert!(!host.file("x.vmtrace").exists(), "nothing is left behind");
    assert_refused(
        &host.vmferry(&["trace", "vm", "--for", "1ms"]),
        &["at least the interval"],
    );
    assert_refused(
        &host.vmferry(&["trace", "vm", "--interval", "0ms"]),
        &["interval", "choose"],
    );
    assert_refused(
        &host.vmferry(&["trace", "vm", "--budget", "0%"]),
        &["more than 0"],
    );
    assert_refused(
        &host.vmferry(&["trace", "vm", "--out", "no/such/dir"]),
        &["cannot write no/such/dir"],
    );

    host.json(&["trace", "vm", "--for", "700ms", "--out", "vm.vmtrace"]);
    let whole = fs::read(host.file("vm.vmtrace")).unwrap();
    fs::write(host.file("cut.vmtrace"), &whole[..whole.len() - 20]).unwrap();
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    fs::write(host.file("damaged.vmtrace"), damaged).unwrap();
    fs::write(host.file("other.vmtrace"), "no trace at all").unwrap();
    let simulate = |file: &str, more: &[&str]| {
        host.vmferry(
            &[
                &["simulate", file, "--link", "1gbit", "--strategy", "pre-copy"],
                more,
            ]
            .concat(),
        )
    };
    assert_refused(&simulate("cut.vmtrace", &[]), &["cut short", "--partial"]);
    assert!(simulate("cut.vmtrace", &["--partial"]).status.success());
    assert_refused(&simulate("damaged.vmtrace", &[]), &["checksum", "--partial"]);
    assert_refused(&simulate("other.vmtrace", &[]), &["no trace"]);
    assert_refused(&simulate("missing.vmtrace", &[]), &["missing.vmtrace"]);

    let over = |link: &str| host.vmferry(&["simulate", "vm.vmtrace", "--link", link]);
    assert_refused(&over("0mbit"), &["link rate", "at least 1"]);
    assert_refused(&over("fast"), &["bandwidth"]);
    assert_refused(
        &host.vmferry(&["simulate", "vm.vmtrace"]),
        &["--link RATE", "--to HOST"],
    );
    let unknown = host.vmferry(&["simulate", "vm.vmtrace", "--to", "10.9.8.7"]);
    assert_refused(&unknown, &["not measured yet", "vmferry calibrate --to 10.9.8.7"]);
    let nobody = host.vmferry(&["calibrate", "--to", "tcp:127.0.0.1:1"]);
    assert_refused(&nobody, &["127.0.0.1:1"]);
    assert_refused(
        &host.vmferry(&["calibrate", "--to", "x", "--load", "1ms"]),
        &["1 ms is not possible"],
    );
}
