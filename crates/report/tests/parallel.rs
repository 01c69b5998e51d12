//! Guests that were moved at once: what a page says beside the bound.

mod support;

use serde_json::json;
use vmferry_lab::bench::{Machine, Results, Run, Scenario, records};
use vmferry_report::{Source, page};

use support::report;

/// How many at once, and what they shared.
const CROWDS: [(u32, u32); 9] = [
    (1, 2),
    (1, 3),
    (1, 4),
    (1, 6),
    (1, 8),
    (1, 16),
    (1, 40),
    (2, 8),
    (4, 8),
];

fn scenario() -> Scenario {
    let variants = CROWDS.map(|(guests, share)| {
        format!(
            "[[variant]]\nname = \"{guests} with {share}%\"\nexperiment = {{ kind = \"parallel\", guests = {guests}, cpu_percent = {share} }}\n"
        )
    });
    let text = format!(
        "title = \"Made up\"\nlinks = [\"1gbit\"]\n[[guest]]\nname = \"cpu:0\"\nkind = \"synth\"\nmemory = \"64M\"\nload = \"idle\"\n{}\
         [[figure]]\nid = \"bound\"\ntitle = \"Bound\"\nkind = \"parallel\"\n",
        variants.concat()
    );
    Scenario::parse("made-up.toml", &text).unwrap()
}

/// Guests that take 16 s at a share of a percent each, and where several are moved a tenth more.
fn run((guests, share): (u32, u32), repetition: u32) -> Run {
    let crowded = if guests > 1 { 1.1 } else { 1.0 };
    let noise = 1.0 + 0.01 * (f64::from(repetition * 7 + share) * 3.0).sin();
    let total_ms = 16_000.0 / (f64::from(share) / f64::from(guests)) * crowded * noise;
    let reports: Vec<_> = (0..guests).map(|_| report(total_ms, share / guests)).collect();
    serde_json::from_value(json!({
        "key": {"guest": "cpu:0", "link": "1gbit", "variant": format!("{guests} with {share}%"), "repetition": repetition},
        "seed": 0, "conditions": "", "command": [], "machine": 0, "started_unix_ms": 0, "took_s": 1.0, "load_average": null,
        "request": {"experiment": {"kind": "parallel", "guests": guests, "cpu_percent": share}},
        "outcome": {"measured": {
            "account": {"experiment": {
                "experiment": "parallel", "total_ms": total_ms, "perceived_downtime_ms": null, "figures": {"guests": guests},
                "said": {"reports": reports}
            }},
            "link_bytes": null, "operations": null, "link": "1gbit by htb",
            "guest": {"name": "bench", "backend": "synth", "config": {}}
        }}
    }))
    .unwrap()
}

fn results(crowds: &[(u32, u32)]) -> Results {
    let mut results = Results::new("made-up", &scenario(), false);
    results.machines.push(Machine::here());
    for repetition in 0..3 {
        results
            .runs
            .extend(crowds.iter().map(|crowd| run(*crowd, repetition)));
    }
    results.summarise();
    results
}

fn shown(results: Results) -> String {
    let source = Source {
        file: "made-up.json".into(),
        bytes: Vec::new(),
        results,
    };
    page(&[source], None, 0)
}

#[test]
fn each_guest_that_was_moved_is_a_migration_that_went_on_beside_others() {
    let records = records(&results(&CROWDS));
    let of = |together| records.iter().filter(move |record| record.together == together);
    assert_eq!(
        (of(1).count(), of(2).count(), of(4).count()),
        (7 * 3, 2 * 3, 4 * 3)
    );
    assert!(of(4).all(|record| record.setting.source_percent == Some(2.0)));
    let workload = "cpu:0".parse().ok();
    assert!(records.iter().all(|record| record.workload == workload));
    let mut ids: Vec<_> = records.iter().map(|record| &record.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), records.len());
}

#[test]
fn what_was_measured_stands_beside_the_bound() {
    let page = shown(results(&CROWDS));
    let rows: Vec<&str> = page
        .split("<tr>")
        .filter(|row| row.contains("scope=\"row\"") && row.contains("8 %") && row.contains("n = 3"))
        .collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    for (row, parts) in rows.iter().zip([
        // Of 2 and 4 s, and 2 and 8 s, what one of twenty is below.
        [">2<", ">1.97 s<", ">3.95 s<", "1.10 times"],
        [">4<", ">1.97 s<", ">7.8", "1.10 times"],
    ]) {
        for part in parts {
            assert!(row.contains(part), "{part}: {row}");
        }
    }
}

#[test]
fn without_single_migrations_there_is_no_bound_and_that_is_said() {
    let page = shown(results(&[(2, 8), (4, 8)]));
    assert!(page.contains("there is no model of single migrations"), "{page}");
}
