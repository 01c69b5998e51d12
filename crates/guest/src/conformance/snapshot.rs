//! RAM at a moment, to compare with.

use std::collections::BTreeMap;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};

use super::Outcome;
use crate::ram::GuestRam;

/// Pages copied at once.
pub(super) const COPY_PAGES: u64 = 64;

/// The hash of every page that is not zero.
#[derive(PartialEq, Eq)]
pub(super) struct Snapshot {
    pages: u64,
    hashes: BTreeMap<u64, u128>,
}

impl Snapshot {
    /// RAM of a guest that is paused.
    pub(super) fn of(ram: &GuestRam) -> Outcome<Self> {
        let mut hashes = BTreeMap::new();
        for page in ram.data_pages()?.pages() {
            if ram.uniform_byte(page) != Some(0) {
                hashes.insert(page, ram.hash(page));
            }
        }
        Ok(Self {
            pages: ram.layout().pages(),
            hashes,
        })
    }

    /// Whether `page` holds now what it held then.
    pub(super) fn holds(&self, ram: &GuestRam, page: u64) -> bool {
        match self.hashes.get(&page) {
            Some(hash) => ram.hash(page) == *hash,
            None => ram.uniform_byte(page) == Some(0),
        }
    }

    /// Pages that differ.
    pub(super) fn changed(&self, other: &Self) -> PageBitmap {
        let mut changed = PageBitmap::new(self.pages);
        for page in self.hashes.keys().chain(other.hashes.keys()).copied() {
            if self.hashes.get(&page) != other.hashes.get(&page) {
                changed.insert(page);
            }
        }
        changed
    }
}

/// The first few pages of a set, for messages.
pub(super) fn some_of(pages: &PageBitmap) -> String {
    let first: Vec<_> = pages.pages().take(5).map(|page| page.to_string()).collect();
    format!(
        "{} pages ({}{})",
        pages.count(),
        first.join(", "),
        if pages.count() > 5 { ", ..." } else { "" }
    )
}

/// Content of the pages of `run`.
pub(super) fn read(ram: &GuestRam, run: PageRun) -> Vec<u8> {
    let mut data = vec![0; run.bytes() as usize];
    ram.read(run, &mut data);
    data
}

/// A page full of `byte`.
pub(super) fn page_of(byte: u8) -> Vec<u8> {
    vec![byte; PAGE_SIZE as usize]
}

/// Copies `pages` straight into the RAM of a guest that does not run.
pub(super) fn copy(source: &GuestRam, destination: &GuestRam, pages: &PageBitmap) {
    for run in chunks(pages) {
        destination.write(run, &read(source, run));
    }
}

/// The runs of a set, none of them long.
pub(super) fn chunks(pages: &PageBitmap) -> Vec<PageRun> {
    let mut chunks = Vec::new();
    let mut from = 0;
    while let Some(run) = pages.next_run(from, COPY_PAGES) {
        from = run.end();
        chunks.push(run);
    }
    chunks
}
