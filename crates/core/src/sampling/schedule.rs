//! When to scan: bursts, and pauses that keep the cost within the budget.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a page that a scan finds cost its writer, at least: 0.75 to 1.1 us were measured under TCG on a calm machine, faults
/// and flushes included.
pub const PAGE_COST: Duration = Duration::from_nanos(1250);
/// How much dearer a write may be to a guest than where it was measured: its caches are cold, its pages more. Up to
/// 3.9 times was found on a crowded machine.
const DEARER: u32 = 4;
/// Shortest pause while the model is being built.
const PAUSE_LEARNING: Duration = Duration::from_secs(1);
/// Shortest pause where there is nothing to learn at once: the model fits, or no model ever did.
const PAUSE_TESTING: Duration = Duration::from_secs(10);
/// A scan that comes so much later than it should is no sample of that length: in tenths of the interval.
const LATE_TENTHS: u32 = 15;
/// A burst is given up after so many times the scans it needs: this host is too busy.
const MOST_SCANS: u32 = 2;

/// The share of a guest's time that learning about it may cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Budget(f64);

/// A budget that makes no sense.
#[derive(Clone, Copy, Debug, Error, PartialEq)]
#[error("a sampling budget of {0} % of the guest's time is not possible; choose more than 0 and at most 100")]
pub struct BadBudget(f64);

impl Budget {
    /// A budget in percent of the guest's time.
    ///
    /// # Errors
    /// Unless it is more than 0 and at most 100.
    pub fn percent(percent: f64) -> Result<Self, BadBudget> {
        match percent > 0.0 && percent <= 100.0 {
            true => Ok(Self(percent / 100.0)),
            false => Err(BadBudget(percent)),
        }
    }

    /// In percent.
    pub fn as_percent(self) -> f64 {
        self.0 * 100.0
    }

    /// The time of which `cost` is just the budget.
    pub(super) fn time_for(self, cost: Duration) -> Duration {
        Duration::try_from_secs_f64(cost.as_secs_f64() / self.0).unwrap_or(Duration::MAX)
    }
}

impl Default for Budget {
    /// 3 percent.
    fn default() -> Self {
        Self(0.03)
    }
}

/// What a page that a scan finds is taken to cost where such a write was measured to cost `write`.
pub(super) fn page_cost_of(write: Duration) -> Duration {
    (write * DEARER).max(PAGE_COST)
}

/// Where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is looked at.
    Pause {
        until: Duration,
        /// Nor before the guest used so much CPU time since it was started.
        owed: Option<Duration>,
    },
    /// Samples are taken.
    Burst {
        begun: Duration,
        /// CPU time that the guest had used then.
        guest_cpu: Option<Duration>,
        /// When the sample under way began.
        sample_began: Duration,
        /// Samples taken.
        taken: u32,
        /// Scans made.
        scans: u32,
        cost: Cost,
    },
}

/// What was spent of the guest's time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cost {
    /// On pages that it wrote: its own CPU time.
    pages: Duration,
    /// On scans and arming, which hold it up at worst.
    scans: Duration,
}

impl Cost {
    fn all(self) -> Duration {
        self.pages + self.scans
    }

    fn add(&mut self, other: Self) {
        self.pages += other.pages;
        self.scans += other.scans;
    }
}

/// What a scan was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScanUse {
    /// A sample begins with it.
    Begin,
    /// It shows a sample.
    Sample,
    /// It came too late to show a sample; another one begins.
    Late,
}

/// Bursts and pauses.
#[derive(Clone, Debug)]
pub(super) struct Schedule {
    budget: Budget,
    interval: Duration,
    /// Samples of a burst.
    samples: u32,
    phase: Phase,
    began: Duration,
    /// CPU time that the guest had used at the first look and at the last one.
    guest_cpu: Option<(Duration, Duration)>,
    /// By all bursts that ended.
    spent: Cost,
    /// What is taken for the cost of a page.
    page_cost: Duration,
    /// Arming, to be counted with the burst that it is for.
    armed: Duration,
}

impl Schedule {
    pub(super) fn new(budget: Budget, interval: Duration, samples: u32, now: Duration) -> Self {
        Self {
            budget,
            interval,
            samples,
            phase: Phase::Pause {
                until: now,
                owed: None,
            },
            began: now,
            guest_cpu: None,
            spent: Cost::default(),
            page_cost: PAGE_COST,
            armed: Duration::ZERO,
        }
    }

    /// A write to a tracked page was measured to cost this much.
    pub(super) fn measured(&mut self, write: Duration) {
        self.page_cost = page_cost_of(write);
    }

    /// What is taken for the cost of a page.
    pub(super) fn page_cost(&self) -> Duration {
        self.page_cost
    }

    /// When to scan next.
    pub(super) fn next_scan(&self) -> Duration {
        match self.phase {
            Phase::Pause { until, .. } => until,
            Phase::Burst { sample_began, .. } => sample_began + self.interval,
        }
    }

    /// The time of the next scan has come, and the guest used this much CPU time so far. Whether it may be looked at;
    /// else [`Schedule::next_scan`] is later now.
    pub(super) fn may_look(&mut self, now: Duration, guest_cpu: Option<Duration>) -> bool {
        let Phase::Pause { until, owed } = &mut self.phase else {
            return true;
        };
        let left = owed.zip(guest_cpu).map(|(owed, used)| owed.saturating_sub(used));
        if let Some(left) = left.filter(|left| !left.is_zero()) {
            *until = now + left.max(PAUSE_LEARNING);
            return false;
        }
        let first = self.guest_cpu.map(|(first, _)| first);
        self.guest_cpu = guest_cpu.map(|used| (first.unwrap_or(used), used));
        true
    }

    pub(super) fn is_in_burst(&self) -> bool {
        matches!(self.phase, Phase::Burst { .. })
    }

    pub(super) fn budget(&self) -> Budget {
        self.budget
    }

    /// Samples of a burst.
    pub(super) fn burst_samples(&self) -> u32 {
        self.samples
    }

    pub(super) fn armed(&mut self, took: Duration) {
        self.armed += took;
    }

    /// A scan was made at `now`, took `took` and found `pages`.
    pub(super) fn scanned(&mut self, now: Duration, took: Duration, pages: u64) -> ScanUse {
        let mut found = Cost {
            pages: self
                .page_cost
                .saturating_mul(u32::try_from(pages).unwrap_or(u32::MAX)),
            scans: took,
        };
        let late = self.interval * LATE_TENTHS / 10;
        match &mut self.phase {
            Phase::Pause { .. } => {
                found.scans += std::mem::take(&mut self.armed);
                self.phase = Phase::Burst {
                    begun: now,
                    guest_cpu: self.guest_cpu.map(|(_, last)| last),
                    sample_began: now,
                    taken: 0,
                    scans: 1,
                    cost: found,
                };
                ScanUse::Begin
            }
            Phase::Burst {
                sample_began,
                taken,
                scans,
                cost,
                ..
            } => {
                cost.add(found);
                *scans += 1;
                let took = now.saturating_sub(std::mem::replace(sample_began, now));
                if took > late {
                    return ScanUse::Late;
                }
                *taken += 1;
                ScanUse::Sample
            }
        }
    }

    /// Whether the burst under way has all its samples, or is not worth going on with.
    pub(super) fn is_burst_over(&self) -> bool {
        match self.phase {
            Phase::Pause { .. } => false,
            Phase::Burst { taken, scans, .. } => {
                taken >= self.samples || scans > MOST_SCANS * (self.samples + 1)
            }
        }
    }

    /// A pause, for which whatever a burst cost counts: not before its cost is within the budget.
    pub(super) fn pause(&mut self, now: Duration, nothing_to_learn: bool) {
        let at_least = match nothing_to_learn {
            true => PAUSE_TESTING,
            false => PAUSE_LEARNING,
        };
        let (begun, guest_cpu, cost) = match self.phase {
            Phase::Pause { .. } => {
                let scans = std::mem::take(&mut self.armed);
                let pages = Duration::ZERO;
                (now, None, Cost { pages, scans })
            }
            Phase::Burst {
                begun,
                guest_cpu,
                cost,
                ..
            } => (begun, guest_cpu, cost),
        };
        self.spent.add(cost);
        self.phase = Phase::Pause {
            until: (now + at_least).max(begun.saturating_add(self.budget.time_for(cost.all()))),
            owed: guest_cpu.map(|used| used.saturating_add(self.budget.time_for(cost.pages))),
        };
    }

    /// The estimated cost so far in percent of the guest's time, by the clock or by its CPU time, whichever is more.
    pub(super) fn cost_percent(&self, now: Duration) -> f64 {
        let under_way = match self.phase {
            Phase::Pause { .. } => Duration::ZERO,
            Phase::Burst { cost, .. } => cost.all(),
        };
        let share = |cost: Duration, time: Duration| match time.is_zero() {
            true => 0.0,
            false => 100.0 * cost.as_secs_f64() / time.as_secs_f64(),
        };
        let by_clock = share(self.spent.all() + under_way, now.saturating_sub(self.began));
        let by_cpu = match (self.guest_cpu, self.phase) {
            // As of the begin of the burst under way: all those before it had their pauses.
            (Some((first, last)), Phase::Burst { .. }) => share(self.spent.pages, last.saturating_sub(first)),
            _ => 0.0,
        };
        by_clock.max(by_cpu)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    /// Runs it for `long` over a guest of which each scan finds as many pages; answers how many samples there were.
    fn run(budget: f64, long: Duration, mut pages: impl FnMut(Duration) -> u64) -> (Schedule, Duration, u32) {
        let mut schedule = Schedule::new(Budget::percent(budget).unwrap(), INTERVAL, 21, Duration::ZERO);
        let (mut now, mut samples) = (Duration::ZERO, 0);
        loop {
            now = now.max(schedule.next_scan());
            if now >= long {
                return (schedule, long, samples);
            }
            let used = schedule.scanned(now, Duration::from_micros(500), pages(now));
            samples += u32::from(used == ScanUse::Sample);
            if schedule.is_burst_over() {
                schedule.pause(now, false);
            }
        }
    }

    #[test]
    fn a_guest_that_writes_much_is_left_alone_longer() {
        // 64 MiB in each sample: 41 % of the time in a burst.
        let (busy, end, few) = run(3.0, Duration::from_secs(600), |_| 16_384);
        let cost = busy.cost_percent(end);
        assert!((2.0..=3.1).contains(&cost), "{cost} %");
        let (idle, end, many) = run(3.0, Duration::from_secs(600), |_| 0);
        assert!(
            many > 5 * few,
            "{many} samples of an idle guest, {few} of a busy one"
        );
        assert!(idle.cost_percent(end) < 1.0);
    }

    #[test]
    fn on_a_host_where_faults_are_dear_the_pauses_are_longer() {
        let pause = |write_us| {
            let mut schedule = Schedule::new(Budget::default(), INTERVAL, 1, Duration::ZERO);
            schedule.measured(Duration::from_micros(write_us));
            for at in [Duration::ZERO, INTERVAL] {
                schedule.scanned(at, Duration::ZERO, 16_384);
            }
            schedule.pause(INTERVAL, false);
            schedule.next_scan()
        };
        // Two scans of 16,384 pages, each taken for four times 4 us.
        let expected_s = 2.0 * 16_384.0 * 16e-6 / 0.03;
        assert!(
            (pause(4).as_secs_f64() - expected_s).abs() < 1e-6,
            "{:?}",
            pause(4)
        );
        assert!(
            pause(0) < pause(1),
            "nor is a fault free where it could not be measured"
        );
    }

    /// On a host where it gets a tenth of a CPU, the same pages are ten times the share of its time.
    #[test]
    fn a_guest_that_gets_little_cpu_time_is_left_alone_longer() {
        let mut schedule = Schedule::new(Budget::default(), INTERVAL, 2, Duration::ZERO);
        let used = |now: Duration| Some(Duration::from_secs(5) + now / 10);
        let (mut now, mut bursts) = (Duration::ZERO, 0);
        while now < Duration::from_secs(600) {
            now = schedule.next_scan();
            if !schedule.may_look(now, used(now)) {
                assert!(schedule.next_scan() >= now + PAUSE_LEARNING);
                continue;
            }
            schedule.scanned(now, Duration::ZERO, 1600);
            if schedule.is_burst_over() {
                schedule.pause(now, false);
                bursts += 1;
            }
        }
        // 3 scans of 2 ms each are 3 % of 200 ms of CPU time, which takes it 2 s.
        assert!((250..=300).contains(&bursts), "{bursts} bursts");
        now = schedule.next_scan();
        while !schedule.may_look(now, used(now)) {
            now = schedule.next_scan();
        }
        schedule.scanned(now, Duration::ZERO, 0);
        let cost = schedule.cost_percent(now);
        assert!((2.5..=3.01).contains(&cost), "{cost} % of its CPU time");
    }

    #[test]
    fn samples_are_an_interval_long_and_late_scans_are_none() {
        let mut schedule = Schedule::new(Budget::default(), INTERVAL, 2, Duration::ZERO);
        let at = Duration::from_millis;
        let mut scan = |ms| schedule.scanned(at(ms), Duration::ZERO, 0);
        assert_eq!(scan(0), ScanUse::Begin);
        assert_eq!(scan(55), ScanUse::Sample);
        assert_eq!(scan(200), ScanUse::Late);
        assert_eq!(schedule.next_scan(), at(250));
        assert!(!schedule.is_burst_over());
        assert_eq!(schedule.scanned(at(250), Duration::ZERO, 0), ScanUse::Sample);
        assert!(schedule.is_burst_over());
    }

    #[test]
    fn a_host_that_is_too_busy_does_not_try_for_ever() {
        let mut schedule = Schedule::new(Budget::default(), INTERVAL, 5, Duration::ZERO);
        let scans = (1..).take_while(|second| {
            schedule.scanned(Duration::from_secs(*second), Duration::ZERO, 0);
            !schedule.is_burst_over()
        });
        assert_eq!(scans.count(), 12);
    }

    #[test]
    fn budgets_that_make_no_sense_are_refused() {
        for percent in [0.0, -1.0, 101.0, f64::NAN] {
            let why = Budget::percent(percent).unwrap_err().to_string();
            assert!(why.contains("more than 0 and at most 100"), "{why}");
        }
    }

    proptest! {
        /// Whatever the guest does: over all whole bursts with their pauses the cost is within the budget.
        #[test]
        fn the_budget_is_kept(
            percent in 0.1f64..50.0,
            pages in prop::collection::vec(0u64..1 << 18, 1..200),
        ) {
            let mut next = pages.iter().cycle();
            let (schedule, ..) = run(percent, Duration::from_secs(3600), |_| *next.next().unwrap());
            let Phase::Pause { until, .. } = schedule.phase else {
                return Ok(());
            };
            let share = schedule.spent.all().as_secs_f64() / until.as_secs_f64();
            prop_assert!(share * 100.0 <= percent * 1.0001, "{} % of {} %", share * 100.0, percent);
        }
    }
}
