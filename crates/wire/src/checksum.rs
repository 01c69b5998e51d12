//! Checksums: CRC-32 (IEEE 802.3). They find accidents, not attacks: those are TLS's to find.

use crate::error::{Result, WireError};

/// A checksum over several pieces: `new`, `update` for each, `finalize`.
pub use crc32fast::Hasher as Crc32;

/// The checksum of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Refuses `what` unless the checksum that came is the one of the bytes that came.
pub(crate) fn check(what: &'static str, came: u32, expected: u32) -> Result<()> {
    if came == expected {
        Ok(())
    } else {
        Err(WireError::Checksum { what, came, expected })
    }
}
