//! The one error of this crate.

use std::io;

use thiserror::Error;
use vmferry_core::LayoutError;

use crate::version::VersionRange;

/// Result of reading from or writing to a peer.
pub type Result<T> = std::result::Result<T, WireError>;

/// Why an exchange with the peer failed. [`WireError::is_lost_connection`] tells a broken network, after
/// which reconnecting makes sense, from a peer that breaks the protocol, after which it does not.
#[derive(Debug, Error)]
pub enum WireError {
    /// The peer closed the connection between two frames.
    #[error("the peer closed the connection, expected {expected}")]
    Closed {
        /// What was being waited for.
        expected: &'static str,
    },
    /// Nothing came within the reader's time-out; the stream is still in step and may be read again.
    #[error("nothing came within the time-out, expected {expected}")]
    Idle {
        /// What was being waited for.
        expected: &'static str,
    },
    /// The connection ended in the middle of something.
    #[error("the connection ended after {came} bytes of {what}, expected {expected}")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Bytes that came.
        came: usize,
        /// Bytes it has.
        expected: usize,
    },
    /// The connection failed while reading.
    #[error("cannot read {what} from the peer")]
    Read {
        /// What was being read.
        what: &'static str,
        /// What the connection answered.
        #[source]
        source: io::Error,
    },
    /// The connection failed while writing.
    #[error("cannot write {what} to the peer")]
    Write {
        /// What was being written.
        what: &'static str,
        /// What the connection answered.
        #[source]
        source: io::Error,
    },
    /// Something else than vmferry is at the other end.
    #[error(
        "the peer does not speak vmferry: it began with \"{came}\", expected \"VMFERRY\\0\"; check host and port"
    )]
    NotVmferry {
        /// The bytes that came, escaped.
        came: String,
    },
    /// No version of the protocol is spoken by both sides.
    #[error("the peer speaks protocol {theirs}, expected {ours}; update vmferry on the older host")]
    Version {
        /// Versions of the peer.
        theirs: VersionRange,
        /// Versions of this side.
        ours: VersionRange,
    },
    /// The peer answered the hello with a refusal.
    #[error("the peer refused the connection: {reason}")]
    Refused {
        /// The peer's words, escaped.
        reason: String,
    },
    /// A checksum does not match: the bytes changed on their way, or the streams are out of step.
    #[error("{what} came with checksum {came:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What it is the checksum of.
        what: &'static str,
        /// The checksum that came.
        came: u32,
        /// The checksum of the bytes that came.
        expected: u32,
    },
    /// A field holds a value it must not hold.
    #[error("{what} is {came}, expected {expected}")]
    Unexpected {
        /// Which field of what.
        what: &'static str,
        /// The value that came.
        came: u64,
        /// What it should have been.
        expected: String,
    },
    /// Something is longer than its bound. Nothing was allocated for it.
    #[error("{what} has {came} {unit}, expected at most {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length.
        came: u64,
        /// Unit of both lengths.
        unit: &'static str,
        /// The bound.
        limit: u64,
    },
    /// A frame or message of a kind this side does not know in the negotiated version.
    #[error("unknown {what} {came}, expected {expected}")]
    UnknownKind {
        /// What has kinds.
        what: &'static str,
        /// The kind that came, with its name where it is a reserved one.
        came: String,
        /// The kinds that are known.
        expected: String,
    },
    /// The fields of a message do not decode.
    #[error("control message {what} does not decode")]
    Malformed {
        /// Name of the message.
        what: &'static str,
        /// What the decoder found.
        #[source]
        source: postcard::Error,
    },
    /// The payload of encoded pages does not decode.
    #[error("{what} does not decode")]
    Undecodable {
        /// Which payload.
        what: &'static str,
        /// What the decoder found.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A message cannot be encoded.
    #[error("cannot encode {what}")]
    Encode {
        /// Direction of the message.
        what: &'static str,
        /// What the encoder found.
        #[source]
        source: postcard::Error,
    },
    /// Pages that the guest does not have.
    #[error("{what} names pages that do not exist")]
    OutOfRam {
        /// What names them.
        what: &'static str,
        /// Which pages, and how many there are.
        #[source]
        source: LayoutError,
    },
}

impl WireError {
    /// Whether the connection broke (closed, cut off, reset, timed out), rather than the peer sending
    /// something wrong.
    pub fn is_lost_connection(&self) -> bool {
        matches!(
            self,
            Self::Closed { .. } | Self::Truncated { .. } | Self::Read { .. } | Self::Write { .. }
        )
    }

    /// Whether nothing came within the reader's time-out and the stream may simply be read again.
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Idle { .. })
    }
}
