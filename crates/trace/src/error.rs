//! What can be wrong with a trace.

use std::io;

use thiserror::Error;

/// Why a trace cannot be read or written.
#[derive(Debug, Error)]
pub enum TraceError {
    /// The file cannot be read or written.
    #[error("the trace cannot be {doing}")]
    Io {
        /// Read, or written.
        doing: &'static str,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Another kind of file.
    #[error("this is no trace: it begins with other bytes")]
    NoTrace,
    /// A trace of another version.
    #[error(
        "the trace has format {found}, this program reads formats 1 to {newest}: it was made by a newer vmferry"
    )]
    Version {
        /// Its version.
        found: u16,
        /// The newest that is known.
        newest: u16,
    },
    /// The file ends before the trace does.
    #[error(
        "the trace is cut short after {at} bytes, with {samples} whole samples before; read what is whole with --partial"
    )]
    CutShort {
        /// Bytes of the file that are whole.
        at: u64,
        /// Whole samples.
        samples: usize,
    },
    /// A part has another checksum than it says.
    #[error(
        "the trace is damaged: the part at byte {at} does not match its checksum, {samples} whole samples come before; \
         read these with --partial"
    )]
    Damaged {
        /// Where the part begins.
        at: u64,
        /// Whole samples before it.
        samples: usize,
    },
    /// A part says something that cannot be, with a checksum that fits.
    #[error("the trace makes no sense: {0}")]
    Nonsense(String),
    /// Not even the beginning is whole.
    #[error("nothing of the trace is usable: its header or the list of its pages is not whole")]
    NothingWhole,
    /// It holds no sample.
    #[error("the trace holds no sample: record for longer, or with a shorter interval")]
    Empty,
    /// More than a trace may take in memory.
    #[error(
        "the trace takes more than {most} bytes of memory, {samples} whole samples come before: read these with --partial, or \
         record for a shorter time"
    )]
    TooMuch {
        /// What is possible.
        most: u64,
        /// Whole samples before it.
        samples: usize,
    },
    /// A part larger than the format allows.
    #[error("a part of the trace has {bytes} bytes, at most {most} are possible")]
    TooLarge {
        /// Its bytes.
        bytes: u64,
        /// What is possible.
        most: u64,
    },
}

impl TraceError {
    pub(crate) fn reading(source: io::Error) -> Self {
        Self::Io {
            doing: "read",
            source,
        }
    }

    pub(crate) fn writing(source: io::Error) -> Self {
        Self::Io {
            doing: "written",
            source,
        }
    }
}
