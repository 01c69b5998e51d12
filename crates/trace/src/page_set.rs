//! A set of pages in few bytes.

use serde::{Deserialize, Serialize};
use vmferry_core::{PageBitmap, PageRun};

use crate::error::TraceError;

/// Most bytes of a number.
const NUMBER_BYTES: usize = 10;

/// Pages as gaps and lengths of their runs, each a number of seven bits a byte: two bytes a run mostly, where a bitmap has
/// an eighth of a byte a page whether it is in the set or not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSet {
    count: u64,
    /// The page after the last one.
    end: u64,
    encoded: Vec<u8>,
}

impl PageSet {
    /// The set of the pages of these runs, which ascend and do not overlap.
    ///
    /// # Panics
    /// When they do not.
    pub fn from_runs(runs: impl IntoIterator<Item = PageRun>) -> Self {
        let mut set = Self::default();
        let mut held: Option<PageRun> = None;
        for run in runs.into_iter().filter(|run| run.count > 0) {
            held = match held {
                Some(before) if before.end() == run.first => {
                    Some(PageRun::new(before.first, before.count + run.count))
                }
                before => {
                    before.into_iter().for_each(|before| set.push(before));
                    Some(run)
                }
            };
        }
        held.into_iter().for_each(|last| set.push(last));
        set.encoded.shrink_to_fit();
        set
    }

    /// The pages in `bitmap`.
    pub fn from_bitmap(bitmap: &PageBitmap) -> Self {
        Self::from_runs(bitmap.runs())
    }

    /// How many pages it holds.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The page after the last one; 0 for the empty set.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes it takes.
    pub fn memory_bytes(&self) -> usize {
        self.encoded.len()
    }

    /// Its runs, ascending.
    pub fn runs(&self) -> Runs<'_> {
        Runs {
            rest: &self.encoded,
            at: 0,
        }
    }

    /// Adds its pages to `pages`.
    ///
    /// # Panics
    /// When they are beyond its length.
    pub fn add_to(&self, pages: &mut PageBitmap) {
        self.runs().for_each(|run| pages.insert_run(run));
    }

    /// It came from outside: whether it is what [`PageSet::from_runs`] makes, of a guest of `pages` pages.
    pub(crate) fn check(&self, pages: u64) -> Result<(), TraceError> {
        let damaged = |why: &str| TraceError::Nonsense(format!("a set of pages {why}"));
        let (mut rest, mut at, mut count) = (&self.encoded[..], 0u64, 0u64);
        while !rest.is_empty() {
            let first_run = at == 0;
            let gap = read_number(&mut rest).ok_or_else(|| damaged("breaks off"))?;
            let len = read_number(&mut rest).ok_or_else(|| damaged("breaks off"))?;
            if len == 0 || (gap == 0 && !first_run) {
                return Err(damaged("has an empty run"));
            }
            at = at
                .checked_add(gap)
                .and_then(|first| first.checked_add(len))
                .filter(|&end| end <= pages)
                .ok_or_else(|| damaged(&format!("reaches beyond RAM of {pages} pages")))?;
            count += len;
        }
        match (self.count, self.end) == (count, at) {
            true => Ok(()),
            false => Err(damaged("does not hold as many pages as it says")),
        }
    }

    fn push(&mut self, run: PageRun) {
        assert!(run.first >= self.end, "runs have to ascend");
        write_number(&mut self.encoded, run.first - self.end);
        write_number(&mut self.encoded, run.count);
        self.count += run.count;
        self.end = run.end();
    }
}

/// See [`PageSet::runs`].
#[derive(Clone, Debug)]
pub struct Runs<'a> {
    rest: &'a [u8],
    at: u64,
}

impl Iterator for Runs<'_> {
    type Item = PageRun;

    fn next(&mut self) -> Option<PageRun> {
        let gap = read_number(&mut self.rest)?;
        let count = read_number(&mut self.rest)?;
        let run = PageRun::new(self.at + gap, count);
        self.at = run.end();
        Some(run)
    }
}

fn write_number(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn read_number(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for (index, &byte) in bytes.iter().enumerate().take(NUMBER_BYTES) {
        let part = u64::from(byte & 0x7f);
        if index == NUMBER_BYTES - 1 && part > 1 {
            return None;
        }
        number |= part << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(pages in prop::collection::btree_set(0u64..3000, 0..500)) {
            let mut bitmap = PageBitmap::new(3000);
            pages.iter().for_each(|&page| { bitmap.insert(page); });
            let set = PageSet::from_bitmap(&bitmap);
            prop_assert_eq!(set.count(), pages.len() as u64);
            prop_assert_eq!(set.end(), pages.last().map_or(0, |last| last + 1));
            prop_assert!(set.runs().eq(bitmap.runs()));
            prop_assert!(set.check(3000).is_ok());
            let mut back = PageBitmap::new(3000);
            set.add_to(&mut back);
            prop_assert_eq!(back, bitmap);
            if let Some(last) = pages.last() {
                prop_assert!(set.check(*last).is_err());
            }
        }

        #[test]
        fn nonsense_is_refused_or_harmless(encoded in prop::collection::vec(any::<u8>(), 0..40), count in any::<u64>(), end in any::<u64>()) {
            let set = PageSet { count, end, encoded };
            if set.check(1 << 20).is_ok() {
                prop_assert_eq!(set.runs().map(|run| run.count).sum::<u64>(), count);
                prop_assert!(set.runs().all(|run| run.end() <= end));
            }
        }
    }

    #[test]
    fn runs_side_by_side_are_one() {
        let set = PageSet::from_runs([PageRun::new(1, 2), PageRun::new(3, 0), PageRun::new(3, 4)]);
        assert!(set.runs().eq([PageRun::new(1, 6)]));
        assert_eq!(set, PageSet::from_runs([PageRun::new(1, 6)]));
    }
}
