//! Tables: where the pages of a checkpoint are.
//!
//! A table tells it of [`TABLE_PAGES`] consecutive pages (the last one of a guest of fewer), so a checkpoint writes only the
//! tables in whose pages something is new; the others it shares with its parent. A table is named by the hash of its plain
//! content, and as an object is:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `vmftable` |
//! | 8..10 | format: 1 |
//! | 10..12 | reserved: 0 |
//! | 12..16 | bytes of the plain content |
//! | the rest | the plain content as a Zstandard frame |
//!
//! The plain content: how many pages and how many chunks (4 bytes each), the names of the chunks in the order of their first
//! use, then runs of pages, each beginning with a LEB128 varint `length << 2 | tag`:
//!
//! | tag | the next `length` pages |
//! |---|---|
//! | 0 | are holes: zero |
//! | 1 | are filled by the byte that follows |
//! | 2 | are consecutive pages of a chunk: two varints follow, which chunk, and which is the first of its pages |

use std::collections::HashMap;

use crate::chunk::MAX_CHUNK_PAGES;
use crate::error::{Result, StoreError};
use crate::hash::Hash;

/// Pages that a table tells of: 128 MiB of RAM.
pub const TABLE_PAGES: u64 = 32_768;
/// The most bytes a table takes as an object: every page in a chunk of its own.
pub const MAX_OBJECT_BYTES: u64 = 4 << 20;

const MAX_PLAIN_BYTES: usize = 2 << 20;
const MAGIC: &[u8; 8] = b"vmftable";
const FORMAT: u16 = 1;
const HEADER_BYTES: usize = 16;
const LEVEL: i32 = 3;

const HOLES: u64 = 0;
const UNIFORM: u64 = 1;
const STORED: u64 = 2;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: it is zero.
    Hole,
    /// Every byte of it is this one.
    Uniform(u8),
    /// In a chunk.
    Stored {
        /// Which: an index into the chunks of the table.
        chunk: u32,
        /// Which of its pages.
        index: u16,
    },
}

/// Where consecutive pages are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The chunks that hold them.
    pub chunks: Vec<Hash>,
    /// The place of each page.
    pub places: Vec<Place>,
}

/// A table as an object.
#[derive(Debug)]
pub struct Packed {
    /// Its name: the hash of the plain content.
    pub name: Hash,
    /// The object's bytes.
    pub object: Vec<u8>,
}

impl Table {
    /// A table of `places`, whose chunks are called as `name` says. None where all pages are holes.
    pub fn of(places: impl Iterator<Item = Place>, name: impl Fn(u32) -> Hash) -> Option<Self> {
        let mut table = Self {
            chunks: Vec::new(),
            places: Vec::new(),
        };
        let mut numbers = HashMap::new();
        let mut empty = true;
        for place in places {
            empty &= place == Place::Hole;
            table.places.push(match place {
                Place::Stored { chunk, index } => {
                    let chunk = *numbers.entry(name(chunk)).or_insert_with_key(|&name| {
                        table.chunks.push(name);
                        table.chunks.len() as u32 - 1
                    });
                    Place::Stored { chunk, index }
                }
                other => other,
            });
        }
        (!empty).then_some(table)
    }

    /// The table as an object.
    pub fn pack(&self) -> Packed {
        let plain = self.plain();
        let mut object = Vec::with_capacity(HEADER_BYTES + plain.len() / 2);
        object.extend_from_slice(MAGIC);
        object.extend_from_slice(&FORMAT.to_le_bytes());
        object.extend_from_slice(&[0; 2]);
        object.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        object.extend(zstd::bulk::compress(&plain, LEVEL).expect("compression into memory"));
        Packed {
            name: Hash::of(&plain),
            object,
        }
    }

    fn plain(&self) -> Vec<u8> {
        let mut plain = Vec::new();
        plain.extend_from_slice(&(self.places.len() as u32).to_le_bytes());
        plain.extend_from_slice(&(self.chunks.len() as u32).to_le_bytes());
        self.chunks
            .iter()
            .for_each(|name| plain.extend_from_slice(&name.0));
        let mut at = 0;
        while at < self.places.len() {
            let first = self.places[at];
            let length = self.run_length(at);
            let token = |tag: u64| (length as u64) << 2 | tag;
            match first {
                Place::Hole => put_varint(&mut plain, token(HOLES)),
                Place::Uniform(byte) => {
                    put_varint(&mut plain, token(UNIFORM));
                    plain.push(byte);
                }
                Place::Stored { chunk, index } => {
                    put_varint(&mut plain, token(STORED));
                    put_varint(&mut plain, u64::from(chunk));
                    put_varint(&mut plain, u64::from(index));
                }
            }
            at += length;
        }
        plain
    }

    /// How many places from `at` are one run.
    fn run_length(&self, at: usize) -> usize {
        let goes_on = |before: Place, next: Place| match (before, next) {
            (
                Place::Stored { chunk, index },
                Place::Stored {
                    chunk: other,
                    index: next,
                },
            ) => chunk == other && index.checked_add(1) == Some(next),
            (before, next) => before == next,
        };
        let places = &self.places[at..];
        let breaks = places.windows(2).position(|pair| !goes_on(pair[0], pair[1]));
        breaks.map_or(places.len(), |last| last + 1)
    }

    /// The table `name` of `pages` pages, whose object is `bytes`.
    ///
    /// # Errors
    /// When it is damaged in any byte, tells of another number of pages, or is of a later format.
    pub fn unpack(name: Hash, pages: u64, object: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |why: &str| StoreError::damaged(object, why);
        let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(damaged("it ends within its header"));
        };
        if &header[..8] != MAGIC {
            return Err(damaged("it is no table"));
        }
        let came = u16::from_le_bytes([header[8], header[9]]);
        if came != FORMAT {
            let known = FORMAT;
            let object = object.to_owned();
            return Err(StoreError::Version { object, came, known });
        }
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if length > MAX_PLAIN_BYTES || header[10..12] != [0; 2] {
            return Err(damaged("its header makes no sense"));
        }
        let plain = zstd::bulk::decompress(payload, length);
        let plain = plain.map_err(|error| damaged(&format!("it does not unpack: {error}")))?;
        if plain.len() != length || Hash::of(&plain) != name {
            return Err(damaged("its content does not have the hash that is its name"));
        }
        Self::parse(&plain, pages).ok_or_else(|| damaged("its content makes no sense"))
    }

    /// Reads the plain content of a table of `pages` pages; none where it makes no sense. What it allocates is bounded by
    /// `pages` and the length of the content.
    pub fn parse(plain: &[u8], pages: u64) -> Option<Self> {
        let (count, rest) = plain.split_first_chunk::<4>()?;
        let (chunk_count, rest) = rest.split_first_chunk::<4>()?;
        if u64::from(u32::from_le_bytes(*count)) != pages || pages > TABLE_PAGES {
            return None;
        }
        let chunk_count = u32::from_le_bytes(*chunk_count) as usize;
        let (names, mut rest) = rest.split_at_checked(chunk_count.checked_mul(Hash::BYTES)?)?;
        let names = names.as_chunks::<{ Hash::BYTES }>().0;
        let mut places = Vec::with_capacity(pages as usize);
        while (places.len() as u64) < pages {
            let token = take_varint(&mut rest)?;
            let length = usize::try_from(token >> 2).ok()?;
            if length == 0 || length > pages as usize - places.len() {
                return None;
            }
            match token & 3 {
                HOLES => places.extend(std::iter::repeat_n(Place::Hole, length)),
                UNIFORM => {
                    let (&byte, left) = rest.split_first()?;
                    rest = left;
                    places.extend(std::iter::repeat_n(Place::Uniform(byte), length));
                }
                STORED => {
                    let chunk = take_varint(&mut rest)?;
                    let first = take_varint(&mut rest)?;
                    if chunk >= chunk_count as u64
                        || first.checked_add(length as u64)? > MAX_CHUNK_PAGES as u64
                    {
                        return None;
                    }
                    places.extend((0..length).map(|offset| Place::Stored {
                        chunk: chunk as u32,
                        index: first as u16 + offset as u16,
                    }));
                }
                _ => return None,
            }
        }
        rest.is_empty().then(|| Self {
            chunks: names.iter().copied().map(Hash).collect(),
            places,
        })
    }
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (index, &byte) in rest.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            return None;
        }
        value |= bits << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Some(value);
        }
    }
    None
}
