//! Learning of one guest: schedule and knowledge together.

use std::time::Duration;

use super::learned::{Learned, Ready};
use super::schedule::{Budget, ScanUse, Schedule};
use super::status::{SamplingReport, SamplingState};
use crate::bitmap::PageBitmap;
use crate::filter::Verdict;
use crate::tuning::Tuning;

/// Learns about a guest that runs; see the module.
#[derive(Clone, Debug)]
pub struct Background {
    schedule: Schedule,
    learned: Learned,
}

/// What changed, for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// The model fits the guest.
    Fits,
    /// It fits no more and is built anew.
    Rebuilt,
}

impl Background {
    /// Begins at `now` with a guest of `pages` pages, where possible with what is `known` of it; `tuning` was checked for
    /// them.
    pub fn new(pages: u64, tuning: &Tuning, budget: Budget, known: Option<Learned>, now: Duration) -> Self {
        let known = known.filter(|known| known.is_of(pages, tuning));
        let mut learned = known.unwrap_or_else(|| Learned::new(pages, tuning, now));
        learned.learner.interrupt();
        Self {
            schedule: Schedule::new(budget, tuning.interval, tuning.samples.saturating_add(1), now),
            learned,
        }
    }

    /// When to scan next.
    pub fn next_scan(&self) -> Duration {
        self.schedule.next_scan()
    }

    /// Whether a burst is under way: the guest had better not be looked at otherwise than by scans.
    pub fn is_in_burst(&self) -> bool {
        self.schedule.is_in_burst()
    }

    /// A write to a tracked page was measured to cost this much on this host now.
    pub fn write_costs(&mut self, write: Duration) {
        self.schedule.measured(write);
    }

    /// Tracking was armed for the next burst, which took `took`.
    pub fn armed(&mut self, took: Duration) {
        self.schedule.armed(took);
    }

    /// The time of the next scan has come, and the guest used this much CPU time since it was started, where that is known.
    /// Whether it may be looked at now: on a host where it gets little, [`Background::next_scan`] may be later after this.
    pub fn may_look(&mut self, now: Duration, guest_cpu: Option<Duration>) -> bool {
        self.schedule.may_look(now, guest_cpu)
    }

    /// A scan at `now` found the pages `dirty`, and took `took`.
    pub fn scanned(&mut self, now: Duration, took: Duration, dirty: &PageBitmap) -> Option<News> {
        let verdict = match self.schedule.scanned(now, took, dirty.count()) {
            ScanUse::Begin | ScanUse::Late => {
                self.learned.learner.interrupt();
                Verdict::Unchanged
            }
            ScanUse::Sample => self.learned.sample(now, dirty),
        };
        if self.schedule.is_burst_over() {
            self.learned.bursts += 1;
            self.pause(now);
        }
        match verdict {
            Verdict::Unchanged => None,
            Verdict::Gained => Some(News::Fits),
            Verdict::Lost | Verdict::Hopeless => Some(News::Rebuilt),
        }
    }

    /// The guest cannot be looked at now: after a pause it is tried again.
    pub fn interrupted(&mut self, now: Duration) {
        self.learned.learner.interrupt();
        self.schedule.pause(now, true);
    }

    fn pause(&mut self, now: Duration) {
        let nothing_to_learn = self.learned.trust.is_given() || self.learned.hopeless;
        self.schedule.pause(now, nothing_to_learn);
    }

    /// What a migration that begins at `now` can have of it.
    pub fn ready(&self, now: Duration) -> Option<Ready> {
        self.learned.ready(now)
    }

    /// What was learned.
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Ends it, for what was learned.
    pub fn into_learned(self) -> Learned {
        self.learned
    }

    /// How it stands at `now`.
    pub fn report(&self, now: Duration) -> SamplingReport {
        let state = match self.is_in_burst() {
            true => SamplingState::Burst,
            false => SamplingState::Pause,
        };
        let next = self.schedule.next_scan().saturating_sub(now);
        SamplingReport {
            state,
            next_scan_ms: next.as_secs_f64() * 1e3,
            burst_samples: self.schedule.burst_samples(),
            budget_percent: self.schedule.budget().as_percent(),
            cost_percent: self.schedule.cost_percent(now),
            page_cost_us: self.schedule.page_cost().as_secs_f64() * 1e6,
            ..self.learned.report(now)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::PageRun;

    /// 1 GiB.
    const PAGES: u64 = 1 << 18;

    /// Lets time go by up to `until_s`, with a guest whose samples of 50 ms are `sample`.
    fn live(background: &mut Background, until_s: u64, sample: impl Fn(u64) -> PageBitmap) -> Vec<News> {
        let mut news = Vec::new();
        while background.next_scan() < Duration::from_secs(until_s) {
            let now = background.next_scan();
            let dirty = sample(now.as_millis() as u64 / 50);
            news.extend(background.scanned(now, Duration::from_micros(500), &dirty));
        }
        news
    }

    fn new(known: Option<Learned>) -> Background {
        Background::new(
            PAGES,
            &Tuning::default(),
            Budget::default(),
            known,
            Duration::ZERO,
        )
    }

    /// 20 MiB in each sample, going round 256 MiB from `first` on.
    fn sweeping(first: u64) -> impl Fn(u64) -> PageBitmap {
        move |at| {
            let mut dirty = PageBitmap::new(PAGES);
            (0..5120).for_each(|page| {
                dirty.insert(first + (at * 5120 + page) % 65_536);
            });
            dirty
        }
    }

    #[test]
    fn a_model_is_built_tested_and_rebuilt_when_the_guest_does_something_else() {
        let mut background = new(None);
        assert!(background.ready(Duration::ZERO).is_none(), "nothing is known yet");
        assert_eq!(live(&mut background, 120, sweeping(0)), [News::Fits]);
        let now = Duration::from_secs(120);
        let report = background.report(now);
        assert_eq!(report.fits, Some(true), "{report:?}");
        assert!(report.cost_percent <= 3.0 * 1.2, "{report:?}");
        assert!(
            (12..=64).contains(&report.states_seen),
            "256 MiB are 64 regions: {report:?}"
        );
        let ready = background.ready(now).unwrap();
        assert!(ready.from.contains("samples of 50 ms in"), "{}", ready.from);
        let model = ready.model(&Tuning::default(), PAGES).unwrap();
        assert!(model.model().memory_bytes() > 0);

        let news = live(&mut background, 400, sweeping(1 << 17));
        assert_eq!(news, [News::Rebuilt, News::Fits]);
        assert_eq!(background.report(Duration::from_secs(400)).rebuilt, 1);
    }

    #[test]
    fn a_guest_without_a_pattern_never_fits_and_costs_no_more() {
        let random = |at: u64| {
            let mixed = (at + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let region = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 56;
            let mut dirty = PageBitmap::new(PAGES);
            dirty.insert_run(PageRun::new(region * 1024, 1000));
            dirty
        };
        let mut background = new(None);
        let news = live(&mut background, 1200, random);
        assert!(
            !news.contains(&News::Fits) && news.contains(&News::Rebuilt),
            "{news:?}"
        );
        let now = Duration::from_secs(1200);
        assert_eq!(background.report(now).fits, Some(false));
        let ready = background.ready(now);
        assert!(ready.is_none_or(|ready| ready.model(&Tuning::default(), PAGES).is_err()));
    }

    #[test]
    fn what_is_known_is_gone_on_with_only_for_the_same_guest_and_parameters() {
        let mut background = new(None);
        live(&mut background, 60, sweeping(0));
        let learned = background.into_learned();
        let bytes = serde_json::to_vec(&learned).unwrap();
        let read: Learned = serde_json::from_slice(&bytes).unwrap();
        assert!(read == learned, "it is kept whole");
        assert_eq!(new(Some(read.clone())).report(Duration::ZERO).fits, Some(true));
        let other = Tuning {
            alpha: 0.25,
            ..Tuning::default()
        };
        for (pages, tuning) in [(PAGES, other), (PAGES / 2, Tuning::default())] {
            let background = Background::new(
                pages,
                &tuning,
                Budget::default(),
                Some(read.clone()),
                Duration::ZERO,
            );
            assert_eq!(background.report(Duration::ZERO).samples, 0);
        }
        let ready = |now_s| read.ready(Duration::from_secs(now_s)).unwrap();
        let plain = Tuning::default();
        assert!(ready(61).heat(&plain, PAGES).is_ok());
        assert!(ready(61).heat(&plain, 7).is_err(), "another guest");
        assert!(ready(5000).heat(&plain, PAGES).is_err(), "too old");
        let other = Tuning {
            regions: Some(64),
            ..plain
        };
        assert!(ready(61).model(&other, PAGES).is_err(), "other regions");
        assert!(
            ready(61).heat(&other, PAGES).is_ok(),
            "to the heat they do not matter"
        );
    }

    #[test]
    fn an_interrupted_burst_is_no_transition() {
        let mut background = new(None);
        live(&mut background, 1, sweeping(0));
        assert!(background.is_in_burst());
        background.interrupted(Duration::from_secs(1));
        assert!(!background.is_in_burst());
        assert!(background.next_scan() >= Duration::from_secs(2));
    }
}
