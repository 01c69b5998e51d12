//! Comparing pages by their hashes (`--verify`).
//!
//! In plans that leave no page for later the guest stands still meanwhile. So all processors hash, and while the source hashes
//! a part of memory the destination compares the one before. No hash is made before the stop: a write that tracking missed
//! would be missing in it as well.

use std::num::NonZero;
use std::ops::Range;
use std::sync::LazyLock;
use std::thread;

use vmferry_core::report::Verified;
use vmferry_core::{PAGE_SIZE, PageBitmap};
use vmferry_guest::GuestRam;

use crate::link::chain;
use crate::usage::Usage;

/// Hashes in one message.
const CHUNK: u64 = 4 << 10;
/// Pages for which a thread is worth its while: some 0.3 ms.
const THREAD_PAGES: u64 = 512;

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
    usage: &Usage,
    mut send: impl FnMut(u64, Vec<u128>) -> Result<(), String>,
) -> Result<(), String> {
    let mut data = ram.data_pages().map_err(|e| chain(&e))?;
    if let Some(dropped) = dropped {
        data.subtract(dropped);
    }
    let pages = ram.layout().pages();
    for first in (0..pages).step_by(CHUNK as usize) {
        let part = first..(first + CHUNK).min(pages);
        send(first, hash_all(ram, &data, part, usage))?;
    }
    Ok(())
}

/// The hashes of `pages`, of which only `data` hold anything, by as many threads as there are processors.
fn hash_all(ram: &GuestRam, data: &PageBitmap, pages: Range<u64>, usage: &Usage) -> Vec<u128> {
    let zero = zero_hash();
    let hash = |page| if data.contains(page) { ram.hash(page) } else { zero };
    let threads = thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let share = (pages.end - pages.start).div_ceil(threads).max(THREAD_PAGES);
    let mut hashes = vec![0; (pages.end - pages.start) as usize];
    thread::scope(|scope| {
        let mut parts = (pages.start..)
            .step_by(share as usize)
            .zip(hashes.chunks_mut(share as usize));
        let own = parts.next();
        let fill = |(first, part): (u64, &mut [u128])| {
            for (page, place) in (first..).zip(part) {
                *place = hash(page);
            }
        };
        for part in parts {
            scope.spawn(move || {
                let _usage = usage.thread();
                fill(part);
            });
        }
        own.into_iter().for_each(fill);
    });
    hashes
}

/// Compares the memory of a guest that stands still with the source's hashes as these come.
#[derive(Default)]
pub(crate) struct Comparison {
    /// Pages that hold data, once looked up.
    data: Option<PageBitmap>,
    /// Pages compared, from the first on.
    compared: u64,
    mismatches: u64,
}

impl Comparison {
    /// Takes the hashes of pages from `first` on.
    ///
    /// # Errors
    /// When they are not the next ones, or go beyond the guest's RAM; also when the memory file cannot be asked for its
    /// holes.
    pub(crate) fn add(
        &mut self,
        ram: &GuestRam,
        first: u64,
        hashes: &[u128],
        usage: &Usage,
    ) -> Result<(), String> {
        in_order(first, hashes, self.compared, ram.layout().pages())?;
        let data = match &mut self.data {
            Some(data) => &*data,
            none => none.insert(ram.data_pages().map_err(|e| chain(&e))?),
        };
        let end = first + hashes.len() as u64;
        let found = hash_all(ram, data, first..end, usage);
        self.mismatches += count_differences(first, hashes, found.into_iter().map(Some));
        self.compared = end;
        Ok(())
    }

    /// What was found in all `pages`.
    ///
    /// # Errors
    /// When hashes are missing: then nothing is proven.
    pub(crate) fn result(&self, pages: u64) -> Result<Verified, String> {
        all_came(self.compared, pages)?;
        Ok(Verified {
            pages,
            mismatches: self.mismatches,
        })
    }
}

/// Checks that the hashes of pages from `first` on are the ones after the `came` first ones.
fn in_order(first: u64, hashes: &[u128], came: u64, pages: u64) -> Result<(), String> {
    let end = first.saturating_add(hashes.len() as u64);
    if first == came && end <= pages {
        return Ok(());
    }
    Err(format!(
        "got hashes of pages {first}..{end}, expected them from page {came} on, of {pages} pages"
    ))
}

fn all_came(came: u64, pages: u64) -> Result<(), String> {
    match came == pages {
        true => Ok(()),
        false => Err(format!("got hashes of {came} pages, expected those of {pages}")),
    }
}

/// How many of the `expected` hashes of pages from `first` on were not `found`.
fn count_differences(first: u64, expected: &[u128], found: impl Iterator<Item = Option<u128>>) -> u64 {
    let differ = (first..)
        .zip(expected)
        .zip(found)
        .filter(|((page, expected), found)| {
            let differs = *found != Some(**expected);
            if differs {
                tracing::debug!(page, "page differs");
            }
            differs
        });
    differ.count() as u64
}

/// The source's hashes as they arrive, in order, to be compared with pages that arrived while the guest ran.
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
        in_order(first, hashes, self.hashes.len() as u64, pages)?;
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
        found: impl FnMut(u64) -> Option<u128>,
    ) -> Result<Verified, String> {
        all_came(self.hashes.len() as u64, pages)?;
        let mismatches = count_differences(0, &self.hashes, (0..pages).map(found));
        Ok(Verified { pages, mismatches })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmferry_core::{PageRun, RamLayout};
    use vmferry_memory::SharedMemory;

    use super::*;

    /// Not a whole number of messages, nor of shares of a thread.
    const PAGES: u64 = 2 * CHUNK + 3 * THREAD_PAGES + 5;

    fn ram(data: &[u64]) -> GuestRam {
        let bytes = PAGES * PAGE_SIZE;
        let memory = SharedMemory::create("compare", bytes).unwrap();
        let ram = GuestRam::new(RamLayout::single("main", bytes).unwrap(), vec![Arc::new(memory)]);
        for &page in data {
            ram.write(PageRun::single(page), &[page as u8 | 1; PAGE_SIZE as usize]);
        }
        ram
    }

    fn compared(
        source: &GuestRam,
        dropped: Option<&PageBitmap>,
        destination: &GuestRam,
    ) -> Result<Verified, String> {
        let usage = Usage::start();
        let mut comparison = Comparison::default();
        hashes(source, dropped, &usage, |first, hashes| {
            comparison.add(destination, first, &hashes, &usage)
        })?;
        comparison.result(PAGES)
    }

    #[test]
    fn every_page_is_compared_with_its_like() {
        let data = [0, 7, THREAD_PAGES, CHUNK - 1, CHUNK, PAGES - 1];
        let verified = |mismatches| {
            Ok(Verified {
                pages: PAGES,
                mismatches,
            })
        };
        assert_eq!(compared(&ram(&data), None, &ram(&data)), verified(0));
        for page in [1, THREAD_PAGES - 1, CHUNK, PAGES - 1] {
            let other = ram(&data);
            other.write(PageRun::single(page), &[0xee; PAGE_SIZE as usize]);
            assert_eq!(compared(&ram(&data), None, &other), verified(1), "page {page}");
            assert_eq!(compared(&other, None, &ram(&data)), verified(1), "page {page}");
        }
        let mut dropped = PageBitmap::new(PAGES);
        dropped.insert(7);
        assert_eq!(compared(&ram(&data), Some(&dropped), &ram(&data)), verified(1));
    }

    #[test]
    fn hashes_that_are_missing_or_out_of_order_prove_nothing() {
        let (ram, usage) = (ram(&[]), Usage::start());
        let mut comparison = Comparison::default();
        comparison.add(&ram, 0, &[zero_hash(); 4], &usage).unwrap();
        comparison.result(PAGES).unwrap_err();
        for first in [0, 3, 5, u64::MAX] {
            let error = comparison.add(&ram, first, &[zero_hash()], &usage).unwrap_err();
            assert!(error.contains("from page 4 on"), "{error}");
        }
        comparison
            .add(&ram, 4, &vec![zero_hash(); PAGES as usize], &usage)
            .unwrap_err();
    }
}
