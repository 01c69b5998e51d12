//! Names of contents.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A BLAKE3 hash: the name of a chunk or a table by its plain content, or what a page is known by.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; Hash::BYTES]);

impl Hash {
    /// Bytes in a hash.
    pub const BYTES: usize = 32;

    /// The hash of `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(*blake3::hash(content).as_bytes())
    }

    /// The first 8 bytes, little-endian: tells hashes apart that are not made to be alike.
    pub fn fingerprint(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("a hash is longer"))
    }

    /// The hash that `text` writes in 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        blake3::Hash::from_hex(text)
            .ok()
            .map(|hash| Self(*hash.as_bytes()))
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
