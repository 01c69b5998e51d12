//! A scenario: what is measured, as a TOML file says it.
//!
//! ```toml
//! title = "What it is about"
//! repetitions = 5
//! links = ["500mbit"]              # or "500mbit+10ms", or "none"
//!
//! [[guest]]
//! name = "synthetic"
//! kind = "synth"                   # or "qemu"
//! memory = "1G"
//! load = "write:256M + fill:256M"  # as `vmferry run --synthetic` reads it
//!
//! [[guest]]
//! name = "server"
//! kind = "qemu"
//! memory = "1G"
//! workload = { kind = "redis", mib = 384, values = 65536, value_bytes = 4096, set_get = "1:9" }  # see `Workload`
//!
//! [[variant]]
//! strategy = "pre-copy"            # or "all"
//! options = { max-rounds = 30 }    # of `vmferry migrate`
//!
//! [[variant]]
//! peer = "qemu-pre-copy"           # or "all": QEMU's own migration
//! options = { downtime-limit = 50 } # of QEMU, in milliseconds
//! limit_s = 120                    # it may never converge
//!
//! [[variant]]
//! name = "left alone"
//! experiment = { kind = "agent", agent = "idle", for_s = 20 } # in place of a migration: see `Experiment`
//!
//! [[claim]]
//! text = "what is said to hold"
//! metric = "pages_sent"            # see `metric`
//! variant = "pre-copy-filter"
//! relative_to = "pre-copy"
//! at_most = 0.4
//!
//! [[figure]]                       # what a report shows: see `figure`
//! id = "pages"
//! title = "Pages sent"
//! kind = "bars"
//! metrics = ["pages_sent"]
//! ```

mod claim;
mod experiment;
mod figure;
mod guest;
mod options;
mod variant;

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use claim::{BEST_PEER, Claim};
pub use experiment::{AgentUse, Experiment};
pub use figure::{Dimension, Figure, FigureKind};
pub use guest::{Disk, Guest, GuestKind, GuestQuick};
pub(crate) use options::words;
pub use options::{OptionValue, Options};
pub use variant::Variant;

use crate::error::{LabError, Result};
use crate::link::Link;

/// Shortest patience of clients: a busy guest answers within less.
const LEAST_PATIENCE_S: f64 = 1.0;

/// What a file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is about, in a line.
    pub title: String,
    /// Where its question comes from.
    #[serde(default)]
    pub source: Option<String>,
    /// How often everything is measured.
    #[serde(default = "three")]
    pub repetitions: u32,
    /// Decides the order of runs and the content of guests.
    #[serde(default)]
    pub seed: u64,
    /// Time under load before the migration, seconds.
    #[serde(default = "two_seconds")]
    pub warm_up_s: f64,
    /// Time under load after it, seconds.
    #[serde(default = "one_second")]
    pub cool_down_s: f64,
    /// A run that takes longer failed, seconds.
    #[serde(default = "half_an_hour")]
    pub limit_s: f64,
    /// How long clients wait for the guest before that is an error and the run failed, seconds. A guest that is stopped for as long, by a
    /// migration with a small share of a CPU or of the link, is still the same guest. Runs that did not fail are the same with any
    /// patience.
    #[serde(default = "twenty_seconds", skip_serializing_if = "is_usual_patience")]
    pub client_patience_s: f64,
    /// Links ([`Link`]): a rate as `tc` reads it or `none` for no limit, and a delay one way. Everything is measured at each.
    pub links: Vec<String>,
    /// Further options of `vmferry host`, without their dashes. Where absent, `no-sampling`: what is measured is measured
    /// of a guest that was left alone.
    #[serde(default = "no_sampling")]
    pub host_options: Options,
    /// What `--quick` changes.
    #[serde(default)]
    pub quick: Option<Quick>,
    /// The guests. Everything is measured with each.
    #[serde(rename = "guest")]
    pub guests: Vec<Guest>,
    /// What is compared.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
    /// What is expected of it.
    #[serde(default, rename = "claim")]
    pub claims: Vec<Claim>,
    /// What a report shows of it.
    #[serde(default, rename = "figure", skip_serializing_if = "Vec::is_empty")]
    pub figures: Vec<Figure>,
}

/// What `--quick` changes: it shows that a scenario works, its figures say little.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quick {
    /// See [`Scenario::repetitions`].
    pub repetitions: Option<u32>,
    /// See [`Scenario::warm_up_s`].
    pub warm_up_s: Option<f64>,
    /// See [`Scenario::cool_down_s`].
    pub cool_down_s: Option<f64>,
    /// See [`Scenario::links`].
    pub links: Option<Vec<String>>,
}

impl Scenario {
    /// Reads a scenario. `file` names it in errors.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub fn parse(file: &str, text: &str) -> Result<Self> {
        let wrong = |line: Option<usize>, why: String| LabError::BadScenario {
            place: line.map_or_else(|| file.to_owned(), |line| format!("{file}:{line}")),
            why,
        };
        let parsed: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().map(|span| &text[..span.start.min(text.len())]);
            let line = before.map(|before| before.matches('\n').count() + 1);
            wrong(line, error.message().replace('\n', " "))
        })?;
        let scenario = parsed.with_every_strategy();
        scenario.check().map_err(|why| wrong(None, why))?;
        Ok(scenario)
    }

    /// The scenario as `--quick` has it.
    #[must_use]
    pub fn quick(mut self) -> Self {
        if let Some(quick) = self.quick.take() {
            self.repetitions = quick.repetitions.unwrap_or(self.repetitions);
            self.warm_up_s = quick.warm_up_s.unwrap_or(self.warm_up_s);
            self.cool_down_s = quick.cool_down_s.unwrap_or(self.cool_down_s);
            self.links = quick.links.unwrap_or(self.links);
        }
        self.guests = self.guests.into_iter().map(Guest::quick).collect();
        self
    }

    /// A number that scenarios have in common whose runs can stand beside each other: neither the repetitions count, nor the patience of
    /// clients, nor what is said and shown of them afterwards.
    pub fn hash(&self) -> String {
        let same = Self {
            repetitions: 0,
            client_patience_s: twenty_seconds(),
            title: String::new(),
            source: None,
            claims: Vec::new(),
            figures: Vec::new(),
            ..self.clone()
        };
        let json = serde_json::to_string(&same).expect("a scenario has no map keys that are no strings");
        format!("{:016x}", xxhash_rust::xxh3::xxh3_64(json.as_bytes()))
    }

    /// How long clients wait for an answer before that is an error.
    pub(crate) fn client_patience(&self) -> Duration {
        Duration::from_secs_f64(self.client_patience_s)
    }

    /// A variant of strategy or peer `all` becomes one for each.
    fn with_every_strategy(mut self) -> Self {
        self.variants = self.variants.into_iter().flat_map(Variant::expand).collect();
        self
    }

    fn check(&self) -> std::result::Result<(), String> {
        for (what, missing) in [
            ("links", self.links.is_empty()),
            ("[[guest]]", self.guests.is_empty()),
            ("[[variant]]", self.variants.is_empty()),
        ] {
            if missing {
                return Err(format!("{what} is missing: nothing would be measured"));
            }
        }
        if self.repetitions == 0 {
            return Err("repetitions is 0: nothing would be measured".into());
        }
        for (what, seconds) in [
            ("warm_up_s", self.warm_up_s),
            ("cool_down_s", self.cool_down_s),
            ("limit_s", self.limit_s),
            ("client_patience_s", self.client_patience_s),
        ] {
            if !(0.0..=86_400.0).contains(&seconds) {
                return Err(format!("{what} is {seconds}, expected 0 to 86400"));
            }
        }
        if self.client_patience_s < LEAST_PATIENCE_S {
            return Err(format!(
                "client_patience_s is {}: clients would take every answer for a failure, expected {LEAST_PATIENCE_S} or more",
                self.client_patience_s
            ));
        }
        for link in &self.links {
            link.parse::<Link>().map_err(|error| error.to_string())?;
        }
        all_different("guest", self.guests.iter().map(|guest| guest.name.as_str()))?;
        all_different("variant", self.variants.iter().map(Variant::name))?;
        all_different("link", self.links.iter().map(String::as_str))?;
        words(&self.host_options)?;
        self.guests.iter().try_for_each(Guest::check)?;
        self.variants.iter().try_for_each(Variant::check)?;
        self.claims
            .iter()
            .try_for_each(|claim| claim.check(&self.variants, &self.guests))?;
        all_different("figure", self.figures.iter().map(|figure| figure.id.as_str()))?;
        self.figures.iter().try_for_each(|figure| figure.check(self))?;
        let named = self.claims.iter().filter_map(|claim| claim.figure.as_ref());
        match named
            .into_iter()
            .find(|id| !self.figures.iter().any(|figure| figure.id == **id))
        {
            Some(unknown) => Err(format!(
                "a claim belongs to figure {unknown:?}, and there is none of that id"
            )),
            None => Ok(()),
        }
    }
}

fn all_different<'a>(what: &str, names: impl Iterator<Item = &'a str>) -> std::result::Result<(), String> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(format!("two entries of {what} are named {name:?}"));
        }
    }
    Ok(())
}

fn no_sampling() -> Options {
    Options::from([("no-sampling".to_owned(), OptionValue::Flag(true))])
}

fn three() -> u32 {
    3
}

fn one_second() -> f64 {
    1.0
}

fn two_seconds() -> f64 {
    2.0
}

fn half_an_hour() -> f64 {
    1800.0
}

fn twenty_seconds() -> f64 {
    20.0
}

/// What is usual is not written, so that it tells no scenario from others.
fn is_usual_patience(seconds: &f64) -> bool {
    *seconds == twenty_seconds()
}

#[cfg(test)]
mod tests {
    use vmferry_core::Strategy;

    use super::*;

    const SMALL: &str = r#"
title = "small"
links = ["none"]
[quick]
repetitions = 1
[[guest]]
name = "a"
kind = "synth"
memory = "1G"
load = "write:64M"
quick = { memory = "64M" }
[[variant]]
strategy = "pre-copy"
options = { max-rounds = 3, verify = true, downtime = "5ms" }
[[variant]]
strategy = "hybrid"
[[claim]]
text = "less"
metric = "pages_sent"
variant = "hybrid"
relative_to = "pre-copy"
at_most = 0.5
"#;

    fn refusal(text: &str) -> String {
        Scenario::parse("small.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn a_small_one_is_read_and_has_a_quick_form() {
        let scenario = Scenario::parse("small.toml", SMALL).unwrap();
        assert_eq!(
            (scenario.repetitions, scenario.guests[0].memory.as_str()),
            (3, "1G")
        );
        let options = words(&scenario.variants[0].options).unwrap();
        assert_eq!(options, ["--downtime=5ms", "--max-rounds=3", "--verify"]);
        let quick = scenario.clone().quick();
        assert_eq!((quick.repetitions, quick.guests[0].memory.as_str()), (1, "64M"));
        assert_eq!(quick.guests[0].load.as_deref(), Some("write:64M"));
        assert_ne!(quick.hash(), scenario.hash());
        let longer = Scenario {
            repetitions: 9,
            ..scenario.clone()
        };
        assert_eq!(longer.hash(), scenario.hash());
    }

    #[test]
    fn the_patience_of_clients_changes_no_run_that_succeeds() {
        let scenario = Scenario::parse("small.toml", SMALL).unwrap();
        assert_eq!(scenario.client_patience_s, 20.0);
        assert!(
            !serde_json::to_string(&scenario).unwrap().contains("patience"),
            "runs of before are told by the same hash"
        );
        let text = SMALL.replace("links", "client_patience_s = 120\nlinks");
        let patient = Scenario::parse("small.toml", &text).unwrap();
        assert_eq!(
            (patient.client_patience_s, patient.hash()),
            (120.0, scenario.hash())
        );
    }

    #[test]
    fn all_stands_for_every_strategy() {
        let text = SMALL.replace("strategy = \"hybrid\"", "strategy = \"all\"\nname = \"again\"");
        let text = text.replace("variant = \"hybrid\"", "variant = \"hybrid again\"");
        let scenario = Scenario::parse("small.toml", &text).unwrap();
        assert_eq!(scenario.variants.len(), 1 + Strategy::ALL.len());
        assert!(
            scenario
                .variants
                .iter()
                .any(|variant| variant.name() == "post-copy again"
                    && variant.strategy.as_deref() == Some("post-copy"))
        );
    }

    #[test]
    fn all_stands_for_every_peer_with_the_options_that_concern_it() {
        let peers = "peer = \"all\"\nlimit_s = 60\noptions = { downtime-limit = 50, multifd-channels = 4 }";
        let text = SMALL.replace("strategy = \"hybrid\"", peers);
        let text = text.replace("variant = \"hybrid\"", "variant = \"qemu-multifd\"");
        let scenario = Scenario::parse("small.toml", &text).unwrap();
        assert_eq!(scenario.variants.len(), 1 + crate::peer::Peer::ALL.len());
        for variant in &scenario.variants[1..] {
            let channels = variant.options.contains_key("multifd-channels");
            assert_eq!(
                channels,
                variant.name().starts_with("qemu-multifd"),
                "{variant:?}"
            );
            assert_eq!(
                (variant.options.contains_key("downtime-limit"), variant.limit_s),
                (true, Some(60.0))
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let error = refusal(&SMALL.replace("memory = \"1G\"", "memroy = \"1G\""));
        assert!(
            error.contains("small.toml:9") && error.contains("memroy"),
            "{error}"
        );
        let error = refusal(&SMALL.replace("title = \"small\"", "title ="));
        assert!(error.contains("small.toml:2"), "{error}");
        let error = refusal(&SMALL.replace("\"synth\"", "\"xen\""));
        assert!(error.contains("small.toml:8") && error.contains("xen"), "{error}");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (from, to, named) in [
            ("links = [\"none\"]", "links = []", "links"),
            ("links = [\"none\"]", "links = [\"fast\"]", "fast"),
            (
                "title = \"small\"",
                "title = \"small\"\nrepetitions = 0",
                "repetitions",
            ),
            (
                "title = \"small\"",
                "title = \"small\"\nwarm_up_s = -1",
                "warm_up_s",
            ),
            (
                "title = \"small\"",
                "title = \"small\"\nclient_patience_s = 0",
                "client_patience_s",
            ),
            ("strategy = \"hybrid\"", "strategy = \"pre-copy\"", "\"pre-copy\""),
            ("variant = \"hybrid\"", "variant = \"hybird\"", "hybird"),
            ("at_most = 0.5", "", "at_most"),
            (
                "relative_to = \"pre-copy\"",
                "relative_to = \"best peer\"",
                "\"best peer\"",
            ),
            ("load = \"write:64M\"", "agent = true", "synthetic"),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"",
                "neither strategy nor peer nor experiment",
            ),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\nstrategy = \"hybrid\"\npeer = \"qemu-pre-copy\"",
                "more than one",
            ),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\npeer = \"qemu-rdma\"",
                "no peer \"qemu-rdma\"",
            ),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\npeer = \"qemu-pre-copy\"\noptions = { downtime = \"5ms\" }",
                "no option \"downtime\"",
            ),
            (
                "strategy = \"hybrid\"",
                "strategy = \"hybrid\"\nlimit_s = -1",
                "limit_s of variant \"hybrid\"",
            ),
            (
                "load = \"write:64M\"",
                "workload = { kind = \"cpu\", percent = 1 }",
                "synthetic",
            ),
        ] {
            let error = refusal(&SMALL.replace(from, to));
            assert!(error.contains(named), "{to}: {error}");
        }
    }

    #[test]
    fn experiments_disks_and_claims_that_make_no_sense_are_refused() {
        for (from, to, named) in [
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\nexperiment = { kind = \"agent\", agent = \"idle\", for_s = 0 }",
                "for_s is 0",
            ),
            (
                "strategy = \"hybrid\"",
                "strategy = \"hybrid\"\nleaves_checkpoint = true",
                "does not come back to it",
            ),
            (
                "load = \"write:64M\"",
                "disk = { mib = 8, filled_mib = 1 }",
                "no disk of its own",
            ),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\nexperiment = { kind = \"parallel\", guests = 4, cpu_percent = 10 }",
                "cpu_percent is 10",
            ),
            (
                "variant = \"hybrid\"",
                "variant = \"hybrid\"\nrelative_to_guest = \"b\"",
                "guest \"b\"",
            ),
            (
                "variant = \"hybrid\"",
                "variant = \"hybrid\"\nguests = [\"c\"]",
                "guest \"c\"",
            ),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\nexperiment = { kind = \"dance\" }",
                "dance",
            ),
            (
                "strategy = \"hybrid\"",
                "name = \"hybrid\"\npeer = \"qemu-pre-copy\"\nthere_and_back = true",
                "no strategy to go by",
            ),
        ] {
            let error = refusal(&SMALL.replace(from, to));
            assert!(error.contains(named), "{to}: {error}");
        }
    }
}
