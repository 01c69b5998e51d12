//! The operations that the store needs of an object store, each with retries and an end.

use std::error::Error as _;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::TryStreamExt as _;
use object_store::path::Path;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions,
    PutPayload,
};

use crate::error::{Result, StoreError};
use crate::location::Opened;

/// How often an operation is tried in its time.
const ATTEMPTS: u32 = 4;
/// How long to wait before the second attempt; twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// A listing asks many times; it has this many times the patience of one operation.
const LISTING_PATIENCE: u32 = 10;

/// An object store with patience.
#[derive(Clone)]
pub(crate) struct Backend {
    name: Arc<str>,
    objects: Arc<dyn ObjectStore>,
    /// The same objects; what is put here outlasts a power failure once it is answered.
    durable: Arc<dyn ObjectStore>,
    folder: Option<Arc<PathBuf>>,
    patience: Duration,
    /// Bytes of objects that were read through this and its clones.
    bytes_read: Arc<AtomicU64>,
}

impl Backend {
    pub(crate) fn new(opened: Opened, patience: Duration) -> Self {
        Self {
            name: opened.name.into(),
            objects: opened.objects,
            durable: opened.durable,
            folder: opened.folder.map(Arc::new),
            patience,
            bytes_read: Arc::default(),
        }
    }

    /// The same, with a count of bytes read of its own.
    pub(crate) fn counted_apart(&self) -> Self {
        Self {
            bytes_read: Arc::default(),
            ..self.clone()
        }
    }

    /// Bytes of objects that were read through this and its clones.
    pub(crate) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// What the store calls itself in messages.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The whole object, none where it is not there.
    pub(crate) async fn get(&self, object: &Path, limit: u64) -> Result<Option<Vec<u8>>> {
        self.get_options(object, GetOptions::default(), limit).await
    }

    /// The first bytes of the object, at most `bytes`; none where it is not there.
    pub(crate) async fn get_head(&self, object: &Path, bytes: u64) -> Result<Option<Vec<u8>>> {
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(0..bytes)));
        self.get_options(object, options, bytes).await
    }

    async fn get_options(&self, object: &Path, options: GetOptions, limit: u64) -> Result<Option<Vec<u8>>> {
        let read = self.patiently("read", object, self.patience, || {
            let options = options.clone();
            async move {
                let answer = self.objects.get_opts(object, options).await?;
                let size = answer.range.end - answer.range.start;
                if size > limit {
                    return Ok(Err(size));
                }
                Ok(Ok(Vec::from(answer.bytes().await?)))
            }
        });
        match read.await {
            Ok(Ok(bytes)) => {
                self.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                Ok(Some(bytes))
            }
            Ok(Err(size)) => {
                let why = format!("it has {size} bytes, and no more than {limit} were expected");
                Err(StoreError::damaged(object.as_ref(), why))
            }
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts an object, over one of the same name.
    pub(crate) async fn put(&self, object: &Path, content: Vec<u8>) -> Result<()> {
        let payload = PutPayload::from(content);
        let put = || async { self.objects.put(object, payload.clone()).await.map(drop) };
        self.patiently("write", object, self.patience, put).await
    }

    /// The same, so that it outlasts a power failure.
    pub(crate) async fn put_durable(&self, object: &Path, content: Vec<u8>) -> Result<()> {
        let payload = PutPayload::from(content);
        let put = || async { self.durable.put(object, payload.clone()).await.map(drop) };
        self.patiently("write", object, self.patience, put).await
    }

    /// Puts an object where none of the name is, so that it outlasts a power failure. Answers whether it did; an attempt of ours whose answer was lost counts.
    pub(crate) async fn create(&self, object: &Path, content: Vec<u8>) -> Result<bool> {
        let payload = PutPayload::from(content.clone());
        let put = || async {
            let options = PutOptions::from(PutMode::Create);
            match self.durable.put_opts(object, payload.clone(), options).await {
                Ok(_) => Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
                Err(error) => Err(error),
            }
        };
        if self.patiently("create", object, self.patience, put).await? {
            return Ok(true);
        }
        let there = self.get(object, content.len() as u64).await;
        Ok(matches!(there, Ok(Some(there)) if there == content))
    }

    /// Deletes an object; it may be gone already.
    pub(crate) async fn delete(&self, object: &Path) -> Result<()> {
        let delete = || async { self.objects.delete(object).await };
        match self.patiently("delete", object, self.patience, delete).await {
            Err(StoreError::Missing { .. }) => Ok(()),
            answer => answer,
        }
    }

    /// What the store knows about an object; none where it is not there.
    pub(crate) async fn head(&self, object: &Path) -> Result<Option<ObjectMeta>> {
        let head = || async { self.objects.head(object).await };
        match self.patiently("look at", object, self.patience, head).await {
            Ok(meta) => Ok(Some(meta)),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All objects below `folder`, in no order.
    pub(crate) async fn list(&self, folder: &Path) -> Result<Vec<ObjectMeta>> {
        let list = || async {
            match self.objects.list(Some(folder)).try_collect().await {
                Err(Error::NotFound { .. }) => Ok(Vec::new()),
                answer => answer,
            }
        };
        self.patiently("list", folder, self.patience * LISTING_PATIENCE, list)
            .await
    }

    /// Everything put so far outlasts a power failure. Object stores promise that with each answer, folders do not.
    pub(crate) async fn make_durable(&self) -> Result<()> {
        let Some(folder) = self.folder.clone() else {
            return Ok(());
        };
        let sync = || {
            let folder = folder.clone();
            async move {
                let synced = tokio::task::spawn_blocking(move || {
                    let folder = std::fs::File::open(folder.as_path())?;
                    rustix::fs::syncfs(&folder).map_err(std::io::Error::from)
                });
                synced.await?.map_err(|error| Error::Generic {
                    store: "folder",
                    source: error.into(),
                })
            }
        };
        let everything = Path::default();
        self.patiently(
            "make durable",
            &everything,
            self.patience * LISTING_PATIENCE,
            sync,
        )
        .await
    }

    /// Tries until it works, is hopeless, or `patience` is over.
    async fn patiently<T, F>(
        &self,
        what: &'static str,
        object: &Path,
        patience: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let tries = async {
            let mut pause = FIRST_PAUSE.min(patience / 20);
            for _ in 1..ATTEMPTS {
                match attempt().await {
                    Err(error) if may_pass(&error) => {
                        tracing::debug!(%error, what, %object, "the store is asked again");
                        tokio::time::sleep(pause).await;
                        pause *= 2;
                    }
                    answer => return answer,
                }
            }
            attempt().await
        };
        match tokio::time::timeout(patience, tries).await {
            Ok(answer) => answer.map_err(|error| self.failed(what, object, error)),
            Err(_) => Err(StoreError::TimedOut {
                what,
                object: object.to_string(),
                store: self.name.to_string(),
                waited: patience,
            }),
        }
    }

    fn failed(&self, what: &'static str, object: &Path, source: Error) -> StoreError {
        let (object, store) = (object.to_string(), self.name.to_string());
        if matches!(source, Error::NotFound { .. }) {
            return StoreError::Missing { object };
        }
        let (full, source) = (is_full(&source), Box::new(source));
        match full {
            true => StoreError::Full {
                store,
                object,
                source,
            },
            false => StoreError::Operation {
                what,
                object,
                store,
                source,
            },
        }
    }
}

/// Whether another attempt may go better.
fn may_pass(error: &Error) -> bool {
    matches!(error, Error::Generic { .. } | Error::JoinError { .. }) && !is_full(error)
}

fn is_full(error: &Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{QuotaExceeded, StorageFull};
            return matches!(io.kind(), StorageFull | QuotaExceeded);
        }
        cause = error.source();
    }
    false
}
