//! Which pages a store has: an index of equal pages.
//!
//! It is a cache. What it answers is used only for chunks that a complete checkpoint named after the writer's lease began,
//! and which no sweep touches therefore until the lease ends.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use futures_util::StreamExt as _;

use crate::backend::Backend;
use crate::chunk::{self, MAX_HEAD_BYTES};
use crate::error::Result;
use crate::hash::Hash;
use crate::keys;
use crate::store::Inner;
use crate::table::{self, Table};

/// Objects that are read at the same time.
const PARALLEL: usize = 16;

/// Where equal pages are.
#[derive(Default)]
pub(crate) struct Index {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    pages: HashMap<Hash, (Hash, u16)>,
    chunks: HashSet<Hash>,
    tables: HashMap<Hash, Vec<Hash>>,
}

impl Index {
    /// Reads the hashes of the pages of chunks that are new to it. Chunks that cannot be read are left out: nobody shares their
    /// pages then.
    pub(crate) async fn learn(&self, backend: &Backend, live: &HashSet<Hash>) {
        let new: Vec<Hash> = {
            let known = self.known.lock().expect("not poisoned");
            live.iter()
                .filter(|chunk| !known.chunks.contains(*chunk))
                .copied()
                .collect()
        };
        let heads = futures_util::stream::iter(new).map(|name| async move {
            let object = keys::chunk(name);
            let bytes = backend.get_head(&object, MAX_HEAD_BYTES).await.ok().flatten()?;
            Some((name, chunk::head(object.as_ref(), &bytes).ok()?.pages))
        });
        let mut heads = heads.buffer_unordered(PARALLEL);
        while let Some(head) = heads.next().await {
            if let Some((name, pages)) = head {
                self.add(name, &pages);
            }
        }
    }

    /// Notes the pages of a chunk.
    pub(crate) fn add(&self, chunk: Hash, pages: &[Hash]) {
        let mut known = self.known.lock().expect("not poisoned");
        known.chunks.insert(chunk);
        for (index, page) in pages.iter().enumerate() {
            known.pages.insert(*page, (chunk, index as u16));
        }
    }

    /// Where each of `pages` is, in a chunk of `live`.
    pub(crate) fn find(&self, pages: &[Hash], live: &HashSet<Hash>) -> Vec<Option<(Hash, u16)>> {
        let known = self.known.lock().expect("not poisoned");
        let find = |page| {
            known
                .pages
                .get(page)
                .filter(|(chunk, _)| live.contains(chunk))
                .copied()
        };
        pages.iter().map(find).collect()
    }
}

impl Inner {
    /// The chunks that complete checkpoints name.
    pub(crate) async fn live_chunks(&self) -> Result<HashSet<Hash>> {
        let mut live = HashSet::new();
        for id in self.listing(None).await?.complete {
            // Deleted meanwhile, or damaged: nothing is shared with it.
            let Ok(Some(manifest)) = self.any_manifest(&id).await else {
                continue;
            };
            for (index, name) in manifest.tables.iter().enumerate() {
                let Some(name) = *name else { continue };
                if let Ok(chunks) = self.chunks_of(name, manifest.table_pages(index)).await {
                    live.extend(chunks);
                }
            }
            live.extend(manifest.blobs().flat_map(|blob| &blob.pieces));
        }
        Ok(live)
    }

    /// The chunks that table `name` of `pages` pages names.
    pub(crate) async fn chunks_of(&self, name: Hash, pages: u64) -> Result<Vec<Hash>> {
        if let Some(chunks) = self.index.known.lock().expect("not poisoned").tables.get(&name) {
            return Ok(chunks.clone());
        }
        let chunks = self.table(name, pages).await?.chunks;
        let mut known = self.index.known.lock().expect("not poisoned");
        known.tables.insert(name, chunks.clone());
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
    let bytes = bytes.ok_or_else(|| crate::StoreError::Missing {
        object: object.to_string(),
    })?;
    Table::unpack(name, pages, object.as_ref(), &bytes)
}
