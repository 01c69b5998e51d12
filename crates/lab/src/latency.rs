//! What a client waited for answers, in figures.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Nothing is waited for longer.
const LONGEST_US: u64 = 3_600_000_000;
/// Figures are right to a thousandth of themselves.
const DIGITS: u8 = 3;

/// The latencies of operations, milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// Of how many operations.
    pub count: u64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 90 % of them took no longer.
    pub p90_ms: f64,
    /// 99 % of them took no longer.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// Latencies as they come.
pub(crate) struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// None yet.
    pub(crate) fn new() -> Self {
        let histogram = hdrhistogram::Histogram::new_with_bounds(1, LONGEST_US, DIGITS);
        Self(histogram.expect("the bounds are those of a histogram"))
    }

    /// Adds one.
    pub(crate) fn add(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LONGEST_US);
        self.0.saturating_record(us.max(1));
    }

    /// What they are in figures; nothing where there are none.
    pub(crate) fn figures(&self) -> Option<Latency> {
        (!self.0.is_empty()).then(|| Latency {
            count: self.0.len(),
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            max_ms: ms(self.0.max()),
        })
    }

    /// The same, and begins anew.
    pub(crate) fn take(&mut self) -> Option<Latency> {
        let figures = self.figures();
        self.0.reset();
        figures
    }

    /// The share `quantile` of them took no longer than this, milliseconds.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> f64 {
        ms(self.0.value_at_quantile(quantile))
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_latencies() {
        let mut latencies = Histogram::new();
        assert_eq!(latencies.figures(), None);
        (1..=100).for_each(|ms| latencies.add(Duration::from_millis(ms)));
        latencies.add(Duration::from_secs(3));
        let figures = latencies.figures().unwrap();
        assert_eq!(figures.count, 101);
        for (figure, expected) in [
            (figures.p50_ms, 51.0),
            (figures.p90_ms, 91.0),
            (figures.p99_ms, 100.0),
            (figures.max_ms, 3000.0),
        ] {
            assert!((figure / expected - 1.0).abs() < 0.002, "{figures:?}");
        }
        latencies.add(Duration::from_secs(100_000));
        assert!(latencies.figures().unwrap().max_ms > 3_599_000.0);
    }
}
