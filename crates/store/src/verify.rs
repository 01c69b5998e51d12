//! Proving that checkpoints can be read, and naming what is damaged.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use futures_util::StreamExt as _;
use serde::Serialize;

use crate::chunk::MAX_CHUNK_BYTES;
use crate::error::Result;
use crate::hash::Hash;
use crate::id::{CheckpointId, check_vm};
use crate::keys;
use crate::manifest::Manifest;
use crate::reader::read_chunk;
use crate::runtime::wait;
use crate::store::{Inner, Store};
use crate::table::{Place, Table};
use vmferry_core::PAGE_SIZE;

/// Objects that are read at the same time.
const PARALLEL: usize = 8;

/// What a verification is about.
#[derive(Clone, Debug)]
pub enum Scope {
    /// Every checkpoint.
    All,
    /// Those of a VM.
    Vm(String),
    /// One.
    One(CheckpointId),
}

/// What a verification found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Checkpoints that were looked at.
    pub checkpoints: u64,
    /// Tables read.
    pub tables: u64,
    /// Chunks read.
    pub chunks: u64,
    /// Bytes of unpacked chunks.
    pub bytes: u64,
    /// What is missing or damaged, by object.
    pub damage: Vec<Damage>,
}

/// An object that is missing or damaged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Its name in the store.
    pub object: String,
    /// What is wrong.
    pub why: String,
    /// The checkpoints that need it.
    pub checkpoints: Vec<CheckpointId>,
}

/// Which checkpoints need a chunk, and how much of it.
#[derive(Default)]
struct Need {
    checkpoints: BTreeSet<CheckpointId>,
    bytes: u64,
}

impl Store {
    /// Reads every object of the checkpoints in `scope` once, and checks it against its hash. `progress` is told how many chunks
    /// were read, and of how many.
    ///
    /// # Errors
    /// When the store does not answer, or [`StoreError::NoCheckpoint`](crate::StoreError::NoCheckpoint). Damage is no error: it is in
    /// the answer.
    pub fn verify(
        &self,
        scope: Scope,
        progress: impl Fn(u64, u64) + Send + Sync + 'static,
    ) -> Result<Verified> {
        if let Scope::Vm(vm) = &scope {
            check_vm(vm)?;
        }
        let inner = self.inner.clone();
        wait(async move { inner.verify(scope, &progress).await })
    }
}

impl Inner {
    async fn verify(&self, scope: Scope, progress: &(impl Fn(u64, u64) + Send + Sync)) -> Result<Verified> {
        let lease = self.reading().await?;
        let ids = match scope {
            Scope::All => self.listing(None).await?.complete,
            Scope::Vm(vm) => self.listing(Some(&vm)).await?.complete,
            Scope::One(id) => match self.manifest(&id).await {
                Err(error) if !error.is_damage() => return Err(error),
                _ => vec![id],
            },
        };
        let mut found = Findings::default();
        let mut needs: HashMap<Hash, Need> = HashMap::new();
        for id in ids {
            found.verified.checkpoints += 1;
            match self.any_manifest(&id).await {
                Ok(Some(manifest)) => self.verify_tables(&manifest, &mut needs, &mut found).await?,
                // Deleted and swept meanwhile.
                Ok(None) => {}
                Err(error) => found.note(keys::manifest(&id).to_string(), error, [&id])?,
            }
        }
        self.verify_chunks(needs, &mut found, progress).await?;
        drop(lease);
        Ok(found.finish())
    }

    async fn verify_tables(
        &self,
        manifest: &Manifest,
        needs: &mut HashMap<Hash, Need>,
        found: &mut Findings,
    ) -> Result<()> {
        for (index, name) in manifest.tables.iter().enumerate() {
            let Some(name) = *name else { continue };
            let object = keys::table(name).to_string();
            match self.table(name, manifest.table_pages(index)).await {
                Ok(table) => {
                    found.tables.insert(name);
                    table_needs(&table, &manifest.id, needs);
                }
                Err(error) => found.note(object, error, [&manifest.id])?,
            }
        }
        for blob in manifest.blobs() {
            let mut left = blob.bytes;
            for piece in &blob.pieces {
                let bytes = left.min(MAX_CHUNK_BYTES as u64);
                add_need(needs, *piece, &manifest.id, bytes);
                left -= bytes;
            }
        }
        Ok(())
    }

    async fn verify_chunks(
        &self,
        needs: HashMap<Hash, Need>,
        found: &mut Findings,
        progress: &(impl Fn(u64, u64) + Send + Sync),
    ) -> Result<()> {
        let total = needs.len() as u64;
        let reads = needs.into_iter().map(|(name, need)| async move {
            let read = read_chunk(&self.backend, name).await;
            (name, need, read)
        });
        let mut reads = futures_util::stream::iter(reads).buffer_unordered(PARALLEL);
        while let Some((name, need, read)) = reads.next().await {
            let object = keys::chunk(name).to_string();
            match read {
                Ok(content) => {
                    found.verified.bytes += content.len() as u64;
                    if (content.len() as u64) < need.bytes {
                        let why = format!("it has {} bytes, and {} are needed", content.len(), need.bytes);
                        let error = crate::StoreError::damaged(object.clone(), why);
                        found.note(object, error, &need.checkpoints)?;
                    }
                }
                Err(error) => found.note(object, error, &need.checkpoints)?,
            }
            found.verified.chunks += 1;
            progress(found.verified.chunks, total);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Findings {
    verified: Verified,
    tables: HashSet<Hash>,
    damage: BTreeMap<String, (String, BTreeSet<CheckpointId>)>,
}

impl Findings {
    /// Notes damage; an error of another kind ends the verification.
    fn note<'a>(
        &mut self,
        object: String,
        error: crate::StoreError,
        checkpoints: impl IntoIterator<Item = &'a CheckpointId>,
    ) -> Result<()> {
        let why = match error {
            crate::StoreError::Damaged { why, .. } => why,
            crate::StoreError::Missing { .. } => "it is missing".to_owned(),
            error if error.is_damage() => error.to_string(),
            error => return Err(error),
        };
        let (_, affected) = self.damage.entry(object).or_insert((why, BTreeSet::new()));
        affected.extend(checkpoints.into_iter().cloned());
        Ok(())
    }

    fn finish(mut self) -> Verified {
        self.verified.tables = self.tables.len() as u64;
        let damage = self
            .damage
            .into_iter()
            .map(|(object, (why, checkpoints))| Damage {
                object,
                why,
                checkpoints: checkpoints.into_iter().collect(),
            });
        self.verified.damage = damage.collect();
        self.verified
    }
}

fn table_needs(table: &Table, id: &CheckpointId, needs: &mut HashMap<Hash, Need>) {
    let mut last = vec![0u64; table.chunks.len()];
    for place in &table.places {
        if let Place::Stored { chunk, index } = place {
            let bytes = (u64::from(*index) + 1) * PAGE_SIZE;
            last[*chunk as usize] = last[*chunk as usize].max(bytes);
        }
    }
    for (name, bytes) in table.chunks.iter().zip(last) {
        add_need(needs, *name, id, bytes);
    }
}

fn add_need(needs: &mut HashMap<Hash, Need>, chunk: Hash, id: &CheckpointId, bytes: u64) {
    let need = needs.entry(chunk).or_default();
    need.bytes = need.bytes.max(bytes);
    if !need.checkpoints.contains(id) {
        need.checkpoints.insert(id.clone());
    }
}
