//! Why there is no checkpoint.

use thiserror::Error;
use vmferry_disk::DiskError;
use vmferry_guest::GuestError;
use vmferry_store::StoreError;

/// Why a checkpoint was not taken. The guest goes on, except where it had ended by itself.
#[derive(Debug, Error)]
pub enum TakeError {
    /// The guest could not be stopped, saved or watched.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The memory file could not be asked for its holes.
    #[error("cannot tell which pages of the guest hold data")]
    Memory(#[source] std::io::Error),
    /// What the guest overwrites of its disks cannot be kept.
    #[error("cannot make the folder for what the guest overwrites of its disks meanwhile")]
    DiskFolder(#[source] std::io::Error),
    /// A disk as of the pause could not be read.
    #[error("cannot read a disk of the guest as it was")]
    Disk(#[from] DiskError),
    /// It stands still already, by somebody else's wish, and a checkpoint ends with a guest that runs.
    #[error(
        "the guest stands still (paused, asleep, or stopped by an error), and a checkpoint would let it go on: resume it first"
    )]
    NotRunning,
    /// The guest's writes were not held up to the end.
    #[error("the guest's writes could not be held up any longer")]
    LetGo,
    /// The operator, or a daemon that ends, changed their mind.
    #[error("it was cancelled")]
    Cancelled,
    /// The store does not keep up with what the guest writes, and the guest goes first.
    #[error(
        "the store is too slow: a write of the guest had to wait {waited_ms} ms for it. Use a faster store, or allow more \
         memory for copies"
    )]
    TooSlow {
        /// How long it waited.
        waited_ms: u64,
    },
    /// Memory was taken from the guest before it was saved.
    #[error(
        "the guest gave page {page} back to the host (a balloon, free page reporting) before it was saved: repeat it, or \
         leave the balloon alone meanwhile"
    )]
    Discarded {
        /// The first such page.
        page: u64,
    },
    /// A thread could not be started.
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
    /// A thread of ours panicked: a mistake in vmferry.
    #[error("a thread that saves pages panicked: see the log of the daemon")]
    Panicked,
}

pub(super) type Result<T, E = TakeError> = std::result::Result<T, E>;
