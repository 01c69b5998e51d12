//! Reading with errors that say what was missing.

use std::io::{ErrorKind, Read};

use crate::error::{Result, WireError};

/// Where in the conversation a read begins: decides what an end or a time-out before its first byte means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    /// Between two frames: the peer may close, or have nothing to say.
    Border,
    /// Inside of a frame: more has to come.
    Middle,
}

/// Reads `N` bytes of `what`.
pub(crate) fn read_fixed<const N: usize>(
    reader: &mut impl Read,
    at: At,
    what: &'static str,
) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut came = 0;
    while came < N {
        came += read_some(reader, &mut bytes[came..], at, what, came, N)?;
    }
    Ok(bytes)
}

/// Reads `len` bytes of `what`, which the caller has found to be within its bound, in the middle of a frame.
/// Memory grows with what comes, not with what is announced.
pub(crate) fn read_payload(reader: &mut impl Read, len: usize, what: &'static str) -> Result<Vec<u8>> {
    const STEP_BYTES: usize = 256 << 10;
    let mut payload = Vec::new();
    while payload.len() < len {
        let from = payload.len();
        payload.resize(len.min(from + STEP_BYTES), 0);
        let mut came = from;
        while came < payload.len() {
            came += read_some(reader, &mut payload[came..], At::Middle, what, came, len)?;
        }
    }
    Ok(payload)
}

/// Reads at least one byte into `space`; `came` of `expected` bytes are there already.
pub(crate) fn read_some(
    reader: &mut impl Read,
    space: &mut [u8],
    at: At,
    what: &'static str,
    came: usize,
    expected: usize,
) -> Result<usize> {
    let fresh = at == At::Border && came == 0;
    loop {
        match reader.read(space) {
            Ok(0) if fresh => return Err(WireError::Closed { expected: what }),
            Ok(0) => return Err(WireError::Truncated { what, came, expected }),
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if fresh && matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(WireError::Idle { expected: what });
            }
            Err(source) => return Err(WireError::Read { what, source }),
        }
    }
}
