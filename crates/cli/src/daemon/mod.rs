//! The daemon of a host: keeps its guests, moves them, takes them in.
//!
//! Nothing of a migration is decided here. Page paths run on threads of `vmferry-runtime`; `tokio` serves the API and
//! nothing else.

mod agent;
mod api;
mod checkpoints;
mod disks;
mod history;
mod holdings;
mod host;
mod incoming;
mod outgoing;
mod paths;
mod recordings;
mod recovery;
mod refusal;
mod registry;
mod reports;
mod resuming;
mod samplers;
pub mod shutdown;
mod state_dir;

use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use vmferry_core::sampling::Budget;
use vmferry_runtime::Incoming;
use vmferry_transport::{Endpoint, Listener};

use crate::api::HostInfo;
use host::LocalHost;
use samplers::Samplers;
use state_dir::StateDir;

/// What a daemon is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where guests arrive. TCP port 0 lets the system choose.
    pub listen: Endpoint,
    /// Where guests and reports are kept.
    pub state_dir: PathBuf,
    /// The socket of the API; `api.sock` in the state directory where absent.
    pub api: Option<PathBuf>,
    /// The most page streams of a guest that arrives.
    pub max_streams: u16,
    /// The share of its guests' time that learning about them may cost; absent: nothing is learned.
    pub sampling: Option<Budget>,
    /// Where checkpoints are: a folder or a URL; `store` in the state directory where absent.
    pub store: Option<String>,
}

/// A daemon that runs. Dropping it stops it.
pub struct Daemon {
    host: Arc<LocalHost>,
    incoming: Arc<Incoming>,
    info: HostInfo,
    /// Before the others in the order of dropping, were it not stopped by hand.
    server: Option<api::Server>,
}

impl Daemon {
    /// Locks the state directory, recovers the guests of the daemon before, and only then answers anybody.
    ///
    /// # Errors
    /// When another daemon uses the state directory, or somebody else the endpoint or the socket.
    pub fn start(options: &Options) -> Result<Self> {
        let state = StateDir::open(&options.state_dir)?;
        let listener = Listener::bind(&options.listen)?;
        let listen = listener.local_endpoint().clone();
        warn_of_plain_traffic(&listen);
        let socket = match &options.api {
            Some(path) => std::path::absolute(path)?,
            None => state.path().join("api.sock"),
        };
        // Whoever connects from now on waits until everything is recovered.
        let api = api::bind(&socket)?;

        let host = Arc::new(LocalHost::new(
            state,
            Samplers::new(options.sampling),
            options.store.clone(),
        )?);
        let incoming = Incoming::new(listener, host.clone(), host.state.path());
        let incoming = Arc::new(incoming.context("cannot take guests in")?);
        incoming.limit_streams(options.max_streams);
        // Nobody else has set it: the host was made three lines above.
        let _ = host.incoming.set(Arc::downgrade(&incoming));
        let mut notes = recovery::recover(&host, &incoming)?;
        notes.extend(host.history.problem());
        let info = HostInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            state_dir: host.state.path().to_owned(),
            listen: listen.to_string(),
            backends: host.backend_names(),
            guests: host.registry.len(),
            sampling_budget_percent: host.samplers.budget_percent(),
            notes,
        };
        incoming.serve();
        let server = api::Server::start(host.clone(), info.clone(), api, socket)?;
        Ok(Self {
            host,
            incoming,
            info,
            server: Some(server),
        })
    }

    /// About this daemon, as of its start.
    pub fn info(&self) -> HostInfo {
        self.info.clone()
    }

    /// The socket of its API.
    pub fn api(&self) -> &Path {
        self.server.as_ref().map_or(Path::new(""), api::Server::socket)
    }

    /// Takes no new work, cancels migrations that are before the commit point, and lets go of the guests: those of
    /// QEMU go on running.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.host.begin_stopping();
        shutdown::end_migrations(&self.host, &self.incoming);
        drop(self.server.take());
        self.host.checkpoints.end();
        self.host.samplers.end();
        shutdown::release_guests(&self.host);
        self.host.state.unlock();
    }
}

/// TLS is not there yet: what crosses a network can be read and forged by others on it.
fn warn_of_plain_traffic(listen: &Endpoint) {
    let Endpoint::Tcp { host, port } = listen else {
        return;
    };
    let local = match host.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => (host.as_str(), *port)
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.all(|address| address.ip().is_loopback())),
    };
    if !local {
        tracing::warn!(
            "traffic of {listen} is neither encrypted nor authenticated, and whoever reaches it can start guests \
             here: use it on trusted networks only"
        );
    }
}
