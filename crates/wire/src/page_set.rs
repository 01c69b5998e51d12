//! Sets of pages on the wire: run lengths where the set is in runs, bits where it is in crumbs.
//!
//! A [`PageSet`] tells which of `pages` consecutive pages from `first` (a multiple of 64) are in the set. Its
//! coding is a sequence of tokens, each beginning with a LEB128 varint `length << 2 | tag`:
//!
//! | tag | meaning |
//! |---|---|
//! | 0 | the next `length` pages are not in the set |
//! | 1 | the next `length` pages are in the set |
//! | 2 | `length` words of 64 bits follow, little-endian, one bit a page; begins at a multiple of 64 pages, and bits beyond the last page are 0 |
//!
//! The tokens cover the pages exactly. A coding has at most [`MAX_CODING_BYTES`], so a set that takes more
//! (at worst one bit a page and a little: 128 GiB of RAM in crumbs) is cut into several parts.

use serde::{Deserialize, Serialize};
use vmferry_core::{LayoutError, PageBitmap, PageRun, RamLayout};

use crate::bounded::bytes;
use crate::error::{Result, WireError};

/// The most bytes the coding of a part may have.
pub const MAX_CODING_BYTES: usize = 2 << 20;

const WORD_PAGES: u64 = 64;
/// Words over which the encoder decides between runs and bits.
const WINDOW_WORDS: usize = 64;
/// More than a window and the run before it take: bits 8 bytes a word; runs at most one token of at most 2
/// bytes a page run, and never more in total than bits, by the decision; a long run 10 bytes.
const WINDOW_MAX_BYTES: usize = 2 * WINDOW_WORDS * 8 + 16;

const ABSENT: u64 = 0;
const PRESENT: u64 = 1;
const BITS: u64 = 2;

/// A part of a set of pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageSet {
    first: u64,
    pages: u64,
    #[serde(with = "bytes")]
    coding: Vec<u8>,
}

impl PageSet {
    /// The parts of `set`, at least one, that cover all its pages in order.
    pub fn parts(set: &PageBitmap) -> Vec<Self> {
        let mut parts = Vec::new();
        let mut from_word = 0;
        loop {
            let (part, next_word) = Encoder::new(set, from_word).encode();
            parts.push(part);
            if next_word >= set.words().len() {
                return parts;
            }
            from_word = next_word;
        }
    }

    /// Adds the pages of this part to `set`, which has the length the guest's RAM has: nothing is allocated.
    ///
    /// # Errors
    /// When the part reaches beyond `set` or its coding is wrong. `set` may then hold some of its pages.
    pub fn add_to(&self, set: &mut PageBitmap) -> Result<()> {
        let end = self.first.saturating_add(self.pages);
        if end > set.len() {
            let source = LayoutError::OutOfRange {
                first: self.first,
                end,
                pages: set.len(),
            };
            return Err(WireError::OutOfRam {
                what: "a page set",
                source,
            });
        }
        if !self.first.is_multiple_of(WORD_PAGES) {
            return Err(unexpected(
                "the first page of a page set",
                self.first,
                "a multiple of 64",
            ));
        }
        let mut rest = self.coding.as_slice();
        let mut at = self.first;
        while at < end {
            let token = take_varint(&mut rest)?;
            let (length, tag) = (token >> 2, token & 3);
            at = match tag {
                ABSENT => at + check_run(length, end - at)?,
                PRESENT => {
                    set.insert_run(PageRun::new(at, check_run(length, end - at)?));
                    at + length
                }
                BITS => take_bits(&mut rest, length, at, end, set)?,
                other => {
                    return Err(unexpected("the tag of a token of a page set", other, "0, 1 or 2"));
                }
            };
        }
        if !rest.is_empty() {
            return Err(unexpected(
                "bytes after the last page of a page set",
                rest.len() as u64,
                "0",
            ));
        }
        Ok(())
    }

    /// Bytes of the coding.
    pub fn coding_bytes(&self) -> usize {
        self.coding.len()
    }

    /// The pages this part tells of, in the set or not.
    pub fn covers(&self) -> std::ops::Range<u64> {
        self.first..self.first.saturating_add(self.pages)
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.coding.len() > MAX_CODING_BYTES {
            return Err(WireError::TooLong {
                what: "a page set",
                came: self.coding.len() as u64,
                unit: "bytes",
                limit: MAX_CODING_BYTES as u64,
            });
        }
        Ok(())
    }
}

/// A set of all pages of a guest, put together from its parts as they come.
#[derive(Debug)]
pub struct PageSetParts {
    set: PageBitmap,
    next: u64,
}

impl PageSetParts {
    /// No part yet of a set over the pages of `layout`, whose bitmap is allocated here.
    pub fn new(layout: &RamLayout) -> Self {
        Self {
            set: PageBitmap::new(layout.pages()),
            next: 0,
        }
    }

    /// Adds the next part.
    ///
    /// # Errors
    /// When it is not the next one, or wrong in itself (see [`PageSet::add_to`]).
    pub fn add(&mut self, part: &PageSet) -> Result<()> {
        if part.first != self.next {
            return Err(unexpected(
                "the first page of a part of a page set",
                part.first,
                self.next.to_string(),
            ));
        }
        part.add_to(&mut self.set)?;
        self.next = part.covers().end;
        Ok(())
    }

    /// The whole set.
    ///
    /// # Errors
    /// When parts are missing at the end.
    pub fn finish(self) -> Result<PageBitmap> {
        if self.next != self.set.len() {
            let expected = self.set.len().to_string();
            return Err(unexpected(
                "the number of pages that a page set tells of",
                self.next,
                expected,
            ));
        }
        Ok(self.set)
    }
}

/// Encodes windows of a set until its end or the bound of a part.
struct Encoder<'a> {
    set: &'a PageBitmap,
    from_word: usize,
    coding: Vec<u8>,
    /// The run at the end that is not written yet: its tag and length.
    run: (u64, u64),
}

impl<'a> Encoder<'a> {
    fn new(set: &'a PageBitmap, from_word: usize) -> Self {
        Self {
            set,
            from_word,
            coding: Vec::new(),
            run: (ABSENT, 0),
        }
    }

    /// The part, and the word after it.
    fn encode(mut self) -> (PageSet, usize) {
        let words = self.set.words();
        let mut at = self.from_word;
        while at < words.len() && self.coding.len() + WINDOW_MAX_BYTES <= MAX_CODING_BYTES {
            let window = &words[at..words.len().min(at + WINDOW_WORDS)];
            if changes(window) > window.len() as u32 * 8 {
                self.flush();
                put_varint(&mut self.coding, (window.len() as u64) << 2 | BITS);
                self.coding
                    .extend(window.iter().flat_map(|word| word.to_le_bytes()));
            } else {
                self.put_runs(at, window.len());
            }
            at += window.len();
        }
        self.flush();
        let first = self.from_word as u64 * WORD_PAGES;
        let end = self.set.len().min(at as u64 * WORD_PAGES);
        (
            PageSet {
                first,
                pages: end - first,
                coding: self.coding,
            },
            at,
        )
    }

    /// Puts the runs of the pages of `words` words from `word`.
    fn put_runs(&mut self, word: usize, words: usize) {
        for index in word..word + words {
            let mut left = (self.set.len() - index as u64 * WORD_PAGES).min(WORD_PAGES);
            let mut bits = self.set.words()[index];
            while left > 0 {
                let absent = u64::from(bits.trailing_zeros()).min(left);
                bits = bits.checked_shr(absent as u32).unwrap_or(0);
                let present = u64::from(bits.trailing_ones());
                bits = bits.checked_shr(present as u32).unwrap_or(0);
                self.put(ABSENT, absent);
                self.put(PRESENT, present);
                left -= absent + present;
            }
        }
    }

    fn put(&mut self, tag: u64, pages: u64) {
        if pages == 0 {
            return;
        }
        if self.run.0 != tag {
            self.flush();
            self.run.0 = tag;
        }
        self.run.1 += pages;
    }

    fn flush(&mut self) {
        let (tag, pages) = std::mem::replace(&mut self.run, (ABSENT, 0));
        if pages > 0 {
            put_varint(&mut self.coding, pages << 2 | tag);
        }
    }
}

/// How often pages in the set and pages not in it take turns: what runs cost, in bytes, at least.
fn changes(words: &[u64]) -> u32 {
    let mut before = 0;
    let mut changes = 0;
    for &word in words {
        changes += (word ^ (word << 1 | before)).count_ones();
        before = word >> (WORD_PAGES - 1);
    }
    changes
}

fn check_run(length: u64, left: u64) -> Result<u64> {
    if length == 0 || length > left {
        return Err(unexpected(
            "the length of a run of a page set",
            length,
            format!("1 to {left}"),
        ));
    }
    Ok(length)
}

/// Takes `length` words of bits for the pages from `at`; answers the page after them.
fn take_bits(rest: &mut &[u8], length: u64, at: u64, end: u64, set: &mut PageBitmap) -> Result<u64> {
    let most = (end - at).div_ceil(WORD_PAGES);
    if length == 0 || length > most {
        return Err(unexpected(
            "the words of bits of a page set",
            length,
            format!("1 to {most}"),
        ));
    }
    if !at.is_multiple_of(WORD_PAGES) {
        return Err(unexpected(
            "the first page of bits of a page set",
            at,
            "a multiple of 64",
        ));
    }
    let Some((bits, left)) = rest.split_at_checked(length as usize * 8) else {
        return Err(unexpected(
            "the bytes left for bits of a page set",
            rest.len() as u64,
            (length * 8).to_string(),
        ));
    };
    *rest = left;
    let first_word = (at / WORD_PAGES) as usize;
    for (index, bytes) in bits.as_chunks::<8>().0.iter().enumerate() {
        let word = u64::from_le_bytes(*bytes);
        let pages = (end - at - index as u64 * WORD_PAGES).min(WORD_PAGES);
        if pages < WORD_PAGES && word >> pages != 0 {
            return Err(unexpected(
                "a word of bits of a page set",
                word,
                "0 in the bits beyond the last page",
            ));
        }
        set.insert_word(first_word + index, word);
    }
    Ok(end.min(at + length * WORD_PAGES))
}

fn put_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for (index, &byte) in rest.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if index == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * index);
        if byte < 0x80 {
            *rest = &rest[index + 1..];
            return Ok(value);
        }
    }
    Err(unexpected(
        "the bytes left for a token of a page set",
        rest.len() as u64,
        "a whole varint of 64 bits",
    ))
}

fn unexpected(what: &'static str, came: u64, expected: impl Into<String>) -> WireError {
    WireError::Unexpected {
        what,
        came,
        expected: expected.into(),
    }
}
