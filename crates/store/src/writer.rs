//! Writing a checkpoint.
//!
//! Pages are hashed by who brings them, collected into chunks, and packed and put by tasks of which there is a bounded number:
//! who brings more waits. Nothing names the chunks until the manifest does, which is put last.

mod packer;
mod uploads;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, TryStreamExt as _};
use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun, RamLayout};

use crate::chunk::MAX_CHUNK_BYTES;
use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::id::CheckpointId;
use crate::keys;
use crate::lease::Lease;
use crate::manifest::{BlobRef, DiskState, Manifest, PageCounts};
use crate::runtime::wait;
use crate::store::{Begun, Inner};
use crate::table::{self, TABLE_PAGES, Table};
use crate::writer::packer::{Content, Packer};
use crate::writer::uploads::Uploads;

const PAGE_BYTES: usize = PAGE_SIZE as usize;
/// Pages that are hashed before the packer is asked: holds its lock for short times only.
const STEP_PAGES: usize = 256;
/// Tables that are put at the same time.
const PARALLEL_TABLES: usize = 8;

/// What a checkpoint is of.
#[derive(Clone, Debug)]
pub struct Draft {
    /// The VM.
    pub vm: String,
    /// What it consists of, as its backend writes it.
    pub spec: serde_json::Value,
    /// Its RAM.
    pub layout: RamLayout,
    /// A checkpoint of it whose pages this one may inherit.
    pub parent: Option<CheckpointId>,
}

/// What is known about a checkpoint once all of it was written.
#[derive(Clone, Debug)]
pub struct Taken {
    /// When the guest was paused, in ms since 1970.
    pub created_ms: u64,
    /// The state of its devices: [`Writer::blob`].
    pub device_state: BlobRef,
    /// Its disks.
    pub disks: Vec<DiskState>,
    /// Pages written in the interval before; all that hold data where there was none.
    pub written: PageBitmap,
    /// Pages read or written in the interval before, as far as that is known.
    pub accessed: PageBitmap,
    /// How long the interval before was, in ms; none for a checkpoint that stands alone.
    pub interval_ms: Option<u64>,
    /// How long the guest stood still for it.
    pub pause_ms: f64,
}

/// A checkpoint being written, from any number of threads. Dropped without [`Writer::commit`] it was never there.
pub struct Writer {
    inner: Arc<Inner>,
    lease: Lease,
    id: CheckpointId,
    draft: Draft,
    parent: Option<Manifest>,
    /// Chunks that may be shared: complete checkpoints named them after the lease began.
    live: Arc<HashSet<Hash>>,
    packer: Mutex<Packer>,
    uploads: Arc<Uploads>,
}

impl Writer {
    pub(crate) fn new(inner: Arc<Inner>, begun: Begun, draft: Draft, live: HashSet<Hash>) -> Self {
        Self {
            packer: Mutex::new(Packer::new(draft.layout.pages())),
            uploads: Uploads::new(inner.clone()),
            lease: begun.lease,
            id: begun.id,
            parent: begun.parent,
            live: Arc::new(live),
            inner,
            draft,
        }
    }

    /// What the checkpoint will be called.
    pub fn id(&self) -> &CheckpointId {
        &self.id
    }

    /// The pages of `run` are `data`. Whoever calls this waits while too much is under way. Pages that one byte fills cost
    /// nothing, nor do pages that the store has. Of a page that is written twice the last content counts.
    ///
    /// # Errors
    /// When the run lies outside of RAM or `data` has another length; when an earlier write failed: the checkpoint is lost then.
    pub fn pages(&self, run: PageRun, data: &[u8]) -> Result<()> {
        self.check(run)?;
        if data.len() as u64 != run.bytes() {
            let message = format!("{} bytes of memory for {} pages", data.len(), run.count);
            return Err(StoreError::BadRequest(message));
        }
        let mut first = run.first;
        for step in data.chunks(STEP_PAGES * PAGE_BYTES) {
            self.uploads.check()?;
            let contents: Vec<_> = step.chunks_exact(PAGE_BYTES).map(Content::of).collect();
            let hashes: Vec<Hash> = contents.iter().filter_map(Content::hash).collect();
            let found = self.inner.index.find(&hashes, &self.live);
            let full = {
                let mut packer = self.packer.lock().expect("not poisoned");
                packer.add(first, step, &contents, &found)
            };
            for open in full {
                self.uploads.pages(open)?;
            }
            first += contents.len() as u64;
        }
        Ok(())
    }

    /// Every byte of the pages of `run` is `byte`.
    ///
    /// # Errors
    /// When the run lies outside of RAM.
    pub fn uniform(&self, run: PageRun, byte: u8) -> Result<()> {
        self.check(run)?;
        self.packer.lock().expect("not poisoned").uniform(run, byte);
        Ok(())
    }

    /// The pages of `set` are what they are in the parent, except those that are written before or after this call. A page that is
    /// neither written nor inherited is a hole.
    ///
    /// # Errors
    /// When there is no parent, or the set ranges over another number of pages.
    pub fn inherit(&self, set: &PageBitmap) -> Result<()> {
        if self.parent.is_none() {
            let message = format!("{} has no parent to inherit pages from", self.id);
            return Err(StoreError::BadRequest(message));
        }
        self.check_set(set)?;
        self.packer.lock().expect("not poisoned").inherit(set);
        Ok(())
    }

    /// Keeps `bytes`, for example the device state or a piece of a disk.
    ///
    /// # Errors
    /// When an earlier write failed: the checkpoint is lost then.
    pub fn blob(&self, bytes: &[u8]) -> Result<BlobRef> {
        let mut pieces = Vec::new();
        for piece in bytes.chunks(MAX_CHUNK_BYTES) {
            let name = Hash::of(piece);
            if !self.live.contains(&name) {
                self.uploads.piece(piece.to_vec())?;
            }
            pieces.push(name);
        }
        Ok(BlobRef {
            bytes: bytes.len() as u64,
            pieces,
        })
    }

    /// Completes the checkpoint: waits for everything written, then puts the manifest. From then on it exists. Answers what was
    /// put, so that nobody has to ask the store for it: a store that fails just then has the checkpoint all the same.
    ///
    /// # Errors
    /// When anything could not be written, the lease was lost, or somebody else wrote this checkpoint: then it does not exist.
    pub fn commit(self, taken: Taken) -> Result<Manifest> {
        self.check_set(&taken.written)?;
        self.check_set(&taken.accessed)?;
        let mut packer = self.packer.into_inner().expect("not poisoned");
        if let Some(open) = packer.take_open() {
            self.uploads.pages(open)?;
        }
        let (names, stored_bytes) = self.uploads.finish()?;
        let commit = Commit {
            inner: self.inner,
            lease: self.lease,
            packer,
            names,
            parent: self.parent,
        };
        let manifest = Manifest {
            id: self.id,
            parent: commit.parent.as_ref().map(|parent| parent.id.clone()),
            created_ms: taken.created_ms,
            spec: self.draft.spec,
            layout: self.draft.layout,
            device_state: taken.device_state,
            disks: taken.disks,
            written: taken.written,
            accessed: taken.accessed,
            interval_ms: taken.interval_ms,
            pause_ms: taken.pause_ms,
            pages: PageCounts {
                stored_bytes,
                ..commit.packer.counts()
            },
            tables: Vec::new(),
        };
        wait(commit.run(manifest))
    }

    fn check(&self, run: PageRun) -> Result<()> {
        let checked = self.draft.layout.check(run);
        checked.map_err(|error| StoreError::BadRequest(error.to_string()))
    }

    fn check_set(&self, set: &PageBitmap) -> Result<()> {
        let pages = self.draft.layout.pages();
        if set.len() != pages {
            let message = format!("a set of {} pages of a guest of {pages}", set.len());
            return Err(StoreError::BadRequest(message));
        }
        Ok(())
    }
}

/// The end of a checkpoint, when all its chunks are in the store.
struct Commit {
    inner: Arc<Inner>,
    lease: Lease,
    packer: Packer,
    /// Names of the chunks of this checkpoint's own, by their number.
    names: HashMap<u32, Hash>,
    parent: Option<Manifest>,
}

impl Commit {
    async fn run(mut self, mut manifest: Manifest) -> Result<Manifest> {
        for index in 0..manifest.layout.pages().div_ceil(TABLE_PAGES) as usize {
            let table = self.table(&mut manifest, index).await?;
            manifest.tables.push(table);
        }
        self.put_tables(&manifest).await?;
        let object = keys::manifest(&manifest.id);
        let bytes = manifest.encode()?;
        self.inner.backend.make_durable().await?;
        self.lease.confirm().await?;
        if !self.inner.backend.create(&object, bytes).await? {
            return Err(StoreError::Taken(manifest.id));
        }
        if let Err(error) = self.lease.give_back().await {
            tracing::debug!(%error, "a lease could not be given back; it ends by itself");
        }
        Ok(manifest)
    }

    /// The table of the pages of `index`: the parent's where nothing is new.
    async fn table(&mut self, manifest: &mut Manifest, index: usize) -> Result<Option<Hash>> {
        let pages = manifest.table_pages(index);
        let run = PageRun::new(index as u64 * TABLE_PAGES, pages);
        let parents = self.parent.as_ref().and_then(|parent| parent.tables[index]);
        let inherited = self.packer.inherited_in(run);
        manifest.pages.inherited += inherited;
        if parents.is_some() && inherited == pages {
            return Ok(parents);
        }
        if let Some(name) = parents
            && inherited > 0
        {
            let table = self.inner.table(name, pages).await?;
            self.packer.fill_from(run, &table);
        }
        Ok(self.packer.finish_table(index, pages, &self.names))
    }

    async fn put_tables(&mut self, manifest: &Manifest) -> Result<()> {
        let inner = &self.inner;
        let known: HashSet<Hash> = self
            .parent
            .iter()
            .flat_map(|parent| parent.tables.iter().flatten())
            .copied()
            .collect();
        let new = self
            .packer
            .take_tables()
            .into_iter()
            .filter(|table| !known.contains(&table.name));
        let puts = new.map(|table: table::Packed| async move {
            inner.backend.put(&keys::table(table.name), table.object).await
        });
        let puts: Vec<_> = puts.collect();
        tracing::debug!(id = %manifest.id, tables = puts.len(), "tables of a checkpoint");
        futures_util::stream::iter(puts)
            .buffer_unordered(PARALLEL_TABLES)
            .try_collect::<()>()
            .await
    }
}

/// Packs a table made of `places`; none where it is all holes.
fn pack(table: Option<Table>) -> Option<table::Packed> {
    table.map(|table| table.pack())
}
