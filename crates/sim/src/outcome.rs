//! What came of a simulated migration.

use serde::{Deserialize, Serialize};
use vmferry_core::report::Report;

/// A migration as its report would have it, and what the guest felt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// The report, as a real migration's.
    pub report: Report,
    /// How long the guest stood still for pages after the resume, milliseconds.
    pub waited_for_pages_ms: f64,
    /// What tracking its writes cost the guest, milliseconds.
    pub tracking_ms: f64,
    /// By how much the guest was slower than without the migration, from the request to its end, percent; its downtime
    /// included.
    pub slow_down_percent: f64,
    /// Of the guest's time, how much lay beyond the recording, milliseconds.
    pub extended_ms: f64,
    /// Pages that one unit of the simulation stood for.
    pub pages_per_unit: u64,
    /// The seed.
    pub seed: u64,
}
