//! The frame around a control message: a header of 16 bytes and a payload, both with a checksum.
//!
//! | bytes | field |
//! |---|---|
//! | 0..2 | kind: `0x5644` (`DV`) a message to the destination, `0x5653` (`SV`) one to the source |
//! | 2..4 | flags: none in version 1, 0 |
//! | 4..8 | bytes of payload, at most 4 MiB |
//! | 8..12 | checksum of the payload |
//! | 12..16 | checksum of bytes 0..12 |

use std::io::{Read, Write};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, crc32};
use crate::error::{Result, WireError};
use crate::read::{At, read_fixed, read_payload};

/// Bytes of the header of a control frame.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The most bytes the payload of a control frame may have.
pub const MAX_PAYLOAD_BYTES: usize = 4 << 20;

const WHAT: &str = "a control message";

/// Which way a control frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// From the source to the destination.
    ToDestination,
    /// From the destination to the source.
    ToSource,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct HeaderLayout {
    kind: U16,
    flags: U16,
    len: U32,
    payload_crc: U32,
    header_crc: U32,
}

impl FrameKind {
    const fn number(self) -> u16 {
        match self {
            Self::ToDestination => 0x5644,
            Self::ToSource => 0x5653,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::ToDestination => "a message to the destination",
            Self::ToSource => "a message to the source",
        }
    }
}

/// The frame of kind `kind` around `payload`.
///
/// # Errors
/// [`WireError::TooLong`].
pub fn encode_frame(kind: FrameKind, payload: &[u8]) -> Result<Vec<u8>> {
    check_len(payload.len())?;
    let mut header = HeaderLayout {
        kind: kind.number().into(),
        flags: 0.into(),
        len: (payload.len() as u32).into(),
        payload_crc: crc32(payload).into(),
        header_crc: 0.into(),
    };
    header.header_crc = crc32(&header.as_bytes()[..FRAME_HEADER_BYTES - 4]).into();
    Ok([header.as_bytes(), payload].concat())
}

/// Reads a frame, which must be of kind `kind`; answers its payload.
///
/// # Errors
/// When the connection ends, or what comes is not such a frame.
pub fn read_frame(reader: &mut impl Read, kind: FrameKind) -> Result<Vec<u8>> {
    let bytes: [u8; FRAME_HEADER_BYTES] = read_fixed(reader, At::Border, WHAT)?;
    let header: HeaderLayout = zerocopy::transmute!(bytes);
    let expected = crc32(&bytes[..FRAME_HEADER_BYTES - 4]);
    checksum::check(
        "the header of a control message",
        header.header_crc.get(),
        expected,
    )?;
    if header.kind.get() != kind.number() {
        return Err(WireError::UnknownKind {
            what: "kind of control frame",
            came: describe_kind(header.kind.get()),
            expected: describe_kind(kind.number()),
        });
    }
    if header.flags.get() != 0 {
        return Err(WireError::Unexpected {
            what: "the flags field of a control message",
            came: header.flags.into(),
            expected: "0".into(),
        });
    }
    let len = header.len.get() as usize;
    check_len(len)?;
    let payload = read_payload(reader, len, WHAT)?;
    checksum::check(
        "the payload of a control message",
        header.payload_crc.get(),
        crc32(&payload),
    )?;
    Ok(payload)
}

/// Writes the frame of kind `kind` around `payload` with one call.
///
/// # Errors
/// [`WireError::TooLong`], or what the connection answers.
pub fn write_frame(writer: &mut impl Write, kind: FrameKind, payload: &[u8]) -> Result<()> {
    let frame = encode_frame(kind, payload)?;
    writer
        .write_all(&frame)
        .map_err(|source| WireError::Write { what: WHAT, source })
}

fn check_len(len: usize) -> Result<()> {
    if len > MAX_PAYLOAD_BYTES {
        return Err(WireError::TooLong {
            what: WHAT,
            came: len as u64,
            unit: "bytes",
            limit: MAX_PAYLOAD_BYTES as u64,
        });
    }
    Ok(())
}

fn describe_kind(number: u16) -> String {
    [FrameKind::ToDestination, FrameKind::ToSource]
        .into_iter()
        .find(|kind| kind.number() == number)
        .map_or_else(
            || format!("{number:#06x}"),
            |kind| format!("{number:#06x} ({})", kind.name()),
        )
}
