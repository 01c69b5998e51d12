//! Deleting checkpoints, and the objects that nobody needs any more.
//!
//! To delete a checkpoint is to put a mark beside its manifest: from then on it does not exist. A sweep removes what the mark
//! left: manifests that were marked before the oldest lease began, then tables and chunks that no other manifest names and that
//! were put before the oldest lease began. What a writer put is younger than its lease, and what it shares was named by a
//! manifest without a mark after its lease began: neither is touched ([`crate::lease`]). All times are the store's own.
//!
//! A sweep works in slices of a few seconds, so that who begins to write or read waits no longer.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::ObjectMeta;
use object_store::path::Path;
use serde::Serialize;

use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::id::{CheckpointId, check_vm};
use crate::keys;
use crate::lease::{self, Lease};
use crate::runtime::wait;
use crate::store::{Inner, Listing, Store};

/// How long a slice deletes.
const SLICE: Duration = Duration::from_secs(3);
/// Between slices, so that who waits gets in.
const PAUSE: Duration = Duration::from_millis(200);
/// Objects that are deleted or read at the same time.
const PARALLEL: usize = 16;

/// Which checkpoints of a VM are kept. The newest one always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// No more than this many.
    pub count: Option<usize>,
    /// None that is older.
    pub age: Option<Duration>,
}

/// What a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Manifests of deleted checkpoints, and old versions of merged ones.
    pub manifests: u64,
    /// Tables.
    pub tables: u64,
    /// Chunks.
    pub chunks: u64,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Objects that nobody needs and that stay for now: somebody writes or reads who may have seen them.
    pub kept_for_leases: u64,
}

impl Store {
    /// Deletes a checkpoint. What it alone needed goes with the next [`Store::sweep`]; who reads it just now may go on.
    ///
    /// # Errors
    /// [`StoreError::NoCheckpoint`]; when the store does not answer.
    pub fn delete(&self, id: &CheckpointId) -> Result<()> {
        let (inner, id) = (self.inner.clone(), id.clone());
        wait(async move {
            let listing = inner.listing(Some(id.vm())).await?;
            match listing.complete.contains(&id) {
                true => inner.mark_deleted(&id).await,
                false => Err(StoreError::NoCheckpoint(id)),
            }
        })
    }

    /// Deletes the checkpoints of a VM, or of each VM, that `retention` does not keep; answers which.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn prune(&self, vm: Option<&str>, retention: Retention) -> Result<Vec<CheckpointId>> {
        vm.map_or(Ok(()), check_vm)?;
        let (inner, vm) = (self.inner.clone(), vm.map(str::to_owned));
        wait(async move {
            let listing = inner.listing(vm.as_deref()).await?;
            let created = match retention.age {
                Some(_) => inner.created_ms(&listing).await?,
                None => HashMap::new(),
            };
            let now_ms = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis();
            let doomed = doomed(&listing.complete, retention, |id| {
                Duration::from_millis(
                    (now_ms as u64).saturating_sub(created.get(id).copied().unwrap_or(u64::MAX)),
                )
            });
            for id in &doomed {
                inner.mark_deleted(id).await?;
            }
            Ok(doomed)
        })
    }

    /// Waits until a sweep takes what was deleted before.
    pub fn settle(&self) {
        std::thread::sleep(self.inner.options.clock_slack + Duration::from_millis(10));
    }

    /// Removes the objects that no checkpoint needs.
    ///
    /// # Errors
    /// [`StoreError::BadRequest`] when somebody else sweeps; when a manifest or table of a checkpoint cannot be read, because then
    /// nobody knows what it needs; when the store does not answer.
    pub fn sweep(&self) -> Result<Swept> {
        let inner = self.inner.clone();
        wait(async move { inner.sweep().await })
    }
}

/// The checkpoints that go, oldest first.
fn doomed(
    complete: &[CheckpointId],
    retention: Retention,
    age: impl Fn(&CheckpointId) -> Duration,
) -> Vec<CheckpointId> {
    let mut doomed = Vec::new();
    for of_vm in complete.chunk_by(|a, b| a.vm() == b.vm()) {
        let (_newest, older) = of_vm.split_last().expect("a VM with a checkpoint");
        for (index, id) in older.iter().enumerate() {
            let newer = older.len() - index;
            let too_many = retention.count.is_some_and(|count| newer >= count);
            let too_old = retention.age.is_some_and(|most| age(id) > most);
            if too_many || too_old {
                doomed.push(id.clone());
            }
        }
    }
    doomed
}

/// What checkpoints need.
#[derive(Default)]
struct Needed {
    tables: HashSet<Hash>,
    chunks: HashSet<Hash>,
}

/// Manifests whose needs are known, so that later slices read new ones only: the object and the time of its last change.
type Read = HashSet<(Path, i64)>;

impl Inner {
    async fn mark_deleted(&self, id: &CheckpointId) -> Result<()> {
        let note = format!("deleted by process {}\n", std::process::id());
        self.backend.put(&keys::deleted(id), note.into_bytes()).await
    }

    /// When the guest was paused for each complete checkpoint. Of one that cannot be read nothing is known: it is left alone.
    async fn created_ms(&self, listing: &Listing) -> Result<HashMap<CheckpointId, u64>> {
        let reads = listing.complete.iter().map(|id| async move {
            match self.any_manifest(id).await {
                Ok(manifest) => Ok(manifest.map(|manifest| (manifest.id, manifest.created_ms))),
                Err(error) if error.is_damage() => Ok(None),
                Err(error) => Err(error),
            }
        });
        let reads: Vec<_> = reads.collect();
        let read = futures_util::stream::iter(reads).buffer_unordered(PARALLEL);
        read.try_filter_map(|created| async move { Ok(created) })
            .try_collect()
            .await
    }

    async fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut needed = Needed::default();
        let mut read = Read::default();
        loop {
            let lease = match Lease::take(&self.backend, keys::sweep()).await? {
                Ok(lease) => lease,
                Err(held) => {
                    let message = format!("the store is being swept already, by {}", held.owner);
                    return Err(StoreError::BadRequest(message));
                }
            };
            let done = self.slice(&lease, &mut swept, &mut needed, &mut read).await;
            lease.give_back().await?;
            if done? {
                return Ok(swept);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Sweeps for a while; answers whether all is done.
    async fn slice(
        &self,
        lease: &Lease,
        swept: &mut Swept,
        needed: &mut Needed,
        read: &mut Read,
    ) -> Result<bool> {
        let horizon_ms = self.horizon_ms(lease).await?;
        self.drop_manifests(lease, horizon_ms, swept).await?;
        self.find_needed(needed, read).await?;
        swept.kept_for_leases = 0;
        let began = Instant::now();
        for (folder, is_table) in [(keys::chunks(), false), (keys::tables(), true)] {
            let names = if is_table { &needed.tables } else { &needed.chunks };
            let unneeded = |meta: &ObjectMeta| {
                keys::read_hash(&meta.location).is_some_and(|name| !names.contains(&name))
            };
            let unneeded = self.backend.list(&folder).await?.into_iter().filter(unneeded);
            let (old, young): (Vec<_>, Vec<_>) =
                unneeded.partition(|meta| meta.last_modified.timestamp_millis() < horizon_ms);
            swept.kept_for_leases += young.len() as u64;
            for batch in old.chunks(PARALLEL) {
                if began.elapsed() > SLICE || !lease.is_sound() {
                    return Ok(false);
                }
                self.delete_all(batch).await?;
                swept.bytes += batch.iter().map(|meta| meta.size).sum::<u64>();
                let count = if is_table {
                    &mut swept.tables
                } else {
                    &mut swept.chunks
                };
                *count += batch.len() as u64;
            }
        }
        Ok(true)
    }

    /// What is older than this, nobody has seen who still works: when the oldest lease began.
    async fn horizon_ms(&self, lease: &Lease) -> Result<i64> {
        let mut horizon_ms = lease.began_ms();
        for folder in [keys::writers(), keys::readers()] {
            for meta in self.backend.list(&folder).await? {
                match lease::look(&self.backend, &meta.location).await? {
                    Some(held) if held.is_over() => self.backend.delete(&held.object).await?,
                    Some(held) => horizon_ms = horizon_ms.min(held.began_ms),
                    None => {}
                }
            }
        }
        Ok(horizon_ms - self.options.clock_slack.as_millis() as i64)
    }

    /// Removes the manifests of checkpoints deleted before `horizon_ms`, then their marks, and versions replaced before it. The
    /// mark of a VM's last checkpoint stays, so that its number is not used again.
    async fn drop_manifests(&self, lease: &Lease, horizon_ms: i64, swept: &mut Swept) -> Result<()> {
        let listing = self.listing(None).await?;
        let mut last: HashMap<&str, u64> = HashMap::new();
        for id in listing
            .manifests
            .keys()
            .chain(listing.deleted.iter().map(|(id, _)| id))
        {
            let last = last.entry(id.vm()).or_default();
            *last = id.number().max(*last);
        }
        for (id, marked_ms) in &listing.deleted {
            if *marked_ms >= horizon_ms {
                continue;
            }
            if !lease.is_sound() {
                return Err(StoreError::LeaseLost(keys::sweep().to_string()));
            }
            if listing.manifests.contains_key(id) {
                self.backend.delete(&keys::manifest(id)).await?;
                self.backend.delete(&keys::resumed(id)).await?;
                swept.manifests += 1;
            }
            if last[id.vm()] != id.number() {
                self.backend.delete(&keys::deleted(id)).await?;
            }
        }
        for meta in self.backend.list(&keys::replaced()).await? {
            if meta.last_modified.timestamp_millis() < horizon_ms {
                self.backend.delete(&meta.location).await?;
                swept.manifests += 1;
            }
        }
        Ok(())
    }

    /// Adds what the manifests that are there need, with a mark or without, and those that were replaced a short while ago.
    async fn find_needed(&self, needed: &mut Needed, read: &mut Read) -> Result<()> {
        let mut objects = Vec::new();
        for folder in [keys::checkpoints(None), keys::replaced()] {
            let metas = self.backend.list(&folder).await?;
            let is_manifest = |meta: &ObjectMeta| meta.location.extension() == Some(keys::MANIFEST);
            objects.extend(metas.into_iter().filter(is_manifest));
        }
        for meta in objects {
            let key = (meta.location, meta.last_modified.timestamp_millis());
            if read.contains(&key) {
                continue;
            }
            let Some(manifest) = self.manifest_at(&key.0).await? else {
                continue;
            };
            let tables = manifest.tables.iter().enumerate();
            let tables = tables.filter_map(|(index, name)| Some(((*name)?, manifest.table_pages(index))));
            let new: Vec<_> = tables.filter(|(name, _)| needed.tables.insert(*name)).collect();
            let reads = new.into_iter().map(|(name, pages)| self.chunks_of(name, pages));
            let mut chunks = futures_util::stream::iter(reads).buffer_unordered(PARALLEL);
            while let Some(chunks) = chunks.try_next().await? {
                needed.chunks.extend(chunks);
            }
            needed
                .chunks
                .extend(manifest.blobs().flat_map(|blob| &blob.pieces));
            read.insert(key);
        }
        Ok(())
    }

    async fn delete_all(&self, batch: &[ObjectMeta]) -> Result<()> {
        let deletes: Vec<_> = batch
            .iter()
            .map(|meta| self.backend.delete(&meta.location))
            .collect();
        futures_util::stream::iter(deletes)
            .buffer_unordered(PARALLEL)
            .try_collect()
            .await
    }
}
