//! Which pages a store has: an index of equal pages.
//!
//! It is a cache, in a file of this user that may be deleted at any time, or in memory. What it answers is used only for chunks
//! that a complete checkpoint named after the lease of who asks began, and which no sweep touches therefore until the lease
//! ends. What it does not know costs room in the store, and nothing else.

mod cache;

use std::collections::{HashMap, HashSet};
use std::path::Path as FilePath;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _};

use crate::backend::Backend;
use crate::chunk::{self, MAX_HEAD_BYTES};
use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::id::CheckpointId;
use crate::index::cache::Cache;
use crate::keys;
use crate::store::Inner;
use crate::table::{self, Table};

/// Objects that are read at the same time.
const PARALLEL: usize = 16;
/// Chunks whose pages are noted together: a transaction each would cost more than the chunks.
const BATCH_CHUNKS: usize = 256;
/// The index forgets everything and begins anew when it knows this many times the chunks that are there, and some.
const MOST_STALE: u64 = 2;
const SOME: u64 = 4096;

/// Where equal pages are.
pub(crate) struct Index {
    cache: Arc<Cache>,
    /// Chunks with the hashes of their pages that the cache does not know yet.
    pending: Mutex<Vec<(Hash, Vec<Hash>)>>,
    /// Chunks that tables name. Of a name this never changes.
    tables: Mutex<HashMap<Hash, Vec<Hash>>>,
    /// Tables that manifests name, by the object and the time of its last change.
    manifests: Mutex<HashMap<(CheckpointId, i64), Arc<Named>>>,
}

/// What a manifest names.
#[derive(Debug)]
struct Named {
    /// Tables, and of how many pages each tells.
    tables: Vec<(Hash, u64)>,
    pieces: Vec<Hash>,
}

impl Index {
    /// The index of the store called `store`, kept in the folder `cache` or in memory.
    pub(crate) fn new(store: &str, cache: Option<&FilePath>) -> Self {
        Self {
            cache: Arc::new(Cache::open(store, cache)),
            pending: Mutex::default(),
            tables: Mutex::default(),
            manifests: Mutex::default(),
        }
    }

    /// Reads the hashes of the pages of chunks that are new to it. Chunks that cannot be read are left out: nobody shares their
    /// pages then.
    pub(crate) async fn learn(&self, backend: &Backend, live: &HashSet<Hash>) {
        self.flush().await;
        let (cache, live_chunks) = (self.cache.clone(), live.len() as u64);
        let chunks: Vec<Hash> = live.iter().copied().collect();
        let unknown = tokio::task::spawn_blocking(move || {
            if cache.chunks() > live_chunks * MOST_STALE + SOME {
                cache.clear();
            }
            cache.unknown(chunks)
        });
        let unknown = unknown.await.expect("the index does not panic");
        let heads = unknown
            .into_iter()
            .map(|name| async move { Some((name, self.head(backend, name).await?)) });
        let heads = futures_util::stream::iter(heads);
        let mut heads = heads.buffer_unordered(PARALLEL);
        while let Some(head) = heads.next().await {
            if let Some((name, pages)) = head {
                self.add(name, pages).await;
            }
        }
        self.flush().await;
    }

    /// The hashes of the pages of a chunk; none where its beginning cannot be read.
    pub(crate) async fn head(&self, backend: &Backend, name: Hash) -> Option<Vec<Hash>> {
        let object = keys::chunk(name);
        let bytes = backend.get_head(&object, MAX_HEAD_BYTES).await.ok().flatten()?;
        Some(chunk::head(object.as_ref(), &bytes).ok()?.pages)
    }

    /// Notes the pages of a chunk.
    pub(crate) async fn add(&self, chunk: Hash, pages: Vec<Hash>) {
        let full = {
            let mut pending = self.pending.lock().expect("not poisoned");
            pending.push((chunk, pages));
            pending.len() >= BATCH_CHUNKS
        };
        if full {
            self.flush().await;
        }
    }

    async fn flush(&self) {
        let pending = std::mem::take(&mut *self.pending.lock().expect("not poisoned"));
        if !pending.is_empty() {
            let cache = self.cache.clone();
            let noted = tokio::task::spawn_blocking(move || cache.add(&pending));
            noted.await.expect("the index does not panic");
        }
    }

    /// Where each of `pages` is, in a chunk of `live`.
    pub(crate) fn find(&self, pages: &[Hash], live: &HashSet<Hash>) -> Vec<Option<(Hash, u16)>> {
        if live.is_empty() {
            return vec![None; pages.len()];
        }
        self.cache.find(pages, live)
    }
}

impl Inner {
    /// The chunks that complete checkpoints name. A checkpoint that cannot be read counts for nothing: nobody shares its pages.
    pub(crate) async fn live_chunks(&self) -> Result<HashSet<Hash>> {
        let listing = self.listing(None).await?;
        let complete = listing
            .complete
            .iter()
            .map(|id| (id.clone(), listing.manifests[id]));
        let complete: Vec<_> = complete.collect();
        self.forget_manifests_but(&complete);
        let reads = complete.into_iter().map(|key| async move {
            match self.chunks_of_checkpoint(key).await {
                Err(error) if !error.is_damage() => Err(error),
                chunks => Ok(chunks.unwrap_or_default()),
            }
        });
        let reads: Vec<_> = reads.collect();
        let mut live = HashSet::new();
        let mut chunks = futures_util::stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some(chunks) = chunks.try_next().await? {
            live.extend(chunks);
        }
        Ok(live)
    }

    fn forget_manifests_but(&self, complete: &[(CheckpointId, i64)]) {
        let complete: HashSet<_> = complete.iter().collect();
        let mut manifests = self.index.manifests.lock().expect("not poisoned");
        manifests.retain(|key, _| complete.contains(key));
    }

    async fn chunks_of_checkpoint(&self, key: (CheckpointId, i64)) -> Result<Vec<Hash>> {
        let known = self
            .index
            .manifests
            .lock()
            .expect("not poisoned")
            .get(&key)
            .cloned();
        let named = match known {
            Some(named) => named,
            // Deleted and swept meanwhile where there is none.
            None => match self.any_manifest(&key.0).await? {
                None => return Ok(Vec::new()),
                Some(manifest) => {
                    let tables = manifest.tables.iter().enumerate();
                    let tables =
                        tables.filter_map(|(index, name)| Some(((*name)?, manifest.table_pages(index))));
                    let named = Arc::new(Named {
                        tables: tables.collect(),
                        pieces: manifest.blobs().flat_map(|blob| &blob.pieces).copied().collect(),
                    });
                    let mut manifests = self.index.manifests.lock().expect("not poisoned");
                    manifests.insert(key, named.clone());
                    named
                }
            },
        };
        let mut chunks = named.pieces.clone();
        for &(name, pages) in &named.tables {
            chunks.extend(self.chunks_of(name, pages).await?);
        }
        Ok(chunks)
    }

    /// The chunks that table `name` of `pages` pages names.
    pub(crate) async fn chunks_of(&self, name: Hash, pages: u64) -> Result<Vec<Hash>> {
        if let Some(chunks) = self.index.tables.lock().expect("not poisoned").get(&name) {
            return Ok(chunks.clone());
        }
        let chunks = self.table(name, pages).await?.chunks;
        let mut tables = self.index.tables.lock().expect("not poisoned");
        tables.insert(name, chunks.clone());
        Ok(chunks)
    }

    /// Table `name`, which tells of `pages` pages.
    pub(crate) async fn table(&self, name: Hash, pages: u64) -> Result<Table> {
        read_table(&self.backend, name, pages).await
    }
}

/// Table `name`, which tells of `pages` pages.
pub(crate) async fn read_table(backend: &Backend, name: Hash, pages: u64) -> Result<Table> {
    let object = keys::table(name);
    let bytes = backend.get(&object, table::MAX_OBJECT_BYTES).await?;
    let bytes = bytes.ok_or_else(|| StoreError::Missing {
        object: object.to_string(),
    })?;
    Table::unpack(name, pages, object.as_ref(), &bytes)
}
