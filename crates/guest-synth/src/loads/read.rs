//! Memory-read loop: every page of the region is read and checked, one after the other, for ever. Nothing is written, so no page
//! of it has to cross twice.

use serde::{Deserialize, Serialize};

use crate::loads::{Checks, Context, Cursor, Load};
use crate::memory::{GuestMemory, PAGE_WORDS, PageWords, Region, mix3};

/// The loop.
pub(crate) struct ReadLoop {
    region: Region,
    seed: u64,
    cursor: ReadCursor,
}

/// How far the loop is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadCursor {
    /// Next page to read.
    page: u64,
}

impl ReadLoop {
    pub(crate) fn new(region: Region, seed: u64) -> Self {
        Self {
            region,
            seed,
            cursor: ReadCursor::default(),
        }
    }

    fn content(&self, page: u64) -> PageWords {
        let base = mix3(self.seed, page, 0);
        std::array::from_fn(|index| (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ base)
    }

    fn check(&self, ram: &GuestMemory, page: u64, checks: &mut Checks) {
        let mut found = [0; PAGE_WORDS];
        ram.read_words(self.region.page(page), &mut found);
        checks.expect(found == self.content(page), || {
            format!("read loop: page {} is damaged", self.region.first_page + page)
        });
    }
}

impl Load for ReadLoop {
    fn prefill(&self, ram: &GuestMemory) {
        for page in 0..self.region.pages {
            ram.write_words(self.region.page(page), &self.content(page));
        }
    }

    fn operate(&mut self, cx: &mut Context<'_>) {
        self.check(cx.ram, self.cursor.page, cx.checks);
        self.cursor.page = (self.cursor.page + 1) % self.region.pages;
    }

    fn verify(&self, ram: &GuestMemory, checks: &mut Checks) {
        (0..self.region.pages).for_each(|page| self.check(ram, page, checks));
    }

    fn cursor(&self) -> Cursor {
        Cursor::Read(self.cursor.clone())
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        match cursor {
            Cursor::Read(cursor) if cursor.page < self.region.pages => {
                self.cursor = cursor.clone();
                true
            }
            _ => false,
        }
    }
}
