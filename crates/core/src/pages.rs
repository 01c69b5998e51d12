//! Pages and runs of pages.
//!
//! A page is named by its *page number*: the index of the 4 KiB page in the concatenation of all RAM blocks
//! of a guest, in the order of its [`RamLayout`](crate::RamLayout).

use serde::{Deserialize, Serialize};

/// Bytes in a page. Huge pages are moved as the 4 KiB pages they consist of.
pub const PAGE_SIZE: u64 = 4096;

/// `count` consecutive pages from page number `first`; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageRun {
    /// Number of the first page.
    pub first: u64,
    /// Pages in the run.
    pub count: u64,
}

impl PageRun {
    /// A run of `count` pages from `first`.
    pub const fn new(first: u64, count: u64) -> Self {
        Self { first, count }
    }

    /// The run of one page.
    pub const fn single(page: u64) -> Self {
        Self::new(page, 1)
    }

    /// The number after the last page.
    pub const fn end(self) -> u64 {
        self.first + self.count
    }

    /// Bytes the run covers.
    pub const fn bytes(self) -> u64 {
        self.count * PAGE_SIZE
    }

    /// The page numbers, ascending.
    pub fn pages(self) -> std::ops::Range<u64> {
        self.first..self.end()
    }

    /// Whether `page` lies in the run.
    pub fn contains(self, page: u64) -> bool {
        self.pages().contains(&page)
    }

    /// The first `count` pages, and what is left after them.
    pub fn split_at(self, count: u64) -> (Self, Option<Self>) {
        if count >= self.count {
            (self, None)
        } else {
            (
                Self::new(self.first, count),
                Some(Self::new(self.first + count, self.count - count)),
            )
        }
    }
}
