//! Key-value store: a hash index and records, keys chosen by Zipf's law.

use rand::RngExt;
use rand_distr::{Distribution, Zipf};
use serde::{Deserialize, Serialize};
use vmferry_core::PAGE_SIZE;

use crate::loads::{Checks, Context, Cursor, Load};
use crate::memory::{GuestMemory, PAGE_WORDS, Region, mix, mix3};

/// Words before a record's value: its key and its version.
const HEADER_WORDS: usize = 2;
/// Words of an entry of the index: key and place of its record, version of its record.
const ENTRY_WORDS: u64 = 2;
const ENTRIES_PER_PAGE: u64 = PAGE_WORDS as u64 / ENTRY_WORDS;
/// One operation in so many also looks at the next entry of the index.
const AUDIT_INTERVAL: u64 = 16;
/// Spreads ranks over keys: a prime above any number of keys.
const SPREAD: u64 = 4_294_967_291;

/// The store. The version of a record stands in the record and in the index, in different pages, so that a page
/// of either kind that is out of date contradicts the other. As both could be, an audit goes round the index and
/// compares the sum of all versions with the number of puts, which the cursor holds.
pub(crate) struct KeyValue {
    region: Region,
    seed: u64,
    get_percent: u8,
    ranks: Zipf<f64>,
    keys: u64,
    /// Entries of the index; a power of two.
    entries: u64,
    index_pages: u64,
    record_words: usize,
    cursor: KeyValueCursor,
}

/// How far the load is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyValueCursor {
    operations: u64,
    /// Records ever written, beyond those it started with.
    puts: u64,
    /// Next entry to audit.
    audited: u64,
    /// Sum of the versions of all entries before it.
    versions: u64,
}

/// An entry of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    key: u64,
    record: u64,
    version: u64,
}

impl Entry {
    fn to_words(self) -> [u64; ENTRY_WORDS as usize] {
        // Zero is an entry that is free.
        [(self.key + 1) << 32 | self.record, self.version]
    }

    fn from_words([place, version]: [u64; ENTRY_WORDS as usize]) -> Option<Self> {
        let key = (place >> 32).checked_sub(1)?;
        Some(Self {
            key,
            record: place & u64::from(u32::MAX),
            version,
        })
    }
}

impl KeyValue {
    pub(crate) fn new(
        region: Region,
        seed: u64,
        get_percent: u8,
        zipf_exponent: f64,
        value_bytes: u32,
    ) -> Self {
        let record_words = HEADER_WORDS + value_bytes as usize / 8;
        let records_per_page = (PAGE_WORDS / record_words) as u64;
        // The index is between half and three quarters full.
        let entries_for = |keys: u64| (keys * 4 / 3).next_power_of_two().max(ENTRIES_PER_PAGE);
        let fits = |keys: u64| {
            entries_for(keys) / ENTRIES_PER_PAGE + keys.div_ceil(records_per_page) <= region.pages
        };
        let most = (region.pages * records_per_page).min(u64::from(u32::MAX) - 8);
        let keys = largest(1, most, fits);
        let entries = entries_for(keys);
        Self {
            region,
            seed,
            get_percent,
            ranks: Zipf::new(keys as f64, zipf_exponent).expect("at least one key, no negative exponent"),
            keys,
            entries,
            index_pages: entries / ENTRIES_PER_PAGE,
            record_words,
            cursor: KeyValueCursor::default(),
        }
    }

    fn choose_key(&self, cx: &mut Context<'_>) -> u64 {
        let rank = self.ranks.sample(cx.rng) as u64 - 1;
        (rank % self.keys) * SPREAD % self.keys
    }

    /// Where the search for `key` starts.
    fn home(&self, key: u64) -> u64 {
        mix(key ^ self.seed) & (self.entries - 1)
    }

    fn entry_offset(&self, entry: u64) -> u64 {
        self.region.page(0) + entry * ENTRY_WORDS * 8
    }

    fn load_entry(&self, ram: &GuestMemory, entry: u64) -> Option<Entry> {
        let mut words = [0; ENTRY_WORDS as usize];
        ram.read_words(self.entry_offset(entry), &mut words);
        Entry::from_words(words)
    }

    /// The place of `key` in the index and what stands there.
    fn find(&self, ram: &GuestMemory, key: u64) -> Result<(u64, Entry), String> {
        let home = self.home(key);
        for step in 0..self.entries {
            let at = (home + step) & (self.entries - 1);
            match self.load_entry(ram, at) {
                Some(entry) if entry.key == key => return Ok((at, entry)),
                Some(_) => {}
                None => break,
            }
        }
        let page = self.entry_offset(home) / PAGE_SIZE;
        Err(format!(
            "key-value store: key {key} is missing in the index at page {page}"
        ))
    }

    fn record_offset(&self, record: u64) -> u64 {
        let per_page = (PAGE_WORDS / self.record_words) as u64;
        let within = record % per_page * self.record_words as u64 * 8;
        self.region.page(self.index_pages + record / per_page) + within
    }

    /// Makes the record of `key` in its version `version`.
    fn make_record(&self, key: u64, version: u64, record: &mut [u64]) {
        let base = mix3(self.seed, key, version);
        for (index, word) in record.iter_mut().enumerate() {
            *word = (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ base;
        }
        record[0] = key;
        record[1] = version;
    }

    /// Whether `record` is as [`KeyValue::make_record`] makes it.
    fn is_record(&self, key: u64, version: u64, record: &[u64]) -> bool {
        let base = mix3(self.seed, key, version);
        let is_right =
            |(index, &word): (usize, &u64)| word == (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ base;
        record[..HEADER_WORDS] == [key, version] && record.iter().enumerate().skip(HEADER_WORDS).all(is_right)
    }

    /// Checks the record that `entry` speaks of.
    fn check(&self, ram: &GuestMemory, entry: Entry) -> Result<(), String> {
        if entry.record >= self.keys {
            return Err(format!(
                "key-value store: the index places key {} outside of the store",
                entry.key
            ));
        }
        let offset = self.record_offset(entry.record);
        let mut buffer = [0; PAGE_WORDS];
        let found = &mut buffer[..self.record_words];
        ram.read_words(offset, found);
        let Entry { key, version, .. } = entry;
        if self.is_record(key, version, found) {
            return Ok(());
        }
        let page = offset / PAGE_SIZE;
        let [found_key, found_version] = [found[0], found[1]];
        if found_key == key && self.is_record(key, found_version, found) {
            return Err(format!(
                "key-value store: key {key} at page {page} has version {found_version}, the index says {version}"
            ));
        }
        Err(format!(
            "key-value store: the record of key {key} at page {page} is damaged"
        ))
    }

    fn put(&mut self, ram: &GuestMemory, at: u64, entry: Entry) {
        let entry = Entry {
            version: entry.version.wrapping_add(1),
            ..entry
        };
        let mut buffer = [0; PAGE_WORDS];
        let record = &mut buffer[..self.record_words];
        self.make_record(entry.key, entry.version, record);
        ram.write_words(self.record_offset(entry.record), record);
        ram.write_words(self.entry_offset(at), &entry.to_words());
        self.cursor.puts += 1;
        if at < self.cursor.audited {
            self.cursor.versions = self.cursor.versions.wrapping_add(1);
        }
    }

    /// Looks at the next entry; after the last one, at the sum.
    fn audit(&mut self, cx: &mut Context<'_>) {
        if let Some(entry) = self.load_entry(cx.ram, self.cursor.audited) {
            cx.checks.record(self.check(cx.ram, entry));
            self.cursor.versions = self.cursor.versions.wrapping_add(entry.version);
        }
        self.cursor.audited += 1;
        if self.cursor.audited == self.entries {
            self.check_sum(self.cursor.versions, cx.checks);
            self.cursor.audited = 0;
            self.cursor.versions = 0;
        }
    }

    fn check_sum(&self, versions: u64, checks: &mut Checks) {
        let puts = self.cursor.puts;
        checks.expect(versions == puts, || {
            format!("key-value store: {versions} puts are in the store, but {puts} were made")
        });
    }
}

/// The largest number in `least..=most` that `fits`, where smaller ones fit too.
fn largest(least: u64, most: u64, fits: impl Fn(u64) -> bool) -> u64 {
    let (mut low, mut high) = (least, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low
}

impl Load for KeyValue {
    fn prefill(&self, ram: &GuestMemory) {
        let mut index = vec![0u64; (self.entries * ENTRY_WORDS) as usize];
        for key in 0..self.keys {
            let mut at = self.home(key);
            while index[(at * ENTRY_WORDS) as usize] != 0 {
                at = (at + 1) & (self.entries - 1);
            }
            let entry = Entry {
                key,
                record: key,
                version: 0,
            };
            let start = (at * ENTRY_WORDS) as usize;
            index[start..start + ENTRY_WORDS as usize].copy_from_slice(&entry.to_words());
        }
        ram.write_words(self.entry_offset(0), &index);
        // Record by record in the order they lie in RAM, but a page at a time.
        let per_page = PAGE_WORDS / self.record_words;
        let mut page = [0; PAGE_WORDS];
        for first in (0..self.keys).step_by(per_page) {
            for (key, record) in (first..self.keys).zip(page.chunks_exact_mut(self.record_words)) {
                self.make_record(key, 0, record);
            }
            ram.write_words(self.record_offset(first), &page);
        }
    }

    fn operate(&mut self, cx: &mut Context<'_>) {
        let key = self.choose_key(cx);
        let is_get = cx.rng.random_range(0..100) < self.get_percent;
        if let Some((at, entry)) = cx.checks.record(self.find(cx.ram, key)) {
            let intact = cx.checks.record(self.check(cx.ram, entry)).is_some();
            if !is_get && intact {
                self.put(cx.ram, at, entry);
            }
        }
        self.cursor.operations += 1;
        if self.cursor.operations.is_multiple_of(AUDIT_INTERVAL) {
            self.audit(cx);
        }
    }

    fn verify(&self, ram: &GuestMemory, checks: &mut Checks) {
        let mut versions = 0u64;
        let mut keys = 0;
        for at in 0..self.entries {
            if let Some(entry) = self.load_entry(ram, at) {
                checks.record(self.check(ram, entry));
                versions = versions.wrapping_add(entry.version);
                keys += 1;
            }
        }
        checks.expect(keys == self.keys, || {
            format!(
                "key-value store: {keys} keys are in the index, expected {}",
                self.keys
            )
        });
        self.check_sum(versions, checks);
    }

    fn cursor(&self) -> Cursor {
        Cursor::KeyValue(self.cursor.clone())
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        match cursor {
            Cursor::KeyValue(cursor)
                if cursor.audited < self.entries
                    && cursor.puts < u64::MAX / 2
                    && cursor.operations < u64::MAX / 2 =>
            {
                self.cursor = cursor.clone();
                true
            }
            _ => false,
        }
    }
}
