//! The map of page frames, run-length coded.
//!
//! A run of equal frames is one variable-length number (LEB128): its count times 16, plus the number of its class, 10
//! for frames that are no memory. A chunk says at which frame it begins; chunks come in ascending order, and what lies
//! between two of them is no memory.

use serde::{Deserialize, Serialize};
use vmferry_core::hints::Class;

use crate::error::{ProtoError, Result};
use crate::kernel::bound;

/// Frame numbers lie below this: 64 TiB of memory.
pub const MAX_FRAMES: u64 = 1 << 34;
/// The most bytes of runs in a chunk.
pub const MAX_CHUNK_BYTES: usize = 32 << 10;
/// The most bytes of runs in a map: memory as fragmented as can be, up to 32 GiB, and far more of any real one.
pub const MAX_MAP_BYTES: u64 = 16 << 20;

const ABSENT: u8 = Class::ALL.len() as u8;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Memory of this class.
    Is(Class),
    /// No memory, or nothing to be said about it.
    Absent,
}

impl Use {
    fn code(self) -> u8 {
        match self {
            Self::Is(class) => class.number(),
            Self::Absent => ABSENT,
        }
    }

    fn of_code(code: u8) -> Option<Self> {
        match code {
            ABSENT => Some(Self::Absent),
            _ => Class::of_number(code).map(Self::Is),
        }
    }
}

/// Consecutive frames of one use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameRun {
    /// Number of the first frame.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// What they are.
    pub is: Use,
}

/// A part of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapChunk {
    /// The frame at which its first run begins.
    pub first_frame: u64,
    /// The runs, coded.
    #[serde(with = "crate::message::bytes")]
    pub runs: Vec<u8>,
    /// Whether the map ends with it.
    pub last: bool,
}

/// Makes chunks out of runs.
#[derive(Debug, Default)]
pub struct MapCoder {
    pending: Option<FrameRun>,
    first_frame: u64,
    runs: Vec<u8>,
}

impl MapCoder {
    /// Adds a run, which begins where the one before ended. Answers a chunk when one is full.
    pub fn push(&mut self, run: FrameRun) -> Option<MapChunk> {
        if let Some(pending) = &mut self.pending
            && pending.is == run.is
        {
            pending.count += run.count;
            return None;
        }
        let full = self.flush();
        self.pending = Some(run);
        full
    }

    /// The last chunk.
    pub fn finish(mut self) -> Vec<MapChunk> {
        let full = self.flush();
        let last = MapChunk {
            first_frame: self.first_frame,
            runs: self.runs,
            last: true,
        };
        full.into_iter().chain([last]).collect()
    }

    fn flush(&mut self) -> Option<MapChunk> {
        let run = self.pending.take()?;
        let full = (self.runs.len() + 10 > MAX_CHUNK_BYTES).then(|| MapChunk {
            first_frame: self.first_frame,
            runs: std::mem::take(&mut self.runs),
            last: false,
        });
        if self.runs.is_empty() {
            self.first_frame = run.first;
        }
        let mut number = run.count << 4 | u64::from(run.is.code());
        while number >= 0x80 {
            self.runs.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.runs.push(number as u8);
        full
    }
}

/// Takes the chunks of one map, in order.
#[derive(Debug)]
pub struct MapReader {
    /// Memory ends here: a run beyond it must be absent.
    end: u64,
    /// Up to where the map has come.
    reached: u64,
    bytes: u64,
    finished: bool,
}

impl MapReader {
    /// A reader of a map of a guest whose frames lie below `end`.
    pub fn new(end: u64) -> Self {
        Self {
            end: end.min(MAX_FRAMES),
            reached: 0,
            bytes: 0,
            finished: false,
        }
    }

    /// Takes a chunk and hands each of its runs to `each`.
    ///
    /// # Errors
    /// When frames come twice or lie beyond memory, a run means nothing, or the map is too long. Runs before that have
    /// been handed out.
    pub fn take(&mut self, chunk: &MapChunk, mut each: impl FnMut(FrameRun)) -> Result<()> {
        chunk.check()?;
        self.bytes += chunk.runs.len() as u64 + 1;
        if self.finished || self.bytes > MAX_MAP_BYTES {
            return Err(ProtoError::Endless(self.bytes));
        }
        if chunk.first_frame < self.reached {
            return Err(ProtoError::Twice {
                frame: chunk.first_frame,
                reached: self.reached,
            });
        }
        let mut at = chunk.first_frame;
        let mut rest = chunk.runs.as_slice();
        while !rest.is_empty() {
            let number = varint(&mut rest)?;
            let (count, code) = (number >> 4, (number & 15) as u8);
            let is = Use::of_code(code)
                .filter(|_| count > 0)
                .ok_or(ProtoError::Nonsense { count, code })?;
            let end = at.saturating_add(count);
            let limit = if is == Use::Absent { MAX_FRAMES } else { self.end };
            if end > limit {
                return Err(ProtoError::Beyond { frame: end, limit });
            }
            each(FrameRun { first: at, count, is });
            at = end;
        }
        self.reached = at;
        self.finished = chunk.last;
        Ok(())
    }

    /// Whether the last chunk has come.
    pub fn is_finished(&self) -> bool {
        self.finished
    }
}

impl MapChunk {
    pub(crate) fn check(&self) -> Result<()> {
        bound(
            "a part of a map in bytes",
            self.runs.len() as u64,
            MAX_CHUNK_BYTES as u64,
        )?;
        if self.first_frame > MAX_FRAMES {
            return Err(ProtoError::Beyond {
                frame: self.first_frame,
                limit: MAX_FRAMES,
            });
        }
        Ok(())
    }
}

fn varint(bytes: &mut &[u8]) -> Result<u64> {
    let mut number = 0;
    for (index, &byte) in bytes.iter().enumerate().take(6) {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte < 0x80 {
            *bytes = &bytes[index + 1..];
            return Ok(number);
        }
    }
    // Longer than the count of any memory, or cut short.
    Err(ProtoError::Malformed {
        what: "a run of frames",
        source: postcard::Error::DeserializeBadVarint,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(first: u64, count: u64, is: Use) -> FrameRun {
        FrameRun { first, count, is }
    }

    fn chunk(first_frame: u64, runs: &[u8], last: bool) -> MapChunk {
        MapChunk {
            first_frame,
            runs: runs.to_vec(),
            last,
        }
    }

    #[test]
    fn equal_neighbours_are_one_run() {
        let mut coder = MapCoder::default();
        assert_eq!(coder.push(run(0, 256, Use::Is(Class::KernelAllocated))), None);
        assert_eq!(coder.push(run(256, 1000, Use::Is(Class::Free))), None);
        assert_eq!(coder.push(run(1256, 24, Use::Is(Class::Free))), None);
        let chunks = coder.finish();
        assert_eq!(chunks, [chunk(0, &[0x81, 0x20, 0x89, 0x80, 0x01], true)]);
        let mut got = Vec::new();
        MapReader::new(1280)
            .take(&chunks[0], |run| got.push(run))
            .unwrap();
        assert_eq!(
            got,
            [
                run(0, 256, Use::Is(Class::KernelAllocated)),
                run(256, 1024, Use::Is(Class::Free))
            ]
        );
    }

    #[test]
    fn lies_are_refused() {
        let free_256 = [0x89, 0x20];
        let refused = |chunks: &[MapChunk]| {
            let mut reader = MapReader::new(300);
            chunks
                .iter()
                .try_for_each(|chunk| reader.take(chunk, drop))
                .unwrap_err()
                .to_string()
        };
        assert!(refused(&[chunk(100, &free_256, true)]).contains("beyond the 300"));
        assert!(refused(&[chunk(0, &free_256, false), chunk(255, &free_256, true)]).contains("twice"));
        assert!(refused(&[chunk(0, &[0x1b], true)]).contains("class 11"));
        assert!(refused(&[chunk(0, &[0x09], true)]).contains("a run of 0"));
        assert!(refused(&[chunk(0, &[0xff; 9], true)]).contains("does not decode"));
        assert!(refused(&[chunk(0, &free_256, true), chunk(256, &[], true)]).contains("goes on"));
        assert!(refused(&[chunk(u64::MAX, &free_256, true)]).contains("beyond"));
        assert!(refused(&vec![chunk(0, &[], false); 17 << 20]).contains("goes on"));
    }

    #[test]
    fn what_is_no_memory_may_lie_anywhere() {
        let mut got = Vec::new();
        let mut reader = MapReader::new(300);
        reader
            .take(&chunk(1 << 20, &[0x8a, 0x20], true), |run| got.push(run))
            .unwrap();
        assert_eq!(got, [run(1 << 20, 256, Use::Absent)]);
        assert!(reader.is_finished());
    }
}
