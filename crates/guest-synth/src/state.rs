//! The device state: what is left of the vCPUs when they stand still. It may come from a peer.

use rand_xoshiro::Xoshiro256PlusPlus;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::loads::Cursor;

const MAGIC: [u8; 4] = *b"VSYN";
const VERSION: u16 = 1;
/// Magic number, version and checksum.
const HEADER_BYTES: usize = 10;
/// Far more than 64 workers with 16 loads need.
const MAX_STATE_BYTES: usize = 1 << 20;

/// State of all vCPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DeviceState {
    /// Which guest this is of.
    pub identity: u64,
    pub vcpus: Vec<VcpuState>,
}

/// State of one vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VcpuState {
    pub rng: Xoshiro256PlusPlus,
    pub loads: Vec<LoadState>,
    /// When it last had done all it wanted to do, nanoseconds since 1970; `None` before its first operation.
    pub content_until_unix_ns: Option<u64>,
    pub longest_gap_ns: u64,
}

/// State of one load of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LoadState {
    pub cursor: Cursor,
    pub operations: u64,
    pub checks: u64,
    pub violations: u64,
}

/// Why a device state is refused.
#[derive(Debug, Error)]
pub(crate) enum StateError {
    #[error("the device state has {0} bytes, expected {HEADER_BYTES} to {MAX_STATE_BYTES}")]
    Size(usize),
    #[error("this is no device state of a synthetic guest")]
    Magic,
    #[error(
        "the device state has version {0}, this vmferry reads {VERSION}: use the same vmferry at both hosts"
    )]
    Version(u16),
    #[error("the device state is damaged: its checksum is wrong")]
    Checksum,
    #[error("the device state cannot be decoded")]
    Decode(#[source] postcard::Error),
    #[error("the device state is of a guest with another configuration")]
    Identity,
    #[error("the device state has {found} {what}, expected {expected}")]
    Count {
        what: &'static str,
        found: usize,
        expected: usize,
    },
    #[error("the device state of vCPU {vcpu} has a cursor that load {load} cannot have")]
    Cursor { vcpu: usize, load: usize },
    #[error("page 0 of RAM is not that of this guest: RAM has to be in place, or faults be served, first")]
    FirstPage,
}

impl DeviceState {
    /// The bytes that cross.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let payload = postcard::to_stdvec(self).expect("numbers and vectors can always be encoded");
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&crc32fast::hash(&payload).to_le_bytes());
        bytes.extend_from_slice(&payload);
        bytes
    }

    /// Reads what [`DeviceState::encode`] made.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        if !(HEADER_BYTES..=MAX_STATE_BYTES).contains(&bytes.len()) {
            return Err(StateError::Size(bytes.len()));
        }
        let (header, payload) = bytes.split_at(HEADER_BYTES);
        if header[..4] != MAGIC {
            return Err(StateError::Magic);
        }
        let version = u16::from_le_bytes([header[4], header[5]]);
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        if header[6..] != crc32fast::hash(payload).to_le_bytes() {
            return Err(StateError::Checksum);
        }
        match postcard::take_from_bytes(payload).map_err(StateError::Decode)? {
            (state, []) => Ok(state),
            (_, _) => Err(StateError::Size(bytes.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn state() -> DeviceState {
        let load = LoadState {
            cursor: Cursor::Idle,
            operations: 1,
            checks: 2,
            violations: 3,
        };
        let vcpu = VcpuState {
            rng: Xoshiro256PlusPlus::seed_from_u64(5),
            loads: vec![load],
            content_until_unix_ns: Some(7),
            longest_gap_ns: 11,
        };
        DeviceState {
            identity: 13,
            vcpus: vec![vcpu.clone(), vcpu],
        }
    }

    #[test]
    fn what_was_saved_is_loaded() {
        assert_eq!(DeviceState::decode(&state().encode()).unwrap(), state());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = state().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(DeviceState::decode(&bad).is_err(), "bit {bit}");
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_and_never_panics(payload in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(DeviceState::decode(&payload).is_err());
            // With a right checksum the decoder itself has to stand it.
            let mut framed = [&MAGIC[..], &VERSION.to_le_bytes(), &crc32fast::hash(&payload).to_le_bytes()].concat();
            framed.extend_from_slice(&payload);
            let _ = DeviceState::decode(&framed);
        }
    }
}
