//! What can go wrong with the kernel's memory mechanisms.

use std::io;

use crate::Features;

/// The result of most functions in this crate. Plain transfers of bytes use [`std::io::Result`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate: one line that says what was wrong and, where the user can act, how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed in a way that has no better name.
    #[error("could not {what}")]
    System {
        /// What was attempted, to follow "could not".
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A range lies outside what it must lie in, or is not made of whole pages.
    #[error("range {start:#x}..{end:#x} is not made of whole pages inside {what}")]
    BadRange {
        /// First byte of the range.
        start: u64,
        /// One past the last byte of the range.
        end: u64,
        /// What the range was meant to lie in.
        what: &'static str,
    },
    /// A file is not of the length that was expected.
    #[error("{what} holds {found} bytes where {expected} are needed")]
    BadLength {
        /// Which file.
        what: String,
        /// Its length in bytes.
        found: u64,
        /// The length needed, in bytes.
        expected: u64,
    },
    /// No way to a userfaultfd is permitted to this process.
    #[error(
        "userfaultfd is not permitted: run as root or with CAP_SYS_PTRACE, allow access to /dev/userfaultfd, \
         or (in a container) allow the userfaultfd system call"
    )]
    UserfaultfdForbidden {
        /// Why the last way tried failed.
        #[source]
        source: io::Error,
    },
    /// The kernel's userfaultfd lacks features that are needed.
    #[error("the kernel's userfaultfd lacks {missing}: vmferry needs Linux 6.7 or newer")]
    FeaturesMissing {
        /// The features asked for and not there.
        missing: Features,
    },
    /// The userfaultfd was set up before, with fewer features than are needed now.
    #[error("the userfaultfd is already set up without {missing}: a new one is needed")]
    FeaturesFixed {
        /// The features asked for and not enabled.
        missing: Features,
    },
    /// Another userfaultfd is registered on the range.
    #[error(
        "another userfaultfd is registered on {start:#x}..{end:#x}: it must let go first (an earlier vmferry, \
         or a migration of the hypervisor's own)"
    )]
    AlreadyRegistered {
        /// First address of the range.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// The process whose memory was meant has exited.
    #[error("the process whose memory was meant is gone")]
    ProcessGone,
}

impl Error {
    /// A failed system call, named by what it was to do ("could not ...").
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::System {
            what: what.into(),
            source: source.into(),
        }
    }
}
