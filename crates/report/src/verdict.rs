//! What became of what a paper, or we, said.

use maud::{Markup, html};
use vmferry_lab::bench::scenario::{Claim, Figure};
use vmferry_lab::bench::summary::Verdict;
use vmferry_lab::bench::{Results, quantity::Quantity};

use crate::number;

/// How a verdict reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reading {
    /// No run has what it is about.
    NotMeasured,
    /// It holds.
    Holds {
        /// Also at both ends of the interval; a single run has none.
        sure: bool,
    },
    /// It does not.
    Differs {
        /// As above.
        sure: bool,
    },
}

impl Reading {
    /// Of a verdict about this claim.
    pub(crate) fn of(verdict: &Verdict, claim: &Claim) -> Self {
        let within = |value: f64| {
            claim.at_most.is_none_or(|most| value <= most)
                && claim.at_least.is_none_or(|least| value >= least)
        };
        let sure = |holds: bool| {
            let ends = verdict.interval.map(|interval| [interval.low, interval.high]);
            ends.is_some_and(|ends| ends.into_iter().all(|end| within(end) == holds))
        };
        match verdict.holds {
            None => Self::NotMeasured,
            Some(true) => Self::Holds { sure: sure(true) },
            Some(false) => Self::Differs { sure: sure(false) },
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::NotMeasured => "not measured",
            Self::Holds { sure: true } => "holds",
            Self::Holds { sure: false } => "holds, not beyond doubt",
            Self::Differs { sure: true } => "differs",
            Self::Differs { sure: false } => "differs, not beyond doubt",
        }
    }

    fn sign(self) -> (&'static str, &'static str) {
        match self {
            Self::NotMeasured => ("none", "–"),
            Self::Holds { .. } => ("holds", "✓"),
            Self::Differs { .. } => ("differs", "✗"),
        }
    }

    /// Sign and words.
    pub(crate) fn show(self) -> Markup {
        let (class, sign) = self.sign();
        html! { span class={ "verdict " (class) } { span aria-hidden="true" { (sign) } " " (self.words()) } }
    }
}

/// A claim with a guest over a link.
pub(crate) struct Judged<'a> {
    pub(crate) claim: &'a Claim,
    pub(crate) verdict: &'a Verdict,
    pub(crate) reading: Reading,
}

/// All that is said of a figure.
pub(crate) fn of<'a>(results: &'a Results, figure: &Figure) -> Vec<Judged<'a>> {
    judged(results, |claim, verdict| {
        figure.has(claim) && figure.shows(&verdict.guest, &verdict.link, &claim.variant)
    })
}

/// What is said of none of these figures.
pub(crate) fn beside<'a>(results: &'a Results, figures: &[&Figure]) -> Vec<Judged<'a>> {
    judged(results, |claim, _| {
        !figures.iter().any(|figure| figure.has(claim))
    })
}

fn judged<'a>(results: &'a Results, concerns: impl Fn(&Claim, &Verdict) -> bool) -> Vec<Judged<'a>> {
    let mut judged = Vec::new();
    for claim in &results.content.claims {
        let verdicts = results
            .verdicts
            .iter()
            .filter(|verdict| verdict.claim == claim.text);
        judged.extend(
            verdicts
                .filter(|verdict| concerns(claim, verdict))
                .map(|verdict| Judged {
                    claim,
                    verdict,
                    reading: Reading::of(verdict, claim),
                }),
        );
    }
    judged
}

/// All of them together: it differs where one of them does.
pub(crate) fn together(judged: &[Judged<'_>]) -> Option<Reading> {
    let worst = |of: fn(Reading) -> bool| judged.iter().map(|it| it.reading).filter(move |it| of(*it)).min();
    let differing = judged
        .iter()
        .map(|it| it.reading)
        .filter(|it| matches!(it, Reading::Differs { .. }))
        .max();
    differing
        .or_else(|| worst(|it| matches!(it, Reading::Holds { .. })))
        .or_else(|| worst(|_| true))
}

impl Judged<'_> {
    /// In a line of a list.
    pub(crate) fn show(&self) -> Markup {
        let found = self.found();
        html! {
            li { (self.reading.show()) ": " (self.claim.text) ". " span class="found" { (found) } }
        }
    }

    /// What was found, with its interval, and what was expected.
    pub(crate) fn found(&self) -> String {
        let quantity = Quantity::of(&self.claim.metric);
        let is_ratio = self.claim.relative_to.is_some() || self.claim.relative_to_guest.is_some();
        let show = |value: f64| match is_ratio {
            true => number::ratio(value),
            false => number::show(quantity.unit, value),
        };
        // The other by its own name, where the claim is about the best of several.
        let other = self.verdict.figure.split_once(" / ").map(|(_, other)| other);
        let of = match other {
            Some(other) => format!("{} of {} / {other}", quantity.label, self.claim.variant),
            None => format!("{} of {}", quantity.label, self.claim.variant),
        };
        let found = match (self.verdict.found, self.verdict.interval) {
            (None, _) => "no figures".to_owned(),
            (Some(found), None) => format!("{} (one run)", show(found)),
            (Some(found), Some(interval)) => {
                format!(
                    "{} ({} to {})",
                    show(found),
                    show(interval.low),
                    show(interval.high)
                )
            }
        };
        let bounds = [("at least", self.claim.at_least), ("at most", self.claim.at_most)];
        let bounds = bounds
            .into_iter()
            .filter_map(|(word, bound)| Some(format!("{word} {}", show(bound?))));
        let bounds = bounds.collect::<Vec<_>>().join(", ");
        format!(
            "{of}: {found}, expected {bounds}; {}, {}",
            self.verdict.guest, self.verdict.link
        )
    }
}
