//! Parameters of the algorithms that learn from samples of dirty pages, or ask the guest.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Most regions of the data filter: its matrix of transitions grows with their square.
pub const MAX_REGIONS: u32 = 1024;
/// Most samples to learn from at once.
pub const MAX_SAMPLES: u32 = 10_000;
/// Longest time between two samples.
pub const MAX_INTERVAL: Duration = Duration::from_secs(10);
/// Longest time that a guest may take to answer.
pub const MAX_AGENT_TIMEOUT: Duration = Duration::from_secs(60);
/// Regions where none were asked for: the best of the data-filter paper's section 5.3.
const DEFAULT_REGIONS: u64 = 256;

/// How `hybrid-learning` and `pre-copy-filter` learn, and how `enlightened` asks the guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// Weight of the newest sample in a page's heat, 0 to 1.
    pub alpha: f64,
    /// Samples that `hybrid-learning` learns from before it pushes, and that the data filter learns from before
    /// the first test of its model and between two tests.
    pub samples: u32,
    /// Time from one sample to the next.
    pub interval: Duration,
    /// Regions that the data filter cuts RAM into; they have to divide it. Where absent: 256, or as near to that
    /// as pages allow, the last region shorter.
    pub regions: Option<u32>,
    /// A region is hot in a sample in which it has this share of the hottest region's dirty pages, in percent.
    pub hot_percent: u32,
    /// A page belongs to a state's working set when it is dirty in this share of the state's samples, in percent.
    pub frequent_percent: u32,
    /// How long the guest's agent may take to answer; after that the guest moves without its hints.
    pub agent_timeout: Duration,
    /// Processes of the guest that ran within this time are active: their pages go before those of others.
    pub active_within: Duration,
}

impl Default for Tuning {
    /// 20 samples 50 ms apart, the newest as heavy as all before, 256 regions. The agent has 2 s, and active is what ran
    /// within 16 s, as in the paper.
    fn default() -> Self {
        Self {
            alpha: 0.5,
            samples: 20,
            interval: Duration::from_millis(50),
            regions: None,
            hot_percent: 25,
            frequent_percent: 50,
            agent_timeout: Duration::from_secs(2),
            active_within: Duration::from_secs(16),
        }
    }
}

/// Parameters that make no sense.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum BadTuning {
    /// The weight of a sample.
    #[error("alpha is the weight of a sample: {0} is not between 0 and 1")]
    Alpha(f64),
    /// The number of samples.
    #[error("{0} samples are not possible; choose 1 to {MAX_SAMPLES}")]
    Samples(u32),
    /// The time between samples.
    #[error("an interval of {} ms between samples is not possible; choose more than 0 and at most {} ms", .0.as_secs_f64() * 1e3, MAX_INTERVAL.as_millis())]
    Interval(Duration),
    /// The number of regions.
    #[error("{0} regions are not possible; choose 1 to {MAX_REGIONS}")]
    Regions(u32),
    /// Regions of different sizes.
    #[error("{regions} regions do not divide RAM of {pages} pages; leave the number out, or choose a divisor such as {}", divisor(*.regions, *.pages))]
    Uneven {
        /// What was asked for.
        regions: u32,
        /// Pages of the guest.
        pages: u64,
    },
    /// The time for the agent.
    #[error("the guest's agent cannot have {} ms to answer; choose more than 0 and at most {} ms", .0.as_secs_f64() * 1e3, MAX_AGENT_TIMEOUT.as_millis())]
    AgentTimeout(Duration),
    /// A share.
    #[error("{name} is a share: {percent} is not between 1 and 100 percent")]
    Percent {
        /// Name of the parameter.
        name: &'static str,
        /// What was asked for.
        percent: u32,
    },
}

impl Tuning {
    /// Checks it for a guest of `pages` pages.
    ///
    /// # Errors
    /// What makes no sense, and what would.
    pub fn check(&self, pages: u64) -> Result<(), BadTuning> {
        if !(0.0..=1.0).contains(&self.alpha) {
            return Err(BadTuning::Alpha(self.alpha));
        }
        if !(1..=MAX_SAMPLES).contains(&self.samples) {
            return Err(BadTuning::Samples(self.samples));
        }
        if self.interval.is_zero() || self.interval > MAX_INTERVAL {
            return Err(BadTuning::Interval(self.interval));
        }
        if self.agent_timeout.is_zero() || self.agent_timeout > MAX_AGENT_TIMEOUT {
            return Err(BadTuning::AgentTimeout(self.agent_timeout));
        }
        if let Some(regions) = self.regions {
            if !(1..=MAX_REGIONS).contains(&regions) {
                return Err(BadTuning::Regions(regions));
            }
            if !pages.is_multiple_of(u64::from(regions)) {
                return Err(BadTuning::Uneven { regions, pages });
            }
        }
        for (name, percent) in [
            ("hot_percent", self.hot_percent),
            ("frequent_percent", self.frequent_percent),
        ] {
            if !(1..=100).contains(&percent) {
                return Err(BadTuning::Percent { name, percent });
            }
        }
        Ok(())
    }

    /// Pages of a region of a guest of `pages` pages; the last region may have fewer.
    pub fn region_pages(&self, pages: u64) -> u64 {
        let regions = self
            .regions
            .map_or(DEFAULT_REGIONS, |regions| u64::from(regions.max(1)));
        pages.div_ceil(regions).max(1)
    }
}

/// The nearest number of regions below that divides `pages`; 1 always does.
fn divisor(regions: u32, pages: u64) -> u32 {
    (1..=regions)
        .rev()
        .find(|&fewer| pages.is_multiple_of(u64::from(fewer)))
        .unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(tuning: &Tuning) -> String {
        tuning.check(1 << 18).unwrap_err().to_string()
    }

    #[test]
    fn the_default_fits_every_guest() {
        for pages in [1, 7, 255, 257, 1 << 18, (1 << 18) + 24] {
            let tuning = Tuning::default();
            tuning.check(pages).unwrap();
            assert!(pages.div_ceil(tuning.region_pages(pages)) <= DEFAULT_REGIONS);
        }
    }

    #[test]
    fn nonsense_is_refused_and_says_how_to_mend_it() {
        let default = Tuning::default;
        for alpha in [-0.1, 1.5, f64::NAN] {
            let why = refused(&Tuning { alpha, ..default() });
            assert!(why.contains("between 0 and 1"), "{why}");
        }
        for alpha in [0.0, 1.0] {
            Tuning { alpha, ..default() }.check(64).unwrap();
        }
        let why = refused(&Tuning {
            samples: 0,
            ..default()
        });
        assert!(why.contains("1 to 10000"), "{why}");
        let why = refused(&Tuning {
            interval: Duration::ZERO,
            ..default()
        });
        assert!(why.contains("more than 0"), "{why}");
        let why = refused(&Tuning {
            regions: Some(5000),
            ..default()
        });
        assert!(why.contains("1 to 1024"), "{why}");
        let why = refused(&Tuning {
            regions: Some(300),
            ..default()
        });
        assert!(
            why.contains("300 regions do not divide") && why.contains("such as 256"),
            "{why}"
        );
        for agent_timeout in [Duration::ZERO, Duration::from_secs(61)] {
            let why = refused(&Tuning {
                agent_timeout,
                ..default()
            });
            assert!(why.contains("at most 60000 ms"), "{why}");
        }
        let why = refused(&Tuning {
            hot_percent: 0,
            ..default()
        });
        assert!(why.contains("hot_percent"), "{why}");
        let why = refused(&Tuning {
            frequent_percent: 101,
            ..default()
        });
        assert!(why.contains("frequent_percent"), "{why}");
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        let tuning: Tuning = serde_json::from_str(r#"{"alpha": 0.25}"#).unwrap();
        assert_eq!(
            tuning,
            Tuning {
                alpha: 0.25,
                ..Tuning::default()
            }
        );
    }
}
