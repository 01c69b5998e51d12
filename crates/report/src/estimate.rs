//! What the runs of one variant, guest and link say of a metric.

use vmferry_lab::bench::statistics::{self, Interval};
use vmferry_lab::bench::summary::Spread;
use vmferry_lab::bench::{Results, metric};

/// The runs that stand beside each other: one variant with one guest over one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Case<'a> {
    pub(crate) guest: &'a str,
    pub(crate) link: &'a str,
    pub(crate) variant: &'a str,
}

/// A figure as several runs have it.
#[derive(Clone, Debug)]
pub(crate) struct Estimate {
    /// The runs' median, or the ratio of two such.
    pub(crate) median: f64,
    /// Where it truly lies; absent of a single run.
    pub(crate) interval: Option<Interval>,
    /// Each run by its repetition; of a ratio those repetitions that both have.
    pub(crate) each: Vec<(u32, f64)>,
}

impl Estimate {
    /// None where no run has the metric.
    pub(crate) fn of(results: &Results, case: Case<'_>, name: &str) -> Option<Self> {
        let runs = results.runs.iter().filter(|run| case.is_of(run));
        let figure = |run: &vmferry_lab::bench::Run| {
            let figure = metric::of(run.outcome.measured()?, name)?;
            Some((run.key.repetition, figure))
        };
        let each: Vec<_> = runs
            .filter_map(figure)
            .filter(|(_, figure)| figure.is_finite())
            .collect();
        let spread = Spread::of(each.iter().map(|(_, figure)| *figure))?;
        Some(Self {
            median: spread.median,
            interval: spread.interval,
            each,
        })
    }

    /// This divided by another.
    pub(crate) fn relative_to(&self, other: &Self) -> Option<Self> {
        let median = self.median / other.median;
        let paired = |&(repetition, own): &(u32, f64)| {
            let (_, other) = other.each.iter().find(|(of, _)| *of == repetition)?;
            Some((repetition, own / other)).filter(|(_, ratio)| ratio.is_finite())
        };
        median.is_finite().then(|| Self {
            median,
            interval: statistics::of_ratio(&self.values(), &other.values()),
            each: self.each.iter().filter_map(paired).collect(),
        })
    }

    /// How many runs it is of.
    pub(crate) fn count(&self) -> usize {
        self.each.len()
    }

    /// The largest value that a plot of it has to hold.
    pub(crate) fn most(&self) -> f64 {
        let high = self.interval.map_or(self.median, |interval| interval.high);
        self.values().into_iter().fold(high.max(self.median), f64::max)
    }

    /// The smallest.
    pub(crate) fn least(&self) -> f64 {
        let low = self.interval.map_or(self.median, |interval| interval.low);
        self.values().into_iter().fold(low.min(self.median), f64::min)
    }

    fn values(&self) -> Vec<f64> {
        self.each.iter().map(|(_, figure)| *figure).collect()
    }
}

impl Case<'_> {
    /// Whether a run is one of these.
    pub(crate) fn is_of(&self, run: &vmferry_lab::bench::Run) -> bool {
        run.key.guest == self.guest && run.key.link == self.link && run.key.variant == self.variant
    }
}
