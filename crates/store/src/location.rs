//! Where a store is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::error::{Result, StoreError};

/// A store in memory.
pub(crate) const MEMORY: &str = "memory:";

/// A store's objects, before anything is read or written.
pub(crate) struct Opened {
    pub(crate) name: String,
    pub(crate) objects: Arc<dyn ObjectStore>,
    /// The same objects; what is put here outlasts a power failure once it is answered.
    pub(crate) durable: Arc<dyn ObjectStore>,
    /// The folder, for a local one.
    pub(crate) folder: Option<PathBuf>,
}

impl Opened {
    /// Objects that outlast everything once they are put.
    pub(crate) fn of(name: &str, objects: Arc<dyn ObjectStore>) -> Self {
        Self {
            name: name.to_owned(),
            durable: objects.clone(),
            objects,
            folder: None,
        }
    }
}

/// Opens what `location` names: a folder (made where it is not there), `file://FOLDER`, `s3://BUCKET[/PREFIX]` with keys,
/// region and endpoint in the environment as AWS's own tools read them, or `memory:`.
pub(crate) fn open(location: &str, patience: Duration) -> Result<Opened> {
    match location.split_once(':') {
        _ if location == MEMORY => Ok(Opened::of(location, Arc::new(InMemory::new()))),
        Some(("s3", rest)) => s3(location, rest.strip_prefix("//").unwrap_or(rest), patience),
        Some(("file", path)) => folder(location, Path::new(path.strip_prefix("//").unwrap_or(path))),
        Some((scheme, rest)) if rest.starts_with("//") => {
            Err(bad(location, &format!("stores of {scheme}: are not known")))
        }
        _ => folder(location, Path::new(location)),
    }
}

fn folder(location: &str, path: &Path) -> Result<Opened> {
    if path.as_os_str().is_empty() {
        return Err(bad(location, &"the name of the folder is empty"));
    }
    let made = std::fs::create_dir_all(path).and_then(|()| path.canonicalize());
    let path = made.map_err(|error| bad(location, &format!("the folder cannot be made: {error}")))?;
    let objects = LocalFileSystem::new_with_prefix(&path).map_err(|error| bad(location, &error))?;
    Ok(Opened {
        name: path.display().to_string(),
        durable: Arc::new(objects.clone().with_fsync(true)),
        objects: Arc::new(objects),
        folder: Some(path),
    })
}

fn s3(location: &str, rest: &str, patience: Duration) -> Result<Opened> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(bad(location, &"the bucket is missing"));
    }
    // Two providers of cryptography would panic at run time; one is chosen here where nobody has yet.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let retry = RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(2),
            base: 2.0,
        },
        max_retries: 4,
        retry_timeout: patience,
    };
    let client = ClientOptions::new()
        .with_timeout(patience)
        .with_connect_timeout(patience.min(Duration::from_secs(5)));
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        // One object at a time is deleted, and not every store knows how to delete many.
        .with_disable_bulk_delete(true)
        .with_retry(retry)
        .with_client_options(client);
    // An endpoint of plain HTTP is asked for by name, so it is meant.
    let plain = |name: &str| std::env::var(name).is_ok_and(|endpoint| endpoint.starts_with("http://"));
    if plain("AWS_ENDPOINT_URL_S3") || plain("AWS_ENDPOINT_URL") || plain("AWS_ENDPOINT") {
        builder = builder.with_allow_http(true);
    }
    let objects = builder.build().map_err(|error| bad(location, &error))?;
    let prefix = prefix.trim_matches('/');
    let objects: Arc<dyn ObjectStore> = match prefix {
        "" => Arc::new(objects),
        prefix => Arc::new(PrefixStore::new(objects, prefix)),
    };
    Ok(Opened::of(location, objects))
}

fn bad(location: &str, why: &impl std::fmt::Display) -> StoreError {
    StoreError::BadLocation {
        location: location.to_owned(),
        why: why.to_string(),
    }
}
