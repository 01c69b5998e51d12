//! Memory-write loop: every page of the region is checked and overwritten, one after the other, for ever.

use serde::{Deserialize, Serialize};

use crate::loads::{Checks, Context, Cursor, Load};
use crate::memory::{GuestMemory, PAGE_WORDS, PageWords, Region, mix3};

/// The loop. Pages before the cursor hold this lap's version, the others that of the lap before: so for every
/// page there is exactly one content that is right.
pub(crate) struct WriteLoop {
    region: Region,
    seed: u64,
    cursor: WriteCursor,
}

/// How far the loop is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WriteCursor {
    /// Complete passes over the region.
    lap: u64,
    /// Next page to write.
    page: u64,
}

impl WriteLoop {
    pub(crate) fn new(region: Region, seed: u64) -> Self {
        Self {
            region,
            seed,
            cursor: WriteCursor::default(),
        }
    }

    /// Content of page `page` in its version `lap`.
    fn content(&self, page: u64, lap: u64) -> PageWords {
        let base = mix3(self.seed, page, lap);
        let mut words = [0; PAGE_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ base;
        }
        words[0] = lap;
        words[1] = page;
        words
    }

    fn check(&self, ram: &GuestMemory, page: u64, lap: u64, checks: &mut Checks) {
        let mut found = [0; PAGE_WORDS];
        ram.read_words(self.region.page(page), &mut found);
        let expected = self.content(page, lap);
        checks.expect(found == expected, || {
            let at = self.region.first_page + page;
            if found[1] == page && found[0] != lap && found == self.content(page, found[0]) {
                format!(
                    "write loop: page {at} is out of date: version {}, expected {lap}",
                    found[0]
                )
            } else {
                let right = found
                    .iter()
                    .zip(&expected)
                    .filter(|(found, expected)| found == expected)
                    .count();
                format!(
                    "write loop: page {at} is damaged: {right} of {PAGE_WORDS} words are of version {lap}"
                )
            }
        });
    }
}

impl Load for WriteLoop {
    fn prefill(&self, ram: &GuestMemory) {
        for page in 0..self.region.pages {
            ram.write_words(self.region.page(page), &self.content(page, 0));
        }
    }

    fn operate(&mut self, cx: &mut Context<'_>) {
        let WriteCursor { lap, page } = self.cursor;
        self.check(cx.ram, page, lap, cx.checks);
        cx.ram
            .write_words(self.region.page(page), &self.content(page, lap + 1));
        self.cursor = match page + 1 {
            end if end == self.region.pages => WriteCursor {
                lap: lap + 1,
                page: 0,
            },
            page => WriteCursor { lap, page },
        };
    }

    fn verify(&self, ram: &GuestMemory, checks: &mut Checks) {
        for page in 0..self.region.pages {
            let lap = self.cursor.lap + u64::from(page < self.cursor.page);
            self.check(ram, page, lap, checks);
        }
    }

    fn cursor(&self) -> Cursor {
        Cursor::Write(self.cursor.clone())
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        match cursor {
            Cursor::Write(cursor) if cursor.page < self.region.pages && cursor.lap < u64::MAX / 2 => {
                self.cursor = cursor.clone();
                true
            }
            _ => false,
        }
    }
}
