//! What a page says of results that are made up.

mod support;

use serde_json::json;
use vmferry_lab::bench::{Machine, Results, Run, Scenario};
use vmferry_report::{Source, page};

use support::between;

const SCENARIO: &str = r#"
title = "Made up"
links = ["1gbit"]
repetitions = 4
[[guest]]
name = "g"
kind = "qemu"
memory = "64M"
[[variant]]
strategy = "pre-copy"
[[variant]]
strategy = "hybrid"
[[variant]]
peer = "qemu-pre-copy"
[[claim]]
text = "pre-copy is as quick as QEMU"
metric = "total_ms"
variant = "pre-copy"
relative_to = "best peer"
at_most = 1.0
[[figure]]
id = "times"
title = "Times"
source = ["hybrid-learning Fig. 4"]
claim = "It takes no longer."
why = "The link is shared."
kind = "bars"
metrics = ["total_ms"]
[[figure]]
id = "hybrids"
title = "Hybrids"
kind = "bars"
metrics = ["total_ms"]
variants = ["hybrid"]
"#;

/// A run that took so long, or did not end. Who moved the guest does not matter to a page, so that one kind of account will do.
fn run(variant: &str, repetition: usize, total_ms: Option<f64>) -> Run {
    let outcome = match total_ms {
        None => json!({"failed": {"why": "no room"}}),
        Some(total_ms) => json!({"measured": {
            "account": {"qemu": {
                "peer": "qemu-pre-copy", "total_ms": total_ms, "execution_transfer_ms": 9.0, "downtime_ms": 5.0,
                "perceived_downtime_ms": null, "destination_start_ms": 1.0, "events": [], "figures": {},
                "destination_figures": {}, "parameters": {}, "command_lines": [[], []]
            }},
            "link_bytes": null, "operations": null, "link": "1gbit by htb",
            "guest": {"name": "g", "backend": "qemu", "config": {"args": ["-kernel", "/home/somebody/vmlinuz"]}}
        }}),
    };
    serde_json::from_value(json!({
        "key": {"guest": "g", "link": "1gbit", "variant": variant, "repetition": repetition},
        "seed": 0, "conditions": "", "command": ["bench", "--to=unix:/destination", "--strategy=x"],
        "request": {"qemu": {"peer": "qemu-pre-copy", "parameters": {}}}, "machine": 0,
        "started_unix_ms": 1_700_000_000_000_u64, "took_s": 1.0, "load_average": 0.5, "outcome": outcome
    }))
    .unwrap()
}

fn made_up(ours: &[f64], peers: &[f64]) -> String {
    let scenario = Scenario::parse("made-up.toml", SCENARIO).unwrap();
    let mut results = Results::new("made-up", &scenario, false);
    results.machine(&Machine::here());
    for (variant, times) in [("pre-copy", ours), ("qemu-pre-copy", peers)] {
        let runs = times.iter().enumerate();
        results
            .runs
            .extend(runs.map(|(repetition, ms)| run(variant, repetition, Some(*ms))));
    }
    results.runs.push(run("hybrid", 0, None));
    results.summarise();
    let source = Source {
        file: "made-up.json".into(),
        bytes: b"abc".to_vec(),
        results,
    };
    page(&[source], None, 1_700_000_000_000)
}

#[test]
fn where_vmferry_is_behind_is_said_first() {
    let page = made_up(
        &[2000.0, 2100.0, 2050.0, 1990.0],
        &[1000.0, 1010.0, 990.0, 1005.0],
    );
    let behind = between(&page, "id=\"behind\"", "</section>");
    for words in [
        "behind",
        "total time",
        "pre-copy is as quick as QEMU",
        "The link is shared.",
        "2.02",
    ] {
        assert!(behind.contains(words), "{words}: {behind}");
    }
    let ratios = between(&page, "id=\"peers\"", "</section>");
    assert!(ratios.contains("n = 4") && ratios.contains(" to "), "{ratios}");
    let figure = between(&page, "id=\"made-up--times\"", "</figure>");
    for words in [
        "It takes no longer.",
        "differs",
        "2.02 s",
        "It takes",
        "no room",
        "total migration time of the same",
    ] {
        assert!(figure.contains(words), "{words}: {figure}");
    }
    assert!(!figure.contains("not beyond doubt"), "every run was slower");
}

#[test]
fn where_it_is_ahead_nothing_is_complained_of() {
    let page = made_up(
        &[1000.0, 1010.0, 990.0, 1005.0],
        &[2000.0, 2100.0, 2050.0, 1990.0],
    );
    let behind = between(&page, "id=\"behind\"", "</section>");
    assert!(behind.contains("Nothing of what was measured here."), "{behind}");
    assert!(between(&page, "id=\"peers\"", "</section>").contains("ahead"));
}

#[test]
fn a_single_run_has_no_interval_and_no_certainty() {
    let page = made_up(&[1000.0], &[2000.0]);
    let figure = between(&page, "id=\"made-up--times\"", "</figure>");
    assert!(
        figure.contains("n = 1") && figure.contains("holds, not beyond doubt"),
        "{figure}"
    );
    assert!(!figure.contains("class=\"whisker\"") && !figure.contains("class=\"spread\""));
    assert!(between(&page, "id=\"peers\"", "</section>").contains("ahead, one run"));
}

#[test]
fn what_failed_and_what_is_not_there_says_why() {
    let page = made_up(&[1000.0, 1001.0], &[2000.0, 2001.0]);
    let figure = between(&page, "id=\"made-up--hybrids\"", "</figure>");
    assert!(
        figure.contains("not measured") && figure.contains("no room"),
        "{figure}"
    );
    let papers = between(&page, "id=\"papers\"", "</section>");
    for words in [
        "#made-up--times",
        "<code>resume-configured</code>",
        "<code>hybrid-strategies</code>",
    ] {
        assert!(papers.contains(words), "{words}");
    }
}

#[test]
fn files_have_their_hashes_and_nobody_his_folders() {
    let page = made_up(&[1000.0], &[2000.0]);
    let origin = between(&page, "id=\"origin\"", "</section>");
    assert!(origin.contains("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
    assert!(
        origin.contains("vmlinuz") && !page.contains("/home/somebody"),
        "{origin}"
    );
    assert!(!page.contains("unix:/destination"));
    assert!(page.contains("2023-11-14 22:13 UTC"));
    assert_eq!(
        page,
        made_up(&[1000.0], &[2000.0]),
        "the same results make the same page"
    );
}
