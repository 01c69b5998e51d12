//! Static content of RAM, and filling RAM fast.

use std::sync::atomic::{AtomicU64, Ordering};

use vmferry_core::PAGE_SIZE;
use zerocopy::IntoBytes;

use crate::config::Fill;
use crate::loads::Checks;
use crate::memory::{GuestMemory, PAGE_WORDS, PageWords, Region, mix, mix3};

/// Pages one thread takes at once.
const CHUNK_PAGES: u64 = 2048;

/// The pages of a [`Fill`]; the content of each follows from its number.
pub(crate) struct StaticPages {
    region: Region,
    fill: Fill,
    seed: u64,
}

impl StaticPages {
    pub(crate) fn new(region: Region, fill: Fill, seed: u64) -> Self {
        Self { region, fill, seed }
    }

    pub(crate) fn region(&self) -> Region {
        self.region
    }

    /// Content of page `index` of the region.
    fn content(&self, index: u64) -> PageWords {
        let base = mix3(self.seed, index, u64::MAX);
        let [uniform, compressible, random] = self.thresholds();
        match base % 100 {
            kind if kind < uniform => [0; PAGE_WORDS],
            kind if kind < compressible => [(1 + mix(base) % 255) * 0x0101_0101_0101_0101; PAGE_WORDS],
            kind if kind < random => compressible_page(base),
            _ => random_page(base),
        }
    }

    /// Where the kinds after the first begin on a scale of 100.
    fn thresholds(&self) -> [u64; 3] {
        let uniform = u64::from(self.fill.zero_percent);
        let compressible = uniform + u64::from(self.fill.uniform_percent);
        [
            uniform,
            compressible,
            compressible + u64::from(self.fill.compressible_percent),
        ]
    }

    /// Writes pages `from..to`, which are zero.
    fn write(&self, ram: &GuestMemory, from: u64, to: u64) {
        for index in from..to {
            let content = self.content(index);
            if content != [0; PAGE_WORDS] {
                ram.write_words(self.region.page(index), &content);
            }
        }
    }

    /// Checks all pages.
    pub(crate) fn verify(&self, ram: &GuestMemory, checks: &mut Checks) {
        let mut found = [0; PAGE_WORDS];
        for index in 0..self.region.pages {
            ram.read(self.region.page(index), found.as_mut_bytes());
            checks.expect(found == self.content(index), || {
                format!(
                    "static content: page {} is not what was written",
                    self.region.first_page + index
                )
            });
        }
    }
}

fn random_page(base: u64) -> PageWords {
    std::array::from_fn(|index| mix(base.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))))
}

/// Every second 32 bytes repeat what stands 32 bytes before them.
fn compressible_page(base: u64) -> PageWords {
    let mut words = random_page(base);
    for block in words.as_chunks_mut::<8>().0 {
        block.copy_within(..4, 4);
    }
    words
}

/// Allocates and maps the first `pages` pages of RAM and writes the static ones, with all cores.
pub(crate) fn populate(ram: &GuestMemory, pages: u64, fill: &StaticPages) -> vmferry_memory::Result<()> {
    let next = AtomicU64::new(0);
    let work = || -> vmferry_memory::Result<()> {
        loop {
            let first = next.fetch_add(CHUNK_PAGES, Ordering::Relaxed);
            if first >= pages {
                return Ok(());
            }
            let end = (first + CHUNK_PAGES).min(pages);
            ram.mapping().populate(first * PAGE_SIZE..end * PAGE_SIZE)?;
            let region = fill.region();
            if end > region.first_page {
                let from = first.max(region.first_page) - region.first_page;
                fill.write(ram, from, end - region.first_page);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads()).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("filling RAM does not panic"))
    })
}

/// Does `job` for each of `items`, with all cores.
pub(crate) fn in_parallel<T: Sync>(items: &[T], job: impl Fn(&T) + Sync) {
    let next = AtomicU64::new(0);
    let work = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
            job(item);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads().min(items.len()) {
            scope.spawn(work);
        }
    });
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |threads| threads.get().min(16))
}
