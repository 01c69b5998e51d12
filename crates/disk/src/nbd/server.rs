//! The server's side of an export that a mirror writes to: it takes writes, zeros and flushes, and reads nothing back.

use std::io::{Read, Write};

use super::{
    Fields, GREETING, MAX_OPTION_BYTES, MAX_REQUEST_BYTES, OPTION, OPTION_REPLY, REQUEST_BYTES, RequestHead,
    SIMPLE_REPLY, answer, can, command, error_code, flag, handshake, info, option, read_array, read_vec,
    write_all,
};
use crate::error::{DiskError, Result};

/// What is being done, in errors.
const GREETED: &str = "the greeting of an NBD client";
const ASKED: &str = "a request of an NBD client";
/// The most options a client may try before it goes on.
const MAX_OPTIONS: usize = 64;
/// What the export offers: to be written, zeroed, trimmed and flushed.
const FLAGS: u16 = can::HAS_FLAGS | can::FLUSH | can::FUA | can::TRIM | can::WRITE_ZEROES;

/// A request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Goes into the reply.
    pub cookie: u64,
    /// What it wants.
    pub what: Wanted,
    /// Whether that has to be on stable storage before the reply.
    pub durable: bool,
}

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Write this.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Vec<u8>,
    },
    /// Make a range read as zeros.
    Zero {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// Put everything on stable storage.
    Flush,
    /// Forget a range: what it reads as afterwards does not matter.
    Trim {
        /// Where.
        offset: u64,
        /// How much.
        bytes: u64,
    },
    /// Something that is answered with this error.
    Refused(u32),
}

/// Makes the handshake with a client over a stream that it has just connected: it gets the export `name` of `bytes`, and no
/// other. Answers whether it wants it.
///
/// # Errors
/// When the stream fails, or what comes is no NBD client.
pub fn greet<S: Read + Write>(stream: &mut S, name: &str, bytes: u64) -> Result<bool> {
    let mut greeting = GREETING.to_be_bytes().to_vec();
    greeting.extend(OPTION.to_be_bytes());
    greeting.extend((handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES).to_be_bytes());
    write_all(stream, &greeting, "greet an NBD client")?;
    let flags = u32::from_be_bytes(read_array(stream, GREETED)?);
    if flags & u32::from(handshake::FIXED_NEWSTYLE) == 0 {
        return Err(DiskError::unexpected(
            "an old client",
            "the fixed newstyle handshake of NBD",
        ));
    }
    for _ in 0..MAX_OPTIONS {
        let head: [u8; 16] = read_array(stream, GREETED)?;
        let mut fields = Fields(&head);
        let (magic, number, len) = (fields.u64()?, fields.u32()?, fields.u32()?);
        if magic != OPTION {
            return Err(DiskError::unexpected(
                format!("{magic:#x}"),
                "an option of an NBD client",
            ));
        }
        let data = read_vec(stream, len, MAX_OPTION_BYTES, GREETED)?;
        match number {
            option::GO => match wanted_name(&data) {
                Some(wanted) if wanted == name.as_bytes() => {
                    describe(stream, bytes)?;
                    return Ok(true);
                }
                Some(_) => reply(stream, number, answer::UNKNOWN, &[])?,
                None => reply(stream, number, answer::INVALID, &[])?,
            },
            option::ABORT => {
                reply(stream, number, answer::ACK, &[])?;
                return Ok(false);
            }
            _ => reply(stream, number, answer::UNSUPPORTED, &[])?,
        }
    }
    Err(DiskError::unexpected(
        format!("more than {MAX_OPTIONS} options"),
        "the client to go on",
    ))
}

fn wanted_name(data: &[u8]) -> Option<&[u8]> {
    let mut fields = Fields(data);
    let len = fields.u32().ok()? as usize;
    fields.take(len).ok()
}

fn describe(stream: &mut impl Write, bytes: u64) -> Result<()> {
    let mut export = info::EXPORT.to_be_bytes().to_vec();
    export.extend(bytes.to_be_bytes());
    export.extend(FLAGS.to_be_bytes());
    reply(stream, option::GO, answer::INFO, &export)?;
    let mut sizes = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [1, 64 << 10, MAX_REQUEST_BYTES] {
        sizes.extend(size.to_be_bytes());
    }
    reply(stream, option::GO, answer::INFO, &sizes)?;
    reply(stream, option::GO, answer::ACK, &[])
}

fn reply(stream: &mut impl Write, option: u32, kind: u32, payload: &[u8]) -> Result<()> {
    let mut message = OPTION_REPLY.to_be_bytes().to_vec();
    message.extend(option.to_be_bytes());
    message.extend(kind.to_be_bytes());
    message.extend((payload.len() as u32).to_be_bytes());
    message.extend(payload);
    write_all(stream, &message, "answer an NBD client")
}

/// Reads the next request to an export of `bytes`; none when the client ends the connection in order, or just ends it.
///
/// # Errors
/// When the stream fails in the middle, or what comes is no request.
pub fn read_request(stream: &mut impl Read, bytes: u64) -> Result<Option<Request>> {
    let mut head = [0; REQUEST_BYTES];
    match stream
        .read(&mut head[..1])
        .map_err(DiskError::stream("read a request"))?
    {
        0 => return Ok(None),
        _ => stream
            .read_exact(&mut head[1..])
            .map_err(DiskError::stream(ASKED))?,
    }
    let head = RequestHead::decode(&head)?;
    let in_range = head
        .offset
        .checked_add(head.len.into())
        .is_some_and(|end| end <= bytes);
    let (offset, len) = (head.offset, u64::from(head.len));
    let what = match head.command {
        command::DISCONNECT => return Ok(None),
        // Its data follows whatever it is worth.
        command::WRITE => {
            let data = read_vec(stream, head.len, MAX_REQUEST_BYTES, ASKED)?;
            match in_range {
                true => Wanted::Write { offset, data },
                false => Wanted::Refused(error_code::NO_SPACE),
            }
        }
        command::FLUSH => Wanted::Flush,
        command::WRITE_ZEROES | command::TRIM if !in_range => Wanted::Refused(error_code::NO_SPACE),
        command::WRITE_ZEROES => Wanted::Zero { offset, bytes: len },
        command::TRIM => Wanted::Trim { offset, bytes: len },
        _ => Wanted::Refused(error_code::UNSUPPORTED),
    };
    Ok(Some(Request {
        cookie: head.cookie,
        what,
        durable: head.flags & flag::FUA != 0,
    }))
}

/// The bytes of the reply to a request; 0 is no error.
pub fn encode_reply(cookie: u64, error: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}
