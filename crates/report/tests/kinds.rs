//! Kinds of figures that need what only some runs have: latencies, a model of the data filter, clients that count other things.

use serde_json::{Value, json};
use vmferry_lab::bench::{Results, Run, Scenario};
use vmferry_report::{Source, page};

const SCENARIO: &str = r#"
title = "Made up"
links = ["1gbit"]
repetitions = 3
[[guest]]
name = "g"
kind = "qemu"
memory = "64M"
[[variant]]
strategy = "pre-copy-filter"
[[variant]]
peer = "qemu-pre-copy"
[[figure]]
id = "done"
title = "Throughput"
kind = "timeline"
[[figure]]
id = "waited"
title = "Latency"
source = ["enlightened Fig. 11"]
kind = "latency"
[[figure]]
id = "spread"
title = "Distribution"
source = ["enlightened Fig. 11"]
kind = "distribution"
[[figure]]
id = "states"
title = "States"
source = ["data-filter Fig. 2"]
kind = "states"
"#;

/// Windows from a second before the request to two after it; nothing is answered while the guest stands still, in the sixteenth
/// to the twentieth.
fn seen(unit: &str, slower: f64) -> Value {
    let still = |window: usize| (15..20).contains(&window);
    let latency =
        |p90: f64| json!({"count": 50, "p50_ms": 1.0, "p90_ms": p90, "p99_ms": 9.0 * p90, "max_ms": 300.0});
    let windows: Vec<_> = (0..30)
        .map(|window| if still(window) { 0.0 } else { 50.0 })
        .collect();
    let latencies: Vec<_> = (0..30)
        .map(|window| (!still(window)).then(|| latency(slower * (window + 1) as f64)))
        .collect();
    json!({
        "count": 1250, "errors": 0, "longest_gap_ms": 500.0, "before_per_s": 500.0, "during_per_s": 250.0, "after_per_s": 500.0,
        "windows_start_ms": -1000.0, "window_ms": 100, "windows": windows, "unit": unit,
        "latency": {
            "before": latency(2.0), "during": latency(40.0), "after": latency(2.0),
            "deciles_ms": (0..=10).map(|tenth| slower * f64::from(tenth + 1)).collect::<Vec<_>>(),
            "tail_ms": [slower * 10.6, slower * 10.8, slower * 10.9],
            "windows": latencies
        }
    })
}

fn run(variant: &str, repetition: usize, unit: &str) -> Run {
    let times = json!({"total_ms": 2000.0, "execution_transfer_ms": 1000.0, "downtime_ms": 500.0, "perceived_downtime_ms": 500.0});
    let account = match variant {
        "qemu-pre-copy" => json!({"qemu": {
            "peer": variant, "destination_start_ms": 1.0, "events": [], "figures": {}, "destination_figures": {},
            "parameters": {}, "command_lines": [[], []]
        }}),
        _ => json!({"vmferry": {
            "vm": "g", "strategy": variant, "backend": "qemu", "outcome": "completed", "micro_stops_ms": 0.0, "ram_bytes": 1,
            "data_bytes": 1, "bytes_on_wire": 1, "device_state_bytes": 1,
            "pages": {"sent": 1, "resent": 0, "raw": 0, "uniform": 0, "hole": 0, "free": 0, "filtered": 0, "compressed": 0,
                      "delta": 0, "deduplicated": 0},
            "rounds": [], "phases": [], "faults": {"count": 0, "network": 0, "local": 0, "p50_us": 0.0, "p99_us": 0.0, "max_us": 0.0},
            "cpu_seconds": {"source": 0.0, "destination": 0.0}, "memory_bytes": {"source": 0, "destination": 0},
            "filter": {
                "regions": 256, "interval_ms": 50.0, "samples": 100 * repetition, "states_seen": 3,
                "frequent_share": 1.0, "states": [{"state": 7, "samples": 80 * repetition}, {"state": 9, "samples": 15 * repetition},
                           {"state": 256, "samples": 5 * repetition}],
                "transitions": 90, "transitions_seen": 6, "memory_bytes": 2_790_000, "fits": true, "tests": 5, "tests_failed": 1,
                "last_test": null, "rebuilt": 0, "forecasts": 20
            }
        }}),
    };
    let mut account = account;
    let (_, report) = account.as_object_mut().unwrap().iter_mut().next().unwrap();
    let (report, Value::Object(times)) = (report.as_object_mut().unwrap(), times) else {
        unreachable!("both are objects");
    };
    report.extend(times);
    serde_json::from_value(json!({
        "key": {"guest": "g", "link": "1gbit", "variant": variant, "repetition": repetition},
        "seed": 0, "conditions": "", "command": [], "request": {"qemu": {"peer": "qemu-pre-copy", "parameters": {}}},
        "machine": 0, "started_unix_ms": 0, "took_s": 1.0, "load_average": null,
        "outcome": {"measured": {
            "account": account, "link_bytes": null, "link": "1gbit", "guest": {"name": "g", "backend": "qemu", "config": {}},
            "operations": seen(unit, if variant == "qemu-pre-copy" { 4.0 } else { 1.0 }),
            "neighbour": seen(unit, 0.5)
        }}
    }))
    .unwrap()
}

fn made_up(unit: &str) -> String {
    let mut results = Results::new("made-up", &Scenario::parse("t.toml", SCENARIO).unwrap(), false);
    for variant in ["pre-copy-filter", "qemu-pre-copy"] {
        results
            .runs
            .extend((1..=3).map(|repetition| run(variant, repetition, unit)));
    }
    results.summarise();
    let source = Source {
        file: "made-up.json".into(),
        bytes: Vec::new(),
        results,
    };
    page(&[source], None, 0)
}

fn figure<'a>(page: &'a str, id: &str) -> &'a str {
    let (_, rest) = page.split_once(&format!("id=\"made-up--{id}\"")).unwrap();
    rest.split_once("</figure>").unwrap().0
}

#[test]
fn a_timeline_names_what_is_counted() {
    for (unit, axis) in [
        ("operations", "operations/s"),
        ("pages", "pages/s"),
        ("bytes", "KiB/s"),
    ] {
        let page = made_up(unit);
        let timeline = figure(&page, "done");
        assert!(timeline.contains(&format!(">{axis}</text>")), "{timeline}");
        let said = timeline.contains(&format!("operations are {unit}"));
        assert_eq!(said, unit != "operations", "{unit}");
    }
}

#[test]
fn latency_stands_below_throughput_and_has_no_line_where_nobody_answered() {
    let page = made_up("operations");
    let figure = figure(&page, "waited");
    assert_eq!(figure.matches("<svg").count(), 4, "two of each variant");
    assert!(figure.contains(">ms</text>") && figure.contains("Latency of g with qemu-pre-copy"));
    let (_, latency) = figure.split_once("Latency of g with pre-copy-filter").unwrap();
    let latency = latency.split_once("</svg>").unwrap().0;
    assert_eq!(
        latency.matches("class=\"trace\"").count(),
        2,
        "before and after the stop"
    );
    assert!(
        figure.contains("latency p90 during") && figure.contains("40 ms"),
        "{figure}"
    );
}

#[test]
fn a_distribution_has_a_line_for_each_and_for_the_neighbour() {
    let page = made_up("operations");
    let figure = figure(&page, "spread");
    let (_, plot) = figure.split_once("<svg id").unwrap();
    let plot = plot.split_once("</svg>").unwrap().0;
    assert_eq!(plot.matches("class=\"trace\"").count(), 4);
    // Eleven deciles and three more of each.
    assert_eq!(plot.matches("class=\"mark\"").count(), 4 * 14);
    for name in ["pre-copy-filter, its neighbour", "qemu-pre-copy"] {
        assert!(figure.contains(name), "{name}");
    }
    assert!(figure.contains("44 ms"), "the longest of the peer: {figure}");
}

#[test]
fn micro_benches_stand_on_the_page_with_their_spread() {
    let micro = serde_json::from_value(json!({
        "micro_format": 1, "machine": vmferry_lab::bench::Machine::here(), "gathered_unix_ms": 0, "load_average": 0.25,
        "functions": [{"group": "scan of 1 GiB", "name": "clean", "ns": 360_000.0, "low_ns": 350_000.0, "high_ns": 420_000.0,
                       "bytes": 1_u64 << 30}],
        "comparisons": {"push": {"pre-copy: vmferry / iperf3": {"ratio": 0.79, "wanted": "at least 0.7"},
                                 "pre-copy: vmferry": {"median": 1.5, "min": 1.2, "max": 1.75, "unit": "GiB/s", "values": []}}}
    }));
    let page = page(&[], Some(&micro.unwrap()), 0);
    let (_, section) = page.split_once("<section id=\"micro\"").unwrap();
    let section = section.split_once("</section>").unwrap().0;
    for words in [
        "360 µs",
        "350 µs to 420 µs",
        "2.71 TiB",
        "0.79 times",
        "at least 0.7",
        "1.2 to 1.75",
        "0.25",
    ] {
        assert!(section.contains(words), "{words}: {section}");
    }
    assert!(page.contains("href=\"#micro\""));
}

#[test]
fn states_of_the_model_are_shown_with_how_often_each_occurred() {
    let page = made_up("operations");
    let figure = figure(&page, "states");
    assert_eq!(
        figure.matches("class=\"count\"").count(),
        3,
        "one run's: {figure}"
    );
    assert!(figure.contains("3 of 257 states in 300 samples"), "{figure}");
    assert!(figure.contains("most often 7 with 80 %"));
    assert!(figure.contains("n = 3"), "the table is of all of them");
}
