//! Taking checkpoints of guests: what is asked and answered.

use serde::{Deserialize, Serialize};
use vmferry_core::take::{InRun, TakeProgress, TakeReport};

/// Take a checkpoint of a guest, or one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointRequest {
    /// The store, a folder or a URL; the daemon's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// From one checkpoint to the next, in milliseconds; a single one where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// No more than this many checkpoints of the guest are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
    /// None that is older is kept, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_for_ms: Option<u64>,
    /// How long what the guest reads and writes is watched before the first checkpoint, in milliseconds; a second where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch_ms: Option<u64>,
    /// Leave the guest's disks out: whoever resumes it has to see to it that they are what they were.
    #[serde(default)]
    pub without_disks: bool,
}

/// Checkpoints of a guest that are being taken, or were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Where they are put.
    pub store: String,
    /// From one to the next, in milliseconds; absent for a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_ms: Option<u64>,
    /// Whether none will be taken any more.
    pub ended: bool,
    /// Those that ended.
    #[serde(flatten)]
    pub run: InRun,
    /// How far the one under way is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<TakeProgress>,
    /// Until the next one begins, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_in_ms: Option<u64>,
    /// What was measured about the last one that ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<TakeReport>,
}
