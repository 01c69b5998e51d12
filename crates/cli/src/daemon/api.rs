//! The API of the daemon: HTTP and JSON on a unix socket. See [`crate::api`] for what is said.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, Path as UrlPath, Query, Request, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use vmferry_forecast::history::Kept;
use vmferry_guest::GuestSpec;
use vmferry_guest_synth::Stats;

use super::host::LocalHost;
use super::refusal::Refusal;
use crate::api::{
    AgentInfo, AgentRequest, AttachRequest, CalibrateRequest, Calibration, CheckpointRequest,
    CheckpointState, Done, GuestInfo, HostInfo, LimitsRequest, MigrateRequest, Migration, ResolveRequest,
    ResumeRequest, ResumeStarted, ResumeState, Started, StoredReport, TraceInfo, TraceRequest,
};

/// What handlers answer.
type Answer<T> = Result<Json<T>, Refusal>;

/// What handlers know.
#[derive(Clone)]
struct Api {
    host: Arc<LocalHost>,
    /// The daemon, but for the number of guests.
    about: Arc<HostInfo>,
}

/// An API that is being served. Ends when this is dropped.
pub(super) struct Server {
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
    socket: PathBuf,
}

impl Server {
    /// Serves on `listener`, which is bound to `socket`.
    pub(super) fn start(
        host: Arc<LocalHost>,
        about: HostInfo,
        listener: UnixListener,
        socket: PathBuf,
    ) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api")
            .enable_all()
            .build()
            .context("cannot start the API")?;
        let context = runtime.enter();
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener).context("cannot serve the API")?;
        drop(context);
        let (stop, stopped) = oneshot::channel();
        let routes = routes(Api {
            host,
            about: Arc::new(about),
        });
        let served = runtime.spawn(async move {
            let serve = axum::serve(listener, routes).with_graceful_shutdown(async {
                // Told to, or nobody is left who could.
                let _ = stopped.await;
            });
            if let Err(error) = serve.await {
                tracing::error!("the API ended: {error}");
            }
        });
        Ok(Self {
            runtime: Some(runtime),
            stop: Some(stop),
            served: Some(served),
            socket,
        })
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Server {
    /// Requests under way get their answers, for a while.
    fn drop(&mut self) {
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
        let (Some(runtime), Some(stop), Some(served)) =
            (self.runtime.take(), self.stop.take(), self.served.take())
        else {
            return;
        };
        // It may have ended by itself.
        let _ = stop.send(());
        let _ = runtime.block_on(async { tokio::time::timeout(PATIENCE, served).await });
        runtime.shutdown_timeout(PATIENCE);
        // Gone already is as good.
        let _ = fs::remove_file(&self.socket);
    }
}

/// Listens at `path`, for its owner only from the first moment. The socket of a daemon that ended is replaced; that
/// it ended is known from the lock of the state directory, or from nobody answering.
pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    let address = SocketAddrUnix::new(path).with_context(|| {
        format!(
            "{} cannot be a socket (too long a path?); choose another one with --api",
            path.display()
        )
    })?;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Ok(file) if !file.file_type().is_socket() => {
            bail!(
                "{} is there and no socket; choose another path with --api",
                path.display()
            );
        }
        Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
            bail!(
                "somebody answers at {} already; choose another path with --api",
                path.display()
            );
        }
        Ok(_) => fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?,
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    let listen = || {
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Linux gives the file the mode that the socket had before it was bound.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, 128)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    let socket = listen().with_context(|| format!("cannot listen at {}", path.display()))?;
    Ok(UnixListener::from(socket))
}

fn routes(api: Api) -> Router {
    Router::new()
        .route("/v1/host", get(host))
        .route("/v1/guests", get(guests).post(run))
        .route("/v1/attach", post(attach))
        .route("/v1/guests/{name}", get(guest).delete(stop))
        .route("/v1/guests/{name}/stats", get(stats))
        .route("/v1/guests/{name}/stats/reset-gap", post(reset_gap))
        .route("/v1/guests/{name}/migrate", post(migrate))
        .route("/v1/guests/{name}/migration", get(migration))
        .route("/v1/guests/{name}/agent", post(agent))
        .route("/v1/guests/{name}/limits", post(limit))
        .route("/v1/guests/{name}/cancel", post(cancel))
        .route("/v1/guests/{name}/resolve", post(resolve))
        .route(
            "/v1/guests/{name}/checkpoint",
            get(checkpoint_state).post(checkpoint).delete(end_checkpoints),
        )
        .route("/v1/resume", post(resume))
        .route("/v1/guests/{name}/resume", get(resume_state))
        .route("/v1/guests/{name}/continue", post(go_on))
        .route("/v1/guests/{name}/fill", post(fill))
        .route("/v1/reports", get(reports))
        .route(
            "/v1/guests/{name}/trace",
            get(trace).post(begin_trace).delete(end_trace),
        )
        .route("/v1/guests/{name}/trace/file", get(trace_file))
        .route("/v1/paths", get(paths).post(calibrate))
        .route("/v1/history", get(history))
        .fallback(nowhere)
        .with_state(api)
}

async fn host(State(api): State<Api>) -> Answer<HostInfo> {
    Ok(Json(HostInfo {
        guests: api.host.registry.len(),
        ..HostInfo::clone(&api.about)
    }))
}

async fn guests(State(api): State<Api>) -> Answer<Vec<GuestInfo>> {
    blocking(move || Ok(api.host.guests())).await
}

async fn guest(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<GuestInfo> {
    blocking(move || api.host.guest(&name)).await
}

async fn run(State(api): State<Api>, Body(spec): Body<GuestSpec>) -> Answer<GuestInfo> {
    blocking(move || api.host.run(&spec)).await
}

async fn attach(State(api): State<Api>, Body(request): Body<AttachRequest>) -> Answer<GuestInfo> {
    blocking(move || api.host.attach(&request)).await
}

#[derive(Deserialize)]
struct StopQuery {
    #[serde(default)]
    force: bool,
}

async fn stop(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Query(query): Query<StopQuery>,
) -> Answer<Done> {
    blocking(move || api.host.stop(&name, query.force).map(|()| Done {})).await
}

async fn stats(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<Stats> {
    blocking(move || api.host.stats(&name)).await
}

async fn reset_gap(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<Done> {
    blocking(move || api.host.reset_gap(&name).map(|()| Done {})).await
}

async fn migrate(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Body(request): Body<MigrateRequest>,
) -> Answer<Started> {
    blocking(move || api.host.migrate(&name, &request)).await
}

async fn migration(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<Migration> {
    blocking(move || api.host.migration(&name)).await
}

async fn agent(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Body(request): Body<AgentRequest>,
) -> Answer<AgentInfo> {
    blocking(move || api.host.ask_agent(&name, &request)).await
}

async fn limit(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Body(request): Body<LimitsRequest>,
) -> Answer<Done> {
    blocking(move || api.host.limit(&name, request).map(|()| Done {})).await
}

async fn cancel(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<Done> {
    blocking(move || api.host.cancel(&name).map(|()| Done {})).await
}

async fn resolve(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Body(request): Body<ResolveRequest>,
) -> Answer<Done> {
    blocking(move || api.host.resolve(&name, request.owner).map(|()| Done {})).await
}

async fn checkpoint(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Body(request): Body<CheckpointRequest>,
) -> Answer<CheckpointState> {
    blocking(move || api.host.checkpoint(&name, &request)).await
}

async fn checkpoint_state(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<CheckpointState> {
    blocking(move || api.host.checkpoint_state(&name)).await
}

async fn end_checkpoints(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<CheckpointState> {
    blocking(move || api.host.end_checkpoints(&name)).await
}

async fn resume(State(api): State<Api>, Body(request): Body<ResumeRequest>) -> Answer<ResumeStarted> {
    blocking(move || api.host.resume(&request)).await
}

async fn resume_state(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<ResumeState> {
    blocking(move || api.host.resume_state(&name)).await
}

async fn go_on(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<Done> {
    blocking(move || api.host.go_on(&name).map(|()| Done {})).await
}

async fn fill(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<Done> {
    blocking(move || api.host.fill(&name).map(|()| Done {})).await
}

async fn reports(State(api): State<Api>) -> Answer<Vec<StoredReport>> {
    blocking(move || Ok(api.host.reports.all())).await
}

async fn begin_trace(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
    Body(request): Body<TraceRequest>,
) -> Answer<TraceInfo> {
    blocking(move || api.host.begin_trace(&name, &request)).await
}

async fn trace(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<TraceInfo> {
    blocking(move || api.host.trace(&name)).await
}

async fn end_trace(State(api): State<Api>, UrlPath(name): UrlPath<String>) -> Answer<TraceInfo> {
    blocking(move || api.host.end_trace(&name)).await
}

async fn trace_file(
    State(api): State<Api>,
    UrlPath(name): UrlPath<String>,
) -> Result<([(&'static str, &'static str); 1], Vec<u8>), Refusal> {
    let bytes = api.host.trace_file(&name)?;
    Ok(([("content-type", "application/octet-stream")], bytes.to_vec()))
}

async fn history(State(api): State<Api>) -> Answer<Kept> {
    blocking(move || api.host.history.all()).await
}

async fn paths(State(api): State<Api>) -> Answer<Vec<Calibration>> {
    Ok(Json(api.host.paths.all()))
}

async fn calibrate(State(api): State<Api>, Body(request): Body<CalibrateRequest>) -> Answer<Calibration> {
    blocking(move || api.host.calibrate(&request)).await
}

async fn nowhere(request: Request) -> Refusal {
    Refusal::not_found(format!(
        "this daemon has no {} {}",
        request.method(),
        request.uri().path()
    ))
    .mend("command and daemon may be of different versions")
}

/// Guests and disks make callers wait: not on the threads of the API.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer.map(Json),
        Err(error) => Err(Refusal::failed(error)),
    }
}

/// A JSON body whose refusal is JSON as well.
struct Body<T>(T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(JsonRejection::JsonDataError(error)) => Err(Refusal::bad_request(error.body_text())),
            Err(error) => Err(Refusal::bad_request(error.body_text())
                .mend("send JSON with the header content-type: application/json")),
        }
    }
}
