//! Pages of checkpoints of this host, for guests on their way here.

use std::sync::Arc;

use vmferry_runtime::Holdings;
use vmferry_store::{Hash, Store, StoreOptions};

use super::host::LocalHost;

/// Folder of the state directory for indexes of equal pages, which may be deleted at any time.
const INDEX: &str = "store-index";

/// What the store of this host has.
struct Held {
    holdings: vmferry_store::Holdings,
    fingerprints: Vec<u64>,
}

impl Holdings for Held {
    fn fingerprints(&self) -> &[u64] {
        &self.fingerprints
    }

    fn read(&self, hash: &[u8; 32], page: &mut [u8]) -> Result<bool, String> {
        let read = self.holdings.read(Hash(*hash), page);
        read.map_err(|error| crate::failure::chain(&error.into()))
    }
}

impl LocalHost {
    /// How this daemon uses a store of which it looks pages up.
    pub(super) fn store_options(&self) -> StoreOptions {
        StoreOptions {
            cache: Some(self.state.path().join(INDEX)),
            ..StoreOptions::default()
        }
    }

    /// Pages of checkpoints that may be pages of `name`; none where the store cannot be read: then all pages cross.
    pub(super) fn held(&self, name: &str, most: u64) -> Option<Arc<dyn Holdings>> {
        let open = || -> anyhow::Result<Held> {
            let holdings = Store::open(&self.store, self.store_options())?.holdings()?;
            let pages = holdings.pages_like(name, most as usize)?;
            Ok(Held {
                fingerprints: pages.iter().map(Hash::fingerprint).collect(),
                holdings,
            })
        };
        match open() {
            Ok(held) => Some(Arc::new(held)),
            Err(error) => {
                let error = crate::failure::chain(&error);
                tracing::warn!(
                    error,
                    store = self.store,
                    "nothing of the store is used for {name}"
                );
                None
            }
        }
    }
}
