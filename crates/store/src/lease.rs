//! Leases: who works in a store just now.
//!
//! | object | held by | keeps out |
//! |---|---|---|
//! | `leases/writer/VM` | who takes a checkpoint of the VM | other writers of the VM |
//! | `leases/reader/RANDOM` | who reads a checkpoint | nobody |
//! | `leases/sweep` | who deletes objects that nobody needs | other sweeps; who begins to write or read waits |
//!
//! A lease is put where none is, renewed every [`RENEWAL`], and anybody may take it away when it was not renewed for
//! [`LIFETIME`] by the store's own clock, or at once when its process ran on this host and does not any more.
//!
//! *What they are for.* A sweep deletes nothing that was written or marked as deleted after the oldest lease began, so what a
//! writer or a reader saw when it began stays until it ends. Who begins puts its lease first and looks for a sweep then; a
//! sweep puts its own first and looks for leases then; so one of the two sees the other. That two writers cannot both
//! commit does not depend on leases: the manifest itself is put only where none is.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use object_store::path::Path;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::backend::Backend;
use crate::error::{Result, StoreError};
use crate::runtime::runtime;

/// How long a lease lasts that nobody renews.
pub const LIFETIME: Duration = Duration::from_secs(60);
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(15);
/// How long its holder relies on it after a renewal, so that nobody else has it yet.
const RELIANCE: Duration = Duration::from_secs(40);
/// How long who begins waits for a sweep, which takes the lease for short slices only.
const SWEEP_PATIENCE: Duration = Duration::from_secs(90);
const SWEEP_POLL: Duration = Duration::from_millis(50);
const MAX_LEASE_BYTES: u64 = 16 << 10;

/// Nonces of leases of this process that nobody holds any more, though the store may still have them: it did not answer when
/// they were given back. Whoever of this process wants one of them need not wait until it ends.
static ABANDONED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A lease that this process holds; given back when it is dropped.
pub(crate) struct Lease {
    backend: Backend,
    object: Path,
    body: Body,
    /// When the store had it, by the store's clock, in ms since 1970.
    began_ms: i64,
    health: Arc<Health>,
    renewal: JoinHandle<()>,
}

#[derive(Debug)]
struct Health {
    lost: AtomicBool,
    renewed: Mutex<Instant>,
}

/// What stands in the object of a lease.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Body {
    /// For the operator.
    owner: String,
    /// Which holder of all.
    nonce: String,
    process: Process,
    /// When it began by the store's clock; its holder knows that only after the first put.
    #[serde(default)]
    began_ms: Option<i64>,
}

/// A process, so that another one on the same host can tell whether it lives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Process {
    /// The boot and the namespace in which `pid` means something.
    host: String,
    pid: u32,
    /// When it started, in clock ticks after the boot: numbers of processes are used again.
    started: u64,
}

/// Somebody else's lease.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) object: Path,
    pub(crate) owner: String,
    pub(crate) began_ms: i64,
    /// Since its last renewal, by the store's clock.
    pub(crate) silent: Duration,
    /// What it was taken with.
    nonce: Option<String>,
    dead: bool,
}

impl Held {
    /// Whether anybody may take it away.
    pub(crate) fn is_over(&self) -> bool {
        self.dead || self.silent > LIFETIME
    }
}

impl Lease {
    /// Takes the lease `object`; answers who has it where somebody lives who does.
    pub(crate) async fn take(backend: &Backend, object: Path) -> Result<Result<Self, Held>> {
        let body = Body {
            owner: owner(),
            nonce: nonce(),
            process: Process::this(),
            began_ms: None,
        };
        let nonce = body.nonce.clone();
        // A failure may have come after the store had it.
        Self::take_as(backend, object, body)
            .await
            .inspect_err(|_| abandon(nonce))
    }

    async fn take_as(backend: &Backend, object: Path, body: Body) -> Result<Result<Self, Held>> {
        loop {
            let asked = Instant::now();
            // Where the answer to the first try was lost, the next finds what that put there: it is ours all the same.
            let created = backend.create(&object, body.bytes()).await?;
            let found = match created {
                true => None,
                false => look(backend, &object).await?,
            };
            let is_ours = found
                .as_ref()
                .is_some_and(|held| held.nonce.as_ref() == Some(&body.nonce));
            if created || is_ours {
                let meta = backend.head(&object).await?;
                let began_ms = meta.map(|meta| meta.last_modified.timestamp_millis());
                let began_ms = began_ms.ok_or_else(|| StoreError::LeaseLost(object.to_string()))?;
                return Ok(Ok(Self::hold(backend.clone(), object, body, began_ms, asked)));
            }
            match found {
                Some(held) if !held.is_over() => return Ok(Err(held)),
                Some(held) => {
                    tracing::info!(owner = held.owner, %object, "a lease that is over is taken away");
                    backend.delete(&object).await?;
                }
                None => {}
            }
        }
    }

    /// Takes a lease to read, of which there may be any number.
    pub(crate) async fn take_unnamed(backend: &Backend) -> Result<Self> {
        let object = crate::keys::reader(&nonce());
        match Self::take(backend, object).await? {
            Ok(lease) => Ok(lease),
            Err(held) => Err(StoreError::LeaseLost(held.object.to_string())),
        }
    }

    fn hold(backend: Backend, object: Path, mut body: Body, began_ms: i64, asked: Instant) -> Self {
        body.began_ms = Some(began_ms);
        let health = Arc::new(Health {
            lost: AtomicBool::new(false),
            renewed: Mutex::new(asked),
        });
        let renewal = runtime().spawn(renew(
            backend.clone(),
            object.clone(),
            body.clone(),
            health.clone(),
        ));
        Self {
            backend,
            object,
            body,
            began_ms,
            health,
            renewal,
        }
    }

    /// When it began, by the store's clock, in ms since 1970.
    pub(crate) fn began_ms(&self) -> i64 {
        self.began_ms
    }

    /// Whether it can be relied on without asking the store.
    pub(crate) fn is_sound(&self) -> bool {
        let renewed = *self.health.renewed.lock().expect("not poisoned");
        !self.health.lost.load(Ordering::Acquire) && renewed.elapsed() < RELIANCE
    }

    /// Asks the store whether the lease is still this one's.
    pub(crate) async fn confirm(&self) -> Result<()> {
        let there = self.backend.get(&self.object, MAX_LEASE_BYTES).await?;
        match there.as_deref().and_then(Body::read) {
            Some(body) if body.nonce == self.body.nonce && self.is_sound() => Ok(()),
            _ => Err(StoreError::LeaseLost(self.object.to_string())),
        }
    }

    /// Gives it back.
    pub(crate) async fn give_back(self) -> Result<()> {
        self.renewal.abort();
        let answer = match self.confirm().await {
            Ok(()) => self.backend.delete(&self.object).await,
            Err(error) => Err(error),
        };
        self.health.lost.store(true, Ordering::Release);
        // The store may still have it.
        answer.inspect_err(|_| abandon(self.body.nonce.clone()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
        if self.health.lost.load(Ordering::Acquire) {
            return;
        }
        let (backend, object, nonce) = (self.backend.clone(), self.object.clone(), self.body.nonce.clone());
        abandon(nonce.clone());
        // In the background: who gives up a checkpoint because the store hangs should not hang as well.
        runtime().spawn(async move {
            let there = backend.get(&object, MAX_LEASE_BYTES).await;
            if let Ok(Some(there)) = there
                && Body::read(&there).is_some_and(|body| body.nonce == nonce)
                && let Err(error) = backend.delete(&object).await
            {
                tracing::debug!(%error, "a lease could not be given back; it ends by itself");
            }
        });
    }
}

fn abandon(nonce: String) {
    ABANDONED.lock().expect("not poisoned").insert(nonce);
}

fn is_abandoned(nonce: &str) -> bool {
    ABANDONED.lock().expect("not poisoned").contains(nonce)
}

async fn renew(backend: Backend, object: Path, body: Body, health: Arc<Health>) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        let asked = Instant::now();
        let there = match backend.get(&object, MAX_LEASE_BYTES).await {
            Ok(there) => there,
            Err(error) => {
                tracing::warn!(%error, "a lease could not be renewed");
                continue;
            }
        };
        if there
            .as_deref()
            .and_then(Body::read)
            .is_none_or(|there| there.nonce != body.nonce)
        {
            health.lost.store(true, Ordering::Release);
            return;
        }
        match backend.put(&object, body.bytes()).await {
            Ok(()) => *health.renewed.lock().expect("not poisoned") = asked,
            Err(error) => tracing::warn!(%error, "a lease could not be renewed"),
        }
    }
}

/// Who holds the lease `object`; none where nobody does.
pub(crate) async fn look(backend: &Backend, object: &Path) -> Result<Option<Held>> {
    let Some(meta) = backend.head(object).await? else {
        return Ok(None);
    };
    let Some(bytes) = backend.get(object, MAX_LEASE_BYTES).await? else {
        return Ok(None);
    };
    let renewed_ms = meta.last_modified.timestamp_millis();
    let silent_ms = now_ms(backend).await?.saturating_sub(renewed_ms);
    let body = Body::read(&bytes);
    Ok(Some(Held {
        object: object.clone(),
        owner: body
            .as_ref()
            .map_or_else(|| "somebody".to_owned(), |body| body.owner.clone()),
        began_ms: body.as_ref().and_then(|body| body.began_ms).unwrap_or(renewed_ms),
        silent: Duration::from_millis(silent_ms.max(0) as u64),
        nonce: body.as_ref().map(|body| body.nonce.clone()),
        dead: body.is_some_and(|body| body.process.is_dead() || is_abandoned(&body.nonce)),
    }))
}

/// Waits until nobody sweeps; who calls has put a lease before.
pub(crate) async fn wait_for_sweep(backend: &Backend) -> Result<()> {
    let object = crate::keys::sweep();
    let asked = Instant::now();
    loop {
        match look(backend, &object).await? {
            None => return Ok(()),
            Some(held) if held.is_over() => {
                backend.delete(&object).await?;
            }
            Some(held) if asked.elapsed() > SWEEP_PATIENCE => {
                let message = format!(
                    "the store is being swept by {}: try again when it is done",
                    held.owner
                );
                return Err(StoreError::BadRequest(message));
            }
            Some(_) => tokio::time::sleep(SWEEP_POLL).await,
        }
    }
}

/// What time it is by the store's clock: that of an object put just now.
pub(crate) async fn now_ms(backend: &Backend) -> Result<i64> {
    let object = crate::keys::clock(&nonce());
    backend.put(&object, b"what time is it\n".to_vec()).await?;
    let meta = backend.head(&object).await?;
    backend.delete(&object).await?;
    let missing = || StoreError::Missing {
        object: object.to_string(),
    };
    meta.map(|meta| meta.last_modified.timestamp_millis())
        .ok_or_else(missing)
}

impl Body {
    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a lease serializes")
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

impl Process {
    fn this() -> Self {
        let pid = std::process::id();
        Self {
            host: host().unwrap_or_default(),
            pid,
            started: started(pid).unwrap_or_default(),
        }
    }

    /// Whether it certainly does not live: it ran on this host, and no such process is there.
    fn is_dead(&self) -> bool {
        let here = host().is_some_and(|host| host == self.host);
        here && started(self.pid) != Some(self.started)
    }
}

/// This boot of this host, and the namespace of its processes.
fn host() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    Some(format!("{} {}", boot.trim(), namespace.display()))
}

/// When process `pid` started: the 22nd field of its `stat`, after the name in parentheses.
fn started(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

fn owner() -> String {
    let name = rustix::system::uname();
    format!(
        "process {} on {}",
        std::process::id(),
        name.nodename().to_string_lossy()
    )
}

/// A text that no other holder has.
fn nonce() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Keys of a hash map are random for each process and differ each time.
    let random = RandomState::new().hash_one((time, std::process::id()));
    let other = RandomState::new().hash_one(random);
    format!("{random:016x}{other:016x}")
}
