//! What a data filter learned and what that cost, for the report of a migration. Source: data-filter paper, figure 2 (how often
//! each memory-write state occurs) and table 1 with section 5.2 (time and memory of model and filter).

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::learner::{Learner, Tested};
use super::states::State;

/// States that [`FilterReport::frequent_share`] is of.
const FREQUENT: usize = 10;

/// The model that a migration ended with, and the work it made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FilterReport {
    /// Regions that RAM is cut into. A state is the number of the hottest one; the number after the last is that of a guest
    /// that writes nothing.
    pub regions: u32,
    /// Time from one sample to the next, milliseconds.
    pub interval_ms: f64,
    /// Samples that followed another one: each is an occurrence of its state.
    pub samples: u64,
    /// States that occurred.
    pub states_seen: u64,
    /// How often each of them did, in order.
    pub states: Vec<StateCount>,
    /// The share of the samples in the ten states that occurred most.
    pub frequent_share: f64,
    /// Transitions in the model.
    pub transitions: u64,
    /// Different ones among them.
    pub transitions_seen: u64,
    /// Memory of the model, bytes.
    pub memory_bytes: u64,
    /// Whether the model was trusted in the end.
    pub fits: bool,
    /// Tests of fit during the migration.
    pub tests: u64,
    /// Those that failed.
    pub tests_failed: u64,
    /// The last of them.
    pub last_test: Option<Tested>,
    /// Models that were given up during the migration.
    pub rebuilt: u64,
    /// Forecasts that were made.
    pub forecasts: u64,
    /// What samples cost.
    #[serde(default)]
    pub cost: SampleCost,
}

/// How often a state occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCount {
    /// The state.
    pub state: State,
    /// In so many samples.
    pub samples: u64,
}

/// What the scans of a migration, and what was decided upon each, took of the time: the driver measures it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SampleCost {
    /// Scans of the guest's dirty pages.
    pub scans: u64,
    /// How long they took together, milliseconds.
    pub scan_ms: f64,
    /// How long taking them in, forecasting and filtering took together, milliseconds.
    pub decide_ms: f64,
    /// The longest of these, milliseconds.
    pub decide_max_ms: f64,
    /// Both, on average, milliseconds.
    pub sample_ms: f64,
}

impl SampleCost {
    /// A scan took so long.
    pub fn scanned(&mut self, took: Duration) {
        self.scans += 1;
        self.scan_ms += ms(took);
        self.average();
    }

    /// Working on what a scan found took so long.
    pub fn decided(&mut self, took: Duration) {
        self.decide_ms += ms(took);
        self.decide_max_ms = self.decide_max_ms.max(ms(took));
        self.average();
    }

    fn average(&mut self) {
        self.sample_ms = (self.scan_ms + self.decide_ms) / self.scans.max(1) as f64;
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

impl FilterReport {
    /// The part that the learner knows.
    pub(crate) fn of(learner: &Learner) -> Self {
        let (model, states) = (learner.model(), learner.occurrences());
        let samples: u64 = states.iter().map(|state| state.samples).sum();
        let mut most: Vec<_> = states.iter().map(|state| state.samples).collect();
        most.sort_unstable_by(|one, other| other.cmp(one));
        let frequent: u64 = most.iter().take(FREQUENT).sum();
        Self {
            regions: model.regions().count(),
            interval_ms: learner.tuning().interval.as_secs_f64() * 1e3,
            samples,
            frequent_share: frequent as f64 / samples.max(1) as f64,
            states_seen: states.len() as u64,
            states,
            transitions: model.all_transitions().map(u64::from).sum(),
            transitions_seen: model.all_transitions().count() as u64,
            memory_bytes: model.memory_bytes(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bitmap::PageBitmap;
    use crate::pages::PageRun;
    use crate::tuning::Tuning;

    #[test]
    fn the_cost_of_a_sample_is_that_of_its_scan_and_of_the_decision() {
        let mut cost = SampleCost::default();
        for (scan, decision) in [(2, 1), (4, 5)] {
            cost.scanned(Duration::from_millis(scan));
            cost.decided(Duration::from_millis(decision));
        }
        assert_eq!((cost.scans, cost.scan_ms, cost.decide_ms), (2, 6.0, 6.0));
        assert_eq!((cost.decide_max_ms, cost.sample_ms), (5.0, 6.0));
    }

    #[test]
    fn states_are_counted_whether_their_transitions_were_learned_yet_or_not() {
        let tuning = Tuning {
            regions: Some(10),
            samples: 4,
            ..Tuning::default()
        };
        let mut learner = Learner::new(100, &tuning);
        let mut sample = |regions: &[u64]| {
            let mut dirty = PageBitmap::new(100);
            regions
                .iter()
                .for_each(|region| dirty.insert_run(PageRun::new(region * 10, 5)));
            learner.sample(&dirty);
            FilterReport::of(&learner)
        };
        let counts = |report: &FilterReport| -> Vec<_> {
            report
                .states
                .iter()
                .map(|count| (count.state, count.samples))
                .collect()
        };
        let first = sample(&[3]);
        assert_eq!(
            (first.samples, first.states_seen),
            (0, 0),
            "nothing came before it"
        );
        for regions in [&[4][..], &[3], &[3]] {
            sample(regions);
        }
        let waiting = sample(&[]);
        assert_eq!(counts(&waiting), [(3, 2), (4, 1), (10, 1)]);
        assert_eq!((waiting.samples, waiting.transitions), (4, 4));
        let next = sample(&[4]);
        assert_eq!(counts(&next), [(3, 2), (4, 2), (10, 1)]);
        assert_eq!((next.samples, next.transitions, next.transitions_seen), (5, 4, 4));
        assert!(next.memory_bytes > 0 && next.regions == 10);
        assert_eq!((first.frequent_share, next.frequent_share), (0.0, 1.0));
    }
}
