//! Reading a checkpoint.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::OnceCell;
use vmferry_core::{PAGE_SIZE, PageRun};

use crate::backend::Backend;
use crate::chunk::{self, MAX_CHUNK_BYTES};
use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::index::read_table;
use crate::keys;
use crate::lease::Lease;
use crate::manifest::{BlobRef, Manifest};
use crate::runtime::wait;
use crate::store::Inner;
use crate::table::{Place, TABLE_PAGES, Table};

/// Chunks that one read asks for at the same time.
const PARALLEL: usize = 8;
/// Pages that are read in one go: bounds the chunks held at the same time.
const STEP_PAGES: u64 = 1024;
const PAGE_BYTES: usize = PAGE_SIZE as usize;

/// Where a page of a checkpoint comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSource {
    /// It is zero.
    Hole,
    /// Every byte of it is this one.
    Uniform(u8),
    /// It is page `index` of a chunk. Pages of the same chunk are best read together.
    Stored {
        /// The chunk.
        chunk: Hash,
        /// Which of its pages.
        index: u16,
    },
}

/// A checkpoint, open for reading; from any number of threads.
pub struct Reader {
    manifest: Manifest,
    parts: Arc<Parts>,
    /// Keeps what is read from being swept.
    _lease: Option<Lease>,
}

struct Parts {
    backend: Backend,
    tables: Vec<Option<(Hash, u64, OnceCell<Table>)>>,
    chunks: Chunks,
}

impl Reader {
    pub(crate) fn new(inner: &Inner, manifest: Manifest, lease: Option<Lease>) -> Self {
        let table = |(index, name): (usize, &Option<Hash>)| {
            name.map(|name| (name, manifest.table_pages(index), OnceCell::new()))
        };
        let parts = Parts {
            backend: inner.backend.counted_apart(),
            tables: manifest.tables.iter().enumerate().map(table).collect(),
            chunks: Chunks::new(inner.options.reader_cache_bytes),
        };
        Self {
            manifest,
            parts: Arc::new(parts),
            _lease: lease,
        }
    }

    /// What the checkpoint is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Bytes of objects that were read for this reader.
    pub fn bytes_read(&self) -> u64 {
        self.parts.backend.bytes_read()
    }

    /// Where `page` comes from. Reads a table, the first time.
    ///
    /// # Errors
    /// When the page lies outside of RAM; when the table is missing or damaged.
    pub fn page_source(&self, page: u64) -> Result<PageSource> {
        self.sources(PageRun::single(page)).map(|sources| sources[0])
    }

    /// Where each page of `run` comes from.
    ///
    /// # Errors
    /// As [`Reader::page_source`].
    pub fn sources(&self, run: PageRun) -> Result<Vec<PageSource>> {
        self.check(run)?;
        if let Some(sources) = self.parts.known_sources(run) {
            return Ok(sources);
        }
        let parts = self.parts.clone();
        wait(async move { parts.sources(run).await })
    }

    /// Reads the pages of `run` into `data`, which has `run.bytes()` bytes. Every chunk is checked against its hash.
    ///
    /// # Errors
    /// When the run lies outside of RAM or `data` has another length; when a table or chunk is missing or damaged: the error
    /// names it, and `data` then holds nothing of use.
    pub fn read(&self, run: PageRun, data: &mut [u8]) -> Result<()> {
        self.check(run)?;
        if data.len() as u64 != run.bytes() {
            let message = format!("{} bytes of memory for {} pages", data.len(), run.count);
            return Err(StoreError::BadRequest(message));
        }
        let mut first = run.first;
        for step in data.chunks_mut(STEP_PAGES as usize * PAGE_BYTES) {
            let part = PageRun::new(first, (step.len() / PAGE_BYTES) as u64);
            self.read_step(part, step)?;
            first = part.end();
        }
        Ok(())
    }

    fn read_step(&self, run: PageRun, data: &mut [u8]) -> Result<()> {
        let sources = self.sources(run)?;
        let mut needed: Vec<Hash> = Vec::new();
        for source in &sources {
            if let PageSource::Stored { chunk, .. } = source
                && needed.last() != Some(chunk)
            {
                needed.push(*chunk);
            }
        }
        needed.sort_unstable();
        needed.dedup();
        let chunks = self.chunks(needed)?;
        for (source, page) in sources.iter().zip(data.chunks_exact_mut(PAGE_BYTES)) {
            match source {
                PageSource::Hole => page.fill(0),
                PageSource::Uniform(byte) => page.fill(*byte),
                PageSource::Stored { chunk, index } => {
                    let at = usize::from(*index) * PAGE_BYTES;
                    let content = chunks[chunk].get(at..at + PAGE_BYTES).ok_or_else(|| {
                        let object = keys::chunk(*chunk).to_string();
                        StoreError::damaged(object, format!("it has no page {index}, and a table says so"))
                    })?;
                    page.copy_from_slice(content);
                }
            }
        }
        Ok(())
    }

    fn chunks(&self, needed: Vec<Hash>) -> Result<HashMap<Hash, Arc<Vec<u8>>>> {
        let cached = |name: &Hash| Some((*name, self.parts.chunks.cached(*name)?));
        if let Some(all) = needed.iter().map(cached).collect() {
            return Ok(all);
        }
        let parts = self.parts.clone();
        wait(async move {
            let reads = needed.into_iter().map(|name| {
                let parts = parts.clone();
                async move { Ok((name, parts.chunks.get(&parts.backend, name).await?)) }
            });
            futures_util::stream::iter(reads)
                .buffer_unordered(PARALLEL)
                .try_collect()
                .await
        })
    }

    /// The bytes of a blob of the checkpoint.
    ///
    /// # Errors
    /// When a piece is missing or damaged.
    pub fn blob(&self, blob: &BlobRef) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write_blob(blob, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(bytes)
    }

    /// Hands the bytes of a blob to `take`, piece after piece (of at most 1 MiB).
    ///
    /// # Errors
    /// When a piece is missing or damaged, or `take` fails.
    pub fn write_blob<E: From<StoreError>>(
        &self,
        blob: &BlobRef,
        take: &mut dyn FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = blob.bytes;
        for &name in &blob.pieces {
            let parts = self.parts.clone();
            let piece = wait(async move { read_chunk(&parts.backend, name).await })?;
            let expected = left.min(MAX_CHUNK_BYTES as u64);
            if piece.len() as u64 != expected {
                let why = format!("it has {} bytes, and a blob says {expected}", piece.len());
                return Err(StoreError::damaged(keys::chunk(name).to_string(), why).into());
            }
            take(&piece)?;
            left -= expected;
        }
        Ok(())
    }

    fn check(&self, run: PageRun) -> Result<()> {
        let checked = self.manifest.layout.check(run);
        checked.map_err(|error| StoreError::BadRequest(error.to_string()))
    }
}

impl Parts {
    async fn table(&self, index: usize) -> Result<Option<&Table>> {
        let Some((name, pages, table)) = &self.tables[index] else {
            return Ok(None);
        };
        let read = || read_table(&self.backend, *name, *pages);
        table.get_or_try_init(read).await.map(Some)
    }

    async fn sources(&self, run: PageRun) -> Result<Vec<PageSource>> {
        for index in run.first / TABLE_PAGES..=(run.end() - 1) / TABLE_PAGES {
            self.table(index as usize).await?;
        }
        Ok(self.known_sources(run).expect("the tables were just read"))
    }

    /// Where the pages of `run` come from, where the tables were read before.
    fn known_sources(&self, run: PageRun) -> Option<Vec<PageSource>> {
        let mut sources = Vec::with_capacity(run.count as usize);
        let mut at = run.first;
        while at < run.end() {
            let index = at / TABLE_PAGES;
            let end = run.end().min((index + 1) * TABLE_PAGES);
            match &self.tables[index as usize] {
                None => sources.extend((at..end).map(|_| PageSource::Hole)),
                Some((_, _, table)) => {
                    let table = table.get()?;
                    let from = (at % TABLE_PAGES) as usize;
                    let places = &table.places[from..from + (end - at) as usize];
                    sources.extend(places.iter().map(|place| table.source(*place)));
                }
            }
            at = end;
        }
        Some(sources)
    }
}

impl Table {
    /// Where a page at `place` comes from.
    pub(crate) fn source(&self, place: Place) -> PageSource {
        match place {
            Place::Hole => PageSource::Hole,
            Place::Uniform(byte) => PageSource::Uniform(byte),
            Place::Stored { chunk, index } => PageSource::Stored {
                chunk: self.chunks[chunk as usize],
                index,
            },
        }
    }
}

/// A chunk that is read or being read.
type Cell = Arc<OnceCell<Arc<Vec<u8>>>>;

/// Unpacked chunks, those that were used last. Who needs a chunk that is being read waits for it.
pub(crate) struct Chunks {
    limit: usize,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// With when each was used last.
    chunks: HashMap<Hash, (Cell, u64)>,
    clock: u64,
}

impl Chunks {
    /// At most about `limit_bytes` of chunks of pages.
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit: (limit_bytes / (chunk::CHUNK_PAGES * PAGE_BYTES)).max(PARALLEL),
            held: Mutex::default(),
        }
    }

    fn cell(&self, name: Hash) -> Cell {
        let held = &mut *self.held.lock().expect("not poisoned");
        held.clock += 1;
        let (cell, used) = held.chunks.entry(name).or_default();
        *used = held.clock;
        let cell = cell.clone();
        if held.chunks.len() > self.limit {
            let oldest = held.chunks.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = oldest.map(|(name, _)| *name);
            oldest.map(|oldest| held.chunks.remove(&oldest));
        }
        cell
    }

    /// Chunk `name` where it is held.
    pub(crate) fn cached(&self, name: Hash) -> Option<Arc<Vec<u8>>> {
        self.cell(name).get().cloned()
    }

    /// Chunk `name`, read where it is not held.
    pub(crate) async fn get(&self, backend: &Backend, name: Hash) -> Result<Arc<Vec<u8>>> {
        let cell = self.cell(name);
        let read = || async { read_chunk(backend, name).await.map(Arc::new) };
        cell.get_or_try_init(read).await.cloned()
    }
}

/// The plain content of chunk `name`.
pub(crate) async fn read_chunk(backend: &Backend, name: Hash) -> Result<Vec<u8>> {
    let object = keys::chunk(name);
    let Some(bytes) = backend.get(&object, chunk::MAX_OBJECT_BYTES).await? else {
        let object = object.to_string();
        return Err(StoreError::Missing { object });
    };
    let unpacked = tokio::task::spawn_blocking(move || chunk::unpack(name, object.as_ref(), &bytes));
    unpacked.await.expect("unpacking does not panic")
}
