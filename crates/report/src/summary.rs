//! What stands at the top: what was measured, how vmferry does beside QEMU itself, and where it is behind.

use maud::{Markup, html};
use vmferry_lab::bench::Results;
use vmferry_lab::bench::quantity::{Better, Quantity};
use vmferry_lab::bench::scenario::Variant;

use crate::estimate::{Case, Estimate};
use crate::scenario::Section;
use crate::side::Side;
use crate::verdict::{self, Reading};
use crate::{figure, number, table};

/// What is compared with QEMU's own migration.
const METRICS: [&str; 7] = [
    "total_ms",
    "execution_transfer_ms",
    "downtime_ms",
    "perceived_downtime_ms",
    "data_bytes",
    "link_bytes",
    "operations_kept",
];

/// The best of ours beside the best of QEMU's, by one metric with one guest over one link.
struct Comparison<'a> {
    section: &'a Section<'a>,
    guest: &'a str,
    link: &'a str,
    metric: &'static str,
    ours: (&'a str, Estimate),
    peer: (&'a str, Estimate),
    ratio: Estimate,
}

/// Who is ahead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ahead,
    /// The interval holds both.
    Level,
    Behind,
    /// A single run: nothing says how sure it is.
    Unsure {
        behind: bool,
    },
}

/// The table of ratios, and the list of what is not as it should be.
pub(crate) fn summary(sections: &[Section<'_>]) -> Markup {
    let comparisons: Vec<_> = sections.iter().flat_map(compare).collect();
    html! {
        section id="peers" {
            h2 { "vmferry beside QEMU's own migration" }
            @if comparisons.is_empty() {
                p { "No scenario here has runs of QEMU's own migration: there is nothing to compare with." }
            } @else {
                p {
                    "By each metric the best variant of vmferry beside the best of QEMU, as ratio of their medians with its interval. \
                     Which variant is best differs from metric to metric: no single one has all of these figures."
                }
                (ratios(&comparisons))
            }
        }
        section id="behind" {
            h2 { "Where vmferry is behind, or what is said does not hold" }
            (behind(sections, &comparisons))
        }
    }
}

fn compare<'a>(section: &'a Section<'a>) -> Vec<Comparison<'a>> {
    let results = section.results;
    let mut found = Vec::new();
    if !Side::both_in(results) {
        return found;
    }
    for guest in &results.content.guests {
        for link in &results.content.links {
            for metric in METRICS {
                let best = |side| best(results, &guest.name, link, metric, side);
                let Some((ours, peer)) = best(Side::Ours).zip(best(Side::Peer)) else {
                    continue;
                };
                if let Some(ratio) = ours.1.relative_to(&peer.1) {
                    found.push(Comparison {
                        section,
                        guest: &guest.name,
                        link,
                        metric,
                        ours,
                        peer,
                        ratio,
                    });
                }
            }
        }
    }
    found
}

fn best<'a>(
    results: &'a Results,
    guest: &str,
    link: &str,
    metric: &str,
    side: Side,
) -> Option<(&'a str, Estimate)> {
    // A resume or a series of checkpoints moves nobody: what a migration takes is no measure of it.
    let migrations = |variant: &&Variant| variant.experiment.is_none();
    let variants = results.content.variants.iter().filter(migrations);
    let variants = variants.map(Variant::name);
    let estimates = variants
        .filter(|name| Side::of(&results.content, name) == side)
        .filter_map(|variant| {
            Some((
                variant,
                Estimate::of(results, Case { guest, link, variant }, metric)?,
            ))
        });
    let worse = |one: &(&str, Estimate), other: &(&str, Estimate)| one.1.median.total_cmp(&other.1.median);
    match Quantity::of(metric).better? {
        Better::Lower => estimates.min_by(worse),
        Better::Higher => estimates.max_by(worse),
    }
}

impl Comparison<'_> {
    fn standing(&self) -> Standing {
        let lower = Quantity::of(self.metric).better == Some(Better::Lower);
        let behind = |ratio: f64| (ratio > 1.0) == lower && ratio != 1.0;
        match self.ratio.interval {
            None => Standing::Unsure {
                behind: behind(self.ratio.median),
            },
            Some(interval) if interval.contains(1.0) => Standing::Level,
            Some(_) if behind(self.ratio.median) => Standing::Behind,
            Some(_) => Standing::Ahead,
        }
    }

    fn words(&self) -> Markup {
        let (class, sign, words) = match self.standing() {
            Standing::Ahead => ("holds", "✓", "ahead"),
            Standing::Level => ("none", "=", "level"),
            Standing::Behind => ("differs", "✗", "behind"),
            Standing::Unsure { behind: true } => ("differs", "✗", "behind, one run"),
            Standing::Unsure { behind: false } => ("holds", "✓", "ahead, one run"),
        };
        html! { span class={ "verdict " (class) } { span aria-hidden="true" { (sign) } " " (words) } }
    }
}

fn ratios(comparisons: &[Comparison<'_>]) -> Markup {
    let mut last = None;
    html! {
        div class="scroll" tabindex="0" role="region" aria-label="ratios of vmferry to QEMU" {
            table {
                thead { tr {
                    th scope="col" { "metric" }
                    th scope="col" class="number" { "vmferry / QEMU" }
                    th scope="col" { "" }
                    th scope="col" { "vmferry's best" }
                    th scope="col" { "QEMU's best" }
                } }
                tbody {
                    @for comparison in comparisons {
                        @let quantity = Quantity::of(comparison.metric);
                        @let group = (&comparison.section.anchor, comparison.guest, comparison.link);
                        @if last.replace(group) != Some(group) {
                            tr class="heading" { th colspan="5" scope="rowgroup" {
                                a href={ "#" (comparison.section.anchor) } { (comparison.section.results.scenario) }
                                ": " (comparison.guest) ", " (comparison.link)
                            } }
                        }
                        tr {
                            th scope="row" { (quantity.label) }
                            td class="number" { (table::with_spread(&comparison.ratio, number::ratio)) }
                            td { (comparison.words()) }
                            @for (name, estimate) in [&comparison.ours, &comparison.peer] {
                                td { (name) div class="spread" {
                                    (number::show(quantity.unit, estimate.median)) ", n = " (estimate.count())
                                } }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn behind(sections: &[Section<'_>], comparisons: &[Comparison<'_>]) -> Markup {
    let behind = |it: &&Comparison<'_>| {
        matches!(
            it.standing(),
            Standing::Behind | Standing::Unsure { behind: true }
        )
    };
    let behind: Vec<_> = comparisons.iter().filter(behind).collect();
    let mut differing = Vec::new();
    let mut missed = Vec::new();
    for section in sections {
        for (figure, anchor) in section.figures() {
            let judged = verdict::of(section.results, figure);
            let judged = judged
                .into_iter()
                .filter(|it| matches!(it.reading, Reading::Differs { .. }));
            differing.extend(judged.map(|it| (section, anchor.clone(), figure.why.clone(), it)));
            let bars = figure::asked_of_forecasts(section.results, figure).into_iter();
            let bars = bars.filter(figure::Bar::is_missed);
            missed.extend(bars.map(|bar| (section, anchor.clone(), figure.why.clone(), bar)));
        }
        let judged = section
            .beside()
            .into_iter()
            .filter(|it| matches!(it.reading, Reading::Differs { .. }));
        differing.extend(judged.map(|it| (section, section.anchor.clone(), None, it)));
    }
    html! {
        @if behind.is_empty() && differing.is_empty() && missed.is_empty() {
            p { "Nothing of what was measured here." }
        }
        @if !behind.is_empty() {
            h3 { "Behind QEMU" }
            ul class="claims" {
                @for it in behind {
                    @let quantity = Quantity::of(it.metric);
                    li {
                        (it.words()) ": " (quantity.label) ", " (number::ratio(it.ratio.median)) " times "
                        (it.peer.0) ", with " (it.ours.0) ". "
                        span class="found" {
                            a href={ "#" (it.section.anchor) } { (it.section.results.scenario) } ": " (it.guest) ", " (it.link)
                        }
                    }
                }
            }
        }
        @if !missed.is_empty() {
            h3 { "Asked of forecasts, but missed" }
            ul class="claims" {
                @for (section, anchor, why, bar) in missed {
                    li {
                        (bar.verdict()) ": " a href={ "#" (anchor) } { (bar.wanted) } ". "
                        span class="found" { (section.results.scenario) ": " (bar.found()) }
                        @if let Some(why) = why { span class="why" { " Why: " (why) } }
                    }
                }
            }
        }
        @if !differing.is_empty() {
            h3 { "Said, but not found" }
            ul class="claims" {
                @for (section, anchor, why, it) in differing {
                    li {
                        (it.reading.show()) ": " a href={ "#" (anchor) } { (it.claim.text) } ". "
                        span class="found" { (section.results.scenario) ": " (it.found()) }
                        @if let Some(why) = why { span class="why" { " Why: " (why) } }
                    }
                }
            }
        }
    }
}
