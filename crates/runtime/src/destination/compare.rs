//! Comparing pages by their hashes (`--verify`).

use std::sync::LazyLock;

use vmferry_core::report::Verified;
use vmferry_core::{PAGE_SIZE, PageBitmap};
use vmferry_guest::GuestRam;

use crate::link::chain;

/// Hashes in one message.
const CHUNK: u64 = 16 << 10;

/// The hash of a page's bytes.
pub(crate) fn hash(page: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(page)
}

/// The hash of a page of zeros.
pub(crate) fn zero_hash() -> u128 {
    static HASH: LazyLock<u128> = LazyLock::new(|| hash(&[0; PAGE_SIZE as usize]));
    *HASH
}

/// Hands the hashes of all pages to `send`, in order, with the number of the first page of each part. Holes
/// are not touched: reading one would allocate it. Pages that were dropped read as zero at the destination.
pub(crate) fn hashes(
    ram: &GuestRam,
    dropped: Option<&PageBitmap>,
    mut send: impl FnMut(u64, Vec<u128>) -> Result<(), String>,
) -> Result<(), String> {
    let mut data = ram.data_pages().map_err(|e| chain(&e))?;
    if let Some(dropped) = dropped {
        data.subtract(dropped);
    }
    let zero = zero_hash();
    let pages = ram.layout().pages();
    for first in (0..pages).step_by(CHUNK as usize) {
        let part = first..(first + CHUNK).min(pages);
        let hashes = part
            .map(|page| if data.contains(page) { ram.hash(page) } else { zero })
            .collect();
        send(first, hashes)?;
    }
    Ok(())
}

/// The source's hashes as they arrive, in order.
#[derive(Default)]
pub(crate) struct Expected {
    hashes: Vec<u128>,
}

impl Expected {
    /// Takes the hashes of pages from `first` on.
    ///
    /// # Errors
    /// When they are not the next ones, or go beyond the guest's RAM.
    pub(crate) fn add(&mut self, first: u64, hashes: &[u128], pages: u64) -> Result<(), String> {
        // A source that was cut off begins again.
        if first == 0 {
            self.hashes.clear();
        }
        if first != self.hashes.len() as u64 || first + hashes.len() as u64 > pages {
            return Err(format!(
                "got hashes of pages {first}..{}, expected them from page {} on, of {pages} pages",
                first + hashes.len() as u64,
                self.hashes.len(),
            ));
        }
        self.hashes.extend_from_slice(hashes);
        Ok(())
    }

    /// Compares with what `found` says of each page.
    ///
    /// # Errors
    /// When hashes are missing: then nothing is proven.
    pub(crate) fn compare(
        &self,
        pages: u64,
        mut found: impl FnMut(u64) -> Option<u128>,
    ) -> Result<Verified, String> {
        if self.hashes.len() as u64 != pages {
            return Err(format!(
                "got hashes of {} pages, expected those of {pages}",
                self.hashes.len()
            ));
        }
        let mut mismatches = 0;
        for (page, expected) in self.hashes.iter().enumerate() {
            if found(page as u64) != Some(*expected) {
                mismatches += 1;
                tracing::debug!(page, "page differs");
            }
        }
        Ok(Verified { pages, mismatches })
    }

    /// Compares with the memory itself.
    ///
    /// # Errors
    /// As [`Expected::compare`]; also when the memory file cannot be asked for its holes.
    pub(crate) fn compare_memory(&self, ram: &GuestRam) -> Result<Verified, String> {
        let data = ram.data_pages().map_err(|e| chain(&e))?;
        let zero = zero_hash();
        self.compare(ram.layout().pages(), |page| {
            Some(if data.contains(page) { ram.hash(page) } else { zero })
        })
    }
}
