//! What taking a checkpoint measured.

use serde::{Deserialize, Serialize};

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TakeOutcome {
    /// The checkpoint is in the store.
    Completed,
    /// It was cancelled: there is none.
    Cancelled,
    /// It failed: there is none. The guest goes on.
    Failed,
}

/// Everything that was measured about one checkpoint. Times in milliseconds, sizes in bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakeReport {
    /// Name of the guest.
    pub vm: String,
    /// The checkpoint, as `web/17`; of one that failed, what it would have been called, where that was known.
    pub id: Option<String>,
    /// The one it inherits from; absent where it saved everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// How it ended.
    pub outcome: TakeOutcome,
    /// Why it did not complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was asked for, ms since 1970.
    pub started_unix_ms: u64,
    /// From the request until it was in the store.
    pub total_ms: f64,
    /// How long the guest stood still.
    pub pause_ms: f64,
    /// The interval for which it is known what the guest read and wrote; absent where nothing was watched.
    pub interval_ms: Option<u64>,
    /// All of RAM.
    pub ram_bytes: u64,
    /// Pages that held data.
    pub data_pages: u64,
    /// Pages written in the interval.
    pub written_pages: u64,
    /// Pages read or written in the interval.
    pub accessed_pages: u64,
    /// Pages that were handed to the store.
    pub saved_pages: u64,
    /// Pages that the store has from the checkpoint before.
    pub inherited_pages: u64,
    /// Of the pages saved, those that were new to the store.
    pub new_pages: u64,
    /// Bytes the checkpoint added to the store.
    pub stored_bytes: u64,
    /// Bytes of device state.
    pub device_state_bytes: u64,
    /// Bytes of disks that were handed to the store.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Writes of the guest that were held up.
    pub faults: WriteFaults,
    /// Rounds of protection while the guest ran, before the pause.
    pub live_rounds: u32,
    /// What took how long, in order.
    pub phases: Vec<TakePhase>,
    /// What the operator should know.
    #[serde(default)]
    pub notes: Vec<String>,
}

/// Writes that were held up, since the checkpoint before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WriteFaults {
    /// How many.
    pub count: u64,
    /// Those whose page was copied first.
    pub copied: u64,
    /// Those that had to wait until somebody else had copied the page.
    pub waited: u64,
    /// Time from hearing of a write to its release, in microseconds: median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// A part of the work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TakePhase {
    /// Its name.
    pub name: String,
    /// When it began, from the request on.
    pub start_ms: f64,
    /// When it ended.
    pub end_ms: f64,
}

/// How far a checkpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakeProgress {
    /// What is being done, in words.
    pub phase: String,
    /// The checkpoint, once it has a name.
    pub id: Option<String>,
    /// Pages of it that are to be saved, once they are known.
    pub pages: u64,
    /// Those that are copied out of the guest.
    pub copied_pages: u64,
    /// Those that were handed to the store.
    pub saved_pages: u64,
}

/// Checkpoints of a guest that are taken one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InRun {
    /// Those that completed.
    pub completed: u64,
    /// Those that did not.
    pub failed: u64,
}
