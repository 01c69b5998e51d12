//! The NBD protocol: fixed newstyle handshake, simple and structured replies. Source: the protocol's specification
//! (`doc/proto.md` of the NBD project).
//!
//! All numbers are big-endian.

pub mod client;
pub mod server;

use std::io::{Read, Write};

use crate::error::{DiskError, Result};

/// The most bytes of one request: what every server takes.
pub const MAX_REQUEST_BYTES: u32 = 32 << 20;
/// The longest name of an export or metadata context.
pub const MAX_NAME_BYTES: usize = 4096;
/// The most bytes of an option or its answer that are taken.
const MAX_OPTION_BYTES: u32 = 16 << 10;

const GREETING: u64 = 0x4e42_444d_4147_4943;
const OPTION: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

/// Flags of the handshake, the same both ways.
mod handshake {
    pub(super) const FIXED_NEWSTYLE: u16 = 1;
    pub(super) const NO_ZEROES: u16 = 2;
}

/// Options of the handshake.
mod option {
    pub(super) const ABORT: u32 = 2;
    pub(super) const GO: u32 = 7;
    pub(super) const STRUCTURED_REPLY: u32 = 8;
    pub(super) const SET_META_CONTEXT: u32 = 10;
}

/// Answers to options.
mod answer {
    pub(super) const ACK: u32 = 1;
    pub(super) const INFO: u32 = 3;
    pub(super) const META_CONTEXT: u32 = 4;
    pub(super) const ERROR: u32 = 1 << 31;
    pub(super) const UNSUPPORTED: u32 = ERROR | 1;
    pub(super) const INVALID: u32 = ERROR | 3;
    pub(super) const UNKNOWN: u32 = ERROR | 6;
}

/// Kinds of information about an export.
mod info {
    pub(super) const EXPORT: u16 = 0;
    pub(super) const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
mod can {
    pub(super) const HAS_FLAGS: u16 = 1;
    pub(super) const READ_ONLY: u16 = 2;
    pub(super) const FLUSH: u16 = 4;
    pub(super) const FUA: u16 = 8;
    pub(super) const TRIM: u16 = 32;
    pub(super) const WRITE_ZEROES: u16 = 64;
}

/// Commands.
mod command {
    pub(super) const READ: u16 = 0;
    pub(super) const WRITE: u16 = 1;
    pub(super) const DISCONNECT: u16 = 2;
    pub(super) const FLUSH: u16 = 3;
    pub(super) const TRIM: u16 = 4;
    pub(super) const WRITE_ZEROES: u16 = 6;
    pub(super) const BLOCK_STATUS: u16 = 7;
}

/// Flags of commands.
mod flag {
    pub(super) const FUA: u16 = 1;
}

/// Kinds of structured replies.
mod chunk {
    pub(super) const NONE: u16 = 0;
    pub(super) const OFFSET_DATA: u16 = 1;
    pub(super) const OFFSET_HOLE: u16 = 2;
    pub(super) const BLOCK_STATUS: u16 = 5;
    pub(super) const ERROR: u16 = 1 << 15;
    /// Flag: the last one.
    pub(super) const DONE: u16 = 1;
}

/// Errors of replies.
pub mod error_code {
    /// Input or output failed.
    pub const IO: u32 = 5;
    /// The request makes no sense.
    pub const INVALID: u32 = 22;
    /// No room is left.
    pub const NO_SPACE: u32 = 28;
    /// The request is not supported.
    pub const UNSUPPORTED: u32 = 95;
}

/// Bytes of a request without its data.
pub const REQUEST_BYTES: usize = 28;

/// The head of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) flags: u16,
    pub(crate) command: u16,
    pub(crate) cookie: u64,
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl RequestHead {
    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&self.command.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; REQUEST_BYTES]) -> Result<Self> {
        let mut fields = Fields(bytes);
        let magic = fields.u32()?;
        if magic != REQUEST {
            return Err(DiskError::unexpected(
                format!("{magic:#x}"),
                "the magic number of an NBD request",
            ));
        }
        Ok(Self {
            flags: fields.u16()?,
            command: fields.u16()?,
            cookie: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
        })
    }
}

/// Numbers out of bytes, one after another.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len).ok_or_else(|| {
            DiskError::unexpected(
                format!("{} bytes", self.0.len()),
                format!("{len} more of a message"),
            )
        })?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.array()?))
    }
}

fn read_array<const N: usize>(reader: &mut impl Read, doing: &'static str) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    reader.read_exact(&mut bytes).map_err(DiskError::stream(doing))?;
    Ok(bytes)
}

fn read_vec(reader: &mut impl Read, len: u32, limit: u32, doing: &'static str) -> Result<Vec<u8>> {
    if len > limit {
        return Err(DiskError::unexpected(
            format!("{len} bytes of {doing}"),
            format!("at most {limit}"),
        ));
    }
    let mut bytes = vec![0; len as usize];
    reader.read_exact(&mut bytes).map_err(DiskError::stream(doing))?;
    Ok(bytes)
}

fn write_all(writer: &mut impl Write, bytes: &[u8], doing: &'static str) -> Result<()> {
    writer.write_all(bytes).map_err(DiskError::stream(doing))
}
