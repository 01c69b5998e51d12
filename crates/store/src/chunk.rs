//! Chunks: what a store keeps contents in.
//!
//! A chunk is a run of pages, or a piece of a blob, compressed. It is named by the hash of its plain content:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `vmfchunk` |
//! | 8..10 | format: 1 |
//! | 10 | codec: 0 as it is, 1 Zstandard |
//! | 11 | reserved: 0 |
//! | 12..16 | pages; 0 for a piece of a blob |
//! | 16..20 | bytes of the plain content |
//! | 20..24 | bytes of the payload |
//! | 24..24+32n | the hash of each page |
//! | 32 more | the hash of all before |
//! | the rest | the payload |
//!
//! Numbers are little-endian. The hashes of the pages stand in front so that an index of equal pages can be made of the
//! beginnings of chunks alone.

use vmferry_core::PAGE_SIZE;

use crate::error::{Result, StoreError};
use crate::hash::Hash;

/// The most bytes of plain content a chunk has.
pub const MAX_CHUNK_BYTES: usize = 1 << 20;
/// The most pages in a chunk.
pub const MAX_CHUNK_PAGES: usize = MAX_CHUNK_BYTES / PAGE_BYTES;
/// Pages in a chunk of pages that is full: one fault reads and unpacks that many.
pub const CHUNK_PAGES: usize = 64;
/// The most bytes a chunk takes as an object.
pub const MAX_OBJECT_BYTES: u64 =
    (MAX_CHUNK_BYTES + HEADER_BYTES + (MAX_CHUNK_PAGES + 1) * Hash::BYTES) as u64;
/// As much of an object as the hashes of its pages can take.
pub const MAX_HEAD_BYTES: u64 = (HEADER_BYTES + (MAX_CHUNK_PAGES + 1) * Hash::BYTES) as u64;

const PAGE_BYTES: usize = PAGE_SIZE as usize;
const MAGIC: &[u8; 8] = b"vmfchunk";
const FORMAT: u16 = 1;
const HEADER_BYTES: usize = 24;
const LEVEL: i32 = 1;

/// A chunk as an object.
#[derive(Debug)]
pub struct Packed {
    /// Its name: the hash of the plain content.
    pub name: Hash,
    /// The object's bytes.
    pub object: Vec<u8>,
}

/// Packs `plain`: whole pages with the hash of each, or a piece of a blob without any.
///
/// # Panics
/// When it is empty, too long, or has another number of pages than of hashes: a mistake of the caller.
pub fn pack(plain: &[u8], pages: &[Hash]) -> Packed {
    assert!(!plain.is_empty() && plain.len() <= MAX_CHUNK_BYTES);
    assert!(pages.is_empty() || pages.len() * PAGE_BYTES == plain.len());
    let compressed = zstd::bulk::compress(plain, LEVEL).ok();
    let compressed = compressed.filter(|compressed| compressed.len() < plain.len());
    let (codec, payload) = match &compressed {
        Some(compressed) => (1, compressed.as_slice()),
        None => (0, plain),
    };
    let mut object = Vec::with_capacity(HEADER_BYTES + (pages.len() + 1) * Hash::BYTES + payload.len());
    object.extend_from_slice(MAGIC);
    object.extend_from_slice(&FORMAT.to_le_bytes());
    object.extend_from_slice(&[codec, 0]);
    for number in [pages.len(), plain.len(), payload.len()] {
        object.extend_from_slice(&(number as u32).to_le_bytes());
    }
    pages.iter().for_each(|page| object.extend_from_slice(&page.0));
    let check = Hash::of(&object);
    object.extend_from_slice(&check.0);
    object.extend_from_slice(payload);
    Packed {
        name: Hash::of(plain),
        object,
    }
}

/// The beginning of a chunk.
#[derive(Debug, PartialEq, Eq)]
pub struct Head {
    /// The hash of each page; empty for a piece of a blob.
    pub pages: Vec<Hash>,
    /// Bytes of the plain content.
    pub plain_bytes: usize,
    zstd: bool,
    payload_bytes: usize,
    payload_at: usize,
}

/// Reads the beginning of a chunk; `object` is its name for errors, `bytes` at least its first [`MAX_HEAD_BYTES`] or all of it.
///
/// # Errors
/// When it is damaged, or of a later format.
pub fn head(object: &str, bytes: &[u8]) -> Result<Head> {
    let damaged = |why: &str| StoreError::damaged(object, why);
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(damaged("it ends within its header"));
    };
    if &header[..8] != MAGIC {
        return Err(damaged("it is no chunk"));
    }
    let came = u16::from_le_bytes([header[8], header[9]]);
    if came != FORMAT {
        let known = FORMAT;
        let object = object.to_owned();
        return Err(StoreError::Version { object, came, known });
    }
    let number =
        |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
    let (pages, plain_bytes, payload_bytes) = (number(12), number(16), number(20));
    let sound = (1..=MAX_CHUNK_BYTES).contains(&plain_bytes)
        && payload_bytes <= plain_bytes
        && (pages == 0 || pages.checked_mul(PAGE_BYTES) == Some(plain_bytes))
        && header[10] <= 1
        && header[11] == 0
        && (header[10] == 1 || payload_bytes == plain_bytes);
    if !sound {
        return Err(damaged("its header makes no sense"));
    }
    let check_at = HEADER_BYTES + pages * Hash::BYTES;
    let Some(check) = bytes.get(check_at..check_at + Hash::BYTES) else {
        return Err(damaged("it ends within its header"));
    };
    if Hash::of(&bytes[..check_at]).0 != check {
        return Err(damaged("its header does not have the checksum that it should"));
    }
    let hashes = bytes[HEADER_BYTES..check_at].as_chunks::<{ Hash::BYTES }>().0;
    Ok(Head {
        pages: hashes.iter().copied().map(Hash).collect(),
        plain_bytes,
        zstd: header[10] == 1,
        payload_bytes,
        payload_at: check_at + Hash::BYTES,
    })
}

/// The plain content of the chunk `name`, whose object is `bytes`.
///
/// # Errors
/// When it is damaged in any byte, or of a later format.
pub fn unpack(name: Hash, object: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let head = head(object, bytes)?;
    let payload = &bytes[head.payload_at..];
    if payload.len() != head.payload_bytes {
        let why = format!(
            "it has {} bytes of payload instead of {}",
            payload.len(),
            head.payload_bytes
        );
        return Err(StoreError::damaged(object, why));
    }
    let plain = if head.zstd {
        let plain = zstd::bulk::decompress(payload, head.plain_bytes);
        plain.map_err(|error| StoreError::damaged(object, format!("it does not unpack: {error}")))?
    } else {
        payload.to_vec()
    };
    if plain.len() != head.plain_bytes || Hash::of(&plain) != name {
        return Err(StoreError::damaged(
            object,
            "its content does not have the hash that is its name",
        ));
    }
    Ok(plain)
}
