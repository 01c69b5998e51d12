//! The pages that a store has, found by their hash: so that a migration need not send them.

use std::collections::HashSet;
use std::sync::Arc;

use futures_util::StreamExt as _;
use vmferry_core::PAGE_SIZE;

use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::keys;
use crate::lease::Lease;
use crate::reader::Chunks;
use crate::runtime::wait;
use crate::store::{Inner, Store};

/// Beginnings of chunks that are read at the same time.
const PARALLEL: usize = 16;
const PAGE_BYTES: usize = PAGE_SIZE as usize;

/// What the complete checkpoints of a store hold, as it was when this was opened. Nothing of it is swept meanwhile.
pub struct Holdings {
    inner: Arc<Inner>,
    live: HashSet<Hash>,
    chunks: Arc<Chunks>,
    _lease: Option<Lease>,
}

impl Store {
    /// Opens what the store holds, for finding pages by their hash. Reads the hashes of chunks that this process does not know yet.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn holdings(&self) -> Result<Holdings> {
        let inner = self.inner.clone();
        wait(async move {
            let lease = inner.reading().await?;
            let live = inner.live_chunks().await?;
            inner.index.learn(&inner.backend, &live).await;
            Ok(Holdings {
                chunks: Arc::new(Chunks::new(inner.options.reader_cache_bytes)),
                inner,
                live,
                _lease: lease,
            })
        })
    }
}

impl Holdings {
    /// Whether the store should have a page of each hash. It may turn out damaged when it is read.
    pub fn has(&self, pages: &[Hash]) -> Vec<bool> {
        let found = self.inner.index.find(pages, &self.live);
        found.iter().map(Option::is_some).collect()
    }

    /// The hashes of at most `most` pages: first those of the newest checkpoints of `vm`, then those of the newest of other VMs,
    /// which may well be alike.
    ///
    /// # Errors
    /// When the store does not answer. A checkpoint that is damaged is passed over.
    pub fn pages_like(&self, vm: &str, most: usize) -> Result<Vec<Hash>> {
        let (inner, vm) = (self.inner.clone(), vm.to_owned());
        wait(async move { inner.pages_like(&vm, most).await })
    }

    /// How many chunks are held.
    pub fn chunks(&self) -> usize {
        self.live.len()
    }

    /// Reads the page that has the hash `page` into `content`, of one page. Answers whether it is there and whole: `content` then has
    /// that hash, by a check of these very bytes.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn read(&self, page: Hash, content: &mut [u8]) -> Result<bool> {
        let Some((name, index)) = self.inner.index.find(&[page], &self.live)[0] else {
            return Ok(false);
        };
        let chunk = match self.chunks.cached(name) {
            Some(chunk) => chunk,
            None => {
                let (inner, chunks) = (self.inner.clone(), self.chunks.clone());
                match wait(async move { chunks.get(&inner.backend, name).await }) {
                    Ok(chunk) => chunk,
                    Err(error) if error.is_damage() => {
                        tracing::warn!(%error, "a page that the store should have is asked for elsewhere");
                        return Ok(false);
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let at = usize::from(index) * PAGE_BYTES;
        let Some(bytes) = chunk
            .get(at..at + PAGE_BYTES)
            .filter(|bytes| Hash::of(bytes) == page)
        else {
            let error = StoreError::damaged(
                keys::chunk(name).to_string(),
                "a page has another hash than its header says",
            );
            tracing::warn!(%error, "a page that the store should have is asked for elsewhere");
            return Ok(false);
        };
        content.copy_from_slice(bytes);
        Ok(true)
    }
}

impl Inner {
    async fn pages_like(&self, vm: &str, most: usize) -> Result<Vec<Hash>> {
        let mut ids = self.listing(None).await?.complete;
        // Newest first, and those of the VM before all others.
        ids.sort_by_key(|id| (id.vm() != vm, std::cmp::Reverse(id.number())));
        let (mut pages, mut seen) = (Vec::new(), HashSet::new());
        for id in ids {
            let manifest = match self.any_manifest(&id).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) => continue,
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            for (index, name) in manifest.tables.iter().enumerate() {
                let Some(name) = *name else { continue };
                let chunks = match self.chunks_of(name, manifest.table_pages(index)).await {
                    Err(error) if !error.is_damage() => return Err(error),
                    chunks => chunks.unwrap_or_default(),
                };
                let new: Vec<Hash> = chunks.into_iter().filter(|chunk| seen.insert(*chunk)).collect();
                let heads = new.into_iter().map(|name| self.index.head(&self.backend, name));
                let mut heads = futures_util::stream::iter(heads).buffer_unordered(PARALLEL);
                while let Some(head) = heads.next().await {
                    pages.extend(head.unwrap_or_default());
                }
                if pages.len() >= most {
                    pages.truncate(most);
                    return Ok(pages);
                }
            }
        }
        Ok(pages)
    }
}
