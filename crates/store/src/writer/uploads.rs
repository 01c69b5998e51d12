//! Chunks that are packed and put, a bounded number at a time.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};

use crate::chunk::{self, Packed};
use crate::error::{Result, StoreError};
use crate::hash::Hash;
use crate::keys;
use crate::runtime::runtime;
use crate::store::Inner;
use crate::writer::packer::Open;

/// The chunks of a checkpoint on their way.
pub(super) struct Uploads {
    inner: Arc<Inner>,
    state: Mutex<State>,
    /// Something ended.
    ended: Condvar,
}

#[derive(Default)]
struct State {
    under_way: usize,
    /// Of chunks of pages, by their number.
    names: HashMap<u32, Hash>,
    stored_bytes: u64,
    failure: Option<Arc<StoreError>>,
}

impl Uploads {
    pub(super) fn new(inner: Arc<Inner>) -> Arc<Self> {
        Arc::new(Self {
            inner,
            state: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// Fails when something under way did.
    pub(super) fn check(&self) -> Result<()> {
        match &self.state.lock().expect("not poisoned").failure {
            Some(failure) => Err(StoreError::WriteFailed(failure.clone())),
            None => Ok(()),
        }
    }

    /// Packs and puts a chunk of pages in the background; waits while too many are under way.
    pub(super) fn pages(self: &Arc<Self>, open: Open) -> Result<()> {
        self.start(Some(open.number), open.plain, open.hashes)
    }

    /// The same for a piece of a blob.
    pub(super) fn piece(self: &Arc<Self>, plain: Vec<u8>) -> Result<()> {
        self.start(None, plain, Vec::new())
    }

    fn start(self: &Arc<Self>, number: Option<u32>, plain: Vec<u8>, hashes: Vec<Hash>) -> Result<()> {
        {
            let most = self.inner.options.in_flight.max(1);
            let state = self.state.lock().expect("not poisoned");
            let full = |state: &mut State| state.under_way >= most && state.failure.is_none();
            let mut state = self.ended.wait_while(state, full).expect("not poisoned");
            if let Some(failure) = &state.failure {
                return Err(StoreError::WriteFailed(failure.clone()));
            }
            state.under_way += 1;
        }
        let uploads = self.clone();
        runtime().spawn(async move {
            let put = uploads.put(plain, hashes).await;
            let mut state = uploads.state.lock().expect("not poisoned");
            match put {
                Ok((name, bytes)) => {
                    state.stored_bytes += bytes;
                    number.map(|number| state.names.insert(number, name));
                }
                Err(error) => {
                    state.failure.get_or_insert(Arc::new(error));
                }
            }
            state.under_way -= 1;
            uploads.ended.notify_all();
        });
        Ok(())
    }

    async fn put(&self, plain: Vec<u8>, hashes: Vec<Hash>) -> Result<(Hash, u64)> {
        let packed = tokio::task::spawn_blocking(move || (chunk::pack(&plain, &hashes), hashes)).await;
        let (Packed { name, object }, hashes) = packed.expect("packing does not panic");
        let bytes = object.len() as u64;
        self.inner.backend.put(&keys::chunk(name), object).await?;
        self.inner.index.add(name, hashes).await;
        Ok((name, bytes))
    }

    /// Waits for everything under way. Answers the names of the chunks of pages and the bytes put.
    pub(super) fn finish(&self) -> Result<(HashMap<u32, Hash>, u64)> {
        let state = self.state.lock().expect("not poisoned");
        let busy = |state: &mut State| state.under_way > 0;
        let mut state = self.ended.wait_while(state, busy).expect("not poisoned");
        match &state.failure {
            Some(failure) => Err(StoreError::WriteFailed(failure.clone())),
            None => Ok((std::mem::take(&mut state.names), state.stored_bytes)),
        }
    }
}
