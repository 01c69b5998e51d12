//! Manifests: what a checkpoint is.
//!
//! As an object a manifest is:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | `vmfmanif` |
//! | 8..10 | format: 1 |
//! | 10..12 | reserved: 0 |
//! | 12..16 | bytes of the plain content |
//! | the rest but 32 | the plain content (postcard) as a Zstandard frame |
//! | the last 32 | the hash of all before |

use std::io::{Read as _, Write as _};

use serde::{Deserialize, Serialize};
use vmferry_core::{PageBitmap, RamLayout};

use crate::chunk::MAX_CHUNK_BYTES;
use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::id::CheckpointId;
use crate::table::TABLE_PAGES;

/// The most bytes a manifest takes, plain and as an object.
pub const MAX_MANIFEST_BYTES: usize = 64 << 20;

const MAGIC: &[u8; 8] = b"vmfmanif";
const FORMAT: u16 = 1;
const HEADER_BYTES: usize = 16;
const LEVEL: i32 = 3;
/// Words of a set that are packed and unpacked together.
const SET_WORDS: usize = 8192;

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// Its name.
    pub id: CheckpointId,
    /// The checkpoint before it, whose unchanged pages it shares. It is whole without that one.
    pub parent: Option<CheckpointId>,
    /// When the guest was paused, in ms since 1970.
    pub created_ms: u64,
    /// What the guest consists of, as its backend writes it.
    pub spec: serde_json::Value,
    /// Its RAM.
    pub layout: RamLayout,
    /// The state of its devices.
    pub device_state: BlobRef,
    /// Its disks as they were at that moment.
    pub disks: Vec<DiskState>,
    /// Pages written in the interval before; all that hold data where there was none.
    pub written: PageBitmap,
    /// Pages read or written in the interval before, as far as that is known.
    pub accessed: PageBitmap,
    /// How long the interval before was, in ms; none for a checkpoint that stands alone.
    pub interval_ms: Option<u64>,
    /// How long the guest stood still for it.
    pub pause_ms: f64,
    /// What became of its pages.
    pub pages: PageCounts,
    /// The table of each 32,768 pages; none where all are holes.
    pub tables: Vec<Option<Hash>>,
}

/// What became of the pages of a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageCounts {
    /// Pages that the store did not have.
    pub new: u64,
    /// Pages that were in the store, of whichever checkpoint of whichever VM, or twice in this one.
    pub deduplicated: u64,
    /// Pages that are as they are in the parent.
    pub inherited: u64,
    /// Pages written that one byte fills.
    pub uniform: u64,
    /// Bytes that the new pages take in the store.
    pub stored_bytes: u64,
}

/// Bytes in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// How many.
    pub bytes: u64,
    /// The chunks that hold them, each but the last full (1 MiB).
    pub pieces: Vec<Hash>,
}

/// A disk at the moment of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskState {
    /// The device, as the spec names it.
    pub device: String,
    /// Format of what was kept, for example `raw` or `qcow2`.
    pub format: String,
    /// Size of the file or the disk in bytes.
    pub bytes: u64,
    /// What is not zero, ascending.
    pub extents: Vec<DiskExtent>,
}

/// Consecutive bytes of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskExtent {
    /// Where they begin, in bytes.
    pub offset: u64,
    /// They themselves.
    pub blob: BlobRef,
}

impl Manifest {
    /// The pages that table `index` tells of.
    pub fn table_pages(&self, index: usize) -> u64 {
        table_pages(self.layout.pages(), index)
    }

    /// Every blob of the checkpoint.
    pub fn blobs(&self) -> impl Iterator<Item = &BlobRef> {
        let extents = self.disks.iter().flat_map(|disk| &disk.extents);
        std::iter::once(&self.device_state).chain(extents.map(|extent| &extent.blob))
    }

    /// The manifest as an object.
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] when it is too large: a disk in too many extents.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let plain = postcard::to_stdvec(&Form::of(self)).expect("a manifest serializes");
        if plain.len() > MAX_MANIFEST_BYTES {
            let message = format!(
                "the manifest of {} takes {} bytes, more than {MAX_MANIFEST_BYTES}",
                self.id,
                plain.len()
            );
            return Err(StoreError::BadRequest(message));
        }
        let mut object = Vec::new();
        object.extend_from_slice(MAGIC);
        object.extend_from_slice(&FORMAT.to_le_bytes());
        object.extend_from_slice(&[0; 2]);
        object.extend_from_slice(&(plain.len() as u32).to_le_bytes());
        object.extend(zstd::bulk::compress(&plain, LEVEL).expect("compression into memory"));
        let check = Hash::of(&object);
        object.extend_from_slice(&check.0);
        Ok(object)
    }

    /// Reads the object of a manifest; `object` is its name for errors.
    ///
    /// # Errors
    /// When it is damaged in any byte, or of a later format.
    pub fn decode(object: &str, bytes: &[u8]) -> Result<Self> {
        let damaged = |why: String| StoreError::damaged(object, why);
        let Some((checked, check)) = bytes.split_last_chunk::<{ Hash::BYTES }>() else {
            return Err(damaged("it ends within its header".into()));
        };
        let Some((header, payload)) = checked.split_first_chunk::<HEADER_BYTES>() else {
            return Err(damaged("it ends within its header".into()));
        };
        if &header[..8] != MAGIC {
            return Err(damaged("it is no manifest".into()));
        }
        let came = u16::from_le_bytes([header[8], header[9]]);
        if came != FORMAT {
            let known = FORMAT;
            let object = object.to_owned();
            return Err(StoreError::Version { object, came, known });
        }
        if Hash::of(checked).0 != *check {
            return Err(damaged("it does not have the checksum that it should".into()));
        }
        let length = u32::from_le_bytes([header[12], header[13], header[14], header[15]]) as usize;
        if length > MAX_MANIFEST_BYTES || header[10..12] != [0; 2] {
            return Err(damaged("its header makes no sense".into()));
        }
        let plain = zstd::bulk::decompress(payload, length);
        let plain = plain.map_err(|error| damaged(format!("it does not unpack: {error}")))?;
        Self::parse(&plain).map_err(|why| damaged(format!("its content makes no sense: {why}")))
    }

    /// Reads the plain content of a manifest.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(plain: &[u8]) -> Result<Self, String> {
        let form: Form = postcard::from_bytes(plain).map_err(|error| error.to_string())?;
        form.into_manifest()
    }
}

/// The pages that table `index` of a guest of `pages` tells of.
pub(crate) fn table_pages(pages: u64, index: usize) -> u64 {
    (pages - (index as u64 * TABLE_PAGES).min(pages)).min(TABLE_PAGES)
}

/// What stands in the object. A field, once released, stays; what is new makes a new format.
#[derive(Serialize, Deserialize)]
struct Form {
    id: CheckpointId,
    parent: Option<CheckpointId>,
    created_ms: u64,
    spec: String,
    layout: RamLayout,
    device_state: BlobRef,
    disks: Vec<DiskState>,
    written: Vec<u8>,
    accessed: Vec<u8>,
    interval_ms: Option<u64>,
    pause_ms: f64,
    pages: PageCounts,
    tables: Vec<Option<Hash>>,
}

impl Form {
    fn of(manifest: &Manifest) -> Self {
        Self {
            id: manifest.id.clone(),
            parent: manifest.parent.clone(),
            created_ms: manifest.created_ms,
            spec: manifest.spec.to_string(),
            layout: manifest.layout.clone(),
            device_state: manifest.device_state.clone(),
            disks: manifest.disks.clone(),
            written: pack_set(&manifest.written),
            accessed: pack_set(&manifest.accessed),
            interval_ms: manifest.interval_ms,
            pause_ms: manifest.pause_ms,
            pages: manifest.pages,
            tables: manifest.tables.clone(),
        }
    }

    fn into_manifest(self) -> Result<Manifest, String> {
        let pages = self.layout.pages();
        if self.tables.len() as u64 != pages.div_ceil(TABLE_PAGES) {
            return Err(format!("{} tables for {pages} pages", self.tables.len()));
        }
        let manifest = Manifest {
            id: self.id,
            parent: self.parent,
            created_ms: self.created_ms,
            spec: serde_json::from_str(&self.spec).map_err(|error| format!("its spec: {error}"))?,
            device_state: self.device_state,
            disks: self.disks,
            written: unpack_set(&self.written, pages)?,
            accessed: unpack_set(&self.accessed, pages)?,
            layout: self.layout,
            interval_ms: self.interval_ms,
            pause_ms: self.pause_ms,
            pages: self.pages,
            tables: self.tables,
        };
        for blob in manifest.blobs() {
            if blob.bytes.div_ceil(MAX_CHUNK_BYTES as u64) != blob.pieces.len() as u64 {
                return Err(format!("{} pieces for {} bytes", blob.pieces.len(), blob.bytes));
            }
        }
        Ok(manifest)
    }
}

/// A set of pages: its words, little-endian, as a Zstandard frame.
fn pack_set(set: &PageBitmap) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), LEVEL).expect("compression into memory");
    for words in set.words().chunks(SET_WORDS) {
        let plain: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        encoder.write_all(&plain).expect("compression into memory");
    }
    encoder.finish().expect("compression into memory")
}

/// Reads a set piece by piece and touches the memory of pages in it only: RAM that a manifest merely claims costs nothing.
fn unpack_set(packed: &[u8], pages: u64) -> Result<PageBitmap, String> {
    let failed = |error: std::io::Error| format!("a set of pages: {error}");
    let mut set = PageBitmap::new(pages);
    let mut decoder = zstd::stream::read::Decoder::with_buffer(packed).map_err(failed)?;
    let words = set.words().len();
    let mut plain = vec![0; SET_WORDS * 8];
    for first in (0..words).step_by(SET_WORDS) {
        let plain = &mut plain[..(words - first).min(SET_WORDS) * 8];
        decoder.read_exact(plain).map_err(failed)?;
        for (offset, word) in plain.as_chunks::<8>().0.iter().enumerate() {
            let (index, word) = (first + offset, u64::from_le_bytes(*word));
            let used = pages - index as u64 * 64;
            if used < 64 && word >> used != 0 {
                return Err("a set of more pages than there are".into());
            }
            if word != 0 {
                set.insert_word(index, word);
            }
        }
    }
    match decoder.read(&mut plain).map_err(failed)? {
        0 => Ok(set),
        _ => Err("a set of more pages than there are".into()),
    }
}
