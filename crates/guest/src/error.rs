//! The one error of every backend.

use thiserror::Error;

/// Result of an operation on a guest.
pub type Result<T> = std::result::Result<T, GuestError>;

/// Why a backend could not do something. Messages are for the operator: what was wrong and how to mend it.
#[derive(Debug, Error)]
pub enum GuestError {
    /// The guest does not exist any more (its process ended).
    #[error("guest {name} is gone: {why}")]
    Gone {
        /// Name of the guest.
        name: String,
        /// How it ended, as far as known.
        why: String,
    },
    /// The guest is in another state than the operation needs.
    #[error("guest {name} is {found}, expected {expected}")]
    WrongState {
        /// Name of the guest.
        name: String,
        /// The state it is in.
        found: String,
        /// The states in which the operation works.
        expected: &'static str,
    },
    /// The specification cannot be run on this host.
    #[error("cannot run {name} here: {problem}; {mend}")]
    Unsuitable {
        /// Name of the guest.
        name: String,
        /// What is wrong.
        problem: String,
        /// What to do about it.
        mend: String,
    },
    /// This host or hypervisor lacks something.
    #[error("{what} is not available: {mend}")]
    Unsupported {
        /// What is missing.
        what: String,
        /// What to do about it.
        mend: String,
    },
    /// The hypervisor answered with an error.
    #[error("{operation} failed")]
    Operation {
        /// What was tried.
        operation: String,
        /// What came back.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl GuestError {
    /// An [`GuestError::Operation`] out of any error.
    pub fn operation(
        operation: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Operation {
            operation: operation.into(),
            source: source.into(),
        }
    }
}
