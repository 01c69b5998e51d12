//! What a report shows of a scenario: each figure beside what a paper says.
//!
//! ```toml
//! [[figure]]
//! id = "filter-pages"
//! title = "Pages sent"
//! source = ["data-filter Fig. 6"]   # see `papers`
//! claim = "The filter sends far fewer pages where memory is written in a regular way."
//! kind = "bars"                     # or "lines", "timeline", "latency", "distribution", "rounds", "states", "table", "score", ...
//! metrics = ["pages_sent"]          # see `metric`
//! ```
//!
//! That is all that most need: without more, a plot is drawn for each guest, link and metric, with the variants beside each
//! other. Claims about a metric and variants that a figure shows belong to it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::claim::{BEST_PEER, Claim};
use super::{Guest, Scenario, Variant};

/// A figure of the report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// Its name in links: letters, digits and dashes.
    pub id: String,
    /// What it shows, as a heading.
    pub title: String,
    /// The figures of papers that it reproduces: `data-filter Fig. 6`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub source: Vec<String>,
    /// What the paper says of it, in our words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
    /// Why what was found differs from that, where somebody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// How it is drawn.
    pub kind: FigureKind,
    /// What it shows; of a timeline what stands in the table beside it, of rounds the figures of each round.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// What goes along its axis; variants where absent, rates of the link where these are drawn as lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x: Option<Dimension>,
    /// Only these guests; all where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<String>,
    /// Only these links.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub links: Vec<String>,
    /// Only these variants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<String>,
    /// Everything is shown divided by this variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_to: Option<String>,
    /// On a logarithmic scale.
    #[serde(default, skip_serializing_if = "is_false")]
    pub log: bool,
    /// Where the names along the axis stand on it; the first number in each where absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub at: BTreeMap<String, f64>,
    /// What models are about; the CPU share of the source where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axis: Option<vmferry_forecast::model::Axis>,
    /// What the axis counts: `regions`, `MiB written`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub x_label: Option<String>,
}

/// How a figure is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FigureKind {
    /// A bar for each, with its interval.
    Bars,
    /// Lines over numbers, with intervals.
    Lines,
    /// What the client got done, over time, across the migration.
    Timeline,
    /// The same, and below it what the client waited for answers.
    Latency,
    /// The distribution of what the client waited for answers, over the whole run.
    Distribution,
    /// The rounds of pre-copy, one after the other.
    Rounds,
    /// How often each state of the data filter's model occurred.
    States,
    /// Numbers only.
    Table,
    /// Total time over what a migration may use, with the regression model that fits it.
    Model,
    /// How a model that learned from five settings does on the others.
    Trial,
    /// What forecasts were worth: expected beside measured, and what is asked of them.
    Score,
    /// The rounds of pre-copy as they were simulated before the migration, beside those that it made.
    ForecastRounds,
    /// Migrations that went on at once, beside the bound that models of single ones set them from below.
    Parallel,
}

impl FigureKind {
    /// Whether it has tables of its own, and no metrics.
    pub fn speaks_for_itself(self) -> bool {
        matches!(
            self,
            Self::Model | Self::Trial | Self::Score | Self::ForecastRounds | Self::Parallel
        )
    }

    /// What its table has where the scenario does not say; of the others it has to.
    pub fn usual_metrics(self) -> &'static [&'static str] {
        match self {
            Self::Bars | Self::Lines | Self::Rounds | Self::Table => &[],
            Self::Model | Self::Trial | Self::Score | Self::ForecastRounds | Self::Parallel => &[],
            Self::Timeline => &[
                "operations_before_per_s",
                "operations_during_per_s",
                "operations_kept",
                "perceived_downtime_ms",
                "total_ms",
            ],
            Self::Latency => &[
                "latency_p90_before_ms",
                "latency_p50_during_ms",
                "latency_p90_during_ms",
                "latency_p99_during_ms",
                "latency_max_during_ms",
            ],
            Self::Distribution => &[
                "latency_p10_all_ms",
                "latency_p50_all_ms",
                "latency_p90_all_ms",
                "latency_p99_all_ms",
                "latency_p100_all_ms",
            ],
            Self::States => &[
                "filter.states_seen",
                "filter.samples",
                "filter.frequent_share",
                "filter.transitions_seen",
                "filter.tests",
                "filter.tests_failed",
            ],
        }
    }
}

/// What distinguishes runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dimension {
    /// The variant.
    Variant,
    /// The guest.
    Guest,
    /// The link.
    Link,
}

impl Figure {
    /// What goes along its axis.
    pub fn along(&self) -> Dimension {
        self.x.unwrap_or(match self.kind {
            FigureKind::Lines => Dimension::Link,
            _ => Dimension::Variant,
        })
    }

    /// Whether it shows the runs of this guest, link and variant.
    pub fn shows(&self, guest: &str, link: &str, variant: &str) -> bool {
        let within = |chosen: &[String], name: &str| chosen.is_empty() || chosen.iter().any(|it| it == name);
        within(&self.guests, guest) && within(&self.links, link) && within(&self.variants, variant)
    }

    /// Whether a claim is about what it shows.
    pub fn has(&self, claim: &Claim) -> bool {
        let within = |name: &String| self.variants.is_empty() || self.variants.contains(name);
        match &claim.figure {
            Some(figure) => *figure == self.id,
            None => {
                self.metrics.contains(&claim.metric)
                    && within(&claim.variant)
                    && claim
                        .relative_to
                        .as_ref()
                        .is_none_or(|other| other == BEST_PEER || within(other))
            }
        }
    }

    /// Where a name stands on the axis: as it is said, or by the first number in it; rates in Mbit/s.
    pub fn place(&self, name: &str) -> Option<f64> {
        self.at.get(name).copied().or_else(|| {
            let digits = |letter: char| letter.is_ascii_digit() || letter == '.';
            let number = &name[name.find(|letter: char| letter.is_ascii_digit())?..];
            let end = number.find(|letter| !digits(letter)).unwrap_or(number.len());
            let (number, unit) = number.split_at(end);
            let number: f64 = number.trim_end_matches('.').parse().ok()?;
            Some(match (self.along(), unit) {
                (Dimension::Link, "kbit") => number / 1e3,
                (Dimension::Link, "gbit") => number * 1e3,
                (Dimension::Link, "bit") => number / 1e6,
                _ => number,
            })
        })
    }

    /// Whether it is about guests, links and variants that there are.
    pub(super) fn check(&self, scenario: &Scenario) -> Result<(), String> {
        let id = &self.id;
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if id.is_empty() || !id.chars().all(plain) {
            return Err(format!(
                "the id {id:?} of a figure is no link; write small letters, digits and dashes"
            ));
        }
        if self.metrics.is_empty() && self.kind.usual_metrics().is_empty() && !self.kind.speaks_for_itself() {
            return Err(format!("figure {id:?} has no metrics: it would show nothing"));
        }
        let known: BTreeSet<_> = scenario
            .guests
            .iter()
            .map(|guest: &Guest| guest.name.as_str())
            .collect();
        there_are(id, "guest", &self.guests, &known)?;
        // Those of --quick are others.
        let quick = scenario
            .quick
            .iter()
            .filter_map(|quick| quick.links.as_ref())
            .flatten();
        let known: BTreeSet<_> = scenario.links.iter().chain(quick).map(String::as_str).collect();
        there_are(id, "link", &self.links, &known)?;
        let known: BTreeSet<_> = scenario.variants.iter().map(Variant::name).collect();
        there_are(id, "variant", &self.variants, &known)?;
        there_are(id, "variant", self.relative_to.as_slice(), &known)
    }
}

fn there_are(id: &str, what: &str, names: &[String], known: &BTreeSet<&str>) -> Result<(), String> {
    match names.iter().find(|name| !known.contains(name.as_str())) {
        None => Ok(()),
        Some(unknown) => {
            let known = known.iter().copied().collect::<Vec<_>>().join(", ");
            Err(format!(
                "figure {id:?} shows {what} {unknown:?}, and there are only {known}"
            ))
        }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIO: &str = r#"
title = "t"
links = ["500mbit", "1gbit"]
[quick]
links = ["100mbit"]
[[guest]]
name = "g"
kind = "synth"
memory = "1G"
[[variant]]
strategy = "pre-copy"
[[variant]]
name = "64 regions"
strategy = "pre-copy-filter"
[[claim]]
text = "less"
metric = "pages_sent"
variant = "64 regions"
relative_to = "pre-copy"
at_most = 0.5
[[claim]]
text = "soon"
metric = "total_ms"
figure = "times"
variant = "64 regions"
at_most = 100
[[figure]]
id = "pages"
title = "Pages"
kind = "bars"
metrics = ["pages_sent", "total_ms"]
[[figure]]
id = "times"
title = "Times"
kind = "lines"
metrics = ["total_ms"]
links = ["100mbit", "1gbit"]
"#;

    #[test]
    fn claims_find_their_figures() {
        let scenario = Scenario::parse("t.toml", SCENARIO).unwrap();
        let has = |figure: usize| -> Vec<bool> {
            let figure = &scenario.figures[figure];
            scenario.claims.iter().map(|claim| figure.has(claim)).collect()
        };
        assert_eq!((has(0), has(1)), (vec![true, false], vec![false, true]));
        let without = Scenario {
            figures: Vec::new(),
            claims: Vec::new(),
            title: String::new(),
            ..scenario.clone()
        };
        assert_eq!(without.hash(), scenario.hash(), "what is shown changes no run");
    }

    #[test]
    fn names_stand_where_their_numbers_say() {
        let scenario = Scenario::parse("t.toml", SCENARIO).unwrap();
        let links = &scenario.figures[1];
        assert_eq!(links.along(), Dimension::Link);
        assert_eq!(
            (links.place("500mbit"), links.place("1gbit")),
            (Some(500.0), Some(1000.0))
        );
        assert_eq!(links.place("none"), None);
        let variants = &scenario.figures[0];
        assert_eq!(variants.place("64 regions"), Some(64.0));
        assert_eq!(variants.place("zstd 1.5"), Some(1.5));
        assert_eq!(variants.place("pre-copy"), None);
    }

    #[test]
    fn a_figure_that_shows_nothing_is_refused() {
        for (from, to, named) in [
            ("id = \"pages\"", "id = \"Pages!\"", "Pages!"),
            ("id = \"pages\"", "id = \"times\"", "times"),
            ("\"100mbit\", \"1gbit\"]\n", "\"2gbit\"]\n", "2gbit"),
            ("metrics = [\"total_ms\"]", "", "metrics"),
            (
                "kind = \"lines\"",
                "kind = \"lines\"\nvariants = [\"hybrid\"]",
                "hybrid",
            ),
            ("figure = \"times\"", "figure = \"tmies\"", "tmies"),
        ] {
            let text = SCENARIO.replace(from, to);
            let error = Scenario::parse("t.toml", &text).unwrap_err().to_string();
            assert!(error.contains(named), "{to}: {error}");
        }
    }
}
