//! Resuming guests from checkpoints: what is asked and answered.

use serde::{Deserialize, Serialize};
use vmferry_core::resume::{ResumeMode, ResumeProgress, ResumeReport, Service};

/// Resume a checkpoint as a guest of this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResumeRequest {
    /// `web/17`; or `web` or `web@latest` for the latest of that VM.
    pub checkpoint: String,
    /// The store it is in, a folder or a URL; the daemon's own where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<String>,
    /// How.
    #[serde(default)]
    pub mode: ResumeMode,
    /// Whether there may be another guest of the same checkpoint or VM.
    #[serde(default)]
    pub clone: bool,
    /// Name of the guest; that of the VM where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Leave it paused when it could run.
    #[serde(default)]
    pub paused: bool,
    /// Write the disks that the checkpoint has over those of the guest: what was written to them since is lost.
    #[serde(default)]
    pub overwrite_disks: bool,
    /// Leave the disks alone although the checkpoint has some: they are as they were.
    #[serde(default)]
    pub without_disks: bool,
    /// In the lazy mode, bring the rest once the guest has asked for nothing during this time; never where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_after_ms: Option<u64>,
    /// How long the store may fail before the resume does, or its guest is paused; 30 s where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_ms: Option<u64>,
    /// How many read from the store at the same time; chosen from the number of processors where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readers: Option<u16>,
    /// A service of the guest whose first answer is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
}

/// A resume that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResumeStarted {
    /// Tells it from others of a guest of the same name.
    pub id: String,
    /// Name of the guest.
    pub name: String,
    /// The checkpoint, in full.
    pub checkpoint: String,
}

/// A resume, under way or ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ResumeState {
    /// Tells it from others of a guest of the same name.
    pub id: String,
    /// How far it is; absent once it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<ResumeProgress>,
    /// What was measured (so far).
    pub report: ResumeReport,
}
