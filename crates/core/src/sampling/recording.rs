//! When to look at a guest that is recorded, and at how much of it, so that it stays within a budget of the guest's time.
//!
//! Unlike learning ([`super::Background`]), which wants every page and can wait, a recording wants to see a stretch of time
//! without gaps. So where all pages cost too much it looks at a part of them ([`Coverage`]), the sparser the more the guest
//! writes; it pauses only where the sparsest part costs too much as well. It begins with the sparsest, because nothing is known
//! of the guest yet, and looks again at what it costs after every [`REVIEW_SAMPLES`] samples.
//!
//! Which part it is stays the same for as long as its size does, over pauses too. A part stands for the rest of memory, so a look at
//! another one makes it seem that the guest writes elsewhere now: replayed, a guest whose hot pages lie scattered would dirty more and
//! more (with a new part every two seconds forecasts of pre-copy were 40 to 60 % too high). How far the part may be from the rest is
//! for whoever replays the recording to say (`sim::neighbours`).
//!
//! The first two samples after each review are short ones, a sixteenth and a quarter of the interval: they tell how fast a guest
//! dirties again what it dirtied before.

use std::time::Duration;

use super::PAGE_COST;
use super::coverage::Coverage;
use super::schedule::{Budget, page_cost_of};

/// Samples between two reviews.
pub const REVIEW_SAMPLES: u32 = 20;
/// Samples before the first one.
const FIRST_REVIEW_SAMPLES: u32 = 5;
/// The short samples, in parts of the interval.
const SHORT: [u32; 2] = [16, 4];
/// The part of the budget that is planned with: guests do not keep to what they did.
const PLANNED: f64 = 0.8;

/// Decides when to look; see the module. Time counts from the begin of the recording.
#[derive(Clone, Debug)]
pub struct Recording {
    pages: u64,
    interval: Duration,
    /// How long it is to be.
    length: Duration,
    /// None: all pages, whatever that costs.
    budget: Option<Budget>,
    page_cost: Duration,
    coverage: Coverage,
    phase: Phase,
    burst: u32,
    seed: u32,
    spent: Duration,
    scans: u64,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    /// Nothing is tracked, or it has to be tracked anew.
    Pause { until: Duration },
    /// Samples follow each other.
    Burst {
        /// When the sample under way began.
        since: Duration,
        /// Samples since the last review, and until the next one.
        taken: u32,
        review_after: u32,
        /// Cost of all pages by these, had all been looked at, and their time.
        full_cost: Duration,
        time: Duration,
    },
}

/// A sample that a scan completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// When it began.
    pub start: Duration,
    /// When it ended.
    pub end: Duration,
    /// Its burst.
    pub burst: u32,
    /// The pages looked at.
    pub coverage: Coverage,
}

impl Recording {
    /// Of a guest of `pages` pages, for `length`, with samples of `interval`; without a budget all pages are looked at all the
    /// time.
    pub fn new(pages: u64, interval: Duration, length: Duration, budget: Option<Budget>) -> Self {
        let coverage = match budget {
            Some(_) => Coverage::one_in(Coverage::sparsest_stride(pages), 0),
            None => Coverage::ALL,
        };
        Self {
            pages,
            interval,
            length,
            budget,
            page_cost: PAGE_COST,
            coverage,
            phase: Phase::Pause {
                until: Duration::ZERO,
            },
            burst: 0,
            seed: 0,
            spent: Duration::ZERO,
            scans: 0,
        }
    }

    /// A write to a tracked page was measured to cost this much on this host.
    pub fn write_costs(&mut self, write: Duration) {
        self.page_cost = page_cost_of(write);
    }

    /// What is taken for the cost of a page that a scan finds.
    pub fn page_cost(&self) -> Duration {
        self.page_cost
    }

    /// When to look next: to arm where [`Recording::is_in_burst`] says no, else to scan.
    pub fn next_look(&self) -> Duration {
        match self.phase {
            Phase::Pause { until } => until,
            Phase::Burst { since, taken, .. } => {
                let part = SHORT.get(taken as usize).copied().unwrap_or(1);
                since + self.interval / part
            }
        }
    }

    /// Whether samples follow each other now.
    pub fn is_in_burst(&self) -> bool {
        matches!(self.phase, Phase::Burst { .. })
    }

    /// The pages to arm for, or those looked at now.
    pub fn coverage(&self) -> Coverage {
        self.coverage
    }

    /// Tracking of [`Recording::coverage`] was armed at `now`, which took `took`: a burst begins.
    pub fn armed(&mut self, now: Duration, took: Duration) {
        self.spent += took;
        let review_after = match self.burst {
            0 if self.budget.is_some() => FIRST_REVIEW_SAMPLES,
            _ => REVIEW_SAMPLES,
        };
        self.phase = Phase::Burst {
            since: now,
            taken: 0,
            review_after,
            full_cost: Duration::ZERO,
            time: Duration::ZERO,
        };
    }

    /// A scan was made at `now`, took `took` and found `found` of the pages looked at: the sample that it completes. After it
    /// the recording may pause ([`Recording::is_in_burst`]).
    pub fn scanned(&mut self, now: Duration, took: Duration, found: u64) -> Option<Recorded> {
        let Phase::Burst {
            since,
            taken,
            review_after,
            full_cost,
            time,
        } = &mut self.phase
        else {
            return None;
        };
        let sample = Recorded {
            start: *since,
            end: now,
            burst: self.burst,
            coverage: self.coverage,
        };
        let pages = self
            .page_cost
            .saturating_mul(u32::try_from(found).unwrap_or(u32::MAX));
        self.spent += pages + took;
        self.scans += 1;
        *full_cost += pages.saturating_mul(self.coverage.stride()) + took;
        *time += now.saturating_sub(*since);
        *since = now;
        *taken += 1;
        let (full_cost, time, due) = (*full_cost, *time, *taken >= *review_after);
        if due {
            self.review(now, full_cost, time);
        } else if self.is_used_up() {
            // For good: by the end of the recording it is just within the budget.
            self.pause(self.length);
        }
        (sample.end > sample.start).then_some(sample)
    }

    /// The guest cannot be looked at: it is tried again after a while.
    pub fn interrupted(&mut self, now: Duration) {
        self.pause(now + self.interval);
    }

    /// What it cost the guest so far, an estimate.
    pub fn spent(&self) -> Duration {
        self.spent
    }

    /// Scans made.
    pub fn scans(&self) -> u64 {
        self.scans
    }

    /// Whether the budget of the whole recording is spent.
    fn is_used_up(&self) -> bool {
        self.budget
            .is_some_and(|budget| budget.time_for(self.spent) >= self.length)
    }

    fn review(&mut self, now: Duration, full_cost: Duration, time: Duration) {
        let Some(budget) = self.budget else {
            return self.go_on();
        };
        let share = full_cost.as_secs_f64() / time.as_secs_f64().max(1e-9);
        let needed = share / (budget.as_percent() / 100.0 * PLANNED);
        let sparsest = Coverage::sparsest_stride(self.pages);
        let stride = (needed.ceil().min(f64::from(sparsest)) as u32)
            .max(1)
            .next_power_of_two()
            .min(sparsest);
        // What was spent has to be within the budget before more is.
        let paid_at = budget.time_for(self.spent);
        let stays = stride == self.coverage.stride();
        if stays && paid_at <= now {
            return self.go_on();
        }
        if !stays {
            self.seed += 1;
            self.coverage = Coverage::one_in(stride, self.seed);
        }
        self.pause(paid_at.max(now));
    }

    fn go_on(&mut self) {
        if let Phase::Burst { since, .. } = self.phase {
            self.phase = Phase::Burst {
                since,
                taken: 0,
                review_after: REVIEW_SAMPLES,
                full_cost: Duration::ZERO,
                time: Duration::ZERO,
            };
        }
    }

    fn pause(&mut self, until: Duration) {
        self.burst += 1;
        self.phase = Phase::Pause { until };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);
    const SCAN: Duration = Duration::from_micros(200);
    /// 1 GiB.
    const PAGES: u64 = 1 << 18;

    /// Records for `long` a guest that dirties `pages` pages in each interval, in a loop; answers the samples.
    fn record(budget: Option<f64>, long: Duration, pages: u64) -> (Recording, Vec<Recorded>) {
        let budget = budget.map(|percent| Budget::percent(percent).unwrap());
        let mut recording = Recording::new(PAGES, INTERVAL, long, budget);
        let mut samples: Vec<Recorded> = Vec::new();
        while recording.next_look() < long {
            let now = recording.next_look();
            if !recording.is_in_burst() {
                recording.armed(now, SCAN);
                continue;
            }
            let stride = u64::from(recording.coverage().stride());
            samples.extend(recording.scanned(now, SCAN, pages / stride));
        }
        (recording, samples)
    }

    #[test]
    fn a_guest_that_writes_little_is_seen_whole_and_without_gaps() {
        let (recording, samples) = record(Some(3.0), Duration::from_secs(10), 100);
        let full = samples.iter().filter(|sample| sample.coverage.is_all());
        assert!(
            full.clone().count() > 180,
            "{} of {}",
            full.count(),
            samples.len()
        );
        assert!(recording.spent() < Duration::from_millis(300));
        let seen: Duration = samples.iter().map(|sample| sample.end - sample.start).sum();
        assert!(seen > Duration::from_millis(9_900), "{seen:?}");
    }

    #[test]
    fn a_guest_that_writes_much_is_seen_in_part_and_within_the_budget() {
        // 64 MiB in each sample: 41 % of the time, were all looked at.
        for percent in [1.0, 3.0, 10.0] {
            let (recording, samples) = record(Some(percent), Duration::from_secs(60), 16_384);
            let cost = recording.spent().as_secs_f64() / 60.0 * 100.0;
            assert!(
                cost <= percent * 1.02 && cost > percent * 0.2,
                "{cost} % of {percent} %"
            );
            let seen: Duration = samples.iter().map(|sample| sample.end - sample.start).sum();
            assert!(seen > Duration::from_secs(30), "{percent} %: {seen:?} of 60 s");
        }
    }

    #[test]
    fn pauses_do_not_change_the_part_that_is_looked_at() {
        // More than even the sparsest part can be looked at all the time.
        let (_, samples) = record(Some(1.0), Duration::from_secs(60), 65_536);
        let bursts = samples.last().map_or(0, |last| last.burst);
        assert!(bursts >= 3, "{bursts}");
        for pair in samples.windows(2) {
            assert_eq!(
                pair[0].coverage == pair[1].coverage,
                pair[0].coverage.stride() == pair[1].coverage.stride(),
                "{pair:?}"
            );
        }
    }

    #[test]
    fn without_a_budget_everything_is_seen() {
        let (recording, samples) = record(None, Duration::from_secs(5), 16_384);
        assert!(
            samples
                .iter()
                .all(|sample| sample.coverage.is_all() && sample.burst == 0)
        );
        assert!(recording.spent() > Duration::from_secs(1));
        let short = samples
            .iter()
            .filter(|sample| sample.end - sample.start < INTERVAL);
        assert!(short.count() >= 8);
    }

    #[test]
    fn an_interruption_ends_a_burst() {
        let mut recording = Recording::new(PAGES, INTERVAL, INTERVAL * 100, None);
        recording.armed(Duration::ZERO, SCAN);
        let first = recording.scanned(INTERVAL, SCAN, 3).unwrap();
        recording.interrupted(INTERVAL);
        assert!(!recording.is_in_burst() && recording.next_look() == INTERVAL * 2);
        assert_eq!(recording.scanned(INTERVAL * 2, SCAN, 3), None);
        recording.armed(INTERVAL * 3, SCAN);
        let second = recording.scanned(INTERVAL * 4, SCAN, 3).unwrap();
        assert_ne!(first.burst, second.burst);
        assert_eq!(second.start, INTERVAL * 3);
    }
}
