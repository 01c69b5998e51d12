//! The error of this crate.

use std::path::PathBuf;

use thiserror::Error;
use vmferry_core::source::SourceError;

/// Why a migration could not be started, steered or recovered.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// A file of the guest's directory could not be read or written.
    #[error("cannot {what} {path}", path = path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file of the guest's directory does not hold what it should.
    #[error("{path} is damaged: {why}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The guest is not this host's to send.
    #[error("this host does not own the guest: its journal says {0}")]
    NotOwner(String),
    /// The guest cannot leave, or this host cannot serve it.
    #[error(transparent)]
    Guest(#[from] vmferry_guest::GuestError),
    /// A request at the wrong time.
    #[error(transparent)]
    Refused(#[from] SourceError),
    /// No session of this name is under way.
    #[error("no migration of {0:?} is under way here")]
    NoSession(String),
    /// A request that makes no sense.
    #[error("{0}")]
    BadRequest(String),
}
