//! Checksums: CRC-32 (IEEE 802.3). They find accidents, not attacks: those are TLS's to find.

/// A checksum over several pieces: `new`, `update` for each, `finalize`.
pub use crc32fast::Hasher as Crc32;

/// The checksum of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}
