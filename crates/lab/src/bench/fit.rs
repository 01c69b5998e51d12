//! Which runs that were measured earlier belong to a scenario as it is now.

use std::fmt;

use serde::Serialize;

use super::plan::RunKey;
use super::results::Run;
use super::scenario::{Experiment, Guest, Options, Scenario};

/// Everything of a scenario that decides what one run measures.
#[derive(Serialize)]
struct Conditions<'a> {
    guest: &'a Guest,
    link: &'a str,
    strategy: Option<&'a str>,
    peer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    experiment: Option<&'a Experiment>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    there_and_back: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    leaves_checkpoint: bool,
    options: &'a Options,
    host_options: Option<&'a Options>,
    warm_up_s: f64,
    cool_down_s: f64,
    limit_s: f64,
    seed: u64,
}

/// A number that runs have in common which were made under the same conditions; none where the scenario has no such guest, link or
/// variant. Names of guests and variants, repetitions, claims, and what else there is beside a run do not count.
pub(super) fn conditions(scenario: &Scenario, key: &RunKey) -> Option<String> {
    let guest = scenario.guests.iter().find(|guest| guest.name == key.guest)?;
    let variant = scenario
        .variants
        .iter()
        .find(|variant| variant.name() == key.variant)?;
    let link = scenario.links.iter().find(|link| **link == key.link)?;
    let guest = Guest {
        name: String::new(),
        quick: None,
        ..guest.clone()
    };
    let conditions = Conditions {
        guest: &guest,
        link,
        strategy: variant.strategy.as_deref(),
        peer: variant.peer.as_deref(),
        experiment: variant.experiment.as_ref(),
        there_and_back: variant.there_and_back,
        leaves_checkpoint: variant.leaves_checkpoint,
        options: &variant.options,
        // A peer has no daemons.
        host_options: variant.peer.is_none().then_some(&scenario.host_options),
        warm_up_s: scenario.warm_up_s,
        cool_down_s: scenario.cool_down_s,
        limit_s: variant.limit_s.unwrap_or(scenario.limit_s),
        seed: seed(scenario, key.repetition),
    };
    let json = serde_json::to_string(&conditions).expect("a scenario has no map keys that are no strings");
    Some(format!("{:016x}", xxhash_rust::xxh3::xxh3_64(json.as_bytes())))
}

/// What decides the content of guests in a repetition.
pub(super) fn seed(scenario: &Scenario, repetition: u32) -> u64 {
    scenario.seed.wrapping_add(u64::from(repetition))
}

/// Runs of one guest, link and variant that a file had and that no longer belong to its scenario.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// Name of the guest.
    pub guest: String,
    /// The link.
    pub link: String,
    /// Name of the variant.
    pub variant: String,
    /// How many had figures.
    pub runs: usize,
    /// Whether the scenario has no such thing any more; else its runs are made again.
    pub gone: bool,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            guest,
            link,
            variant,
            runs,
            gone,
        } = self;
        let why = match gone {
            true => "the scenario does not have that any more",
            false => "the scenario has changed what they measure, they are made again",
        };
        write!(
            f,
            "dropped {runs} earlier runs of {guest}, {link}, {variant}: {why}"
        )
    }
}

/// Parts earlier runs into those that belong to the scenario, and what is dropped. Those without figures are forgotten.
pub(super) fn part(scenario: &Scenario, runs: Vec<Run>) -> (Vec<Run>, Vec<Dropped>) {
    let mut kept = Vec::new();
    let mut dropped: Vec<Dropped> = Vec::new();
    for run in runs {
        if run.outcome.measured().is_none() {
            continue;
        }
        let now = conditions(scenario, &run.key);
        if now.as_ref() == Some(&run.conditions) {
            kept.push(run);
            continue;
        }
        let new = Dropped {
            guest: run.key.guest,
            link: run.key.link,
            variant: run.key.variant,
            runs: 0,
            gone: now.is_none(),
        };
        let alike = |known: &Dropped| {
            Dropped {
                runs: 0,
                ..known.clone()
            } == new
        };
        let at = dropped.iter().position(alike).unwrap_or_else(|| {
            dropped.push(new);
            dropped.len() - 1
        });
        dropped[at].runs += 1;
    }
    (kept, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scenario::{OptionValue, Variant};

    const TEXT: &str = r#"
title = "t"
links = ["none"]
repetitions = 2
[[guest]]
name = "g"
kind = "qemu"
memory = "64M"
[guest.quick]
memory = "32M"
[[variant]]
strategy = "pre-copy"
[[variant]]
peer = "qemu-pre-copy"
"#;

    fn scenario() -> Scenario {
        Scenario::parse("t.toml", TEXT).unwrap()
    }

    fn key(variant: &str, repetition: u32) -> RunKey {
        RunKey {
            guest: "g".into(),
            link: "none".into(),
            variant: variant.into(),
            repetition,
        }
    }

    /// Whether the runs of `pre-copy` and of `qemu-pre-copy` are the same in both scenarios.
    fn fits(changed: &Scenario) -> (bool, bool) {
        let same =
            |variant| conditions(&scenario(), &key(variant, 1)) == conditions(changed, &key(variant, 1));
        (same("pre-copy"), same("qemu-pre-copy"))
    }

    #[test]
    fn a_scenario_may_grow_and_keep_its_runs() {
        let mut grown = scenario();
        grown.repetitions = 9;
        grown.title = "another".into();
        grown.links.push("1gbit".into());
        grown.guests[0].quick = None;
        grown.client_patience_s = 120.0;
        grown.variants.insert(
            0,
            Variant {
                name: Some("new".into()),
                ..grown.variants[0].clone()
            },
        );
        assert_eq!(fits(&grown), (true, true));
        assert_ne!(
            conditions(&grown, &key("new", 0)),
            conditions(&grown, &key("new", 1))
        );
    }

    #[test]
    fn what_is_measured_otherwise_does_not_fit() {
        let changed = |change: fn(&mut Scenario)| {
            let mut changed = scenario();
            change(&mut changed);
            fits(&changed)
        };
        assert_eq!(changed(|s| s.warm_up_s = 9.0), (false, false));
        assert_eq!(changed(|s| s.cool_down_s = 9.0), (false, false));
        assert_eq!(changed(|s| s.limit_s = 9.0), (false, false));
        assert_eq!(changed(|s| s.seed = 9), (false, false));
        assert_eq!(changed(|s| s.guests[0].memory = "65M".into()), (false, false));
        assert_eq!(changed(|s| s.links[0] = "1gbit".into()), (false, false));
        assert_eq!(changed(|s| s.host_options.clear()), (false, true));
        assert_eq!(changed(|s| s.variants[1].limit_s = Some(9.0)), (true, false));
        let option = |s: &mut Scenario| {
            let value = OptionValue::Integer(5);
            s.variants[1].options.insert("downtime-limit".into(), value);
        };
        assert_eq!(changed(option), (true, false));
    }

    #[test]
    fn what_is_dropped_is_counted_and_said() {
        let run = |variant: &str, repetition, conditions: &str| -> Run {
            serde_json::from_value(serde_json::json!({
                "key": key(variant, repetition), "seed": 0, "conditions": conditions, "command": [],
                "request": {"qemu": {"peer": "qemu-pre-copy", "parameters": {}}}, "machine": 0,
                "started_unix_ms": 0, "took_s": 1.0, "load_average": null,
                "outcome": {"measured": {
                    "account": {"qemu": {
                        "peer": "qemu-pre-copy", "total_ms": 1.0, "execution_transfer_ms": 1.0, "downtime_ms": 1.0,
                        "perceived_downtime_ms": null, "destination_start_ms": 1.0, "events": [], "figures": {},
                        "destination_figures": {}, "parameters": {}, "command_lines": [[], []]
                    }},
                    "link_bytes": null, "operations": null, "link": "l",
                    "guest": {"name": "g", "backend": "qemu", "config": {}}
                }}
            }))
            .unwrap()
        };
        let now = scenario();
        let fitting = conditions(&now, &key("qemu-pre-copy", 0)).unwrap();
        let failed = Run {
            outcome: crate::bench::Outcome::Failed {
                why: "no room".into(),
            },
            ..run("qemu-pre-copy", 3, "")
        };
        let runs = vec![
            run("qemu-pre-copy", 0, &fitting),
            run("qemu-pre-copy", 1, "other"),
            run("qemu-pre-copy", 2, "other"),
            run("hybrid", 0, "other"),
            failed,
        ];
        let (kept, dropped) = part(&now, runs);
        assert_eq!(kept.len(), 1);
        let said: Vec<_> = dropped.iter().map(ToString::to_string).collect();
        assert!(
            said[0].starts_with("dropped 2 earlier runs of g, none, qemu-pre-copy: ")
                && said[0].contains("again"),
            "{said:#?}"
        );
        assert!(said[1].contains("1 earlier runs of g, none, hybrid") && said[1].contains("any more"));
        assert_eq!(said.len(), 2);
    }
}
