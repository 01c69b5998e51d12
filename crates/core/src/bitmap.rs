//! A set of pages, one bit a page.

use crate::pages::PageRun;

const WORD_BITS: u64 = u64::BITS as u64;

/// A set of page numbers below a fixed length. 32 KiB of memory per GiB of guest RAM.
///
/// The first page is found at once, however large the set: work that takes pages off its front, as a round
/// does, costs no more for a TiB than for a MiB.
#[derive(Clone, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    len: u64,
    /// Index of the first word that is not zero; the number of words where all are.
    low: usize,
}

impl PageBitmap {
    /// The empty set over `len` pages.
    pub fn new(len: u64) -> Self {
        let words = vec![0; len.div_ceil(WORD_BITS) as usize];
        Self {
            low: words.len(),
            words,
            len,
        }
    }

    /// The set of all `len` pages.
    pub fn full(len: u64) -> Self {
        let mut all = Self::new(len);
        all.insert_run(PageRun::new(0, len));
        all
    }

    /// Pages the set ranges over (not how many it holds: that is [`PageBitmap::count`]).
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the set holds no page.
    pub fn is_empty(&self) -> bool {
        self.low == self.words.len()
    }

    /// How many pages the set holds.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// How many pages the set holds, or `most` where it holds more. Looks no further than it has to, so it may be asked
    /// for each batch of a large guest.
    pub fn count_up_to(&self, most: u64) -> u64 {
        let mut count = 0;
        for word in &self.words[self.low..] {
            count += u64::from(word.count_ones());
            if count >= most {
                return most;
            }
        }
        count
    }

    /// How many pages of `run` the set holds.
    pub fn count_in(&self, run: PageRun) -> u64 {
        self.masked_words(run)
            .map(|(index, mask)| u64::from((self.words[index] & mask).count_ones()))
            .sum()
    }

    /// Whether the set holds `page`; false for a page beyond its length.
    pub fn contains(&self, page: u64) -> bool {
        page < self.len && self.words[(page / WORD_BITS) as usize] >> (page % WORD_BITS) & 1 == 1
    }

    /// Adds `page`; answers whether it is new.
    ///
    /// # Panics
    /// When `page` is beyond the length: the caller has to check what comes from outside.
    pub fn insert(&mut self, page: u64) -> bool {
        assert!(page < self.len, "page {page} beyond a bitmap of {}", self.len);
        let word = &mut self.words[(page / WORD_BITS) as usize];
        let bit = 1 << (page % WORD_BITS);
        let new = *word & bit == 0;
        *word |= bit;
        self.low = self.low.min((page / WORD_BITS) as usize);
        new
    }

    /// Takes `page` out; answers whether it was there.
    pub fn remove(&mut self, page: u64) -> bool {
        let there = self.contains(page);
        if there {
            self.words[(page / WORD_BITS) as usize] &= !(1 << (page % WORD_BITS));
            self.raise_low();
        }
        there
    }

    /// Adds every page of `run`, which must lie below the length.
    pub fn insert_run(&mut self, run: PageRun) {
        assert!(
            run.end() <= self.len,
            "pages {run:?} beyond a bitmap of {}",
            self.len
        );
        for (index, mask) in self.masked_words(run) {
            self.words[index] |= mask;
            self.low = self.low.min(index);
        }
    }

    /// Takes every page of `run` out.
    pub fn remove_run(&mut self, run: PageRun) {
        for (index, mask) in self.masked_words(run) {
            self.words[index] &= !mask;
        }
        self.raise_low();
    }

    /// The set as words of 64 pages, the lowest page in the lowest bit; bits beyond the length are 0.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Adds the pages whose bits are set in `bits`, a word as in [`PageBitmap::words`].
    ///
    /// # Panics
    /// When the word, or a bit set in it, is beyond the length.
    pub fn insert_word(&mut self, index: usize, bits: u64) {
        let used = (self.len - (index as u64 * WORD_BITS).min(self.len)).min(WORD_BITS);
        assert!(
            used == WORD_BITS || bits >> used == 0,
            "word {index} beyond a bitmap of {}",
            self.len
        );
        self.words[index] |= bits;
        if bits != 0 {
            self.low = self.low.min(index);
        }
    }

    /// Takes all pages out.
    pub fn clear(&mut self) {
        self.words.fill(0);
        self.low = self.words.len();
    }

    /// Adds what `other` holds.
    pub fn union_with(&mut self, other: &Self) {
        self.zip(other, |mine, theirs| *mine |= theirs);
    }

    /// Takes out what `other` holds.
    pub fn subtract(&mut self, other: &Self) {
        self.zip(other, |mine, theirs| *mine &= !theirs);
    }

    /// Keeps only what `other` holds too.
    pub fn intersect_with(&mut self, other: &Self) {
        self.zip(other, |mine, theirs| *mine &= theirs);
    }

    /// Turns the set into its complement.
    pub fn invert(&mut self) {
        self.words.iter_mut().for_each(|word| *word = !*word);
        self.trim();
        self.low = 0;
        self.raise_low();
    }

    /// The first maximal run of pages in the set at or after `from`, cut to `max_count` pages.
    pub fn next_run(&self, from: u64, max_count: u64) -> Option<PageRun> {
        let from = from.max(self.low as u64 * WORD_BITS);
        let first = self.next_matching(from, |word| word)?;
        let end = self.next_matching(first, |word| !word).unwrap_or(self.len);
        Some(PageRun::new(first, (end - first).min(max_count)))
    }

    /// The last maximal run of pages in the set that ends at or before `before`, cut to the last `max_count`.
    pub fn previous_run(&self, before: u64, max_count: u64) -> Option<PageRun> {
        let last = self.previous_matching(before.min(self.len), |word| word)?;
        let first = self
            .previous_matching(last, |word| !word)
            .map_or(0, |page| page + 1);
        let count = (last + 1 - first).min(max_count);
        Some(PageRun::new(last + 1 - count, count))
    }

    /// The maximal runs of pages in the set, ascending.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end();
            Some(run)
        })
    }

    /// The parts of `run` that are in the set, ascending.
    pub fn runs_in(&self, run: PageRun) -> impl Iterator<Item = PageRun> + '_ {
        let mut from = run.first;
        std::iter::from_fn(move || {
            let found = self.next_run(from, u64::MAX)?;
            let end = found.end().min(run.end());
            from = end;
            (found.first < end).then(|| PageRun::new(found.first, end - found.first))
        })
    }

    /// The pages in the set, ascending.
    pub fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        self.runs().flat_map(PageRun::pages)
    }

    /// The pages of `run` in the set, ascending.
    pub fn pages_in(&self, run: PageRun) -> impl Iterator<Item = u64> + '_ {
        self.masked_words(run).flat_map(|(index, mask)| {
            let mut bits = self.words[index] & mask;
            std::iter::from_fn(move || {
                let page =
                    (bits != 0).then(|| index as u64 * WORD_BITS + u64::from(bits.trailing_zeros()))?;
                bits &= bits - 1;
                Some(page)
            })
        })
    }

    fn next_matching(&self, from: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let mut index = (from / WORD_BITS) as usize;
        let mut mask = u64::MAX << (from % WORD_BITS);
        while index < self.words.len() {
            let bits = view(self.words[index]) & mask;
            if bits != 0 {
                let page = index as u64 * WORD_BITS + u64::from(bits.trailing_zeros());
                return (page < self.len).then_some(page);
            }
            mask = u64::MAX;
            index += 1;
        }
        None
    }

    fn previous_matching(&self, before: u64, view: impl Fn(u64) -> u64) -> Option<u64> {
        let last = before.checked_sub(1)?;
        let mut mask = u64::MAX >> (WORD_BITS - 1 - last % WORD_BITS);
        for index in (0..=(last / WORD_BITS) as usize).rev() {
            let bits = view(self.words[index]) & mask;
            if bits != 0 {
                return Some(index as u64 * WORD_BITS + u64::from(bits.ilog2()));
            }
            mask = u64::MAX;
        }
        None
    }

    fn masked_words(&self, run: PageRun) -> impl Iterator<Item = (usize, u64)> + use<> {
        let (first, end) = (run.first.min(self.len), run.end().min(self.len));
        let mut at = first;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let index = at / WORD_BITS;
            let next = ((index + 1) * WORD_BITS).min(end);
            let width = next - at;
            let mask = (u64::MAX >> (WORD_BITS - width)) << (at % WORD_BITS);
            at = next;
            Some((index as usize, mask))
        })
    }

    fn zip(&mut self, other: &Self, apply: impl Fn(&mut u64, u64)) {
        assert_eq!(self.len, other.len, "sets over different numbers of pages");
        for (mine, &theirs) in self.words.iter_mut().zip(&other.words) {
            apply(mine, theirs);
        }
        self.low = 0;
        self.raise_low();
    }

    fn raise_low(&mut self) {
        while self.words.get(self.low) == Some(&0) {
            self.low += 1;
        }
    }

    fn trim(&mut self) {
        if let (Some(last), used) = (self.words.last_mut(), self.len % WORD_BITS)
            && used != 0
        {
            *last &= u64::MAX >> (WORD_BITS - used);
        }
    }
}

impl std::fmt::Debug for PageBitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageBitmap({} of {})", self.count(), self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn model(len: u64, pages: &BTreeSet<u64>) -> PageBitmap {
        let mut bitmap = PageBitmap::new(len);
        pages.iter().for_each(|&page| {
            bitmap.insert(page);
        });
        bitmap
    }

    proptest! {
        #[test]
        fn runs_are_maximal_and_cover_the_set(pages in prop::collection::btree_set(0u64..300, 0..200)) {
            let bitmap = model(300, &pages);
            prop_assert_eq!(bitmap.pages().collect::<BTreeSet<_>>(), pages.clone());
            prop_assert_eq!(bitmap.count(), pages.len() as u64);
            let runs: Vec<_> = bitmap.runs().collect();
            for pair in runs.windows(2) {
                prop_assert!(pair[0].end() < pair[1].first, "adjacent runs are one run");
            }
        }

        #[test]
        fn previous_run_mirrors_next_run(pages in prop::collection::btree_set(0u64..300, 0..200), at in 0u64..300) {
            let bitmap = model(300, &pages);
            let mirrored = model(300, &pages.iter().map(|page| 299 - page).collect());
            let expected = mirrored.next_run(300 - at, 7).map(|run| PageRun::new(300 - run.end(), run.count));
            prop_assert_eq!(bitmap.previous_run(at, 7), expected);
        }

        #[test]
        fn set_operations_match_a_model(
            most in 1u64..200,
            a in prop::collection::btree_set(0u64..200, 0..100),
            b in prop::collection::btree_set(0u64..200, 0..100),
            first in 0u64..200, count in 1u64..200,
        ) {
            let (left, right) = (model(200, &a), model(200, &b));
            prop_assert_eq!(left.count_up_to(most), left.count().min(most));
            let mut union = left.clone();
            union.union_with(&right);
            prop_assert_eq!(union, model(200, &a.union(&b).copied().collect()));
            let mut difference = left.clone();
            difference.subtract(&right);
            prop_assert_eq!(difference, model(200, &a.difference(&b).copied().collect()));
            let mut common = left.clone();
            common.intersect_with(&right);
            prop_assert_eq!(common, model(200, &a.intersection(&b).copied().collect()));
            let mut inverse = left.clone();
            inverse.invert();
            prop_assert_eq!(inverse.count(), 200 - left.count());
            let run = PageRun::new(first, count.min(200 - first));
            let mut with = left.clone();
            with.insert_run(run);
            prop_assert_eq!(with.count_in(run), run.count);
            prop_assert!(left.pages_in(run).eq(run.pages().filter(|&page| left.contains(page))));
            with.remove_run(run);
            prop_assert_eq!(with.count_in(run), 0);
            prop_assert_eq!(with.count(), left.count() - left.count_in(run));
        }
    }
}
