//! Figures of regression models: what a page says of results that follow a law.

mod support;

use serde_json::json;
use vmferry_lab::bench::{Results, Run, Scenario};
use vmferry_report::{Source, page};

use support::report;

const SHARES: [u32; 9] = [2, 3, 4, 6, 8, 12, 20, 40, 100];

fn scenario() -> Scenario {
    let variants = SHARES.map(|share| {
        format!(
            "[[variant]]\nname = \"{share}%\"\nstrategy = \"pre-copy\"\noptions = {{ cpu = \"{share}%\" }}\n"
        )
    });
    let text = format!(
        r#"
title = "Made up"
links = ["1gbit"]
[[guest]]
name = "cpu:40"
kind = "synth"
memory = "64M"
load = "cpu:40"
{}
[[figure]]
id = "model"
title = "Its model"
source = ["performance-model Fig. 2"]
kind = "model"
[[figure]]
id = "trial"
title = "Its trial"
source = ["performance-model Table 1"]
kind = "trial"
"#,
        variants.concat()
    );
    Scenario::parse("made-up.toml", &text).unwrap()
}

/// A run that took `total_ms` with a share of a core.
fn run(share: u32, total_ms: f64) -> Run {
    let report = report(total_ms, share);
    serde_json::from_value(json!({
        "key": {"guest": "cpu:40", "link": "1gbit", "variant": format!("{share}%"), "repetition": 0},
        "seed": 0, "conditions": "", "command": [], "machine": 0, "started_unix_ms": 0, "took_s": 1.0, "load_average": null,
        "request": {"vmferry": {"to": "b", "strategy": "pre-copy"}},
        "outcome": {"measured": {
            "account": {"vmferry": report}, "link_bytes": null, "operations": null, "link": "1gbit by htb",
            "guest": {"name": "bench", "backend": "synth", "config": {}}
        }}
    }))
    .unwrap()
}

fn shown(law: impl Fn(f64) -> f64) -> String {
    let mut results = Results::new("made-up", &scenario(), false);
    results.machines.push(vmferry_lab::bench::Machine::here());
    results.runs = SHARES.map(|share| run(share, law(f64::from(share)))).into();
    results.summarise();
    let source = Source {
        file: "made-up.json".into(),
        bytes: Vec::new(),
        results,
    };
    page(&[source], None, 0)
}

#[test]
fn a_law_with_a_knee_is_found_drawn_and_put_to_the_trial() {
    // A little off each time, so that there is an interval.
    let page = shown(|share| 20_000.0 / share.min(10.0) * (1.0 + 0.01 * (share * 7.0).sin()));
    for part in [
        "with a knee",
        "R² of 0.9 or more",
        "not from there to 100%",
        "learned at 2, 4, 8, 20, 100 %",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(page.contains("performance-model paper") && page.matches("class=\"plot\"").count() >= 1);
}

#[test]
fn where_time_does_not_depend_on_the_share_the_page_says_so() {
    let page = shown(|share| 2000.0 * (1.0 + 0.02 * (share * 7.0).sin()));
    assert!(page.contains("time does not depend on the CPU share at the source"));
}
