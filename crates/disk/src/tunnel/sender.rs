//! The source's end of a tunnel: what a mirror writes becomes frames, in an order that is safe.

use std::collections::BTreeMap;

use super::frame::{BLOCK_BYTES, FromSource, MAX_WRITE_BYTES, hash_of};
use crate::error::{DiskError, Result};

/// The most blocks whose answers are awaited: what is held in memory, and what a long link has under way.
pub const WINDOW_BLOCKS: usize = 256;

/// What was put into a tunnel. Bytes of disks, not of the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Bytes of ranges that are zero.
    pub zero_bytes: u64,
    /// Bytes of blocks that the destination had.
    pub known_bytes: u64,
    /// Bytes that crossed in full.
    pub data_bytes: u64,
}

/// Turns writes into frames. It says when it must wait for answers; what it is given then is not taken.
#[derive(Debug, Default)]
pub struct Sender {
    next: u64,
    /// Blocks whose answer is awaited, by the number of their question.
    open: BTreeMap<u64, (u64, Vec<u8>)>,
    sent: Sent,
}

/// A part of a write that is treated as one.
#[derive(Clone, Copy)]
enum Part<'a> {
    Block(u64, &'a [u8]),
    Bytes(u64, &'a [u8]),
    Zero(u64, u64),
}

impl Sender {
    /// What was sent so far.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Whether no answer is awaited.
    pub fn is_settled(&self) -> bool {
        self.open.is_empty()
    }

    /// Whether a write of so many bytes, at most [`MAX_WRITE_BYTES`], has to wait for answers first: another one to its range is
    /// open, or the window is full.
    pub fn must_wait_to_write(&self, offset: u64, bytes: u64) -> bool {
        let blocks = bytes.div_ceil(BLOCK_BYTES as u64) as usize;
        self.open.len() + blocks > WINDOW_BLOCKS || self.must_wait_to_zero(offset, bytes)
    }

    /// The same for zeros, of which no answer is awaited.
    pub fn must_wait_to_zero(&self, offset: u64, bytes: u64) -> bool {
        let end = offset.saturating_add(bytes);
        let overlaps = |(at, data): &(u64, Vec<u8>)| *at < end && offset < at + data.len() as u64;
        self.open.values().any(overlaps)
    }

    /// The frames of a write, once it need not wait ([`Sender::must_wait_to_write`]).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Vec<FromSource> {
        debug_assert!(!self.must_wait_to_write(offset, data.len() as u64));
        parts(offset, data)
            .into_iter()
            .map(|part| self.frame(part))
            .collect()
    }

    /// The frame of a range of zeros, once it need not wait ([`Sender::must_wait_to_zero`]).
    pub fn zero(&mut self, offset: u64, bytes: u64) -> FromSource {
        debug_assert!(!self.must_wait_to_zero(offset, bytes));
        self.sent.zero_bytes += bytes;
        FromSource::Zero { offset, bytes }
    }

    /// The frame that asks for stable storage, once [`Sender::is_settled`].
    pub fn flush(&mut self) -> FromSource {
        debug_assert!(self.is_settled());
        self.next += 1;
        FromSource::Flush { number: self.next }
    }

    /// The destination answered a question: the data that has to cross because of that.
    ///
    /// # Errors
    /// When there is no such question.
    pub fn answered(&mut self, number: u64, has: bool) -> Result<Option<FromSource>> {
        let (_, data) = self.open.remove(&number).ok_or_else(|| {
            DiskError::unexpected(
                format!("an answer to question {number}"),
                "one to an open question",
            )
        })?;
        if has {
            self.sent.known_bytes += data.len() as u64;
            return Ok(None);
        }
        self.sent.data_bytes += data.len() as u64;
        Ok(Some(FromSource::Data { number, data }))
    }

    fn frame(&mut self, part: Part<'_>) -> FromSource {
        match part {
            Part::Block(offset, data) => {
                self.next += 1;
                self.open.insert(self.next, (offset, data.to_vec()));
                FromSource::Ask {
                    number: self.next,
                    offset,
                    hash: hash_of(data),
                }
            }
            Part::Bytes(offset, data) => {
                self.sent.data_bytes += data.len() as u64;
                FromSource::Write {
                    offset,
                    data: data.to_vec(),
                }
            }
            Part::Zero(offset, bytes) => {
                self.sent.zero_bytes += bytes;
                FromSource::Zero { offset, bytes }
            }
        }
    }
}

/// Cuts a write at the borders of blocks, and tells zeros from data.
fn parts(offset: u64, data: &[u8]) -> Vec<Part<'_>> {
    let mut parts: Vec<Part<'_>> = Vec::new();
    let mut at = 0;
    while at < data.len() {
        let place = offset + at as u64;
        let to_border = BLOCK_BYTES - (place % BLOCK_BYTES as u64) as usize;
        let len = to_border.min(data.len() - at).min(MAX_WRITE_BYTES);
        let part = &data[at..at + len];
        let is_zero = part.iter().all(|&byte| byte == 0);
        match parts.last_mut() {
            Some(Part::Zero(_, bytes)) if is_zero => *bytes += len as u64,
            _ if is_zero => parts.push(Part::Zero(place, len as u64)),
            _ if len == BLOCK_BYTES => parts.push(Part::Block(place, part)),
            _ => parts.push(Part::Bytes(place, part)),
        }
        at += len;
    }
    parts
}
