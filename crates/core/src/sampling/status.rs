//! How the learning of a guest stands, for the operator.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::learned::Learned;
use crate::pages::PAGE_SIZE;

/// What is done now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SamplingState {
    /// The guest is being looked at.
    Burst,
    /// It is left alone, so that looking at it stays within the budget.
    #[default]
    Pause,
}

/// What is known of a guest, and what knowing it costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SamplingReport {
    /// What is done now.
    pub state: SamplingState,
    /// Time until the next scan, milliseconds.
    pub next_scan_ms: f64,
    /// Samples of a burst. In a burst every page is looked at, between bursts none.
    pub burst_samples: u32,
    /// Time from one sample to the next in a burst, milliseconds.
    pub interval_ms: f64,
    /// The share of the guest's time that learning may cost, percent.
    pub budget_percent: f64,
    /// The share that it did cost so far, an estimate, percent: of the time by the clock, or of the CPU time that the guest
    /// used, whichever is more.
    pub cost_percent: f64,
    /// What is taken for the cost of a page that a scan finds: four times what was measured, microseconds.
    pub page_cost_us: f64,
    /// Samples in this model.
    pub samples: u64,
    /// Bursts in this model.
    pub bursts: u64,
    /// Since the last sample, milliseconds.
    pub age_ms: Option<f64>,
    /// Regions that RAM is cut into.
    pub regions: u32,
    /// States that were seen.
    pub states_seen: u64,
    /// Whether the model fits the guest; absent before it was tested often enough to tell.
    pub fits: Option<bool>,
    /// Tests of this model: chi-square of states and of transitions, each rejecting at 0.001.
    pub tests: u64,
    /// Those that it failed.
    pub tests_failed: u64,
    /// The last test, in words.
    pub last_test: Option<String>,
    /// Models given up because they did not fit any more, or never did.
    pub rebuilt: u64,
    /// Memory of the model and of the pages' heat, bytes.
    pub memory_bytes: u64,
    /// The writable working set, pages.
    pub working_set_pages: u64,
    /// The writable working set, bytes.
    pub working_set_bytes: u64,
    /// Why nothing is learned at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Learned {
    /// The part of the report that is not of the schedule.
    pub(super) fn report(&self, now: Duration) -> SamplingReport {
        let model = self.learner.model();
        let pages = model.regions().pages();
        let working_set_pages = self.heat.working_set().count();
        let fits = match (self.trust.is_given(), self.hopeless || self.tests_failed > 0) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        };
        SamplingReport {
            interval_ms: self.learner.tuning().interval.as_secs_f64() * 1e3,
            samples: self.samples,
            bursts: self.bursts,
            age_ms: self
                .last_sample
                .map(|at| now.saturating_sub(at).as_secs_f64() * 1e3),
            regions: model.regions().count(),
            states_seen: model.seen_states() as u64,
            fits,
            tests: self.tests,
            tests_failed: self.tests_failed,
            last_test: self.last_test.as_ref().map(ToString::to_string),
            rebuilt: self.rebuilt,
            memory_bytes: model.memory_bytes() + pages * size_of::<f32>() as u64,
            working_set_pages,
            working_set_bytes: working_set_pages * PAGE_SIZE,
            ..SamplingReport::default()
        }
    }
}
