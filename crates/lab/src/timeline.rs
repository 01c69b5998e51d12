//! When operations ended, and what that says about what a client sees.

use std::ops::Range;
use std::time::{Duration, Instant};

/// The moments at which operations of one client ended well, or at which it heard how far the guest has come.
#[derive(Clone, Debug)]
pub struct Timeline {
    origin: Instant,
    /// Their ends never fall.
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    /// Since the origin.
    ended_ns: u64,
    /// What was done until then.
    total: u64,
    /// Of an operation that was waited for.
    latency: Option<Duration>,
}

impl Timeline {
    /// An empty one that begins at `origin`.
    pub fn new(origin: Instant) -> Self {
        Self {
            origin,
            entries: Vec::new(),
        }
    }

    /// An operation that was waited for so long ended well at `at`.
    pub fn record(&mut self, at: Instant, latency: Duration) {
        self.push(at, 1, Some(latency));
    }

    /// At `at` the guest was heard of, and had done so much more than the last time.
    pub fn record_progress(&mut self, at: Instant, amount: u64) {
        self.push(at, amount, None);
    }

    fn push(&mut self, at: Instant, amount: u64, latency: Option<Duration>) {
        let (last, total) = self
            .entries
            .last()
            .map_or((0, 0), |entry| (entry.ended_ns, entry.total));
        self.entries.push(Entry {
            ended_ns: self.ns(at).max(last),
            total: total + amount,
            latency,
        });
    }

    /// How much was done within `window`.
    pub fn operations(&self, window: &Range<Instant>) -> u64 {
        let until = |at| {
            let next = self.entries.partition_point(|entry| entry.ended_ns < self.ns(at));
            next.checked_sub(1).map_or(0, |last| self.entries[last].total)
        };
        until(window.end).saturating_sub(until(window.start))
    }

    /// How much was done a second within `window`.
    pub fn operations_per_s(&self, window: &Range<Instant>) -> f64 {
        let duration = window.end.saturating_duration_since(window.start);
        if duration.is_zero() {
            0.0
        } else {
            self.operations(window) as f64 / duration.as_secs_f64()
        }
    }

    /// Operations that were waited for, in the order of their ends: when each began and ended.
    pub fn waits(&self) -> impl Iterator<Item = Range<Instant>> {
        self.entries.iter().filter_map(|entry| {
            let ended = self.origin + Duration::from_nanos(entry.ended_ns);
            Some(ended.checked_sub(entry.latency?)?..ended)
        })
    }

    /// The longest time between the ends of two operations that reaches into `window`. The end of the window
    /// counts as one where nothing ended after it.
    pub fn longest_gap(&self, window: &Range<Instant>) -> Duration {
        let (start, end) = (self.ns(window.start), self.ns(window.end));
        let first = self.entries.partition_point(|entry| entry.ended_ns <= start);
        let last = self.entries.partition_point(|entry| entry.ended_ns < end);
        let mut previous = first
            .checked_sub(1)
            .map_or(0, |index| self.entries[index].ended_ns);
        let mut longest = 0;
        let after = self.entries.get(last).map_or(end, |entry| entry.ended_ns);
        let within = self.entries[first.min(last)..last].iter();
        for ns in within.map(|entry| entry.ended_ns).chain([after]) {
            longest = longest.max(ns.saturating_sub(previous));
            previous = ns;
        }
        Duration::from_nanos(longest)
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
        ended_ms
            .iter()
            .for_each(|&ms| timeline.record(at(ms), Duration::from_millis(1)));
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
    #[test]
    fn progress_counts_by_its_amount_and_has_no_latency() {
        let (mut timeline, at) = timeline(&[10]);
        timeline.record_progress(at(20), 500);
        timeline.record_progress(at(30), 0);
        assert_eq!(timeline.operations(&(at(15)..at(100))), 500);
        assert_eq!(timeline.longest_gap(&(at(10)..at(30))).as_millis(), 10);
        let waits: Vec<_> = timeline.waits().collect();
        assert_eq!(waits, [at(9)..at(10)]);
    }
}
