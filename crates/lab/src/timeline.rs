//! When operations ended, and what that says about what a client sees.

use std::ops::Range;
use std::time::{Duration, Instant};

/// The moments at which operations of one client ended well.
#[derive(Clone, Debug)]
pub struct Timeline {
    origin: Instant,
    /// Nanoseconds since the origin, never falling.
    ended_ns: Vec<u64>,
}

impl Timeline {
    /// An empty one that begins at `origin`.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            ended_ns: Vec::new(),
        }
    }

    /// An operation ended well at `at`.
    pub fn record(&mut self, at: Instant) {
        let ns = self.ns(at).max(self.ended_ns.last().copied().unwrap_or(0));
        self.ended_ns.push(ns);
    }

    /// How many operations ended within `window`.
    pub fn operations(&self, window: &Range<Instant>) -> usize {
        self.within(window).len()
    }

    /// Operations a second within `window`.
    pub fn operations_per_s(&self, window: &Range<Instant>) -> f64 {
        let duration = window.end.saturating_duration_since(window.start);
        if duration.is_zero() {
            0.0
        } else {
            self.operations(window) as f64 / duration.as_secs_f64()
        }
    }

    /// The longest time between the ends of two operations that reaches into `window`. The end of the window
    /// counts as one where nothing ended after it.
    pub fn longest_gap(&self, window: &Range<Instant>) -> Duration {
        let (start, end) = (self.ns(window.start), self.ns(window.end));
        let first = self.ended_ns.partition_point(|&ns| ns <= start);
        let last = self.ended_ns.partition_point(|&ns| ns < end);
        let mut previous = if first == 0 { 0 } else { self.ended_ns[first - 1] };
        let mut longest = 0;
        let after = self.ended_ns.get(last).copied().unwrap_or(end);
        for &ns in self.ended_ns[first.min(last)..last].iter().chain([&after]) {
            longest = longest.max(ns.saturating_sub(previous));
            previous = ns;
        }
        Duration::from_nanos(longest)
    }

    fn within(&self, window: &Range<Instant>) -> &[u64] {
        let start = self.ended_ns.partition_point(|&ns| ns < self.ns(window.start));
        let end = self.ended_ns.partition_point(|&ns| ns < self.ns(window.end));
        &self.ended_ns[start.min(end)..end]
    }

    fn ns(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.origin).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(ended_ms: &[u64]) -> (Timeline, impl Fn(u64) -> Instant) {
        let origin = Instant::now();
        let at = move |ms| origin + Duration::from_millis(ms);
        let mut timeline = Timeline::new(origin);
        ended_ms.iter().for_each(|&ms| timeline.record(at(ms)));
        (timeline, at)
    }

    #[test]
    fn a_gap_counts_where_it_reaches_into_the_window() {
        let (timeline, at) = timeline(&[1, 2, 3, 50, 51, 52, 53]);
        let gap_ms = |from, to| timeline.longest_gap(&(at(from)..at(to))).as_millis();
        assert_eq!(gap_ms(0, 53), 47);
        assert_eq!(gap_ms(10, 20), 47, "it lies within the gap");
        assert_eq!(gap_ms(0, 3), 1);
        assert_eq!(gap_ms(50, 53), 1);
        assert_eq!(gap_ms(52, 100), 47, "nothing ended after 53");
    }

    #[test]
    fn nothing_at_all_is_one_gap() {
        let (timeline, at) = timeline(&[]);
        assert_eq!(timeline.longest_gap(&(at(0)..at(70))), Duration::from_millis(70));
        assert_eq!(timeline.operations_per_s(&(at(5)..at(5))), 0.0);
    }

    #[test]
    fn operations_are_counted_by_window() {
        let (timeline, at) = timeline(&[10, 20, 30, 40]);
        assert_eq!(timeline.operations(&(at(20)..at(40))), 2);
        assert_eq!(timeline.operations_per_s(&(at(0)..at(100))), 40.0);
        assert_eq!(timeline.operations(&(at(50)..at(20))), 0);
    }
}
