//! Zstandard frames: shorter than LZ4 for more CPU time. The frame is decoded in one step into the memory of the pages,
//! so that no window it announces makes anybody allocate.

use std::io;

use vmferry_core::encoding::ZSTD_LEVELS;
use zstd::bulk;

use super::{check_len, longest_worthwhile};
use crate::error::{Result, WireError};

/// Keeps the working memory of one level.
#[derive(Default)]
pub(super) struct Compressor(Option<(i32, bulk::Compressor<'static>)>);

impl Compressor {
    /// Compresses `data` into `out`; answers how many bytes of it are used, none where it does not shrink.
    pub(super) fn compress(&mut self, level: i32, data: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        let level = level.clamp(*ZSTD_LEVELS.start(), *ZSTD_LEVELS.end());
        if self.0.as_ref().is_none_or(|(current, _)| *current != level) {
            self.0 = Some((level, bulk::Compressor::new(level).ok()?));
        }
        let (_, compressor) = self.0.as_mut()?;
        let room = longest_worthwhile(data.len());
        if out.len() < room {
            out.resize(room, 0);
        }
        // Without room for more than is worthwhile it gives up early.
        compressor.compress_to_buffer(data, &mut out[..room]).ok()
    }
}

/// Keeps its working memory.
#[derive(Default)]
pub(super) struct Decompressor(Option<bulk::Decompressor<'static>>);

impl Decompressor {
    /// Decompresses `payload`, which has to fill `data`.
    pub(super) fn decompress(&mut self, payload: &[u8], data: &mut [u8], what: &'static str) -> Result<()> {
        let undecodable = |source: io::Error| WireError::Undecodable {
            what,
            source: Box::new(source),
        };
        let decompressor = match &mut self.0 {
            Some(decompressor) => decompressor,
            none => none.insert(bulk::Decompressor::new().map_err(undecodable)?),
        };
        let len = decompressor
            .decompress_to_buffer(payload, data)
            .map_err(undecodable)?;
        check_len("the length of pages decoded with zstd", len, data.len())
    }
}
