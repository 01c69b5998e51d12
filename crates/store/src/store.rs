//! The store as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::path::Path;
use vmferry_core::RamLayout;

use crate::backend::Backend;
use crate::error::{Result, StoreError};
use crate::id::{CheckpointId, check_vm};
use crate::index::Index;
use crate::keys;
use crate::lease::{self, Lease};
use crate::location::{self, Opened};
use crate::manifest::{MAX_MANIFEST_BYTES, Manifest};
use crate::reader::Reader;
use crate::runtime::wait;
use crate::writer::{Draft, Writer};

/// How a store is used.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// How long one operation of the object store may take, with its retries, before it is an error.
    pub patience: Duration,
    /// Chunks that are packed or under way at the same time; bounds the memory a writer takes (256 KiB to 1 MiB each).
    pub in_flight: usize,
    /// The most bytes of unpacked chunks that a reader keeps.
    pub reader_cache_bytes: usize,
    /// By how much the store's clock may be wrong about which of two objects is older: object stores tell whole seconds. What
    /// was deleted waits that long for a sweep.
    pub clock_slack: Duration,
    /// Folder for the index of equal pages, which may be deleted at any time; in memory without. Who has none reads the hashes
    /// of all chunks when it begins.
    pub cache: Option<PathBuf>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            in_flight: 16,
            reader_cache_bytes: 64 << 20,
            clock_slack: Duration::from_secs(2),
            cache: None,
        }
    }
}

/// A store of checkpoints. Clones are the same store.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) backend: Backend,
    pub(crate) options: StoreOptions,
    pub(crate) index: Index,
}

/// What a begin of a checkpoint found.
pub(crate) struct Begun {
    pub(crate) lease: Lease,
    pub(crate) id: CheckpointId,
    pub(crate) parent: Option<Manifest>,
}

impl Store {
    /// Opens the store at `location`: a folder, which is made where it is not there, `s3://BUCKET/PREFIX` with keys, region and
    /// endpoint from the environment as AWS's own tools read them, or `memory:`, a new one that nobody else sees.
    ///
    /// # Errors
    /// When the location names no store, or the folder cannot be made. An S3 bucket is not asked anything yet.
    pub fn open(location: &str, options: StoreOptions) -> Result<Self> {
        let opened = location::open(location, options.patience)?;
        Ok(Self::with(opened, options))
    }

    /// A store in `objects`, called `name` in messages.
    pub fn on(name: &str, objects: Arc<dyn ObjectStore>, options: StoreOptions) -> Self {
        let opened = Opened::of(name, objects);
        Self::with(opened, options)
    }

    fn with(opened: Opened, options: StoreOptions) -> Self {
        // What nobody else sees needs no file.
        let cache = options
            .cache
            .as_deref()
            .filter(|_| opened.name != location::MEMORY);
        Self {
            inner: Arc::new(Inner {
                index: Index::new(&opened.name, cache),
                backend: Backend::new(opened, options.patience),
                options,
            }),
        }
    }

    /// Where it is.
    pub fn name(&self) -> &str {
        self.inner.backend.name()
    }

    /// Begins a checkpoint: takes the lease for writing the VM's, and finds out what the store has.
    ///
    /// # Errors
    /// [`StoreError::Busy`] when somebody else writes checkpoints of the VM; when the parent is not there or has other RAM; when
    /// the store does not answer.
    pub fn begin(&self, draft: Draft) -> Result<Writer> {
        check_vm(&draft.vm)?;
        let inner = self.inner.clone();
        wait(async move {
            let begun = inner
                .begin(&draft.vm, draft.parent.as_ref(), &draft.layout)
                .await?;
            let live = inner.live_chunks().await?;
            inner.index.learn(&inner.backend, &live).await;
            Ok(Writer::new(inner, begun, draft, live))
        })
    }

    /// The complete checkpoints, of one VM or of all, by VM and number.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn list(&self, vm: Option<&str>) -> Result<Vec<CheckpointId>> {
        vm.map_or(Ok(()), check_vm)?;
        let (inner, vm) = (self.inner.clone(), vm.map(str::to_owned));
        wait(async move { Ok(inner.listing(vm.as_deref()).await?.complete) })
    }

    /// What checkpoint `id` is.
    ///
    /// # Errors
    /// [`StoreError::NoCheckpoint`]; when it is damaged; when the store does not answer.
    pub fn manifest(&self, id: &CheckpointId) -> Result<Manifest> {
        let (inner, id) = (self.inner.clone(), id.clone());
        wait(async move { inner.manifest(&id).await })
    }

    /// Opens checkpoint `id` for reading. As long as the reader lives, nothing of it is swept, even if it is deleted.
    ///
    /// # Errors
    /// As [`Store::manifest`].
    pub fn reader(&self, id: &CheckpointId) -> Result<Reader> {
        let (inner, id) = (self.inner.clone(), id.clone());
        wait(async move {
            let lease = inner.reading().await?;
            let manifest = inner.manifest(&id).await?;
            Ok(Reader::new(&inner, manifest, lease))
        })
    }
}

/// The checkpoints of a store.
#[derive(Debug, Default)]
pub(crate) struct Listing {
    /// Those that are there, ascending.
    pub(crate) complete: Vec<CheckpointId>,
    /// Those with a mark that they are deleted, and when the mark was put by the store's clock.
    pub(crate) deleted: Vec<(CheckpointId, i64)>,
    /// Every manifest that is there, of deleted checkpoints too, and when it was put by the store's clock.
    pub(crate) manifests: BTreeMap<CheckpointId, i64>,
}

impl Inner {
    pub(crate) async fn listing(&self, vm: Option<&str>) -> Result<Listing> {
        let mut listing = Listing::default();
        for meta in self.backend.list(&keys::checkpoints(vm)).await? {
            match keys::read_checkpoint(&meta.location) {
                Some((id, kind)) if kind == keys::MANIFEST => {
                    listing
                        .manifests
                        .insert(id, meta.last_modified.timestamp_millis());
                }
                Some((id, kind)) if kind == keys::DELETED => {
                    listing.deleted.push((id, meta.last_modified.timestamp_millis()));
                }
                _ => {}
            }
        }
        let deleted: BTreeSet<_> = listing.deleted.iter().map(|(id, _)| id).collect();
        let complete = listing.manifests.keys().filter(|id| !deleted.contains(id));
        listing.complete = complete.cloned().collect();
        Ok(listing)
    }

    /// The manifest of a checkpoint that is not deleted.
    pub(crate) async fn manifest(&self, id: &CheckpointId) -> Result<Manifest> {
        let manifest = self.any_manifest(id).await?;
        match manifest {
            Some(manifest) if self.backend.head(&keys::deleted(id)).await?.is_none() => Ok(manifest),
            _ => Err(StoreError::NoCheckpoint(id.clone())),
        }
    }

    /// The manifest of a checkpoint, deleted or not.
    pub(crate) async fn any_manifest(&self, id: &CheckpointId) -> Result<Option<Manifest>> {
        let object = keys::manifest(id);
        let manifest = self.manifest_at(&object).await?;
        if let Some(other) = manifest.as_ref().filter(|manifest| manifest.id != *id) {
            let why = format!("it is the manifest of {}", other.id);
            return Err(StoreError::damaged(object.as_ref(), why));
        }
        Ok(manifest)
    }

    /// The manifest that is `object`.
    pub(crate) async fn manifest_at(&self, object: &Path) -> Result<Option<Manifest>> {
        let bytes = self.backend.get(object, MAX_MANIFEST_BYTES as u64).await?;
        bytes
            .map(|bytes| Manifest::decode(object.as_ref(), &bytes))
            .transpose()
    }

    async fn begin(&self, vm: &str, parent: Option<&CheckpointId>, layout: &RamLayout) -> Result<Begun> {
        let lease = match Lease::take(&self.backend, keys::writer(vm)).await? {
            Ok(lease) => lease,
            Err(held) => {
                return Err(StoreError::Busy {
                    vm: vm.to_owned(),
                    owner: held.owner.clone(),
                    seen_s: held.silent.as_secs(),
                    left_s: lease::LIFETIME.saturating_sub(held.silent).as_secs(),
                    object: held.object.to_string(),
                });
            }
        };
        lease::wait_for_sweep(&self.backend).await?;
        let listing = self.listing(Some(vm)).await?;
        let deleted = listing.deleted.iter().map(|(id, _)| id.number());
        let used = listing.manifests.keys().map(CheckpointId::number).chain(deleted);
        let number = used.max().map_or(1, |last| last + 1);
        let parent = match parent {
            None => None,
            Some(id) => {
                let manifest = self.manifest(id).await?;
                if manifest.layout != *layout {
                    let message =
                        format!("checkpoint {id} has other RAM than the guest: it cannot be the parent");
                    return Err(StoreError::BadRequest(message));
                }
                Some(manifest)
            }
        };
        Ok(Begun {
            lease,
            id: CheckpointId::new(vm, number)?,
            parent,
        })
    }

    /// A lease for reading. A store that can only be read does without: nobody sweeps it from here at least.
    pub(crate) async fn reading(&self) -> Result<Option<Lease>> {
        match Lease::take_unnamed(&self.backend).await {
            Ok(lease) => {
                lease::wait_for_sweep(&self.backend).await?;
                Ok(Some(lease))
            }
            Err(error) => {
                tracing::warn!(%error, "reading without a lease: a sweep meanwhile may delete what is read");
                Ok(None)
            }
        }
    }
}
