//! The frames of a tunnel. All numbers are little-endian; a frame is its kind, its fields, its payload and, from the source, a
//! checksum of all that.

use std::io::{Read, Write};

use crate::error::{DiskError, Result};

/// Bytes of a block: the unit of what is known by its hash.
pub const BLOCK_BYTES: usize = 64 << 10;
/// The most bytes of a write that is no block.
pub const MAX_WRITE_BYTES: usize = 1 << 20;
/// The most bytes of a reason.
const MAX_REASON_BYTES: usize = 1024;
/// Bytes of a head: kind, number, place, length, length of the payload.
const HEAD_BYTES: usize = 1 + 8 + 8 + 8 + 4;
/// How hard data is compressed. The link is slow where somebody asks for a tunnel, but a block is small.
const LEVEL: i32 = 3;

/// The name of a block's content.
pub type Hash = [u8; 32];

/// What the source says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromSource {
    /// Is the block that goes to `offset`, with this hash, there already?
    Ask {
        /// Number of the question, counted up.
        number: u64,
        /// Place of the block.
        offset: u64,
        /// Its hash.
        hash: Hash,
    },
    /// The block of a question.
    Data {
        /// Of the question.
        number: u64,
        /// The block.
        data: Vec<u8>,
    },
    /// Bytes that are no whole block.
    Write {
        /// Where they go.
        offset: u64,
        /// At most [`MAX_WRITE_BYTES`].
        data: Vec<u8>,
    },
    /// A range that reads as zeros from now on.
    Zero {
        /// Where it begins.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
    /// Put everything on stable storage, and say so.
    Flush {
        /// Comes back.
        number: u64,
    },
}

/// What the destination says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToSource {
    /// The answer to a question.
    Answer {
        /// Of the question.
        number: u64,
        /// Whether the block is in place; else its data has to come.
        has: bool,
    },
    /// Everything before the flush of this number is on stable storage.
    Flushed {
        /// Of the flush.
        number: u64,
    },
    /// The disk cannot be written.
    Failed {
        /// Why, on one line.
        reason: String,
    },
}

/// A frame in its bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// Of these, what data became.
    pub payload_bytes: usize,
}

const ASK: u8 = 1;
const DATA: u8 = 2;
const WRITE: u8 = 3;
const ZERO: u8 = 4;
const FLUSH: u8 = 5;
const ANSWER: u8 = 65;
const FLUSHED: u8 = 66;
const FAILED: u8 = 67;
/// Added to a kind whose payload is compressed.
const COMPRESSED: u8 = 128;

struct Head {
    kind: u8,
    number: u64,
    offset: u64,
    len: u64,
    payload: u32,
}

impl Head {
    fn encode(&self) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0] = self.kind;
        bytes[1..9].copy_from_slice(&self.number.to_le_bytes());
        bytes[9..17].copy_from_slice(&self.offset.to_le_bytes());
        bytes[17..25].copy_from_slice(&self.len.to_le_bytes());
        bytes[25..].copy_from_slice(&self.payload.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HEAD_BYTES]) -> Self {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Self {
            kind: bytes[0],
            number: number(1),
            offset: number(9),
            len: number(17),
            payload: u32::from_le_bytes(bytes[25..].try_into().expect("four bytes")),
        }
    }
}

impl FromSource {
    /// The bytes of the frame.
    ///
    /// # Errors
    /// When data is longer than a frame carries.
    pub fn encode(&self) -> Result<Encoded> {
        let (kind, number, offset, len, payload): (u8, u64, u64, u64, &[u8]) = match self {
            Self::Ask { number, offset, hash } => (ASK, *number, *offset, 0, hash),
            Self::Data { number, data } => (DATA, *number, 0, data.len() as u64, data),
            Self::Write { offset, data } => (WRITE, 0, *offset, data.len() as u64, data),
            Self::Zero { offset, bytes } => (ZERO, 0, *offset, *bytes, &[]),
            Self::Flush { number } => (FLUSH, *number, 0, 0, &[]),
        };
        if payload.len() > limit_of(kind) {
            return Err(too_long(payload.len() as u64, limit_of(kind)));
        }
        let shorter = match self {
            Self::Data { .. } | Self::Write { .. } => compressed(payload),
            _ => None,
        };
        let (kind, payload) = match &shorter {
            Some(shorter) => (kind | COMPRESSED, shorter.as_slice()),
            None => (kind, payload),
        };
        let head = Head {
            kind,
            number,
            offset,
            len,
            payload: payload.len() as u32,
        };
        let mut bytes = head.encode().to_vec();
        bytes.extend_from_slice(payload);
        let crc = crc32fast::hash(&bytes);
        bytes.extend(crc.to_le_bytes());
        Ok(Encoded {
            bytes,
            payload_bytes: payload.len(),
        })
    }

    /// Reads the next frame, none at the end of the stream between two.
    ///
    /// # Errors
    /// When the stream fails or ends in the middle, or what comes is no frame. Nothing is allocated beyond its bound.
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>> {
        const WHAT: &str = "a frame of a disk's tunnel";
        let Some((head, head_bytes)) = read_head(reader)? else {
            return Ok(None);
        };
        let kind = head.kind & !COMPRESSED;
        let is_data = [DATA, WRITE].contains(&kind);
        let known = (ASK..=FLUSH).contains(&kind) && (is_data || head.kind == kind);
        if !known {
            return Err(DiskError::unexpected(
                format!("a frame of kind {}", head.kind),
                "one of a source",
            ));
        }
        let payload = read_payload(reader, head.payload, limit_of(kind))?;
        let mut crc = [0; 4];
        reader.read_exact(&mut crc).map_err(DiskError::stream(WHAT))?;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&head_bytes);
        hasher.update(&payload);
        if hasher.finalize() != u32::from_le_bytes(crc) {
            return Err(DiskError::unexpected("a frame with a wrong checksum", WHAT));
        }
        let data = |payload: Vec<u8>| match head.kind == kind {
            true if payload.len() as u64 == head.len => Ok(payload),
            true => Err(too_long(payload.len() as u64, head.len as usize)),
            false => expanded(&payload, head.len, limit_of(kind)),
        };
        Ok(Some(match kind {
            ASK => Self::Ask {
                number: head.number,
                offset: head.offset,
                hash: payload
                    .try_into()
                    .map_err(|_| DiskError::unexpected("a question without a hash", WHAT))?,
            },
            DATA => Self::Data {
                number: head.number,
                data: data(payload)?,
            },
            WRITE => Self::Write {
                offset: head.offset,
                data: data(payload)?,
            },
            ZERO => Self::Zero {
                offset: head.offset,
                bytes: head.len,
            },
            _ => Self::Flush { number: head.number },
        }))
    }
}

impl ToSource {
    /// The bytes of the frame. A reason that is too long is cut.
    pub fn encode(&self) -> Vec<u8> {
        let (kind, number, len, payload) = match self {
            Self::Answer { number, has } => (ANSWER, *number, u64::from(*has), ""),
            Self::Flushed { number } => (FLUSHED, *number, 0, ""),
            Self::Failed { reason } => {
                let mut end = reason.len().min(MAX_REASON_BYTES);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                (FAILED, 0, 0, &reason[..end])
            }
        };
        let head = Head {
            kind,
            number,
            offset: 0,
            len,
            payload: payload.len() as u32,
        };
        [&head.encode()[..], payload.as_bytes()].concat()
    }

    /// Reads the next frame, none at the end of the stream between two.
    ///
    /// # Errors
    /// As [`FromSource::read`].
    pub fn read(reader: &mut impl Read) -> Result<Option<Self>> {
        let Some((head, _)) = read_head(reader)? else {
            return Ok(None);
        };
        let payload = read_payload(reader, head.payload, MAX_REASON_BYTES)?;
        Ok(Some(match head.kind {
            ANSWER if head.len <= 1 && payload.is_empty() => Self::Answer {
                number: head.number,
                has: head.len == 1,
            },
            FLUSHED if payload.is_empty() => Self::Flushed { number: head.number },
            FAILED => Self::Failed {
                reason: String::from_utf8_lossy(&payload)
                    .chars()
                    .map(|letter| if letter.is_control() { ' ' } else { letter })
                    .collect(),
            },
            kind => {
                return Err(DiskError::unexpected(
                    format!("a frame of kind {kind}"),
                    "one of a destination",
                ));
            }
        }))
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// What the stream answers.
    pub fn write(&self, writer: &mut impl Write) -> Result<()> {
        writer
            .write_all(&self.encode())
            .map_err(DiskError::stream("answer the source of a disk"))
    }
}

/// The name of a block.
pub fn hash_of(block: &[u8]) -> Hash {
    *blake3::hash(block).as_bytes()
}

fn limit_of(kind: u8) -> usize {
    match kind {
        ASK => size_of::<Hash>(),
        DATA => BLOCK_BYTES,
        WRITE => MAX_WRITE_BYTES,
        _ => 0,
    }
}

/// `data` compressed, where that is shorter.
fn compressed(data: &[u8]) -> Option<Vec<u8>> {
    let shorter = zstd::bulk::compress(data, LEVEL).ok()?;
    (shorter.len() < data.len()).then_some(shorter)
}

fn expanded(payload: &[u8], len: u64, limit: usize) -> Result<Vec<u8>> {
    if len > limit as u64 {
        return Err(too_long(len, limit));
    }
    // No more is allocated than was announced.
    let data = zstd::bulk::decompress(payload, len as usize)
        .map_err(|error| DiskError::unexpected(format!("data that does not expand ({error})"), "zstd"))?;
    match data.len() as u64 == len {
        true => Ok(data),
        false => Err(too_long(data.len() as u64, len as usize)),
    }
}

fn too_long(came: u64, limit: usize) -> DiskError {
    DiskError::unexpected(
        format!("{came} bytes of data"),
        format!("{limit} in such a frame"),
    )
}

fn read_head(reader: &mut impl Read) -> Result<Option<(Head, [u8; HEAD_BYTES])>> {
    let mut bytes = [0; HEAD_BYTES];
    loop {
        match reader.read(&mut bytes[..1]) {
            Ok(0) => return Ok(None),
            Ok(_) => break,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(DiskError::stream("read a frame of a disk's tunnel")(error)),
        }
    }
    reader
        .read_exact(&mut bytes[1..])
        .map_err(DiskError::stream("a frame of a disk's tunnel"))?;
    Ok(Some((Head::decode(&bytes), bytes)))
}

fn read_payload(reader: &mut impl Read, len: u32, limit: usize) -> Result<Vec<u8>> {
    if len as usize > limit {
        return Err(too_long(len.into(), limit));
    }
    let mut payload = vec![0; len as usize];
    reader
        .read_exact(&mut payload)
        .map_err(DiskError::stream("a frame of a disk's tunnel"))?;
    Ok(payload)
}
