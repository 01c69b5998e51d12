//! LZ4 blocks: the cheapest encoding. Decoding is memory-safe Rust and stops at the end of the pages.

use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size};

use super::check_len;
use crate::error::{Result, WireError};

/// Inputs up to this length use the small table, which is cheaper to clear: single pages above all.
const SMALL_BYTES: usize = 32 << 10;

/// Keeps its hash tables, which would cost an allocation a page.
#[derive(Default)]
pub(super) struct Compressor {
    small: CompressTable,
    large: Option<CompressTable>,
}

impl Compressor {
    /// Compresses `data` into `out`; answers how many bytes of it are used.
    pub(super) fn compress(&mut self, data: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let room = get_maximum_output_size(data.len());
        if out.len() < room {
            out.resize(room, 0);
        }
        let table = match data.len() {
            ..=SMALL_BYTES => &mut self.small,
            _ => self.large.get_or_insert_with(CompressTable::large),
        };
        compress_into_with_table(data, out, table).ok()
    }
}

/// Decompresses `payload`, which has to fill `data`.
pub(super) fn decompress(payload: &[u8], data: &mut [u8], what: &'static str) -> Result<()> {
    let len = decompress_into(payload, data).map_err(|source| WireError::Undecodable {
        what,
        source: Box::new(source),
    })?;
    check_len("the length of pages decoded with lz4", len, data.len())
}
