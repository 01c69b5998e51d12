//! Which guest a trace is of, and how it was recorded.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_core::{PAGE_SIZE, RamLayout};

use crate::error::TraceError;

/// Longest name of a guest or a backend.
const MOST_NAME_BYTES: usize = 256;
/// Longest time of a sample that makes sense.
const MOST_INTERVAL: Duration = Duration::from_secs(60);

/// How a guest is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plan {
    /// Every page in every sample, whatever that costs.
    Full,
    /// As many pages, as often, as this share of the guest's time allows, in percent.
    Within {
        /// The share.
        budget_percent: f64,
    },
}

/// The header of a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// Name of the guest.
    pub vm: String,
    /// Name of its backend.
    pub backend: String,
    /// Its RAM; pages are numbered through its blocks.
    pub layout: RamLayout,
    /// When recording began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// The length of a sample that was asked for, microseconds.
    pub interval_us: u64,
    /// How it was looked at.
    pub plan: Plan,
    /// What a page that a sample finds was taken to cost the guest, nanoseconds.
    pub page_cost_ns: u64,
    /// Processors of the guest; 0 where nobody knows: `runtime::recorder` does not ask.
    pub processors: u16,
    /// Whether its devices may write through pages pinned earlier ([`vmferry_core::tracking`]).
    pub pinned_io: bool,
    /// Bytes of its device state, where that is known: whoever simulates goes by it. `runtime::recorder` writes none, because it would have
    /// to stop the guest to know.
    pub device_state_bytes: Option<u64>,
}

impl Header {
    /// Pages of RAM.
    pub fn pages(&self) -> u64 {
        self.layout.pages()
    }

    /// Bytes of RAM.
    pub fn ram_bytes(&self) -> u64 {
        self.pages() * PAGE_SIZE
    }

    /// The length of a sample that was asked for.
    pub fn interval(&self) -> Duration {
        Duration::from_micros(self.interval_us)
    }

    /// It came from outside.
    pub(crate) fn check(&self) -> Result<(), TraceError> {
        let nonsense = |why: String| Err(TraceError::Nonsense(why));
        for (what, name) in [("guest", &self.vm), ("backend", &self.backend)] {
            if name.len() > MOST_NAME_BYTES || name.chars().any(char::is_control) {
                return nonsense(format!("the name of its {what} is none"));
            }
        }
        if self.interval().is_zero() || self.interval() > MOST_INTERVAL {
            return nonsense(format!("samples of {} us", self.interval_us));
        }
        match self.plan {
            Plan::Within { budget_percent } if !(budget_percent > 0.0 && budget_percent <= 100.0) => {
                nonsense(format!("a budget of {budget_percent} %"))
            }
            Plan::Within { .. } | Plan::Full => Ok(()),
        }
    }
}
