//! What changed between two sets of results of one scenario.

use serde::Serialize;

use super::metric;
use super::quantity::{Better, Quantity};
use super::results::Results;
use super::statistics::{self, Difference, Interval};
use super::summary::{METRICS, Spread};
use crate::error::{LabError, Result};

/// A difference is called one where it would come by chance this often at most, adjusted for how many were looked at.
pub const LEVEL: f64 = 0.05;

/// Two sets of results beside each other.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Name of the scenario.
    pub scenario: String,
    /// The test.
    pub test: &'static str,
    /// How its probabilities were adjusted for how many there are.
    pub adjusted_by: &'static str,
    /// See [`LEVEL`].
    pub level: f64,
    /// What else differs between them, and may be the cause.
    pub caveats: Vec<String>,
    /// Guest, link, variant and metric that both have.
    pub changes: Vec<Change>,
    /// What only the first has: guest, link, variant.
    pub only_first: Vec<String>,
    /// What only the second has.
    pub only_second: Vec<String>,
}

/// A metric of a variant with a guest over a link, in both.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// Name of the guest.
    pub guest: String,
    /// The link.
    pub link: String,
    /// Name of the variant.
    pub variant: String,
    /// Which figure.
    pub metric: String,
    /// As it was.
    pub first: Spread,
    /// As it is.
    pub second: Spread,
    /// The second median divided by the first; absent where that is zero.
    pub ratio: Option<f64>,
    /// Where the ratio truly lies; absent where a side has a single run.
    pub interval: Option<Interval>,
    /// Size of the effect, Cliff's delta: -1 where every second run is below every first one, 1 where it is above.
    pub delta: f64,
    /// How likely such a difference comes by chance.
    pub p: f64,
    /// The same adjusted for how many were looked at; absent where there were too few runs to look.
    pub adjusted_p: Option<f64>,
    /// What to make of it.
    pub finding: Finding,
}

/// What to make of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Finding {
    /// No difference between so few runs could be told from chance.
    TooFewRuns,
    /// None that could be told from chance.
    NoDifference,
    /// It got better.
    Better,
    /// It got worse.
    Worse,
    /// It became another, and neither is the better one.
    Different,
}

/// What changed from the first to the second.
///
/// # Errors
/// When they are of different scenarios, or one of them is scaled down and the other is not.
pub fn compare(first: &Results, second: &Results) -> Result<Comparison> {
    if first.scenario != second.scenario {
        return Err(LabError::NotComparable(format!(
            "the first has results of {:?}, the second of {:?}",
            first.scenario, second.scenario
        )));
    }
    if first.quick != second.quick {
        let (scaled, full) = if first.quick {
            ("first", "second")
        } else {
            ("second", "first")
        };
        return Err(LabError::NotComparable(format!(
            "the {scaled} was measured with --quick, the {full} was not"
        )));
    }
    let mut changes = Vec::new();
    let (mut only_first, mut only_second) = (Vec::new(), Vec::new());
    for case in cases(first, second) {
        let name = || case.join(", ");
        match (has(first, case), has(second, case)) {
            (true, false) => only_first.push(name()),
            (false, true) => only_second.push(name()),
            _ => changes.extend(
                METRICS
                    .iter()
                    .filter_map(|metric| change(first, second, case, metric)),
            ),
        }
    }
    adjust(&mut changes);
    Ok(Comparison {
        scenario: first.scenario.clone(),
        test: "Mann-Whitney U, exact, two-sided",
        adjusted_by: "Benjamini-Hochberg",
        level: LEVEL,
        caveats: caveats(first, second),
        changes,
        only_first,
        only_second,
    })
}

/// Guest, link and variant.
type Case<'a> = [&'a str; 3];

/// All that one of them tried, in the first one's order.
fn cases<'a>(first: &'a Results, second: &'a Results) -> Vec<Case<'a>> {
    let mut cases = Vec::new();
    for results in [first, second] {
        for guest in &results.content.guests {
            for link in &results.content.links {
                for variant in &results.content.variants {
                    let case = [guest.name.as_str(), link.as_str(), variant.name()];
                    let tried = has(first, case) || has(second, case);
                    if tried && !cases.contains(&case) {
                        cases.push(case);
                    }
                }
            }
        }
    }
    cases
}

/// Whether a run of it has figures.
fn has(results: &Results, case: Case<'_>) -> bool {
    figures(results, case, |_| Some(0.0)).next().is_some()
}

fn figures<'a>(
    results: &'a Results,
    [guest, link, variant]: Case<'a>,
    figure: impl Fn(&super::Measured) -> Option<f64> + 'a,
) -> impl Iterator<Item = f64> + 'a {
    let is_of =
        move |run: &&super::Run| run.key.guest == guest && run.key.link == link && run.key.variant == variant;
    let runs = results.runs.iter().filter(is_of);
    runs.filter_map(move |run| figure(run.outcome.measured()?))
        .filter(|figure| figure.is_finite())
}

fn change(first: &Results, second: &Results, case: Case<'_>, metric: &str) -> Option<Change> {
    let of =
        |results| -> Vec<f64> { figures(results, case, |measured| metric::of(measured, metric)).collect() };
    let (one, other) = (of(first), of(second));
    let Difference { p, delta } = statistics::difference(&one, &other)?;
    let [guest, link, variant] = case.map(str::to_owned);
    let (first, second) = (
        Spread::of(one.iter().copied())?,
        Spread::of(other.iter().copied())?,
    );
    Some(Change {
        guest,
        link,
        variant,
        metric: metric.to_owned(),
        first,
        second,
        ratio: Some(second.median / first.median).filter(|ratio| ratio.is_finite()),
        interval: statistics::of_ratio(&other, &one),
        delta,
        p,
        adjusted_p: None,
        finding: Finding::TooFewRuns,
    })
}

/// Adjusts the probabilities of those that have runs enough, and says what to make of each. Whether it has depends on how many
/// runs there are and on nothing that they found.
fn adjust(changes: &mut [Change]) {
    let enough = |change: &&mut Change| statistics::least_p(change.first.count, change.second.count) <= LEVEL;
    let mut tested: Vec<_> = changes.iter_mut().filter(enough).collect();
    let probabilities: Vec<_> = tested.iter().map(|change| change.p).collect();
    for (change, p) in tested.iter_mut().zip(statistics::adjusted(&probabilities)) {
        change.adjusted_p = Some(p);
        let grew = change.delta > 0.0;
        change.finding = match Quantity::of(&change.metric).better {
            _ if p > LEVEL => Finding::NoDifference,
            None => Finding::Different,
            Some(better) if grew == (better == Better::Higher) => Finding::Better,
            Some(_) => Finding::Worse,
        };
    }
}

fn caveats(first: &Results, second: &Results) -> Vec<String> {
    let mut caveats = Vec::new();
    if first.content.hash() != second.content.hash() {
        caveats.push("the scenario was changed between them: they did not measure the same".to_owned());
    }
    let named = |results: &Results| -> Vec<String> {
        let machines = results.machines.iter();
        let mut named: Vec<_> = machines.map(super::machine::Machine::hardware).collect();
        named.sort();
        named.dedup();
        named
    };
    if named(first) != named(second) {
        caveats.push(format!(
            "they come from different machines: {} and {}",
            named(first).join("; "),
            named(second).join("; ")
        ));
    }
    let unoptimised = |results: &Results| results.machines.iter().any(|machine| !machine.optimised);
    if unoptimised(first) != unoptimised(second) {
        caveats
            .push("only one of them was measured with a vmferry that was built with optimisation".to_owned());
    }
    let load = |results: &Results| Spread::of(results.runs.iter().filter_map(|run| run.load_average));
    if let Some((one, other)) = load(first).zip(load(second))
        && (one.median - other.median).abs() > 1.0
    {
        caveats.push(format!(
            "the machine was not as busy: load average {:.1} and {:.1} when runs began, in the median",
            one.median, other.median
        ));
    }
    caveats
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::summary::tests::{results, results_of};

    /// Results whose hybrid sent these pages.
    fn sent(pages: &[u64]) -> Results {
        results_of(&pages.iter().map(|pages| (1000, *pages)).collect::<Vec<_>>())
    }

    fn pages(comparison: &Comparison) -> &Change {
        let mut changes = comparison.changes.iter();
        changes
            .find(|change| change.variant == "hybrid" && change.metric == "pages_sent")
            .unwrap()
    }

    #[test]
    fn a_change_is_found_where_there_is_one() {
        let old = sent(&[300, 310, 320, 330, 340, 305]);
        let new = sent(&[200, 210, 220, 230, 240, 205]);
        let found = compare(&old, &new).unwrap();
        let change = pages(&found);
        assert_eq!((change.finding, change.delta), (Finding::Better, -1.0));
        assert!(change.adjusted_p.unwrap() <= LEVEL && change.adjusted_p.unwrap() >= change.p);
        assert!(change.interval.unwrap().high < 0.8, "{change:?}");
        assert_eq!(pages(&compare(&new, &old).unwrap()).finding, Finding::Worse);
        let mut others = found.changes.iter().filter(|change| change.variant != "hybrid");
        assert!(others.all(|change| change.finding == Finding::NoDifference));
    }

    #[test]
    fn few_runs_tell_nothing() {
        let found = compare(&sent(&[300, 310, 320]), &sent(&[3, 3, 3])).unwrap();
        assert_eq!(
            (pages(&found).finding, pages(&found).adjusted_p),
            (Finding::TooFewRuns, None)
        );
    }

    #[test]
    fn what_has_nothing_to_do_with_each_other_is_refused_or_said() {
        let one = results();
        let mut other = results();
        other.scenario = "u".into();
        let error = compare(&one, &other).unwrap_err().to_string();
        assert!(error.contains("\"t\"") && error.contains("\"u\""), "{error}");
        let mut other = results();
        other.quick = true;
        assert!(
            compare(&one, &other)
                .unwrap_err()
                .to_string()
                .contains("the second was measured with --quick")
        );
        let mut other = results();
        other.content.warm_up_s += 1.0;
        other.machines[0].cpus += 1;
        other.runs.retain(|run| run.key.variant == "hybrid");
        let found = compare(&one, &other).unwrap();
        assert_eq!(found.caveats.len(), 2, "{:?}", found.caveats);
        assert_eq!(found.only_first, ["g, none, pre-copy"]);
    }
}
