//! `vmferry model` and `vmferry forecast` as they are typed, against daemons with synthetic guests.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use vmferry_cli::Client;
use vmferry_cli::daemon::{Daemon, Options};
use vmferry_cli::loadspec;
use vmferry_core::report::CpuSeconds;
use vmferry_forecast::history::{History, Record};
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
        Self::remembering(&[])
    }

    /// A host from which idle guests of 128 MiB moved before: with such a share at the source, in so many milliseconds.
    fn remembering(migrations: &[(Option<u32>, f64)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        let history = History::open(&dir.path().join("state/history")).unwrap();
        for (number, (percent, total_ms)) in migrations.iter().enumerate() {
            history.append(&idle(number, *percent, *total_ms)).unwrap();
        }
        drop(history);
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

fn idle(number: usize, percent: Option<u32>, total_ms: f64) -> Record {
    serde_json::from_value(json!({
        "id": format!("web-{number}"), "vm": "web", "to": "tcp:b:7120", "ended_unix_ms": 1_000 + number, "backend": "synth",
        "strategy": "pre-copy", "encoding": "raw", "workload": "cpu:0", "setting": {"source_percent": percent},
        "together": 1, "outcome": "completed", "ram_bytes": 256 * MIB, "data_bytes": 128 * MIB, "bytes_on_wire": 129 * MIB,
        "total_ms": total_ms, "execution_transfer_ms": total_ms, "downtime_ms": 2.0, "cpu_seconds": CpuSeconds::default(),
    }))
    .unwrap()
}

fn vmferry(socket: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmferry"))
        .args(line.split(' '))
        .env("VMFERRY_SOCKET", socket)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
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
fn what_all_migrations_had_in_common_is_named_in_the_answer() {
    let at_half = Host::remembering(&[(Some(50), 1_000.0), (Some(50), 1_020.0), (Some(50), 990.0)]);
    let said = text(&at_half.vmferry("model predict"));
    assert!(
        said.contains("50% at the source (all of them had that)") && !said.contains("no cap"),
        "{said}"
    );
    let same = text(&at_half.vmferry("model predict --cpu 50%"));
    assert!(same.contains("50% at the source: 1 s"), "{same}");
    let in_json = json(&at_half.vmferry("model predict --json"));
    assert_eq!(in_json["assumed"][0]["value"], 50.0);
    let why = error(&at_half.vmferry("model invert --within 1s --of bandwidth"));
    assert!(
        why.contains("the bandwidth was never varied") && !why.contains("knows nothing"),
        "{why}"
    );
    let free = Host::remembering(&[(None, 400.0), (None, 410.0)]);
    let said = text(&free.vmferry("model predict"));
    assert!(said.contains("no cap: "), "{said}");
}

#[test]
fn three_settings_are_not_said_to_show_that_time_depends_on_nothing() {
    let host = Host::remembering(&[(Some(2), 6_000.0), (Some(4), 3_000.0), (Some(8), 1_500.0)]);
    for line in [
        "model fit",
        "model show",
        "model predict --cpu 4%",
        "model predict",
    ] {
        let said = text(&host.vmferry(line));
        assert!(
            said.contains("3 settings are too few to tell") && !said.contains("does not depend"),
            "{line}: {said}"
        );
    }
    let said = text(&host.vmferry("model predict"));
    assert!(said.contains("8% at the source (the most in the data)"), "{said}");
    let why = error(&host.vmferry("model invert --within 1s"));
    assert!(why.contains("too few to tell"), "{why}");
}

#[test]
fn what_is_left_out_is_said_and_the_question_decides_what_that_is() {
    let two = Host::remembering(&[(Some(20), 900.0), (Some(80), 300.0)]);
    let said = text(&two.vmferry("model fit"));
    assert!(
        said.contains("there are 1 (1 left out: another CPU share"),
        "{said}"
    );

    let five = Host::remembering(&[
        (Some(20), 900.0),
        (Some(20), 910.0),
        (Some(80), 300.0),
        (Some(80), 310.0),
        (Some(80), 305.0),
    ]);
    for line in ["model fit", "model show", "model predict"] {
        let said = text(&five.vmferry(line));
        assert!(said.contains("2 left out: another CPU share"), "{line}: {said}");
    }
    let why = error(&five.vmferry("model predict --cpu 20%"));
    assert!(
        why.contains("had 80%") && why.contains("2 left out: another CPU share"),
        "{why}"
    );

    let mut mostly_free = vec![
        (None, 200.0),
        (None, 205.0),
        (None, 202.0),
        (None, 203.0),
        (None, 204.0),
    ];
    mostly_free
        .extend([(5, 4_000.0), (10, 2_000.0), (20, 1_000.0), (40, 500.0)].map(|(at, ms)| (Some(at), ms)));
    let free = Host::remembering(&mostly_free);
    let said = text(&free.vmferry("model predict"));
    assert!(
        said.contains("no cap: 203 ms") && said.contains("4 left out: a cap on the CPU share at the source"),
        "{said}"
    );
    let said = text(&free.vmferry("model predict --cpu 10%"));
    assert!(
        said.contains("10% at the source: 2 s") && said.contains("5 left out: no cap"),
        "{said}"
    );
    let found = json(&free.vmferry("model invert --within 1500ms --json"));
    assert!(
        (10.0..20.0).contains(&found["likely"].as_f64().unwrap()),
        "{found}"
    );
}

#[test]
fn a_goal_that_cannot_be_met_is_refused_with_the_time_of_the_whole_guest() {
    let shares = [3, 5, 8, 12, 20, 30, 45, 60, 100];
    let took: Vec<_> = shares
        .map(|at| (Some(at), 19_200.0 / f64::from(at.min(12))))
        .to_vec();
    let host = Host::remembering(&took);
    let why = error(&host.vmferry("model invert --within 1s --form power-knee"));
    assert!(why.contains("the time is 1.6 s") && !why.contains("MiB"), "{why}");
    let why = error(&host.vmferry("model invert --within 0s"));
    assert!(
        why.contains("a time above 0") && !why.contains("measured"),
        "{why}"
    );
    // Of a size that no guest had it may take as long as the largest did, or as much longer as it is larger.
    let known = json(&host.vmferry("model predict --cpu 100% --json"));
    assert!(known["beyond_data_sizes"].is_null(), "{known}");
    for (size, smaller, larger) in [("64G", "low", "high"), ("1M", "high", "low")] {
        let beyond = json(&host.vmferry(&format!("model predict --cpu 100% --data {size} --json")));
        let said = beyond["beyond_data_sizes"].as_str().unwrap();
        assert!(said.contains("all had") && said.contains("widened"), "{said}");
        let ms = |said: &Value, end: &str| said["total_ms"][end].as_f64().unwrap();
        assert!(
            (ms(&beyond, smaller) / ms(&known, smaller) - 1.0).abs() < 1e-9,
            "{beyond}"
        );
        assert!(
            (ms(&beyond, larger) / ms(&known, larger)).ln().abs() > 2.0,
            "{beyond}"
        );
    }
    let said = json(&host.vmferry("model predict --cpu 100% --parallel 2 --json"));
    assert_eq!(said["together"]["bound"]["beyond"], json!([]));
    let beyond = json(&host.vmferry("model predict --cpu 400% --parallel 2 --json"));
    let bound = &beyond["together"]["bound"];
    assert!(bound["alone_ms"].as_f64().unwrap() < 500.0, "{beyond}");
    assert_eq!(bound["beyond"][0]["asked"], 400.0);
}

#[test]
fn what_a_forecast_is_without_is_said_and_such_a_migration_is_no_test_of_it() {
    let (a, b) = (Host::start(), Host::start());
    a.run("web", "fill:8M");
    a.run("other", "fill:8M");
    let to = &b.daemon.info().listen;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other.vmtrace");
    let file = file.display();
    json(&a.vmferry(&format!("trace other --for 500ms --out {file} --json")));
    let of_other = a.vmferry(&format!(
        "forecast web --to {to} --trace {file} --simulations 2 --cpu 50% --cpu-destination 50% --goal downtime=2m --json"
    ));
    let basis = json(&of_other)["basis"].to_string();
    assert!(basis.contains("33% of the cases"), "{basis}");
    let said = String::from_utf8_lossy(&of_other.stderr).into_owned();
    assert!(said.contains("recorded of other"), "{said}");
    let moved = a.vmferry(&format!(
        "migrate web --to {to} --strategy stop-and-copy --forecast --verify --record 1s --json"
    ));
    let basis = json(&moved)["forecast"]["basis"].to_string();
    let said = String::from_utf8_lossy(&moved.stderr).into_owned();
    for text in [basis, said] {
        assert!(text.contains("comparing all pages is not included"), "{text}");
    }
    let why = error(&a.vmferry("forecast score"));
    assert!(why.contains("among 1") && why.contains("--verify"), "{why}");
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
