//! Which store a command works on.

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
        Ok(Store::open(&self.store, StoreOptions::default())?)
    }
}
