//! What a restarted daemon needs to go on with a resume.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_core::resume::{Left, ResumeMode};
use vmferry_runtime::GuestDir;
use vmferry_runtime::dir::{load_json, store_json};
use vmferry_store::CheckpointId;

use super::{Request, ResumeError};

/// The file [`GuestDir::resume`]: there from the moment the guest was created until every page is in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// Where the checkpoint is.
    pub store: String,
    /// Which it is.
    pub checkpoint: CheckpointId,
    /// How it is resumed.
    pub mode: ResumeMode,
    /// See [`Request::drain_after`].
    pub drain_after: Option<Duration>,
    /// See [`Request::patience`].
    pub patience: Duration,
    /// How far it is. Before the device state is loaded none: then nothing is to be taken up.
    pub left: Option<Left>,
}

impl Saved {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            store: request.store.clone(),
            checkpoint: request.checkpoint.clone(),
            mode: request.mode,
            drain_after: request.drain_after,
            patience: request.patience,
            left: None,
        }
    }

    /// What an earlier daemon left in the directory of a guest; none where no resume is under way.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn load(dir: &GuestDir) -> Result<Option<Self>, ResumeError> {
        Ok(load_json(&dir.resume())?)
    }

    pub(super) fn store(&self, dir: &GuestDir) -> Result<(), ResumeError> {
        Ok(store_json(&dir.resume(), self)?)
    }
}
