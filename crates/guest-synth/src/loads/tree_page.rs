//! A page of the b-tree: rows in a leaf, keys and children in an inner page.

use xxhash_rust::xxh3::xxh3_64;
use zerocopy::IntoBytes;

use crate::memory::{PAGE_WORDS, PageWords, mix3};

/// Checksum, page number, version, level and count, link.
const HEADER_WORDS: usize = 5;
/// Words of a row: key, version, content.
const ROW_WORDS: usize = 8;
/// Words of an entry of an inner page: key and child.
const CHILD_WORDS: usize = 2;

/// Rows a leaf has room for.
pub(crate) const LEAF_CAPACITY: usize = (PAGE_WORDS - HEADER_WORDS) / ROW_WORDS;
/// Keys an inner page has room for; it has one child more.
pub(crate) const INNER_CAPACITY: usize = (PAGE_WORDS - HEADER_WORDS) / CHILD_WORDS;

/// A private copy of a page of the tree.
///
/// Entries are sorted by key. In an inner page the child of entry `i` holds the keys from key `i` on, up to the
/// next one; what is below the first key is in the child the link points to.
#[derive(Clone)]
pub(crate) struct TreePage {
    words: PageWords,
}

/// A row of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    words: [u64; ROW_WORDS],
}

impl Row {
    /// The row of `key` in its version `version`.
    pub(crate) fn new(seed: u64, key: u64, version: u64) -> Self {
        let base = mix3(seed, key, version);
        let mut words = std::array::from_fn(|index| base.rotate_left(7 * index as u32));
        words[0] = key;
        words[1] = version;
        Self { words }
    }

    pub(crate) fn version(&self) -> u64 {
        self.words[1]
    }
}

impl TreePage {
    /// An empty page `number` on `level`; leaves are on level 0.
    pub(crate) fn new(number: u64, level: u64) -> Self {
        let mut words = [0; PAGE_WORDS];
        words[1] = number;
        words[3] = level << 32;
        Self { words }
    }

    /// A page as found in RAM: to be filled by way of [`TreePage::words_mut`], then [`TreePage::check`]ed.
    pub(crate) fn buffer() -> Self {
        Self {
            words: [0; PAGE_WORDS],
        }
    }

    pub(crate) fn words(&self) -> &PageWords {
        &self.words
    }

    pub(crate) fn words_mut(&mut self) -> &mut PageWords {
        &mut self.words
    }

    /// Whether this is page `number`, in its version `version`, and whole.
    pub(crate) fn check(&self, number: u64, version: u64) -> Result<(), String> {
        if self.words[0] != self.checksum() {
            return Err("is damaged".into());
        }
        if self.words[1] != number {
            return Err(format!("holds page {} of the tree", self.words[1]));
        }
        if self.words[2] != version {
            return Err(format!(
                "has version {}, the directory says {version}",
                self.words[2]
            ));
        }
        if self.count() > self.capacity() {
            return Err(format!("claims {} entries", self.count()));
        }
        Ok(())
    }

    /// Gives the page its next version and its checksum; answers the version.
    pub(crate) fn seal(&mut self) -> u64 {
        self.words[2] = self.words[2].wrapping_add(1);
        self.words[0] = self.checksum();
        self.words[2]
    }

    fn checksum(&self) -> u64 {
        xxh3_64(self.words[1..].as_bytes())
    }

    pub(crate) fn number(&self) -> u64 {
        self.words[1]
    }

    pub(crate) fn level(&self) -> u64 {
        self.words[3] >> 32
    }

    pub(crate) fn is_leaf(&self) -> bool {
        self.level() == 0
    }

    pub(crate) fn count(&self) -> usize {
        (self.words[3] & u64::from(u32::MAX)) as usize
    }

    fn set_count(&mut self, count: usize) {
        self.words[3] = self.level() << 32 | count as u64;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count() >= self.capacity()
    }

    fn capacity(&self) -> usize {
        if self.is_leaf() {
            LEAF_CAPACITY
        } else {
            INNER_CAPACITY
        }
    }

    fn entry_words(&self) -> usize {
        if self.is_leaf() { ROW_WORDS } else { CHILD_WORDS }
    }

    /// In a leaf the next leaf (0: none), in an inner page the first child.
    pub(crate) fn link(&self) -> u64 {
        self.words[4]
    }

    pub(crate) fn set_link(&mut self, page: u64) {
        self.words[4] = page;
    }

    pub(crate) fn key(&self, index: usize) -> u64 {
        self.words[HEADER_WORDS + index * self.entry_words()]
    }

    /// Index of `key`, or the index at which it belongs.
    pub(crate) fn search(&self, key: u64) -> Result<usize, usize> {
        let (mut low, mut high) = (0, self.count());
        while low < high {
            let middle = (low + high) / 2;
            match self.key(middle).cmp(&key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Ok(middle),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(low)
    }

    /// The child that holds `key`, and the first key that it does not hold any more.
    pub(crate) fn child_for(&self, key: u64) -> (u64, Option<u64>) {
        let after = self.search(key).map_or_else(|index| index, |index| index + 1);
        let child = match after.checked_sub(1) {
            Some(index) => self.words[HEADER_WORDS + index * CHILD_WORDS + 1],
            None => self.link(),
        };
        (child, (after < self.count()).then(|| self.key(after)))
    }

    pub(crate) fn row(&self, index: usize) -> Row {
        let start = HEADER_WORDS + index * ROW_WORDS;
        Row {
            words: std::array::from_fn(|word| self.words[start + word]),
        }
    }

    pub(crate) fn set_row(&mut self, index: usize, row: Row) {
        let start = HEADER_WORDS + index * ROW_WORDS;
        self.words[start..start + ROW_WORDS].copy_from_slice(&row.words);
    }

    /// Puts a row where it belongs; there is room.
    pub(crate) fn insert_row(&mut self, row: Row) {
        self.insert(row.words[0], &row.words);
    }

    /// Puts a child where it belongs; there is room.
    pub(crate) fn insert_child(&mut self, key: u64, child: u64) {
        self.insert(key, &[key, child]);
    }

    fn insert(&mut self, key: u64, entry: &[u64]) {
        let index = self.search(key).unwrap_or_else(|index| index);
        let start = HEADER_WORDS + index * entry.len();
        let end = HEADER_WORDS + self.count() * entry.len();
        self.words.copy_within(start..end, start + entry.len());
        self.words[start..start + entry.len()].copy_from_slice(entry);
        self.set_count(self.count() + 1);
    }

    /// Takes the row at `index` out.
    pub(crate) fn remove_row(&mut self, index: usize) {
        let start = HEADER_WORDS + index * ROW_WORDS;
        let end = HEADER_WORDS + self.count() * ROW_WORDS;
        self.words.copy_within(start + ROW_WORDS..end, start);
        self.set_count(self.count() - 1);
    }

    /// Moves the upper half to a new page `number`; answers it and the first key that is on its side.
    pub(crate) fn split(&mut self, number: u64) -> (u64, Self) {
        let width = self.entry_words();
        let middle = self.count() / 2;
        let separator = self.key(middle);
        let mut right = Self::new(number, self.level());
        // In an inner page the middle key moves up, and its child becomes the right page's first one.
        let moved = if self.is_leaf() { middle } else { middle + 1 };
        let source = HEADER_WORDS + moved * width..HEADER_WORDS + self.count() * width;
        right.words[HEADER_WORDS..HEADER_WORDS + source.len()].copy_from_slice(&self.words[source]);
        right.set_count(self.count() - moved);
        if self.is_leaf() {
            right.set_link(self.link());
            self.set_link(number);
        } else {
            right.set_link(self.words[HEADER_WORDS + middle * width + 1]);
        }
        self.set_count(middle);
        (separator, right)
    }
}
