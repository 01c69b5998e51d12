//! Fault requests: what the destination sends on the fault stream, 16 bytes each.
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | number of the page |
//! | 8..12 | sequence number, from 0 on each connection |
//! | 12..16 | checksum of bytes 0..12 |
//!
//! The source answers each with page frames ([`crate::page`]) on the same stream, in round 0; a frame may
//! hold more pages around the one asked for. Answers need not keep the order of the requests.

use std::io::{Read, Write};

use vmferry_core::{PageRun, RamLayout};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::checksum::{self, crc32};
use crate::error::{Result, WireError};
use crate::read::{At, read_fixed};

/// Bytes of a fault request.
pub const FAULT_REQUEST_BYTES: usize = 16;

const WHAT: &str = "a fault request";

/// The guest waits for a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRequest {
    /// Number of the page.
    pub page: u64,
    /// Counts the requests of a connection, wrapping.
    pub seq: u32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RequestLayout {
    page: U64,
    seq: U32,
    crc: U32,
}

impl FaultRequest {
    /// The bytes of this request.
    pub fn encode(&self) -> [u8; FAULT_REQUEST_BYTES] {
        let mut layout = RequestLayout {
            page: self.page.into(),
            seq: self.seq.into(),
            crc: 0.into(),
        };
        layout.crc = crc32(&layout.as_bytes()[..FAULT_REQUEST_BYTES - 4]).into();
        zerocopy::transmute!(layout)
    }

    /// The request in `bytes`.
    ///
    /// # Errors
    /// When the checksum does not match or the page does not exist.
    pub fn decode(bytes: &[u8; FAULT_REQUEST_BYTES], layout: &RamLayout) -> Result<Self> {
        let request: RequestLayout = zerocopy::transmute!(*bytes);
        checksum::check(WHAT, request.crc.get(), crc32(&bytes[..FAULT_REQUEST_BYTES - 4]))?;
        layout
            .check(PageRun::single(request.page.get()))
            .map_err(|source| WireError::OutOfRam { what: WHAT, source })?;
        Ok(Self {
            page: request.page.get(),
            seq: request.seq.get(),
        })
    }

    /// Reads the next request.
    ///
    /// # Errors
    /// When the connection ends, or what comes is not a request for a page of this RAM.
    pub fn read(reader: &mut impl Read, layout: &RamLayout) -> Result<Self> {
        Self::decode(&read_fixed(reader, At::Border, WHAT)?, layout)
    }

    /// Writes this request.
    ///
    /// # Errors
    /// What the connection answers.
    pub fn write(&self, writer: &mut impl Write) -> Result<()> {
        writer
            .write_all(&self.encode())
            .map_err(|source| WireError::Write { what: WHAT, source })
    }
}
