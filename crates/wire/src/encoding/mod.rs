//! Encoded pages: the payloads of page frames that are shorter than their pages.
//!
//! One file an encoding. Both ends know beforehand how long the result is, from the run in the frame's header: a
//! decoder writes into memory of just that length and refuses a payload that gives less or more. An encoder answers
//! nothing where the pages do not shrink by a worthwhile amount: they cross as `Raw` then.

mod delta;
mod lz4;
mod zstd;

use std::fmt;
use std::io::Read;

use vmferry_core::PageRun;

use crate::checksum::{self, crc32};
use crate::error::{Result, WireError};
use crate::read::{At, read_some};
pub use vmferry_core::encoding::ZSTD_LEVELS;

/// How the pages of an [`EncodedPages`] frame were encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coding {
    /// An LZ4 block.
    Lz4,
    /// A Zstandard frame.
    Zstd,
    /// An LZ4 block of the pages, exclusive-or the version of them that was sent before.
    Delta,
}

/// The header of pages that cross in an encoded form; see [`PageFrame`](crate::PageFrame).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodedPages {
    /// Which pages.
    pub run: PageRun,
    /// In which round; 0 outside of rounds.
    pub round: u32,
    /// How they are encoded.
    pub coding: Coding,
    /// Bytes of payload: at least one, and fewer than the pages have.
    pub len: u32,
    /// A checksum: with [`Coding::Delta`] of the pages as they come out, which also finds that the destination
    /// holds another version than the one assumed; else of the payload.
    pub crc: u32,
}

impl Coding {
    /// The checksum that the frame of `payload` carries, which stands for `pages`.
    pub fn checksum(self, payload: &[u8], pages: &[u8]) -> u32 {
        match self {
            Self::Lz4 | Self::Zstd => crc32(payload),
            Self::Delta => crc32(pages),
        }
    }

    const fn payload_name(self) -> &'static str {
        match self {
            Self::Lz4 => "the payload of an lz4 page frame",
            Self::Zstd => "the payload of a zstd page frame",
            Self::Delta => "the payload of a delta page frame",
        }
    }
}

impl fmt::Display for Coding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Delta => "delta",
        })
    }
}

/// Encodes pages. Keeps its memory from one call to the next: a few times what it was given at most.
#[derive(Default)]
pub struct PageEncoder {
    lz4: lz4::Compressor,
    zstd: zstd::Compressor,
    difference: Vec<u8>,
    out: Vec<u8>,
}

impl PageEncoder {
    /// `pages` as an LZ4 block, where that is shorter.
    pub fn lz4(&mut self, pages: &[u8]) -> Option<&[u8]> {
        let len = self.lz4.compress(pages, &mut self.out)?;
        worthwhile(&self.out[..len], pages)
    }

    /// `pages` as a Zstandard frame of this level ([`ZSTD_LEVELS`]; others are brought into that range), where that
    /// is shorter.
    pub fn zstd(&mut self, level: i32, pages: &[u8]) -> Option<&[u8]> {
        let len = self.zstd.compress(level, pages, &mut self.out)?;
        worthwhile(&self.out[..len], pages)
    }

    /// `pages` as their difference to `old`, the version sent before, where that is shorter.
    ///
    /// # Panics
    /// When they have not the same length.
    pub fn delta(&mut self, old: &[u8], pages: &[u8]) -> Option<&[u8]> {
        delta::difference(old, pages, &mut self.difference);
        let len = self.lz4.compress(&self.difference, &mut self.out)?;
        worthwhile(&self.out[..len], pages)
    }
}

impl fmt::Debug for PageEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageEncoder").finish_non_exhaustive()
    }
}

/// Decodes pages. Keeps its memory from one call to the next: less than twice the pages of a frame.
#[derive(Default)]
pub struct PageDecoder {
    payload: Vec<u8>,
    difference: Vec<u8>,
    zstd: zstd::Decompressor,
}

impl PageDecoder {
    /// Reads the payload that follows the header of `frame` and decodes it into `pages`, which with
    /// [`Coding::Delta`] hold the version received before.
    ///
    /// # Errors
    /// When the connection ends, a checksum does not match, or the payload does not decode to just these pages.
    /// `pages` hold anything then.
    ///
    /// # Panics
    /// When `pages` has another length than the run of the frame.
    pub fn read(&mut self, reader: &mut impl Read, frame: &EncodedPages, pages: &mut [u8]) -> Result<()> {
        assert_eq!(
            pages.len() as u64,
            frame.run.bytes(),
            "memory for the pages of the frame"
        );
        let what = frame.coding.payload_name();
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(frame.len as usize, 0);
        let read = read_exact(reader, &mut payload, what);
        let decoded = read.and_then(|()| self.decode(frame, &payload, pages));
        self.payload = payload;
        decoded
    }

    fn decode(&mut self, frame: &EncodedPages, payload: &[u8], pages: &mut [u8]) -> Result<()> {
        let what = frame.coding.payload_name();
        match frame.coding {
            Coding::Lz4 => {
                checksum::check(what, frame.crc, crc32(payload))?;
                lz4::decompress(payload, pages, what)
            }
            Coding::Zstd => {
                checksum::check(what, frame.crc, crc32(payload))?;
                self.zstd.decompress(payload, pages, what)
            }
            Coding::Delta => {
                self.difference.resize(pages.len(), 0);
                lz4::decompress(payload, &mut self.difference, what)?;
                delta::apply(&self.difference, pages);
                checksum::check(
                    "what a delta page frame makes of its pages",
                    frame.crc,
                    crc32(pages),
                )
            }
        }
    }
}

impl fmt::Debug for PageDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageDecoder").finish_non_exhaustive()
    }
}

/// The encoded form, where it spares enough of the link to be worth decoding.
fn worthwhile<'a>(encoded: &'a [u8], pages: &[u8]) -> Option<&'a [u8]> {
    (encoded.len() <= longest_worthwhile(pages.len())).then_some(encoded)
}

/// Less than 1/32 saved is not worth the destination's time.
const fn longest_worthwhile(len: usize) -> usize {
    len - len.div_ceil(32)
}

fn check_len(what: &'static str, came: usize, expected: usize) -> Result<()> {
    if came == expected {
        return Ok(());
    }
    Err(WireError::Unexpected {
        what,
        came: came as u64,
        expected: expected.to_string(),
    })
}

fn read_exact(reader: &mut impl Read, space: &mut [u8], what: &'static str) -> Result<()> {
    let mut came = 0;
    while came < space.len() {
        let expected = space.len();
        came += read_some(reader, &mut space[came..], At::Middle, what, came, expected)?;
    }
    Ok(())
}
