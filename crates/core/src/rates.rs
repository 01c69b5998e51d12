//! Rates measured during the migration: what the link carries, what the guest dirties.

use std::time::Duration;

use crate::pages::PAGE_SIZE;

/// Weight of the newest measurement.
const NEWEST: f64 = 0.5;
/// A round of fewer pages says more about the round trip than about the link; it counts only while there is
/// nothing better.
const TELLING_PAGES: u64 = 256;

/// Smoothed rates. Pages count as the guest's pages, whatever form they cross in, so an encoding that shrinks
/// pages shows as a faster link.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    pages_per_s: Option<f64>,
    bytes_per_s: Option<f64>,
    dirty_pages_per_s: Option<f64>,
    /// Bandwidth cap: faster than this the link is not used, whatever was measured.
    limit_bytes_per_s: Option<u64>,
    /// The cap changed: what was measured under the old one says little.
    outdated: bool,
}

impl Rates {
    /// A round of `pages` pages and `bytes` bytes on the wire reached the destination in `took`.
    pub fn round_received(&mut self, pages: u64, bytes: u64, took: Duration) {
        if pages >= TELLING_PAGES || (pages > 0 && (self.pages_per_s.is_none() || self.outdated)) {
            if std::mem::take(&mut self.outdated) {
                (self.pages_per_s, self.bytes_per_s) = (None, None);
            }
            smooth(&mut self.pages_per_s, pages, took);
            smooth(&mut self.bytes_per_s, bytes, took);
        }
    }

    /// The guest dirtied `pages` different pages in `took`.
    pub fn dirtied(&mut self, pages: u64, took: Duration) {
        smooth(&mut self.dirty_pages_per_s, pages, took);
    }

    /// The bandwidth is capped from now on, or not any more. What was measured before counts up to the cap, and only until
    /// the next round was measured.
    pub fn limit(&mut self, bytes_per_s: Option<u64>) {
        self.limit_bytes_per_s = bytes_per_s;
        self.outdated = true;
    }

    /// Expected time for `pages` to cross; unknown before the first round.
    pub fn time_to_send(&self, pages: u64) -> Option<Duration> {
        if pages == 0 {
            return Some(Duration::ZERO);
        }
        let seconds = pages as f64 / self.pages_per_s()?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Bytes on the wire a second; 0 before the first round.
    pub fn bytes_per_s(&self) -> f64 {
        self.bytes_per_s.unwrap_or(0.0) * self.share_allowed()
    }

    fn pages_per_s(&self) -> Option<f64> {
        Some(self.pages_per_s? * self.share_allowed())
    }

    /// The part of the rate measured that the cap leaves.
    fn share_allowed(&self) -> f64 {
        match (self.limit_bytes_per_s, self.bytes_per_s) {
            (Some(limit), Some(measured)) if measured > limit as f64 => limit as f64 / measured,
            _ => 1.0,
        }
    }

    /// Bytes of memory the guest dirties a second; 0 before the first scan.
    pub fn dirty_bytes_per_s(&self) -> f64 {
        self.dirty_pages_per_s.unwrap_or(0.0) * PAGE_SIZE as f64
    }

    /// Time until the rest would be small at the current rates; none where the guest dirties faster.
    pub fn time_to_converge(&self, pages: u64) -> Option<Duration> {
        let net = self.pages_per_s()? - self.dirty_pages_per_s.unwrap_or(0.0);
        (net > 0.0).then(|| Duration::try_from_secs_f64(pages as f64 / net).ok())?
    }
}

fn smooth(rate: &mut Option<f64>, amount: u64, took: Duration) {
    let newest = amount as f64 / took.as_secs_f64().max(1e-6);
    *rate = Some(rate.map_or(newest, |old| NEWEST * newest + (1.0 - NEWEST) * old));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_cap_slows_what_was_measured_down_and_lifting_it_waits_for_a_measurement() {
        let mut rates = Rates::default();
        rates.limit(None);
        // Half of the pages were uniform: 1000 pages took the bytes of 500.
        rates.round_received(1000, 500 * PAGE_SIZE, SECOND);
        assert_eq!(rates.time_to_send(1000), Some(SECOND));
        rates.limit(Some(250 * PAGE_SIZE));
        assert_eq!(rates.time_to_send(1000), Some(2 * SECOND));
        assert_eq!(rates.bytes_per_s(), (250 * PAGE_SIZE) as f64);
        rates.round_received(500, 250 * PAGE_SIZE, SECOND);
        rates.limit(None);
        assert_eq!(rates.time_to_send(1000), Some(2 * SECOND));
        // The first round without it counts fully.
        rates.round_received(4000, 2000 * PAGE_SIZE, SECOND);
        assert_eq!(rates.time_to_send(1000), Some(SECOND / 4));
    }

    #[test]
    fn a_cap_above_the_link_changes_nothing() {
        let mut rates = Rates::default();
        rates.round_received(1000, 1000 * PAGE_SIZE, SECOND);
        rates.limit(Some(u64::MAX));
        assert_eq!(rates.time_to_send(500), Some(SECOND / 2));
    }
}
