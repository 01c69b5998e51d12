//! What many runs say: medians with their spread, and whether claims hold.

use serde::{Deserialize, Serialize};

use super::metric;
use super::plan::RunKey;
use super::results::{Outcome, Results, Run};
use super::scenario::{BEST_PEER, Claim, Scenario};
use super::statistics::{self, Interval, quantile};

/// The figures that every summary has, as far as runs have them.
pub const METRICS: [&str; 17] = [
    "data_bytes",
    "link_bytes",
    "pages_sent",
    "total_ms",
    "execution_transfer_ms",
    "downtime_ms",
    "perceived_downtime_ms",
    "fetched_share",
    "operations_before_per_s",
    "operations_during_per_s",
    "operations_after_per_s",
    "operations_kept",
    "start_ms",
    "first_answer_ms",
    "faults_10s",
    "pause_ms",
    "answer_ms",
];

/// Several measurements of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many.
    pub count: usize,
    /// The one in the middle.
    pub median: f64,
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
    /// A quarter is below it.
    pub lower_quartile: f64,
    /// A quarter is above it.
    pub upper_quartile: f64,
    /// Where the true median lies; absent of a single one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

impl Spread {
    /// Of these measurements; none of none.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut figures: Vec<f64> = figures.into_iter().filter(|figure| figure.is_finite()).collect();
        figures.sort_by(f64::total_cmp);
        Some(Self {
            count: figures.len(),
            least: *figures.first()?,
            most: *figures.last()?,
            median: quantile(&figures, 0.5),
            lower_quartile: quantile(&figures, 0.25),
            upper_quartile: quantile(&figures, 0.75),
            interval: statistics::of_median(&figures),
        })
    }
}

/// The runs of one variant with one guest over one link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Name of the guest.
    pub guest: String,
    /// The link that the scenario asks for.
    pub link: String,
    /// Name of the variant.
    pub variant: String,
    /// Runs that have figures.
    pub measured: usize,
    /// Why the others have none.
    pub failures: Vec<String>,
    /// [`METRICS`] by name.
    pub figures: std::collections::BTreeMap<String, Spread>,
}

/// A claim beside what was measured with one guest over one link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// The claim in words.
    pub claim: String,
    /// Name of the guest.
    pub guest: String,
    /// The link.
    pub link: String,
    /// What the figure is: `pages_sent of pre-copy-filter / pre-copy`.
    pub figure: String,
    /// What it has to be: `at most 0.4`.
    pub expected: String,
    /// What it is: the ratio of the medians, or the median; absent where runs lack it.
    pub found: Option<f64>,
    /// Smallest and largest of it, repetition by repetition.
    pub range: Option<(f64, f64)>,
    /// Where it truly lies; absent of a single run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// Whether the claim holds; absent where nothing was found.
    pub holds: Option<bool>,
}

/// A line for each variant, guest and link, in the order of the scenario; those without any run are left out.
pub fn lines(scenario: &Scenario, results: &Results) -> Vec<Line> {
    let mut lines = Vec::new();
    for (guest, link) in cases(scenario) {
        for variant in &scenario.variants {
            let name = variant.name();
            let is_of = |run: &&Run| is(&run.key, guest, link, name);
            let runs: Vec<_> = results.runs.iter().filter(is_of).collect();
            if runs.is_empty() {
                continue;
            }
            let measured: Vec<_> = runs.iter().filter_map(|run| run.outcome.measured()).collect();
            let figure = |metric: &&str| {
                let figures = measured.iter().filter_map(|run| metric::of(run, metric));
                Some(((*metric).to_owned(), Spread::of(figures)?))
            };
            let failure = |run: &&Run| match &run.outcome {
                Outcome::Failed { why } => Some(why.clone()),
                Outcome::Measured(_) => None,
            };
            lines.push(Line {
                guest: guest.to_owned(),
                link: link.to_owned(),
                variant: name.to_owned(),
                measured: measured.len(),
                failures: runs.iter().filter_map(failure).collect(),
                figures: METRICS.iter().filter_map(figure).collect(),
            });
        }
    }
    lines
}

/// Every claim with every guest and link it is about.
pub fn verdicts(scenario: &Scenario, results: &Results) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for claim in &scenario.claims {
        for (name, link) in cases(scenario) {
            let about = |guest: &&super::scenario::Guest| {
                guest.name == name
                    && claim.guest.is_none_or(|kind| kind == guest.kind)
                    && (claim.guests.is_empty() || claim.guests.iter().any(|it| it == name))
                    // Relative to itself everything is as it is said.
                    && claim.relative_to_guest.as_deref() != Some(name)
            };
            let tried = |run: &Run| run.key.guest == name && run.key.link == link;
            if scenario.guests.iter().any(|guest| about(&guest)) && results.runs.iter().any(tried) {
                verdicts.push(verdict(claim, name, link, results));
            }
        }
    }
    verdicts
}

fn verdict(claim: &Claim, guest: &str, link: &str, results: &Results) -> Verdict {
    let of_guest = |guest: &str, variant: &str| -> Vec<(u32, f64)> {
        let runs = results
            .runs
            .iter()
            .filter(|run| is(&run.key, guest, link, variant));
        let figure = |run: &Run| {
            let figure = metric::of(run.outcome.measured()?, &claim.metric)?;
            Some((run.key.repetition, figure))
        };
        runs.filter_map(figure).collect()
    };
    let figures = |variant: &str| of_guest(guest, variant);
    let median = |figures: &[(u32, f64)]| Spread::of(figures.iter().map(|(_, figure)| *figure));
    let own = figures(&claim.variant);
    let plain = |figures: &[(u32, f64)]| -> Vec<f64> { figures.iter().map(|(_, figure)| *figure).collect() };
    // Whose figures they are divided by, and what that is called.
    let base = match (&claim.relative_to, &claim.relative_to_guest) {
        (None, None) => None,
        (_, Some(other)) => Some((of_guest(other, &claim.variant), format!("the same of {other}"))),
        (Some(other), None) => {
            let best = best_peer(claim, &results.content, |peer| {
                median(&figures(peer)).map(|spread| spread.median)
            });
            let other = best.unwrap_or(other);
            Some((figures(other), other.to_owned()))
        }
    };
    let name = format!("{} of {}", claim.metric, claim.variant);
    let (figure, found, each, interval) = match base {
        None => {
            let each = plain(&own);
            let interval = statistics::of_median(&each);
            (name, median(&own).map(|spread| spread.median), each, interval)
        }
        Some((others, other)) => {
            let ratio = median(&own).zip(median(&others));
            let ratio = ratio.map(|(own, other)| own.median / other.median);
            // Runs of one repetition lie close to each other in time.
            let pair = |(repetition, own): &(u32, f64)| {
                let (_, other) = others.iter().find(|(of, _)| of == repetition)?;
                Some(own / other)
            };
            let interval = statistics::of_ratio(&plain(&own), &plain(&others));
            let each = own.iter().filter_map(pair).collect();
            (format!("{name} / {other}"), ratio, each, interval)
        }
    };
    let found = found.filter(|found| found.is_finite());
    let range = Spread::of(each).map(|spread| (spread.least, spread.most));
    let holds = found.map(|found| {
        claim.at_most.is_none_or(|most| found <= most) && claim.at_least.is_none_or(|least| found >= least)
    });
    let bounds = [("at least", claim.at_least), ("at most", claim.at_most)];
    let bounds = bounds
        .into_iter()
        .filter_map(|(word, bound)| Some(format!("{word} {}", bound?)));
    Verdict {
        claim: claim.text.clone(),
        guest: guest.to_owned(),
        link: link.to_owned(),
        figure,
        expected: bounds.collect::<Vec<_>>().join(", "),
        found,
        range,
        interval,
        holds,
    }
}

/// The peer that a claim about the best one is measured against, if it is such a claim and any peer has a figure.
fn best_peer<'a>(
    claim: &Claim,
    scenario: &'a Scenario,
    median: impl Fn(&str) -> Option<f64>,
) -> Option<&'a str> {
    if claim.relative_to.as_deref() != Some(BEST_PEER) {
        return None;
    }
    let peers = scenario.variants.iter().filter(|variant| variant.peer.is_some());
    let figures = peers.filter_map(|peer| Some((peer.name(), median(peer.name())?)));
    // Of what a client gets done, more is better; of everything else less.
    let better = |one: f64, other: f64| match claim.metric.starts_with("operations_") {
        true => other.total_cmp(&one),
        false => one.total_cmp(&other),
    };
    let best = figures.min_by(|(_, one), (_, other)| better(*one, *other));
    best.map(|(name, _)| name)
}

fn cases(scenario: &Scenario) -> impl Iterator<Item = (&str, &str)> {
    let guests = scenario.guests.iter().map(|guest| guest.name.as_str());
    guests.flat_map(|guest| scenario.links.iter().map(move |link| (guest, link.as_str())))
}

fn is(key: &RunKey, guest: &str, link: &str, variant: &str) -> bool {
    key.guest == guest && key.link == link && key.variant == variant
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::json;

    use super::*;
    use crate::bench::fit;
    use crate::bench::machine::Machine;
    use crate::bench::measure::Measured;
    use crate::bench::plan::Request;

    fn scenario() -> Scenario {
        let text = r#"
title = "t"
links = ["none"]
repetitions = 5
[[guest]]
name = "g"
kind = "synth"
memory = "1M"
[[variant]]
strategy = "pre-copy"
[[variant]]
strategy = "hybrid"
[[claim]]
text = "half"
metric = "pages_sent"
variant = "hybrid"
relative_to = "pre-copy"
at_most = 0.5
[[claim]]
text = "quick"
metric = "faults.p99_us"
variant = "hybrid"
at_most = 10
[[claim]]
text = "in a guest that is not there"
metric = "total_ms"
variant = "hybrid"
at_most = 10
guest = "qemu"
"#;
        Scenario::parse("t.toml", text).unwrap()
    }

    fn measured(pages: u64) -> Measured {
        serde_json::from_value(json!({
            "account": {"vmferry": {
                "vm": "g", "strategy": "s", "backend": "synth", "outcome": "completed",
                "total_ms": 100.0, "execution_transfer_ms": 90.0, "downtime_ms": 5.0,
                "perceived_downtime_ms": null, "micro_stops_ms": 0.0, "ram_bytes": 1, "data_bytes": 1,
                "bytes_on_wire": 81920, "device_state_bytes": 1,
                "pages": {"sent": pages, "resent": 0, "raw": 0, "uniform": 0, "hole": 0, "free": 0, "filtered": 0,
                          "compressed": 0, "delta": 0, "deduplicated": 0},
                "rounds": [], "phases": [],
                "faults": {"count": 2, "network": 2, "local": 0, "p50_us": 1.0, "p99_us": 20.0, "max_us": 30.0},
                "cpu_seconds": {"source": 0.0, "destination": 0.0},
                "memory_bytes": {"source": 0, "destination": 0}
            }},
            "link_bytes": null, "operations": null, "link": "l",
            "guest": {"name": "g", "backend": "synth", "config": {}}
        }))
        .unwrap()
    }

    fn run(variant: &str, repetition: u32, outcome: Outcome) -> Run {
        let key = RunKey {
            guest: "g".into(),
            link: "none".into(),
            variant: variant.into(),
            repetition,
        };
        Run {
            seed: u64::from(repetition),
            conditions: fit::conditions(&scenario(), &key).unwrap(),
            command: Vec::new(),
            request: Request::Vmferry(Box::new(vmferry_api::MigrateRequest::new(
                "x",
                vmferry_core::Strategy::PreCopy,
            ))),
            key,
            machine: 0,
            started_unix_ms: 0,
            took_s: 1.0,
            load_average: None,
            outcome,
        }
    }

    /// Two variants with these pages sent, repetition by repetition.
    pub(crate) fn results_of(pages: &[(u64, u64)]) -> Results {
        let mut results = Results::new("t", &scenario(), false);
        results.machine(&Machine::here());
        for (repetition, (plain, hybrid)) in pages.iter().enumerate() {
            for (variant, &pages) in [("pre-copy", plain), ("hybrid", hybrid)] {
                let outcome = Outcome::Measured(Box::new(measured(pages)));
                results.runs.push(run(variant, repetition as u32, outcome));
            }
        }
        results
    }

    pub(crate) fn results() -> Results {
        let mut results = results_of(&[(100, 30), (200, 50), (90, 60)]);
        let why = "no room".to_owned();
        results.runs.push(run("hybrid", 3, Outcome::Failed { why }));
        results.summarise();
        results
    }

    #[test]
    fn medians_and_quartiles() {
        let spread = Spread::of([5.0, 1.0, 2.0, 4.0, f64::NAN]).unwrap();
        assert_eq!(
            (spread.count, spread.least, spread.median, spread.most),
            (4, 1.0, 3.0, 5.0)
        );
        assert_eq!((spread.lower_quartile, spread.upper_quartile), (1.75, 4.25));
        assert_eq!(Spread::of([7.0]).unwrap().upper_quartile, 7.0);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn a_line_has_the_spread_of_its_runs_and_the_causes_of_failures() {
        let lines = results().summary;
        assert_eq!(lines.len(), 2);
        let hybrid = &lines[1];
        assert_eq!((hybrid.variant.as_str(), hybrid.measured), ("hybrid", 3));
        assert_eq!(hybrid.failures, ["no room"]);
        let pages = hybrid.figures["pages_sent"];
        assert_eq!((pages.least, pages.median, pages.most), (30.0, 50.0, 60.0));
        assert_eq!(hybrid.figures["fetched_share"].median, 0.1);
        assert!(
            !hybrid.figures.contains_key("perceived_downtime_ms"),
            "nobody measured it"
        );
    }

    #[test]
    fn claims_are_judged_by_medians_and_shown_with_the_range_of_repetitions() {
        let verdicts = results().verdicts;
        assert_eq!(verdicts.len(), 2, "one claim is about a guest that is not there");
        let half = &verdicts[0];
        assert_eq!((half.found, half.holds), (Some(0.5), Some(true)));
        assert_eq!(half.range, Some((0.25, 60.0 / 90.0)));
        assert_eq!(half.figure, "pages_sent of hybrid / pre-copy");
        let quick = &verdicts[1];
        assert_eq!((quick.found, quick.holds), (Some(20.0), Some(false)));
        assert_eq!(quick.expected, "at most 10");
    }

    #[test]
    fn a_claim_without_figures_is_neither_true_nor_false() {
        let mut results = results();
        results.runs.retain(|run| run.key.variant == "hybrid");
        results.summarise();
        assert_eq!(
            (results.verdicts[0].found, results.verdicts[0].holds),
            (None, None)
        );
    }

    #[test]
    fn the_best_peer_is_the_one_with_the_best_median_of_those_that_have_one() {
        let text = "title = 't'\nlinks = ['none']\n[[guest]]\nname = 'g'\nkind = 'qemu'\nmemory = '1M'\n\
                    [[variant]]\nstrategy = 'hybrid'\n[[variant]]\npeer = 'all'\n\
                    [[claim]]\ntext = 'less'\nmetric = 'METRIC'\nvariant = 'hybrid'\nrelative_to = 'best peer'\n\
                    at_most = 1\n";
        let best = |metric: &str, median: fn(&str) -> Option<f64>| {
            let scenario = Scenario::parse("t.toml", &text.replace("METRIC", metric)).unwrap();
            best_peer(&scenario.claims[0], &scenario, median).map(str::to_owned)
        };
        let median = |name: &str| match name {
            "qemu-xbzrle" => Some(5.0),
            "qemu-multifd" => Some(7.0),
            "hybrid" => Some(1.0),
            _ => None,
        };
        assert_eq!(best("total_ms", median).as_deref(), Some("qemu-xbzrle"));
        assert_eq!(best("operations_kept", median).as_deref(), Some("qemu-multifd"));
        assert_eq!(best("total_ms", |_| None), None);
    }

    #[test]
    fn results_go_on_where_they_were_and_failures_are_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("results.json");
        let new = |quick| Results::new("t", &scenario(), quick);
        assert!(new(false).resume(&file).unwrap().0.runs.is_empty());

        results().store(&file).unwrap();
        let (resumed, dropped) = new(false).resume(&file).unwrap();
        assert_eq!((resumed.runs.len(), resumed.machines.len()), (6, 1));
        assert_eq!(dropped, []);
        let key = |variant, repetition| run(variant, repetition, Outcome::Failed { why: String::new() }).key;
        assert!(resumed.has(&key("hybrid", 2)) && !resumed.has(&key("hybrid", 3)));

        for (new, named) in [
            (Results::new("t", &scenario(), true), "without --quick"),
            (Results::new("u", &scenario(), false), "results of \"t\""),
        ] {
            let error = new.resume(&file).unwrap_err().to_string();
            assert!(error.contains(named) && error.contains("--fresh"), "{error}");
        }
        for (content, named) in [("{", "something else"), (r#"{"format": 99}"#, "this version")] {
            std::fs::write(&file, content).unwrap();
            let error = new(false).resume(&file).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
