//! Which store a command works on.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vmferry_store::{Store, StoreOptions};

/// Where checkpoints are kept unless said otherwise.
pub(crate) const DEFAULT_STORE: &str = "/var/lib/vmferry/checkpoints";

/// The store.
#[derive(Clone, Debug, Args)]
pub(crate) struct StoreArgs {
    /// Where checkpoints are kept: a folder, or s3://BUCKET/PREFIX
    ///
    /// Keys, region and endpoint of S3 are taken from the environment as AWS's own tools do: AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL. The store must put objects only where none is (`If-None-Match`).
    #[arg(long, value_name = "URL", env = "VMFERRY_STORE", default_value = DEFAULT_STORE)]
    pub(crate) store: String,
}

impl StoreArgs {
    pub(crate) fn open(&self) -> Result<Store> {
        open(&self.store)
    }
}

/// Opens the store at `location`, with an index of equal pages in this user's cache.
pub(crate) fn open(location: &str) -> Result<Store> {
    let options = StoreOptions {
        cache: cache(),
        ..StoreOptions::default()
    };
    Ok(Store::open(location, options)?)
}

/// As CONTRIBUTING.md says: it may be deleted at any time.
fn cache() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let folder = set("VMFERRY_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("vmferry")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/vmferry")))?;
    Some(folder.join("stores"))
}
