//! The frame around every message.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | `vfA1` |
//! | 4..8 | bytes of payload, at most 64 KiB |
//! | 8..12 | CRC-32 of the payload |
//! | 12..16 | CRC-32 of bytes 0..12 |
//!
//! Numbers are little-endian.

use std::io::{Read, Write};

use crate::error::{ProtoError, Result};

/// Bytes before the payload.
pub const FRAME_HEADER_BYTES: usize = 16;
/// The most bytes of a payload.
pub const MAX_PAYLOAD_BYTES: usize = 64 << 10;
/// The most bytes passed over in search of a frame: an old answer that was cut short.
pub const MAX_SKIPPED_BYTES: usize = 4 * MAX_PAYLOAD_BYTES;

const MAGIC: [u8; 4] = *b"vfA1";

/// The frame around `payload`.
///
/// # Errors
/// [`ProtoError::TooLong`].
pub fn encode(payload: &[u8]) -> Result<Vec<u8>> {
    check_len(payload.len())?;
    let mut frame = Vec::with_capacity(FRAME_HEADER_BYTES + payload.len());
    frame.extend(MAGIC);
    frame.extend((payload.len() as u32).to_le_bytes());
    frame.extend(crc32fast::hash(payload).to_le_bytes());
    frame.extend(crc32fast::hash(&frame).to_le_bytes());
    frame.extend(payload);
    Ok(frame)
}

/// Writes the frame around `payload` with one call.
///
/// # Errors
/// [`ProtoError::TooLong`], or what the port answers.
pub fn write(writer: &mut impl Write, payload: &[u8]) -> Result<()> {
    writer.write_all(&encode(payload)?).map_err(ProtoError::Write)
}

/// Reads up to the end of the next frame and answers its payload. What comes before its beginning is passed over.
///
/// # Errors
/// When the port ends or fails, no frame begins within [`MAX_SKIPPED_BYTES`], or its payload is damaged.
pub fn read(reader: &mut impl Read) -> Result<Vec<u8>> {
    let mut header = [0; FRAME_HEADER_BYTES];
    reader.read_exact(&mut header).map_err(ProtoError::Read)?;
    let mut skipped = 0;
    let (len, crc) = loop {
        if let Some(found) = parse_header(&header) {
            break found;
        }
        // On to the next byte that may begin a frame.
        let step = (1..FRAME_HEADER_BYTES)
            .find(|&at| header[at] == MAGIC[0])
            .unwrap_or(FRAME_HEADER_BYTES);
        skipped += step;
        if skipped > MAX_SKIPPED_BYTES {
            return Err(ProtoError::NoFrame(skipped));
        }
        header.copy_within(step.., 0);
        reader
            .read_exact(&mut header[FRAME_HEADER_BYTES - step..])
            .map_err(ProtoError::Read)?;
    };
    check_len(len as usize)?;
    let mut payload = vec![0; len as usize];
    reader.read_exact(&mut payload).map_err(ProtoError::Read)?;
    let expected = crc32fast::hash(&payload);
    if crc != expected {
        return Err(ProtoError::Checksum { came: crc, expected });
    }
    Ok(payload)
}

/// The length and the checksum of the payload, where this is a header.
fn parse_header(header: &[u8; FRAME_HEADER_BYTES]) -> Option<(u32, u32)> {
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let whole = header.starts_with(&MAGIC) && word(12) == crc32fast::hash(&header[..12]);
    whole.then(|| (word(4), word(8)))
}

fn check_len(len: usize) -> Result<()> {
    if len > MAX_PAYLOAD_BYTES {
        return Err(ProtoError::TooLong {
            what: "a payload in bytes",
            came: len as u64,
            limit: MAX_PAYLOAD_BYTES as u64,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_found_behind_the_rest_of_another() {
        let old = encode(b"an answer to somebody else").unwrap();
        for cut in 1..old.len() {
            let mut stream = old[cut..].to_vec();
            stream.extend(encode(b"ours").unwrap());
            assert_eq!(read(&mut stream.as_slice()).unwrap(), b"ours", "cut at {cut}");
        }
    }

    #[test]
    fn noise_without_end_is_given_up() {
        let mut noise = std::io::repeat(b'v');
        assert!(matches!(read(&mut noise), Err(ProtoError::NoFrame(_))));
        let mut zeros = std::io::repeat(0);
        assert!(matches!(read(&mut zeros), Err(ProtoError::NoFrame(_))));
    }

    #[test]
    fn damage_and_too_long_payloads_are_refused() {
        let mut frame = encode(b"payload").unwrap();
        *frame.last_mut().unwrap() ^= 1;
        assert!(matches!(
            read(&mut frame.as_slice()),
            Err(ProtoError::Checksum { .. })
        ));
        assert!(matches!(
            encode(&vec![0; MAX_PAYLOAD_BYTES + 1]),
            Err(ProtoError::TooLong { .. })
        ));
        let mut long = encode(b"").unwrap();
        long[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let crc = crc32fast::hash(&long[..12]);
        long[12..].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(
            read(&mut long.as_slice()),
            Err(ProtoError::TooLong { .. })
        ));
    }
}
