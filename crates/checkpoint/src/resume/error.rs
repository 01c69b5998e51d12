//! Why a resume could not be begun or taken up.

use thiserror::Error;
use vmferry_core::resume::ResumeError as WrongTime;
use vmferry_guest::GuestError;
use vmferry_runtime::RuntimeError;
use vmferry_store::StoreError;

/// Why a resume could not be begun, steered or taken up again.
#[derive(Debug, Error)]
pub enum ResumeError {
    /// The store does not give what is needed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The guest cannot be resumed on this host.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A file of the guest's directory cannot be used.
    #[error(transparent)]
    Dir(#[from] RuntimeError),
    /// The states of the guest's pages cannot be kept.
    #[error(transparent)]
    States(#[from] vmferry_memory::Error),
    /// The guest that was created is not the one of the checkpoint.
    #[error("the guest created here has {here} of RAM, and checkpoint {checkpoint} is of one with {there}")]
    OtherRam {
        /// The checkpoint.
        checkpoint: String,
        /// What there is here, in bytes.
        here: u64,
        /// What there was, in bytes.
        there: u64,
    },
    /// A request at the wrong time.
    #[error(transparent)]
    WrongTime(#[from] WrongTime),
    /// A disk of the checkpoint cannot be written.
    #[error(transparent)]
    Disk(#[from] vmferry_disk::DiskError),
    /// A disk of the checkpoint is not the guest's.
    #[error("the guest created here has no disk {0}, and its checkpoint has")]
    NoDisk(String),
    /// The guest does not run yet.
    #[error("guest {0} does not run yet: what it needs for that is being loaded")]
    NotRunning(String),
    /// The resume has ended.
    #[error("the resume of {0} is over")]
    Over(String),
}
