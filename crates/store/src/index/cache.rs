//! The file of the index.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, Durability, ReadableDatabase as _, ReadableTable as _,
    ReadableTableMetadata as _, TableDefinition,
};

use crate::hash::Hash;

type Name = [u8; Hash::BYTES];

/// Which page of which chunk (by its number here) has a hash.
const PAGES: TableDefinition<'_, Name, (u32, u16)> = TableDefinition::new("pages of format 1");
/// Numbers of chunks.
const CHUNKS: TableDefinition<'_, Name, u32> = TableDefinition::new("chunks of format 1");
/// Their names.
const NAMES: TableDefinition<'_, u32, Name> = TableDefinition::new("names of format 1");

/// Memory for parts of the file.
const CACHE_BYTES: usize = 64 << 20;

/// Where equal pages are, as far as known. Errors are noted and answered with *not known*.
pub(super) struct Cache {
    database: Database,
}

impl Cache {
    /// The cache of the store called `store` in `folder`, or in memory where there is no folder or another process has it.
    pub(super) fn open(store: &str, folder: Option<&Path>) -> Self {
        let database = folder.and_then(|folder| open_file(&file(store, folder)));
        Self {
            database: database.unwrap_or_else(in_memory),
        }
    }

    /// How many chunks it knows.
    pub(super) fn chunks(&self) -> u64 {
        let count = || Ok(self.database.begin_read()?.open_table(CHUNKS)?.len()?);
        noted(count()).unwrap_or(0)
    }

    /// Those of `chunks` that it does not know.
    pub(super) fn unknown(&self, chunks: Vec<Hash>) -> Vec<Hash> {
        let unknown = || {
            let table = self.database.begin_read()?.open_table(CHUNKS)?;
            let mut unknown = Vec::new();
            for &chunk in &chunks {
                if table.get(chunk.0)?.is_none() {
                    unknown.push(chunk);
                }
            }
            Ok(unknown)
        };
        noted(unknown()).unwrap_or(chunks)
    }

    /// Notes the pages of chunks.
    pub(super) fn add(&self, chunks: &[(Hash, Vec<Hash>)]) {
        let add = || {
            let mut transaction = self.database.begin_write()?;
            // What a crash loses is learned again.
            transaction.set_durability(Durability::None)?;
            {
                let mut pages = transaction.open_table(PAGES)?;
                let mut numbers = transaction.open_table(CHUNKS)?;
                let mut names = transaction.open_table(NAMES)?;
                for (chunk, hashes) in chunks {
                    let known = numbers.get(chunk.0)?.map(|number| number.value());
                    let number = match known {
                        Some(number) => number,
                        None => {
                            let number = names.last()?.map_or(0, |(last, _)| last.value() + 1);
                            names.insert(number, chunk.0)?;
                            numbers.insert(chunk.0, number)?;
                            number
                        }
                    };
                    for (index, page) in hashes.iter().enumerate() {
                        pages.insert(page.0, (number, index as u16))?;
                    }
                }
            }
            Ok(transaction.commit()?)
        };
        noted(add());
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let clear = || {
            let transaction = self.database.begin_write()?;
            transaction.delete_table(PAGES)?;
            transaction.delete_table(CHUNKS)?;
            transaction.delete_table(NAMES)?;
            make_tables(&transaction)?;
            Ok(transaction.commit()?)
        };
        noted(clear());
    }

    /// Where each of `pages` is, in a chunk of `live`.
    pub(super) fn find(&self, pages: &[Hash], live: &HashSet<Hash>) -> Vec<Option<(Hash, u16)>> {
        let find = || {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(PAGES)?;
            let names = transaction.open_table(NAMES)?;
            let mut found = Vec::with_capacity(pages.len());
            // Pages of one chunk come one after the other as a rule.
            let mut last: Option<(u32, Option<Hash>)> = None;
            for page in pages {
                let Some((number, index)) = table.get(page.0)?.map(|place| place.value()) else {
                    found.push(None);
                    continue;
                };
                let name = match last {
                    Some((same, name)) if same == number => name,
                    _ => {
                        let name = names.get(number)?.map(|name| Hash(name.value()));
                        name.filter(|name| live.contains(name))
                    }
                };
                last = Some((number, name));
                found.push(name.map(|name| (name, index)));
            }
            Ok(found)
        };
        noted(find()).unwrap_or_else(|| vec![None; pages.len()])
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // So that the file has it.
        let keep = || Ok(self.database.begin_write()?.commit()?);
        noted(keep());
    }
}

fn file(store: &str, folder: &Path) -> PathBuf {
    let name = Hash::of(store.as_bytes()).to_string();
    folder.join(format!("{}.index", &name[..32]))
}

fn open_file(file: &Path) -> Option<Database> {
    let open = || -> Result<Database, redb::Error> {
        std::fs::create_dir_all(file.parent().unwrap_or(file))?;
        let database = redb::Builder::new().set_cache_size(CACHE_BYTES).create(file)?;
        let transaction = database.begin_write()?;
        make_tables(&transaction)?;
        transaction.commit()?;
        Ok(database)
    };
    match open() {
        Ok(database) => Some(database),
        Err(redb::Error::DatabaseAlreadyOpen) => {
            tracing::debug!(file = %file.display(), "another process has the index: this one makes its own in memory");
            None
        }
        Err(error) => {
            tracing::warn!(%error, file = %file.display(), "the index cannot be used and is made anew");
            std::fs::remove_file(file).ok()?;
            open().ok()
        }
    }
}

fn in_memory() -> Database {
    let create = || -> Result<Database, DatabaseError> {
        redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(InMemoryBackend::new())
    };
    let database = create().expect("an index in memory");
    let made = database
        .begin_write()
        .map_err(redb::Error::from)
        .and_then(|transaction| {
            make_tables(&transaction)?;
            Ok(transaction.commit()?)
        });
    noted(made);
    database
}

fn make_tables(transaction: &redb::WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(PAGES)?;
    transaction.open_table(CHUNKS)?;
    transaction.open_table(NAMES)?;
    Ok(())
}

fn noted<T>(answer: Result<T, redb::Error>) -> Option<T> {
    answer
        .inspect_err(
            |error| tracing::warn!(%error, "the index of equal pages failed: pages may be stored twice"),
        )
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(text: &str) -> Hash {
        Hash::of(text.as_bytes())
    }

    #[test]
    fn a_file_is_known_again_and_one_that_is_broken_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let live = HashSet::from([hash("chunk")]);
        let pages = [hash("a"), hash("b"), hash("c")];
        let found = [Some((hash("chunk"), 0)), Some((hash("chunk"), 1)), None];
        {
            let cache = Cache::open("store", Some(folder.path()));
            cache.add(&[(hash("chunk"), vec![pages[0], pages[1]])]);
            assert_eq!(cache.find(&pages, &live), found);
            assert_eq!(cache.find(&pages, &HashSet::new()), [None; 3]);
            // The file is in use: another one works without it.
            let other = Cache::open("store", Some(folder.path()));
            assert_eq!(other.find(&pages, &live), [None; 3]);
        }
        {
            let cache = Cache::open("store", Some(folder.path()));
            assert_eq!(cache.find(&pages, &live), found);
            assert_eq!(cache.unknown(vec![hash("chunk"), hash("other")]), [hash("other")]);
            cache.clear();
            assert_eq!(cache.find(&pages, &live), [None; 3]);
            cache.add(&[(hash("chunk"), vec![pages[0], pages[1]])]);
        }
        std::fs::write(file("store", folder.path()), b"no database").unwrap();
        let cache = Cache::open("store", Some(folder.path()));
        assert_eq!(cache.find(&pages, &live), [None; 3]);
        cache.add(&[(hash("chunk"), vec![pages[0], pages[1]])]);
        assert_eq!(cache.find(&pages, &live), found);
    }
}
