//! The error of this crate.

use std::io;

use thiserror::Error;

/// Result of an operation on blocks.
pub type Result<T> = std::result::Result<T, DiskError>;

/// Why blocks could not be read, written or carried.
#[derive(Debug, Error)]
pub enum DiskError {
    /// The stream failed.
    #[error("cannot {doing}")]
    Stream {
        /// What was being done.
        doing: &'static str,
        /// What the stream answered.
        #[source]
        source: io::Error,
    },
    /// The peer ended the stream in the middle.
    #[error("the stream ended while {0} was expected")]
    Ended(&'static str),
    /// What came is not what can come.
    #[error("got {came}, expected {expected}")]
    Unexpected {
        /// What came.
        came: String,
        /// What could have come.
        expected: String,
    },
    /// The export is not there, or not as it has to be.
    #[error("the export {export:?} cannot be used: {why}")]
    Export {
        /// Its name.
        export: String,
        /// Why not.
        why: String,
    },
    /// The server could not do what it was asked for.
    #[error("{doing} at offset {offset} failed: {}", words(*.code))]
    Refused {
        /// What it was asked for.
        doing: &'static str,
        /// Where.
        offset: u64,
        /// NBD's number of the error, which is that of Linux: 5 for an I/O error, 28 for a full disk.
        code: u32,
    },
    /// The other host could not go on.
    #[error("the other host failed: {0}")]
    Peer(String),
}

/// An error of NBD in words.
fn words(code: u32) -> String {
    match code {
        5 => "Input/output error".into(),
        28 => "No space left on device".into(),
        code => format!("NBD error {code}"),
    }
}

impl DiskError {
    pub(crate) fn unexpected(came: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Unexpected {
            came: came.into(),
            expected: expected.into(),
        }
    }

    /// For `map_err` on streams.
    pub(crate) fn stream(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Self::Ended(doing),
            _ => Self::Stream { doing, source },
        }
    }
}
