//! An object store that fails when it is told to.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How an operation goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused, and nothing happens.
    Refuse,
    /// It happens, and the answer is lost.
    LoseAnswer,
    /// It never answers, and nothing happens.
    Hang,
    /// Half of what is put arrives where nothing was, and the answer is lost: no object store should, a folder may when the power
    /// fails. Manifests are put so that it does not happen to them.
    Tear,
    /// There is no room for what is put.
    Full,
}

/// Which operations go wrong: `count` of them after `after` others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) fault: Fault,
    pub(crate) after: u64,
    pub(crate) count: u64,
}

/// An object store in memory with a plan.
#[derive(Debug, Default)]
pub(crate) struct Faulty {
    pub(crate) objects: InMemory,
    plan: Mutex<Option<Plan>>,
    operations: AtomicU64,
}

impl Faulty {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From here on operations go wrong as `plan` says.
    pub(crate) fn set(&self, plan: Option<Plan>) {
        *self.plan.lock().unwrap() = plan;
        self.operations.store(0, Ordering::SeqCst);
    }

    /// Operations since the plan was set.
    pub(crate) fn operations(&self) -> u64 {
        self.operations.load(Ordering::SeqCst)
    }

    fn fault(&self) -> Option<Fault> {
        let index = self.operations.fetch_add(1, Ordering::SeqCst);
        let plan = *self.plan.lock().unwrap();
        plan.filter(|plan| (plan.after..plan.after + plan.count).contains(&index))
            .map(|plan| plan.fault)
    }

    async fn around<T>(&self, operation: impl Future<Output = Result<T>>) -> Result<T> {
        match self.fault() {
            None => operation.await,
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::LoseAnswer) => {
                let _ = operation.await;
                Err(failed("the answer was lost"))
            }
            Some(Fault::Refuse | Fault::Tear) => Err(failed("refused")),
            Some(Fault::Full) => Err(full()),
        }
    }
}

fn failed(why: &str) -> Error {
    Error::Generic {
        store: "faulty",
        source: why.into(),
    }
}

fn full() -> Error {
    Error::Generic {
        store: "faulty",
        source: std::io::Error::from(std::io::ErrorKind::StorageFull).into(),
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        match self.fault() {
            None => self.objects.put_opts(location, payload, options).await,
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Refuse) => Err(failed("refused")),
            Some(Fault::Full) => Err(full()),
            Some(Fault::LoseAnswer) => {
                let _ = self.objects.put_opts(location, payload, options).await;
                Err(failed("the answer was lost"))
            }
            Some(Fault::Tear) => {
                let all: Vec<u8> = payload.iter().flatten().copied().collect();
                let half = PutPayload::from(all[..all.len() / 2].to_vec());
                if location.extension() != Some("manifest") && self.objects.head(location).await.is_err() {
                    let _ = self.objects.put_opts(location, half, options).await;
                }
                Err(failed("torn"))
            }
        }
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.around(self.objects.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.fault() {
            None => self.objects.delete_stream(locations),
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(Fault::LoseAnswer) => {
                let deleted = self.objects.delete_stream(locations);
                deleted
                    .and_then(|_| async { Err(failed("the answer was lost")) })
                    .boxed()
            }
            Some(_) => stream::once(async { Err(failed("refused")) }).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.fault() {
            None => self.objects.list(prefix),
            Some(Fault::Hang) => stream::pending().boxed(),
            Some(_) => {
                let some = self.objects.list(prefix).take(1);
                some.chain(stream::once(async { Err(failed("the list broke off")) }))
                    .boxed()
            }
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.around(self.objects.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.around(self.objects.copy_opts(from, to, options)).await
    }
}
