//! Figures of forecasts: what a page says of runs that had one.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use vmferry_lab::bench::{Machine, Results, Run, Scenario};
use vmferry_report::{Source, page};

use support::between;

const SCENARIO: &str = r#"
title = "Made up"
links = ["1gbit"]
repetitions = 12
[[guest]]
name = "g"
kind = "synth"
memory = "64M"
[[variant]]
strategy = "stop-and-copy"
[[variant]]
strategy = "pre-copy"
[[variant]]
strategy = "post-copy-push"
[[figure]]
id = "score"
title = "Score"
kind = "score"
[[figure]]
id = "rounds"
title = "Rounds"
kind = "forecast-rounds"
"#;

const STRATEGIES: [(&str, f64); 3] = [
    ("stop-and-copy", 1500.0),
    ("pre-copy", 2000.0),
    ("post-copy-push", 1000.0),
];

fn expected(strategy: &str, total_ms: f64, rounds: bool) -> Value {
    let about = |likely: f64| json!({"likely": likely, "low": 0.9 * likely, "high": 1.1 * likely});
    let mut expected = json!({
        "strategy": strategy, "total_ms": about(total_ms), "execution_transfer_ms": about(total_ms), "downtime_ms": about(total_ms / 10.0),
        "bytes_on_wire": about(1e8), "slow_down_percent": about(1.0), "rounds": about(2.0), "completes": 1.0
    });
    if rounds {
        expected["typical_rounds"] = json!([
            {"pages": 8000, "bytes": 32_000_000, "ms": 260.0}, {"pages": 640, "bytes": 2_600_000, "ms": 21.0}
        ]);
    }
    expected
}

/// A run that took `factor` times what was expected, with rounds in its forecast or, as older ones are, without.
fn run(strategy: &str, total_ms: f64, repetition: usize, factor: f64, rounds: bool) -> Run {
    let strategies = STRATEGIES.map(|(strategy, total_ms)| expected(strategy, total_ms, rounds));
    let took = total_ms * factor;
    let report = json!({
        "vm": "bench", "strategy": strategy, "backend": "synth", "outcome": "completed", "total_ms": took,
        "execution_transfer_ms": took, "downtime_ms": took / 10.0, "perceived_downtime_ms": null, "micro_stops_ms": 0.0,
        "ram_bytes": 64 << 20, "data_bytes": 32 << 20, "bytes_on_wire": (1e8 * factor) as u64, "device_state_bytes": 100,
        "pages": {"sent": 8192, "resent": 0, "raw": 8192, "uniform": 0, "hole": 0, "free": 0, "filtered": 0, "compressed": 0,
            "delta": 0, "deduplicated": 0},
        "rounds": [{"ms": 270.0, "pages_sent": 8192, "pages_dirtied": 777, "bytes": 33_000_000},
            {"ms": 25.0, "pages_sent": 777, "pages_dirtied": 55, "bytes": 3_000_000},
            {"ms": 2.0, "pages_sent": 55, "pages_dirtied": 0, "bytes": 230_000}],
        "phases": [],
        "faults": {"count": 0, "network": 0, "local": 0, "p50_us": 0.0, "p99_us": 0.0, "max_us": 0.0},
        "cpu_seconds": {"source": 1.0, "destination": 1.0}, "memory_bytes": {"source": 0, "destination": 0},
        "limits": {"downtime_ms": 300.0, "timeout_ms": null, "bandwidth_bytes_per_s": null, "bandwidth_waited_ms": 0.0,
            "cpu_percent": null, "cpu_waited_ms": 0.0},
        "forecast": {"goal": "balanced", "recommended": "post-copy-push", "why": "it is the best", "simulations": 40,
            "basis": "4 s of bench", "strategies": strategies}
    });
    serde_json::from_value(json!({
        "key": {"guest": "g", "link": "1gbit", "variant": strategy, "repetition": repetition},
        "seed": 0, "conditions": "", "command": [], "machine": 0, "started_unix_ms": 0, "took_s": 1.0, "load_average": null,
        "request": {"vmferry": {"to": "b", "strategy": strategy}},
        "outcome": {"measured": {
            "account": {"vmferry": report}, "link_bytes": null, "operations": null, "link": "1gbit by htb",
            "guest": {"name": "bench", "backend": "synth", "config": {}}
        }}
    }))
    .unwrap()
}

fn shown(repetitions: usize, factor: impl Fn(usize) -> f64, rounds: bool) -> String {
    let scenario = Scenario::parse("made-up.toml", SCENARIO).unwrap();
    let mut results = Results::new("made-up", &scenario, false);
    results.machines.push(Machine::here());
    for repetition in 0..repetitions {
        let factor = factor(repetition);
        results.runs.extend(
            STRATEGIES.map(|(strategy, total_ms)| run(strategy, total_ms, repetition, factor, rounds)),
        );
    }
    results.summarise();
    of(results)
}

fn of(results: Results) -> String {
    let source = Source {
        file: "made-up.json".into(),
        bytes: Vec::new(),
        results,
    };
    page(&[source], None, 0)
}

/// Markup without its marks.
fn text(markup: &str) -> String {
    let mut text = String::new();
    let mut within = false;
    for letter in markup.chars() {
        match letter {
            '<' => within = true,
            '>' => within = false,
            _ if !within => text.push(letter),
            _ => {}
        }
    }
    text
}

#[test]
fn forecasts_that_are_good_hold_what_is_asked_of_them() {
    // One of twelve is off by more than its interval.
    let page = shown(12, |repetition| if repetition == 5 { 1.3 } else { 1.02 }, true);
    let figure = between(&page, "id=\"made-up--score\"", "</figure>");
    let said = text(figure);
    for words in [
        "all 22 bars held",
        "held: at least 30 migrations: 36",
        "held: median error of total time at most 15 %: 1.96 %",
        "held: downtime within 10 ms or 25 % in the median: off by 3 ms and 1.96 %",
        "held: 90 % intervals of bytes hold what was measured in 80 % to 97 %: 91.7 %",
        "in at least 80 %, for the goal evict",
        "Migrations with a forecast: 36. Guests: 1 (synth): g. Links: 1: 1gbit. Strategies: 3:",
        "total time: 33 of 36 intervals hold",
        "11 of 12 hold",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(
        figure.matches("class=\"plot\"").count(),
        4,
        "a plot for each quantity"
    );
    assert!(!text(between(&page, "id=\"behind\"", "</section>")).contains("forecasts"));
}

#[test]
fn what_forecasts_miss_is_said_at_the_figure_and_at_the_top() {
    let page = shown(12, |_| 1.5, true);
    let said = text(between(&page, "id=\"made-up--score\"", "</figure>"));
    assert!(
        said.contains("missed: median error of total time at most 15 %: 33.3 %")
            && said.contains("held: at least 30 migrations")
            && said
                .contains("missed: 90 % intervals of downtime hold what was measured in 80 % to 97 %: 0 %"),
        "{said}"
    );
    let behind = text(between(&page, "id=\"behind\"", "</section>"));
    assert!(
        behind.contains("Asked of forecasts, but missed") && behind.contains("made-up: 33.3 %"),
        "{behind}"
    );
}

#[test]
fn a_score_of_few_migrations_says_so() {
    let page = shown(2, |_| 1.02, true);
    let said = text(between(&page, "id=\"made-up--score\"", "</figure>"));
    for words in [
        "missed: at least 30 migrations: only 6",
        "held, of too few migrations: median error of bytes",
        "missed, of too few migrations: 90 % intervals of total time",
        "100 %: too wide",
        "Of too few migrations to say much: 30 or more are needed.",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn rounds_stand_beside_each_other_as_far_as_forecasts_keep_them() {
    let figure = |page: &str| between(page, "id=\"made-up--rounds\"", "</figure>").to_owned();
    let kept = figure(&shown(1, |_| 1.0, true));
    assert_eq!(
        kept.matches("<caption>").count(),
        1,
        "only pre-copy goes by rounds"
    );
    let rows: Vec<_> = kept
        .split("<tr>")
        .filter(|row| row.contains("scope=\"row\""))
        .map(|row| text(&row.replace("</td>", "|")))
        .collect();
    assert_eq!(rows.len(), 4, "{rows:?}");
    for (row, starts) in rows
        .iter()
        .zip(["18,000|8,192|", "2640|777|", "3–|55|", "all8,640|9,024|"])
    {
        assert!(row.starts_with(starts), "{row}");
    }
    let older = text(&figure(&shown(1, |_| 1.0, false)));
    assert!(
        older.contains("an earlier vmferry made them")
            && older.contains("rounds before the stop: 2, expected 2 (1.8 to 2.2)")
            && older.contains("8,192"),
        "{older}"
    );
}

#[test]
fn results_that_were_measured_before_there_were_scores_are_shown_with_one() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/evaluation/raw/forecasts.json");
    let (results, _) = Results::read(&file).unwrap();
    let runs = results.runs.len();
    let page = of(results.renewed());
    let said = text(between(&page, "id=\"forecasts--forecasts-score\"", "</figure>"));
    assert!(
        said.contains("bars") && said.contains("Guests: 4 (qemu, synth): idle, write loop"),
        "{runs} runs: {said}"
    );
    assert!(between(&page, "id=\"forecasts--forecasts-rounds\"", "</figure>").contains("expected"));
}
