//! Reading and writing control messages.

use std::io::{Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, WireError};
use crate::frame::{FrameKind, read_frame, write_frame};

/// [`ToDestination`](crate::ToDestination) or [`ToSource`](crate::ToSource).
pub trait ControlMessage: Serialize + DeserializeOwned + Sealed {
    /// Which way it goes.
    const KIND: FrameKind;
    /// Names of the messages, in the order of their numbers.
    const NAMES: &'static [&'static str];

    /// Refuses what is beyond a bound.
    ///
    /// # Errors
    /// [`WireError::TooLong`].
    fn check(&self) -> Result<()>;
}

/// Keeps [`ControlMessage`] to the messages of this crate.
pub trait Sealed {}

/// Reads the next control message.
///
/// # Errors
/// When the connection ends, or what comes is not a message in this direction within all bounds.
pub fn read_control<M: ControlMessage>(reader: &mut impl Read) -> Result<M> {
    decode_control(&read_frame(reader, M::KIND)?)
}

/// Writes a control message, with one call to `writer`.
///
/// # Errors
/// When it is beyond a bound, or what the connection answers.
pub fn write_control<M: ControlMessage>(writer: &mut impl Write, message: &M) -> Result<()> {
    write_frame(writer, M::KIND, &encode_control(message)?)
}

/// The payload of the frame of `message`.
///
/// # Errors
/// When it is beyond a bound.
pub fn encode_control<M: ControlMessage>(message: &M) -> Result<Vec<u8>> {
    message.check()?;
    postcard::to_stdvec(message).map_err(|source| WireError::Encode {
        what: M::KIND.name(),
        source,
    })
}

/// The message in the payload of a frame.
///
/// # Errors
/// When it is unknown, its fields do not decode or are beyond a bound, or bytes are left over.
pub fn decode_control<M: ControlMessage>(payload: &[u8]) -> Result<M> {
    let name = name_of::<M>(payload)?;
    let (message, rest) = postcard::take_from_bytes::<M>(payload)
        .map_err(|source| WireError::Malformed { what: name, source })?;
    if !rest.is_empty() {
        return Err(WireError::TooLong {
            what: name,
            came: payload.len() as u64,
            unit: "bytes",
            limit: (payload.len() - rest.len()) as u64,
        });
    }
    message.check()?;
    Ok(message)
}

/// The name of the message in `payload`, so that an unknown one is told from a broken one.
fn name_of<M: ControlMessage>(payload: &[u8]) -> Result<&'static str> {
    let (number, _) = postcard::take_from_bytes::<u32>(payload).map_err(|source| WireError::Malformed {
        what: "without a number",
        source,
    })?;
    M::NAMES.get(number as usize).copied().ok_or_else(|| {
        let last = M::NAMES.len() - 1;
        WireError::UnknownKind {
            what: "control message",
            came: number.to_string(),
            expected: format!("0 ({}) to {last} ({})", M::NAMES[0], M::NAMES[last]),
        }
    })
}
