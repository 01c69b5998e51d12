//! The error of this crate.

use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::id::CheckpointId;

/// What every operation of a store answers.
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Why a store could not do what it was asked.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A text that names no store.
    #[error("{location:?} is no store: {why}; use a folder, s3://BUCKET/PREFIX, or memory:")]
    BadLocation {
        /// The text.
        location: String,
        /// What is wrong with it.
        why: String,
    },
    /// A text that names no checkpoint.
    #[error("{0:?} is no checkpoint: write VM/NUMBER, as `vmferry checkpoints list` does")]
    BadId(String),
    /// A name that no VM of a store can have.
    #[error("{0:?} cannot be the name of a VM: use 1 to 64 letters, digits, dots, underscores or dashes")]
    BadVm(String),
    /// The object store said no.
    #[error("cannot {what} {object} in the store {store}")]
    Operation {
        /// What was tried.
        what: &'static str,
        /// The object.
        object: String,
        /// The store.
        store: String,
        /// What it said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The object store did not answer in time.
    #[error("the store {store} did not {what} {object} within {} s", waited.as_secs_f64())]
    TimedOut {
        /// What was tried.
        what: &'static str,
        /// The object.
        object: String,
        /// The store.
        store: String,
        /// How long it had, retries included.
        waited: Duration,
    },
    /// The object store has no room.
    #[error(
        "the store {store} has no room for {object}: free some, for example by `vmferry checkpoints prune`"
    )]
    Full {
        /// The store.
        store: String,
        /// The object that did not fit.
        object: String,
        /// What the store said.
        #[source]
        source: Box<object_store::Error>,
    },
    /// There is no such checkpoint.
    #[error("there is no checkpoint {0} in the store")]
    NoCheckpoint(CheckpointId),
    /// An object that a checkpoint needs is not there.
    #[error("{object} is missing in the store")]
    Missing {
        /// The object.
        object: String,
    },
    /// An object does not hold what it should.
    #[error("{object} is damaged: {why}")]
    Damaged {
        /// The object.
        object: String,
        /// What is wrong with it.
        why: String,
    },
    /// An object was written by a later vmferry.
    #[error("{object} has format {came}, and this vmferry reads formats up to {known}: use a newer one")]
    Version {
        /// The object.
        object: String,
        /// Its format.
        came: u16,
        /// The latest format that this build reads.
        known: u16,
    },
    /// Somebody else writes checkpoints of the VM.
    #[error(
        "checkpoints of {vm} are being written by {owner}, last seen {seen_s} s ago; its lease ends {left_s} s from now. \
         If it is gone for good, delete {object} from the store"
    )]
    Busy {
        /// The VM.
        vm: String,
        /// Who writes: host and process.
        owner: String,
        /// Seconds since it renewed its lease.
        seen_s: u64,
        /// Seconds until anybody may take the lease.
        left_s: u64,
        /// The object that is the lease.
        object: String,
    },
    /// The checkpoint's number was taken by another writer meanwhile.
    #[error("checkpoint {0} was written by somebody else meanwhile: nothing of this one is kept")]
    Taken(CheckpointId),
    /// The lease was lost before the commit.
    #[error(
        "the lease for writing {0} was lost, to a store that did not answer or to another writer: nothing is kept"
    )]
    LeaseLost(String),
    /// An earlier write of this checkpoint failed.
    #[error("the checkpoint cannot be completed")]
    WriteFailed(#[source] Arc<StoreError>),
    /// A request that makes no sense.
    #[error("{0}")]
    BadRequest(String),
}

impl StoreError {
    pub(crate) fn damaged(object: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Damaged {
            object: object.into(),
            why: why.into(),
        }
    }

    /// Whether what is in the store is at fault, and not the way to it.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::Damaged { .. } | Self::Version { .. }
        )
    }
}
