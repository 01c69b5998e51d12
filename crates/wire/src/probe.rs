//! What crosses on a connection that only measures the way ([`StreamRole::Probe`](crate::StreamRole::Probe)). Nothing of a guest
//! does.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | kind: 1 ping, 2 load, 3 costs |
//! | 1..8 | reserved: sent as zero, ignored |
//! | 8..16 | value, little-endian |
//!
//! A *ping* comes back as it is. A *load* is followed by as many bytes as its value says, which mean nothing; when all have come
//! it comes back. *Costs* come back with the length of a text in their value, and the text behind it.

use std::io::{Read, Write};

use crate::error::{Result, WireError};
use crate::read::{At, read_fixed};

/// Bytes of a frame.
pub const PROBE_BYTES: usize = 16;
/// Most bytes of one load.
pub const MAX_LOAD_BYTES: u64 = 1 << 30;
/// Most bytes of the text of costs.
pub const MAX_COSTS_BYTES: u64 = 64 << 10;

/// A frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Comes back.
    Ping(u64),
    /// So many bytes follow.
    Load(u64),
    /// Asks what the peer's host takes for its part; in an answer, the bytes of the text that follows.
    Costs(u64),
}

impl Probe {
    /// The bytes of this frame.
    pub fn encode(self) -> [u8; PROBE_BYTES] {
        let (kind, value) = match self {
            Self::Ping(value) => (1, value),
            Self::Load(value) => (2, value),
            Self::Costs(value) => (3, value),
        };
        let mut bytes = [0; PROBE_BYTES];
        bytes[0] = kind;
        bytes[8..].copy_from_slice(&value.to_le_bytes());
        bytes
    }

    /// The frame in `bytes`.
    ///
    /// # Errors
    /// When its kind is unknown, or its value out of bounds.
    pub fn decode(bytes: &[u8; PROBE_BYTES]) -> Result<Self> {
        let [kind, _, _, _, _, _, _, _, rest @ ..] = bytes;
        let value = u64::from_le_bytes(*rest);
        let bounded = |most: u64, frame: Self| match value > most {
            true => Err(WireError::UnknownKind {
                what: "length in a probe",
                came: value.to_string(),
                expected: format!("at most {most}"),
            }),
            false => Ok(frame),
        };
        match kind {
            1 => Ok(Self::Ping(value)),
            2 => bounded(MAX_LOAD_BYTES, Self::Load(value)),
            3 => bounded(MAX_COSTS_BYTES, Self::Costs(value)),
            other => Err(WireError::UnknownKind {
                what: "kind of a probe",
                came: other.to_string(),
                expected: "1 (ping), 2 (load) or 3 (costs)".into(),
            }),
        }
    }

    /// Reads a frame.
    ///
    /// # Errors
    /// When the connection ends or what comes is none.
    pub fn read(reader: &mut impl Read) -> Result<Self> {
        Self::decode(&read_fixed(reader, At::Border, "a probe")?)
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// What the connection answers.
    pub fn write(self, writer: &mut impl Write) -> Result<()> {
        writer
            .write_all(&self.encode())
            .map_err(|source| WireError::Write {
                what: "a probe",
                source,
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn golden_bytes() {
        for (probe, bytes) in [
            (Probe::Ping(0x0102), "01000000000000000201000000000000"),
            (Probe::Load(1 << 20), "02000000000000000000100000000000"),
            (Probe::Costs(0), "03000000000000000000000000000000"),
        ] {
            let hex: String = probe.encode().iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, bytes);
            assert_eq!(Probe::decode(&probe.encode()).unwrap(), probe);
        }
    }

    proptest! {
        #[test]
        fn anything_is_decoded_or_refused(bytes in prop::array::uniform16(any::<u8>())) {
            if let Ok(probe) = Probe::decode(&bytes) {
                prop_assert_eq!(Probe::decode(&probe.encode()).unwrap(), probe);
                prop_assert!(!matches!(probe, Probe::Load(n) if n > MAX_LOAD_BYTES));
            }
        }
    }
}
