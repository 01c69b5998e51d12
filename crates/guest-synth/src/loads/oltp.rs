//! OLTP-like load: rows in a b-tree, read, updated, inserted and deleted.

use rand::RngExt;
use serde::{Deserialize, Serialize};

use crate::loads::tree_page::{INNER_CAPACITY, LEAF_CAPACITY, Row, TreePage};
use crate::loads::{Checks, Context, Cursor, Load};
use crate::memory::{GuestMemory, PAGE_WORDS, Region};

/// Rows in a leaf and children in an inner page at the start: about seven tenths, as in a tree that has grown.
const INITIAL_ROWS: usize = LEAF_CAPACITY * 7 / 10;
const INITIAL_CHILDREN: usize = INNER_CAPACITY * 7 / 10;
/// Levels of a tree that fills the largest region, with room to spare.
const MAX_LEVELS: u64 = 8;
/// One operation in so many also looks at the next leaf.
const AUDIT_INTERVAL: u64 = 64;
/// Share of the operations that go to the hot rows, and share of the rows that are hot.
const HOT_PERCENT: u64 = 80;
const HOT_ROWS_PERCENT: u64 = 20;
/// Share of the writes that insert a row or delete it again; the others update.
const INSERT_PERCENT: u64 = 20;

/// The table. Rows with even keys are there from the start and stay; those with odd keys come and go.
///
/// Page 0 of the region says where the root is and how many pages are in use; behind it a directory holds the
/// version of every page, which the page itself holds too: one of them being out of date contradicts the other.
/// As both could be, an audit goes through the leaves and compares the number of rows and the sum of their
/// versions with what the cursor holds.
pub(crate) struct Oltp {
    region: Region,
    seed: u64,
    read_percent: u8,
    /// First page behind the directory.
    first_tree_page: u64,
    /// Rows at the start.
    even_rows: u64,
    cursor: OltpCursor,
}

/// How far the load is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OltpCursor {
    operations: u64,
    /// Pages of the region in use.
    used: u64,
    /// What is in the tree.
    total: Sum,
    /// First key that is not audited yet.
    audited: u64,
    /// What is in the tree below that key.
    seen: Sum,
}

/// A number of rows and the sum of their versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Sum {
    rows: u64,
    versions: u64,
}

impl Sum {
    fn add(&mut self, version: u64) {
        self.rows = self.rows.wrapping_add(1);
        self.versions = self.versions.wrapping_add(version);
    }

    fn remove(&mut self, version: u64) {
        self.rows = self.rows.wrapping_sub(1);
        self.versions = self.versions.wrapping_sub(version);
    }
}

/// Inner pages on the way to a leaf, from the root down.
type Path = Vec<u64>;

impl Oltp {
    pub(crate) fn new(region: Region, seed: u64, read_percent: u8) -> Self {
        let first_tree_page = 1 + region.pages.div_ceil(PAGE_WORDS as u64);
        // Four fifths at the start, the remainder for splits; inner pages take one page in a hundred or so.
        let leaves = ((region.pages - first_tree_page) * 4 / 5 * 98 / 100).max(1);
        let even_rows = leaves * INITIAL_ROWS as u64;
        let used = first_tree_page + pages_of_levels(leaves).iter().sum::<u64>();
        let total = Sum {
            rows: even_rows,
            versions: even_rows,
        };
        let cursor = OltpCursor {
            used,
            total,
            ..OltpCursor::default()
        };
        Self {
            region,
            seed,
            read_percent,
            first_tree_page,
            even_rows,
            cursor,
        }
    }

    fn initial_levels(&self) -> Vec<u64> {
        pages_of_levels(self.even_rows / INITIAL_ROWS as u64)
    }

    fn directory_offset(&self, page: u64) -> u64 {
        self.region.page(1) + page * 8
    }

    fn load_page(&self, ram: &GuestMemory, page: u64, into: &mut TreePage) -> Result<(), String> {
        if !(self.first_tree_page..self.region.pages).contains(&page) {
            return Err(format!(
                "b-tree: a link leads to page {page} of the region, outside of the tree"
            ));
        }
        ram.read_words(self.region.page(page), into.words_mut());
        let version = ram.load(self.directory_offset(page));
        into.check(page, version)
            .map_err(|problem| format!("b-tree: page {} {problem}", self.region.first_page + page))
    }

    fn store_page(&self, ram: &GuestMemory, page: &mut TreePage) {
        let version = page.seal();
        ram.write_words(self.region.page(page.number()), page.words());
        ram.store(self.directory_offset(page.number()), version);
    }

    fn load_root(&self, ram: &GuestMemory) -> Result<u64, String> {
        let mut words = [0; 2];
        ram.read_words(self.region.page(0), &mut words);
        let [root, used] = words;
        if used != self.cursor.used {
            let (page, expected) = (self.region.first_page, self.cursor.used);
            return Err(format!(
                "b-tree: page {page} says {used} pages are in use, expected {expected}"
            ));
        }
        Ok(root)
    }

    fn store_root(&self, ram: &GuestMemory, root: u64) {
        ram.write_words(self.region.page(0), &[root, self.cursor.used]);
    }

    /// Loads the leaf that `key` belongs to into `page`; answers the way there, and the first key beyond it.
    fn descend(
        &self,
        ram: &GuestMemory,
        key: u64,
        page: &mut TreePage,
        path: &mut Path,
    ) -> Result<Option<u64>, String> {
        path.clear();
        self.load_page(ram, self.load_root(ram)?, page)?;
        if page.level() >= MAX_LEVELS {
            return Err(format!("b-tree: the root is on level {}", page.level()));
        }
        let mut beyond = None;
        while !page.is_leaf() {
            let level = page.level();
            let (child, next) = page.child_for(key);
            beyond = next.or(beyond);
            path.push(page.number());
            self.load_page(ram, child, page)?;
            if page.level() + 1 != level {
                let at = self.region.first_page + page.number();
                return Err(format!(
                    "b-tree: page {at} is on level {} below level {level}",
                    page.level()
                ));
            }
        }
        Ok(beyond)
    }

    fn check_row(&self, leaf: &TreePage, index: usize) -> Result<Row, String> {
        let row = leaf.row(index);
        let key = leaf.key(index);
        if row == Row::new(self.seed, key, row.version()) {
            return Ok(row);
        }
        Err(format!(
            "b-tree: the row of key {key} in page {} is damaged",
            self.region.first_page + leaf.number()
        ))
    }

    /// Any row of the start, more often a hot one.
    fn choose_even_key(&self, cx: &mut Context<'_>) -> u64 {
        let hot = (self.even_rows * HOT_ROWS_PERCENT / 100).max(1);
        let rows = if cx.rng.random_range(0..100) < HOT_PERCENT {
            hot
        } else {
            self.even_rows
        };
        2 * cx.rng.random_range(0..rows)
    }

    fn read_or_update(&mut self, cx: &mut Context<'_>, key: u64, update: bool) -> Result<(), String> {
        let mut leaf = TreePage::buffer();
        self.descend(cx.ram, key, &mut leaf, &mut Path::new())?;
        let Ok(index) = leaf.search(key) else {
            let page = self.region.first_page + leaf.number();
            return Err(format!("b-tree: key {key} is missing in page {page}"));
        };
        let row = self.check_row(&leaf, index)?;
        if update {
            let next = row.version().wrapping_add(1);
            leaf.set_row(index, Row::new(self.seed, key, next));
            self.store_page(cx.ram, &mut leaf);
            self.account(key, |sum| sum.versions = sum.versions.wrapping_add(1));
        }
        Ok(())
    }

    fn insert_or_delete(&mut self, cx: &mut Context<'_>, key: u64) -> Result<(), String> {
        let mut leaf = TreePage::buffer();
        let mut path = Path::new();
        self.descend(cx.ram, key, &mut leaf, &mut path)?;
        if let Ok(index) = leaf.search(key) {
            let version = self.check_row(&leaf, index)?.version();
            leaf.remove_row(index);
            self.store_page(cx.ram, &mut leaf);
            self.account(key, |sum| sum.remove(version));
            return Ok(());
        }
        let row = Row::new(self.seed, key, 1);
        if leaf.is_full() {
            // Each level may split, and the tree may grow by one.
            if self.cursor.used + path.len() as u64 + 2 > self.region.pages {
                return self.read_or_update(cx, key & !1, true);
            }
            self.insert_into_full(cx.ram, leaf, &path, row, key)?;
        } else {
            leaf.insert_row(row);
            self.store_page(cx.ram, &mut leaf);
        }
        self.account(key, |sum| sum.add(1));
        Ok(())
    }

    fn insert_into_full(
        &mut self,
        ram: &GuestMemory,
        mut leaf: TreePage,
        path: &[u64],
        row: Row,
        key: u64,
    ) -> Result<(), String> {
        // Everything is read before anything is written: a violation leaves the tree as it was.
        let mut parents = Vec::new();
        for &number in path.iter().rev() {
            let mut parent = TreePage::buffer();
            self.load_page(ram, number, &mut parent)?;
            let full = parent.is_full();
            parents.push(parent);
            if !full {
                break;
            }
        }
        let (mut separator, mut right) = leaf.split(self.allocate());
        if key < separator {
            leaf.insert_row(row);
        } else {
            right.insert_row(row);
        }
        let mut left = leaf;
        self.store_page(ram, &mut left);
        self.store_page(ram, &mut right);
        let mut child = right.number();
        for mut parent in parents {
            if !parent.is_full() {
                parent.insert_child(separator, child);
                self.store_page(ram, &mut parent);
                // The root stays, the number of pages in use does not.
                self.store_root(ram, ram.load(self.region.page(0)));
                return Ok(());
            }
            let (up, mut right) = parent.split(self.allocate());
            if separator < up {
                parent.insert_child(separator, child);
            } else {
                right.insert_child(separator, child);
            }
            self.store_page(ram, &mut parent);
            self.store_page(ram, &mut right);
            (separator, child, left) = (up, right.number(), parent);
        }
        let mut root = TreePage::new(self.allocate(), left.level() + 1);
        root.set_link(left.number());
        root.insert_child(separator, child);
        self.store_page(ram, &mut root);
        self.store_root(ram, root.number());
        Ok(())
    }

    fn allocate(&mut self) -> u64 {
        self.cursor.used += 1;
        self.cursor.used - 1
    }

    /// Takes note of a change to the row of `key`.
    fn account(&mut self, key: u64, change: impl Fn(&mut Sum)) {
        change(&mut self.cursor.total);
        if key < self.cursor.audited {
            change(&mut self.cursor.seen);
        }
    }

    /// Checks the leaf at key `from` and adds its rows from there on; answers where the next leaf begins.
    fn audit_leaf(&self, ram: &GuestMemory, from: u64, seen: &mut Sum) -> Result<Option<u64>, String> {
        let mut leaf = TreePage::buffer();
        let beyond = self.descend(ram, from, &mut leaf, &mut Path::new())?;
        let start = leaf.search(from).unwrap_or_else(|index| index);
        for index in start..leaf.count() {
            seen.add(self.check_row(&leaf, index)?.version());
        }
        Ok(beyond)
    }

    fn audit(&mut self, cx: &mut Context<'_>) {
        let mut seen = self.cursor.seen;
        let outcome = self.audit_leaf(cx.ram, self.cursor.audited, &mut seen);
        let (audited, seen) = match cx.checks.record(outcome) {
            Some(Some(next)) if next > self.cursor.audited => (next, seen),
            Some(_) => {
                self.check_sum(seen, cx.checks);
                (0, Sum::default())
            }
            // A sum that lacks rows means nothing.
            None => (0, Sum::default()),
        };
        self.cursor.audited = audited;
        self.cursor.seen = seen;
    }

    fn check_sum(&self, seen: Sum, checks: &mut Checks) {
        let total = self.cursor.total;
        checks.expect(seen == total, || {
            format!(
                "b-tree: {} rows with versions of {} in all are there, expected {} and {}",
                seen.rows, seen.versions, total.rows, total.versions
            )
        });
    }

    fn first_leaf(&self, number: u64, last: u64) -> TreePage {
        let mut leaf = TreePage::new(self.first_tree_page + number, 0);
        for row in number * INITIAL_ROWS as u64..(number + 1) * INITIAL_ROWS as u64 {
            leaf.insert_row(Row::new(self.seed, 2 * row, 1));
        }
        if number < last {
            leaf.set_link(self.first_tree_page + number + 1);
        }
        leaf
    }
}

/// Pages on each level of a new tree with `leaves` leaves, from the leaves up.
fn pages_of_levels(leaves: u64) -> Vec<u64> {
    let mut levels = vec![leaves];
    while let Some(&pages) = levels.last()
        && pages > 1
    {
        levels.push(pages.div_ceil(INITIAL_CHILDREN as u64));
    }
    levels
}

impl Load for Oltp {
    fn prefill(&self, ram: &GuestMemory) {
        let levels = self.initial_levels();
        let store = |mut page: TreePage| self.store_page(ram, &mut page);
        for leaf in 0..levels[0] {
            store(self.first_leaf(leaf, levels[0] - 1));
        }
        let mut first = self.first_tree_page;
        // Keys below one page of the level that is linked.
        let mut keys_per_page = 2 * INITIAL_ROWS as u64;
        for (level, pair) in levels.windows(2).enumerate() {
            let (below, pages) = (pair[0], pair[1]);
            for index in 0..pages {
                let mut page = TreePage::new(first + below + index, level as u64 + 1);
                let children =
                    index * INITIAL_CHILDREN as u64..((index + 1) * INITIAL_CHILDREN as u64).min(below);
                page.set_link(first + children.start);
                for child in children.skip(1) {
                    page.insert_child(child * keys_per_page, first + child);
                }
                store(page);
            }
            first += below;
            keys_per_page *= INITIAL_CHILDREN as u64;
        }
        self.store_root(ram, first);
    }

    fn operate(&mut self, cx: &mut Context<'_>) {
        let even = self.choose_even_key(cx);
        let outcome = if cx.rng.random_range(0..100) < self.read_percent {
            self.read_or_update(cx, even, false)
        } else if cx.rng.random_range(0..100) < INSERT_PERCENT {
            self.insert_or_delete(cx, even + 1)
        } else {
            self.read_or_update(cx, even, true)
        };
        cx.checks.record(outcome);
        self.cursor.operations += 1;
        if self.cursor.operations.is_multiple_of(AUDIT_INTERVAL) {
            self.audit(cx);
        }
    }

    fn verify(&self, ram: &GuestMemory, checks: &mut Checks) {
        let mut seen = Sum::default();
        let mut from = 0;
        // No more leaves than pages, whatever the links say.
        for _ in 0..self.region.pages {
            match checks.record(self.audit_leaf(ram, from, &mut seen)) {
                Some(Some(next)) if next > from => from = next,
                Some(_) => break,
                None => return,
            }
        }
        self.check_sum(seen, checks);
    }

    fn cursor(&self) -> Cursor {
        Cursor::Oltp(self.cursor.clone())
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        match cursor {
            Cursor::Oltp(cursor)
                if (self.first_tree_page..=self.region.pages).contains(&cursor.used)
                    && cursor.operations < u64::MAX / 2 =>
            {
                self.cursor = cursor.clone();
                true
            }
            _ => false,
        }
    }
}
