//! What is known of a migration by QEMU.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Peer;
use super::figures::Figures;

/// A migration by QEMU: its moments by the clock that both QEMUs and the lab share, and QEMU's own figures. Times in
/// milliseconds since the request, which is the moment before the source is told `migrate`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerReport {
    /// Which way of moving a guest it was.
    pub peer: Peer,
    /// Request until the source said completed and the guest ran at the destination: until the source may go.
    pub total_ms: f64,
    /// Request until the guest was resumed at the destination.
    pub execution_transfer_ms: f64,
    /// From the source's STOP to the destination's RESUME.
    pub downtime_ms: f64,
    /// Longest gap a client of the guest saw, where a client measured it.
    pub perceived_downtime_ms: Option<f64>,
    /// What the destination's QEMU took to start and get ready. That was before the request, and is in none of the times above;
    /// vmferry starts it after the request.
    pub destination_start_ms: f64,
    /// What happened when, at both ends, in order.
    pub events: Vec<Moment>,
    /// What the source answered to `query-migrate` in the end.
    pub figures: Value,
    /// The same of the destination.
    pub destination_figures: Value,
    /// The source's migration parameters in force.
    pub parameters: Map<String, Value>,
    /// The command lines of both QEMUs, the source's first.
    pub command_lines: [Vec<String>; 2],
}

/// An end of the migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Where the guest comes from.
    Source,
    /// Where it goes to.
    Destination,
}

/// An event of one of the QEMUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// Whose.
    pub side: Side,
    /// Its name, with the new status or the number of the pass: `STOP`, `MIGRATION completed`, `MIGRATION_PASS 2`.
    pub event: String,
    /// When, milliseconds since the request, by the time that QEMU gives.
    pub at_ms: f64,
}

impl Side {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl PeerReport {
    /// Bytes that the source sent, by QEMU's account.
    pub fn bytes_sent(&self) -> u64 {
        Figures(&self.figures).bytes_sent()
    }

    /// Pages that crossed, every crossing counted, by QEMU's account.
    pub fn pages_sent(&self) -> u64 {
        Figures(&self.figures).pages_sent()
    }

    /// Pages that the guest at the destination asked for, by QEMU's account.
    pub fn pages_fetched(&self) -> u64 {
        Figures(&self.figures).pages_fetched()
    }
}
