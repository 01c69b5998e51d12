//! `vmferry model` and `vmferry forecast` as they are typed, against daemons with synthetic guests.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vmferry_cli::Client;
use vmferry_cli::daemon::{Daemon, Options};
use vmferry_cli::loadspec;
use vmferry_guest_synth::SynthBackend;
use vmferry_transport::Endpoint;

const MIB: u64 = 1 << 20;

struct Host {
    daemon: Daemon,
    client: Client,
    _dir: TempDir,
}

impl Host {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            listen: Endpoint::tcp("127.0.0.1", 0),
            state_dir: dir.path().join("state"),
            api: None,
            max_streams: 64,
            sampling: None,
            store: None,
        };
        let daemon = Daemon::start(&options).unwrap();
        let client = Client::new(daemon.api()).unwrap();
        Self {
            daemon,
            client,
            _dir: dir,
        }
    }

    fn run(&self, name: &str, load: &str) {
        let config = loadspec::parse(load, 64 * MIB, 1).unwrap();
        self.client.run(&SynthBackend::spec(name, &config)).unwrap();
    }

    /// What a line of words prints, and on which stream.
    fn vmferry(&self, line: &str) -> Output {
        let line = line.replace("HERE", &self.daemon.info().listen);
        vmferry(self.daemon.api(), &line)
    }
}

fn vmferry(socket: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmferry"))
        .args(line.split(' '))
        .env("VMFERRY_SOCKET", socket)
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn error(output: &Output) -> String {
    assert_eq!(
        output.status.code(),
        Some(1),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Moves `name` back and forth, once for each cap.
fn migrations(a: &Host, b: &Host, name: &str, caps: &[u32]) {
    for cap in caps {
        for (from, to) in [(a, b), (b, a)] {
            let to = &to.daemon.info().listen;
            let line = format!(
                "migrate {name} --to {to} --cpu {cap}% --strategy post-copy-push --encoding raw --workload cpu:0 --json"
            );
            assert_eq!(json(&from.vmferry(&line))["outcome"], "completed");
            let began = Instant::now();
            while Duration::from_secs(60) > began.elapsed()
                && ![a, b]
                    .iter()
                    .any(|host| matches!(host.client.guest(name), Ok(guest) if guest.migration.is_none()))
            {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

#[test]
fn models_learn_from_the_history_and_say_what_they_do_not_know() {
    let (a, b) = (Host::start(), Host::start());
    let why = error(&a.vmferry("model fit"));
    assert!(
        why.contains("no migrations yet") && why.contains("bench profile"),
        "{why}"
    );
    a.run("web", "fill:24M");
    migrations(&a, &b, "web", &[2, 4, 8, 30, 100]);
    let fits = json(&a.vmferry("model fit --json"));
    assert_eq!(fits.as_array().unwrap().len(), 1);
    assert_eq!(
        (&fits[0]["kind"]["workload"], &fits[0]["model"]["points"]),
        (&"cpu:0".into(), &5.into())
    );
    let text = String::from_utf8(a.vmferry("model fit").stdout).unwrap();
    assert!(
        text.contains("cpu:0, post-copy-push, synth, raw") && text.contains("CPU share at the source"),
        "{text}"
    );

    let said = json(&a.vmferry("model predict --cpu 4% --json"));
    let of = |name: &str| said["total_ms"][name].as_f64().unwrap();
    assert!(of("low") < of("value") && of("value") < of("high"), "{said}");
    let beyond = String::from_utf8(a.vmferry("model predict --cpu 1% --form power").stdout).unwrap();
    assert!(
        beyond.contains("beyond the data") && beyond.contains("widened"),
        "{beyond}"
    );
    let why = error(&a.vmferry("model predict --cpu 4% --cpu-destination 50%"));
    assert!(why.contains("knows nothing"), "{why}");
    let why = error(&a.vmferry("model invert --within 1ms"));
    assert!(why.contains("cannot be met"), "{why}");
    let found = json(&a.vmferry("model invert --within 1h --json"));
    assert_eq!((&found["or_less"], &found["likely"]), (&true.into(), &2.0.into()));
    let why = error(&a.vmferry("model predict --workload memory-write"));
    assert!(why.contains("5 of cpu:0"), "{why}");
    let why = error(&a.vmferry("model fit --from /nonexistent.json"));
    assert!(why.contains("/nonexistent.json"), "{why}");
}

#[test]
fn a_forecast_is_kept_with_the_report_and_scored() {
    let (a, b) = (Host::start(), Host::start());
    a.run("web", "write:4M,rate=10M + fill:8M");
    let why = error(&a.vmferry("forecast score"));
    assert!(
        why.contains("no migrations") && why.contains("--strategy auto"),
        "{why}"
    );
    let to = &b.daemon.info().listen;
    let forecast = json(&a.vmferry(&format!(
        "forecast web --to {to} --goal evict --record 1s --simulations 4 --json"
    )));
    // Without an agent there is nothing to be enlightened by.
    assert_eq!(forecast["strategies"].as_array().unwrap().len(), 7);
    assert_eq!(forecast["goal"], "evict");
    let report = json(&a.vmferry(&format!(
        "migrate web --to {to} --strategy auto --goal evict --record 1s --json"
    )));
    assert_eq!(report["outcome"], "completed");
    assert_eq!(report["strategy"], report["forecast"]["recommended"]);
    let score = json(&a.vmferry("forecast score --json"));
    assert_eq!(
        (&score["migrations"], score["points"].as_array().unwrap().len()),
        (&1.into(), 4)
    );

    let why = error(&a.vmferry(&format!("migrate web --to {to} --goal evict")));
    assert!(why.contains("--forecast"), "{why}");
    let why = error(&b.vmferry("forecast web --to tcp:127.0.0.1:1 --record 1s"));
    assert!(why.contains("127.0.0.1:1"), "{why}");
    let why = error(&a.vmferry(&format!("forecast nobody --to {to}")));
    assert!(why.contains("nobody"), "{why}");
    assert_eq!(
        a.vmferry(&format!("forecast web --to {to} --goal fast"))
            .status
            .code(),
        Some(2)
    );
}
