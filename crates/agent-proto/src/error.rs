//! What can be wrong with what the other side says.

use std::io;

use thiserror::Error;

/// Result of reading or writing a message.
pub type Result<T> = std::result::Result<T, ProtoError>;

/// Why a message was refused or could not cross.
#[derive(Debug, Error)]
pub enum ProtoError {
    /// The port failed or ended.
    #[error("reading from the other side failed")]
    Read(#[source] io::Error),
    /// The port failed.
    #[error("writing to the other side failed")]
    Write(#[source] io::Error),
    /// Much came and no frame was in it.
    #[error("{0} bytes came without the beginning of a frame")]
    NoFrame(usize),
    /// A frame's payload was damaged.
    #[error("a frame's checksum is {came:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What the frame says.
        came: u32,
        /// What its bytes give.
        expected: u32,
    },
    /// Longer than allowed.
    #[error("{what} of {came}, at most {limit} are allowed")]
    TooLong {
        /// What is too long, with its unit.
        what: &'static str,
        /// How long it is.
        came: u64,
        /// How long it may be.
        limit: u64,
    },
    /// No message of this protocol.
    #[error("{what} does not decode")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// What the decoder says.
        #[source]
        source: postcard::Error,
    },
    /// Bytes after the end of a message.
    #[error("{0} bytes are left over after {1}")]
    LeftOver(usize, &'static str),
    /// A frame number beyond all memory.
    #[error("frame {frame} lies beyond the {limit} that there can be")]
    Beyond {
        /// The frame, or the first after a run.
        frame: u64,
        /// The bound.
        limit: u64,
    },
    /// A frame that came before.
    #[error("frame {frame} is classified twice: the map had reached {reached}")]
    Twice {
        /// Where the part begins.
        frame: u64,
        /// Up to where the map was.
        reached: u64,
    },
    /// A run of nothing, or of a class that does not exist.
    #[error("a run of {count} frames of class {code} means nothing")]
    Nonsense {
        /// Frames in the run.
        count: u64,
        /// What they are said to be.
        code: u8,
    },
    /// The map does not end.
    #[error("the map goes on after {0} bytes")]
    Endless(u64),
}
