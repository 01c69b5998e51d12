//! How long the guest's writes were held up.

use std::time::Duration;

use hdrhistogram::Histogram;
use vmferry_core::take::WriteFaults;

/// What was measured since it was last asked for.
pub(super) struct FaultLog {
    held_us: Histogram<u64>,
    copied: u64,
    waited: u64,
}

impl Default for FaultLog {
    fn default() -> Self {
        Self {
            held_us: Histogram::new(3).expect("three digits are possible"),
            copied: 0,
            waited: 0,
        }
    }
}

impl FaultLog {
    pub(super) fn released(&mut self, held: Duration) {
        self.held_us.saturating_record(held.as_micros() as u64);
    }

    pub(super) fn copied(&mut self) {
        self.copied += 1;
    }

    pub(super) fn waited(&mut self) {
        self.waited += 1;
    }

    /// What was measured; it begins anew.
    pub(super) fn take(&mut self) -> WriteFaults {
        let log = std::mem::take(self);
        let at = |quantile| log.held_us.value_at_quantile(quantile) as f64;
        WriteFaults {
            count: log.held_us.len(),
            copied: log.copied,
            waited: log.waited,
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: log.held_us.max() as f64,
        }
    }
}
