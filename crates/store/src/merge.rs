//! Merging what old checkpoints left.
//!
//! Each checkpoint leaves chunks of the pages that were new in it, the last one not full. As later checkpoints replace pages and
//! older checkpoints are deleted, fewer and fewer pages of a chunk are still needed. A merge puts the needed pages of such chunks
//! together in new ones, so that a checkpoint reads from few chunks however long ago its pages were written, and the store
//! keeps less than twice of what is needed.
//!
//! Manifests are replaced in place. Before, the old version is copied to `replaced/`, where it keeps what it names from being
//! swept as long as somebody works who may have seen it. While a manifest is replaced nobody begins to read or write: that takes
//! the lease of a sweep ([`crate::lease`]).

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use serde::Serialize;
use vmferry_core::PAGE_SIZE;

use crate::chunk::{self, CHUNK_PAGES, MAX_CHUNK_PAGES};
use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::id::CheckpointId;
use crate::keys;
use crate::lease::{self, Lease};
use crate::manifest::Manifest;
use crate::reader::read_chunk;
use crate::runtime::wait;
use crate::store::{Inner, Store};
use crate::table::{Place, Table};

/// A chunk of which fewer pages are needed is worth merging.
const SPARSE_PAGES: u32 = CHUNK_PAGES as u32 / 2;
/// The most chunks merged in one go: bounds memory and time.
const MOST_CHUNKS: usize = 4096;
/// How long manifests are replaced before who waits may begin.
const SLICE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(200);
const PAGE_BYTES: usize = PAGE_SIZE as usize;

/// What a merge did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Merged {
    /// Chunks of which few pages were needed.
    pub chunks_before: u64,
    /// Chunks that hold those pages now.
    pub chunks_after: u64,
    /// Pages moved.
    pub pages: u64,
    /// Checkpoints that name the new chunks.
    pub checkpoints: u64,
}

/// Which pages of a chunk are needed, a bit each.
type Used = [u64; MAX_CHUNK_PAGES.div_ceil(64)];

/// Where a page was, and where it is now.
type Moves = HashMap<(Hash, u16), (Hash, u16)>;

impl Store {
    /// Puts the needed pages of sparse chunks together, where that at least halves their number. Checkpoints hold afterwards what they
    /// held before; whoever reads one just now may go on. What was replaced goes with a later [`Store::sweep`].
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] when somebody sweeps or merges; when the store does not answer. Checkpoints are whole
    /// all the same.
    pub fn merge(&self) -> Result<Merged> {
        let inner = self.inner.clone();
        wait(async move { inner.merge().await })
    }
}

impl Inner {
    async fn merge(&self) -> Result<Merged> {
        // Keeps what is read and written here from being swept.
        let lease = Lease::take_unnamed(&self.backend).await?;
        lease::wait_for_sweep(&self.backend).await?;
        let tables = self.complete_tables().await?;
        let sparse = sparse(tables.values());
        let needed: u32 = sparse.iter().map(|(_, used)| count(used)).sum();
        if (needed as usize).div_ceil(CHUNK_PAGES) * 2 > sparse.len() {
            lease.give_back().await?;
            return Ok(Merged::default());
        }
        let mut merged = Merged::default();
        let moves = self.move_pages(sparse, &mut merged).await?;
        let renamed = self.rewrite(&tables, &moves).await?;
        self.backend.make_durable().await?;
        self.replace_manifests(&renamed, &mut merged).await?;
        lease.give_back().await?;
        Ok(merged)
    }

    /// The tables of all complete checkpoints that can be read.
    async fn complete_tables(&self) -> Result<HashMap<Hash, Table>> {
        let mut tables = HashMap::new();
        for id in self.listing(None).await?.complete {
            let manifest = match self.any_manifest(&id).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) => continue,
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            for (index, name) in manifest.tables.iter().enumerate() {
                let Some(name) = *name else { continue };
                if tables.contains_key(&name) {
                    continue;
                }
                match self.table(name, manifest.table_pages(index)).await {
                    Ok(table) => drop(tables.insert(name, table)),
                    Err(error) if error.is_damage() => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(tables)
    }

    /// Puts the needed pages of `sparse` into new chunks. Chunks that are damaged stay as they are.
    async fn move_pages(&self, sparse: Vec<(Hash, Used)>, merged: &mut Merged) -> Result<Moves> {
        let mut moves = Moves::new();
        let mut plain = Vec::with_capacity(CHUNK_PAGES * PAGE_BYTES);
        let mut from = Vec::with_capacity(CHUNK_PAGES);
        for (name, used) in sparse {
            let content = match read_chunk(&self.backend, name).await {
                Ok(content) => content,
                Err(error) if error.is_damage() => {
                    tracing::warn!(%error, "a chunk cannot be merged");
                    continue;
                }
                Err(error) => return Err(error),
            };
            merged.chunks_before += 1;
            for index in (0..MAX_CHUNK_PAGES).filter(|index| used[index / 64] >> (index % 64) & 1 == 1) {
                // A table that names more than there is: damage, which a verification reports.
                let Some(page) = content.get(index * PAGE_BYTES..(index + 1) * PAGE_BYTES) else {
                    continue;
                };
                plain.extend_from_slice(page);
                from.push((name, index as u16));
                if from.len() == CHUNK_PAGES {
                    self.put_moved(&mut plain, &mut from, &mut moves, merged).await?;
                }
            }
        }
        if !from.is_empty() {
            self.put_moved(&mut plain, &mut from, &mut moves, merged).await?;
        }
        Ok(moves)
    }

    async fn put_moved(
        &self,
        plain: &mut Vec<u8>,
        from: &mut Vec<(Hash, u16)>,
        moves: &mut Moves,
        merged: &mut Merged,
    ) -> Result<()> {
        let hashes: Vec<Hash> = plain.chunks_exact(PAGE_BYTES).map(Hash::of).collect();
        let packed = chunk::pack(plain, &hashes);
        self.backend.put(&keys::chunk(packed.name), packed.object).await?;
        self.index.add(packed.name, hashes.clone()).await;
        merged.chunks_after += 1;
        merged.pages += hashes.len() as u64;
        for (index, from) in from.drain(..).enumerate() {
            moves.insert(from, (packed.name, index as u16));
        }
        plain.clear();
        Ok(())
    }

    /// Puts new versions of the tables whose pages moved; answers the old names with the new ones.
    async fn rewrite(&self, tables: &HashMap<Hash, Table>, moves: &Moves) -> Result<HashMap<Hash, Hash>> {
        let moved: HashSet<Hash> = moves.keys().map(|(chunk, _)| *chunk).collect();
        let mut renamed = HashMap::new();
        for (name, table) in tables {
            if !table.chunks.iter().any(|chunk| moved.contains(chunk)) {
                continue;
            }
            let Some(table) = moved_table(table, moves) else {
                continue;
            };
            let packed = table.pack();
            self.backend.put(&keys::table(packed.name), packed.object).await?;
            renamed.insert(*name, packed.name);
        }
        Ok(renamed)
    }

    async fn replace_manifests(&self, renamed: &HashMap<Hash, Hash>, merged: &mut Merged) -> Result<()> {
        let mut left: BTreeSet<CheckpointId> = self.listing(None).await?.complete.into_iter().collect();
        while !left.is_empty() {
            let sweep = Lease::take(&self.backend, keys::sweep()).await?;
            let sweep = sweep.map_err(|held| {
                StoreError::BadRequest(format!("the store is being swept or merged by {}", held.owner))
            })?;
            let slice = self.replace_slice(&sweep, &mut left, renamed, merged).await;
            sweep.give_back().await?;
            slice?;
            if !left.is_empty() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    async fn replace_slice(
        &self,
        sweep: &Lease,
        left: &mut BTreeSet<CheckpointId>,
        renamed: &HashMap<Hash, Hash>,
        merged: &mut Merged,
    ) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < SLICE
            && sweep.is_sound()
            && let Some(id) = left.pop_first()
        {
            let manifest = match self.any_manifest(&id).await {
                Ok(Some(manifest)) => manifest,
                Ok(None) => continue,
                Err(error) if error.is_damage() => continue,
                Err(error) => return Err(error),
            };
            let new = |name: &Hash| renamed.get(name).copied();
            if !manifest.tables.iter().flatten().any(|name| new(name).is_some()) {
                continue;
            }
            let tables = manifest
                .tables
                .iter()
                .map(|name| name.map(|name| new(&name).unwrap_or(name)));
            let replacement = Manifest {
                tables: tables.collect(),
                ..manifest.clone()
            };
            let old = manifest.encode()?;
            self.backend
                .put(&keys::replaced_manifest(&id, Hash::of(&old)), old)
                .await?;
            self.backend
                .put_durable(&keys::manifest(&id), replacement.encode()?)
                .await?;
            merged.checkpoints += 1;
        }
        Ok(())
    }
}

/// The chunks of which few pages are needed, in the order of the first page that needs them; no more than [`MOST_CHUNKS`].
fn sparse<'a>(tables: impl Iterator<Item = &'a Table>) -> Vec<(Hash, Used)> {
    let mut order = Vec::new();
    let mut used: HashMap<Hash, Used> = HashMap::new();
    for table in tables {
        for place in &table.places {
            if let Place::Stored { chunk, index } = place {
                let name = table.chunks[*chunk as usize];
                let used = used.entry(name).or_insert_with(|| {
                    order.push(name);
                    Used::default()
                });
                used[usize::from(*index) / 64] |= 1 << (index % 64);
            }
        }
    }
    let sparse = order.into_iter().map(|name| (name, used[&name]));
    sparse
        .filter(|(_, used)| count(used) < SPARSE_PAGES)
        .take(MOST_CHUNKS)
        .collect()
}

fn count(used: &Used) -> u32 {
    used.iter().map(|word| word.count_ones()).sum()
}

fn moved_table(table: &Table, moves: &Moves) -> Option<Table> {
    let mut chunks = table.chunks.clone();
    let mut numbers: HashMap<Hash, u32> = HashMap::new();
    let mut places = Vec::with_capacity(table.places.len());
    for place in &table.places {
        places.push(match *place {
            Place::Stored { chunk, index } => match moves.get(&(table.chunks[chunk as usize], index)) {
                None => *place,
                Some((name, index)) => {
                    let chunk = *numbers.entry(*name).or_insert_with(|| {
                        chunks.push(*name);
                        chunks.len() as u32 - 1
                    });
                    Place::Stored { chunk, index: *index }
                }
            },
            other => other,
        });
    }
    Table::of(places.into_iter(), |chunk| chunks[chunk as usize])
}
