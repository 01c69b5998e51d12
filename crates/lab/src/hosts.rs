//! The host daemons of a lab, and what is asked of them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmferry_api::{
    AgentInfo, AgentRequest, CheckpointRequest, CheckpointState, Client, ClientError, GuestInfo,
    MigrateRequest, ResumeRequest, ResumeStarted, ResumeState, Stage,
};
use vmferry_core::report::{Progress, Report};
use vmferry_forecast::simulated::SIMULATIONS;
use vmferry_guest::GuestSpec;
use vmferry_guest_synth::Stats;

use crate::error::{LabError, Result};
use crate::forecasting::{self, ForecastWish, ForecastingError, Past};
use crate::guards::{Interrupt, Process};
use crate::namespace::Namespace;

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a migration is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Lines of a daemon's log that are shown when something went wrong.
const LOG_LINES: usize = 12;

/// A host daemon, running as a process of its own until it is dropped.
pub struct Host {
    /// `a` or `b`.
    pub name: &'static str,
    /// Where guests arrive, as an endpoint.
    pub endpoint: String,
    client: Arc<Client>,
    process: Process,
    log: PathBuf,
    interrupt: Interrupt,
}

/// What a daemon is started with.
pub struct HostSetup<'a> {
    /// The `vmferry` program.
    pub program: &'a Path,
    /// The folder in which it gets one of its own.
    pub folder: &'a Path,
    /// Where it listens; port 0 lets the system choose.
    pub address: (Ipv4Addr, u16),
    /// Further words of its command line.
    pub options: &'a [String],
    /// The namespace it runs in; the present one where absent.
    pub namespace: Option<&'a Namespace>,
    /// Ctrl-C.
    pub interrupt: &'a Interrupt,
}

impl Host {
    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn start(name: &'static str, setup: &HostSetup<'_>) -> Result<Self> {
        let folder = setup.folder.join(name);
        std::fs::create_dir(&folder).map_err(LabError::system(format!("make {}", folder.display())))?;
        let log = folder.join("log");
        let socket = folder.join("api.sock");
        let mut command = Command::new(setup.program);
        let (address, port) = setup.address;
        command
            .arg("host")
            .args(["--listen", &format!("tcp:{address}:{port}")])
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--api")
            .arg(&socket)
            .args(setup.options);
        let log_file = File::create(&log).map_err(LabError::system(format!("make {}", log.display())))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        // A Ctrl-C at the terminal is for us alone; we take the daemons down in order.
        command.process_group(0);
        // The log is a file.
        command.env("NO_COLOR", "1");
        let child = match setup.namespace {
            Some(namespace) => namespace.spawn(&mut command)?,
            None => command.spawn().map_err(LabError::system("start a host daemon"))?,
        };
        let process = Process::new(child);
        let client = Arc::new(Client::new(socket).map_err(LabError::system("get an event loop"))?);
        let mut host = Self {
            name,
            endpoint: String::new(),
            client,
            process,
            log,
            interrupt: setup.interrupt.clone(),
        };
        host.endpoint = host.wait_until_ready()?;
        Ok(host)
    }

    fn wait_until_ready(&mut self) -> Result<String> {
        let interrupt = self.interrupt.clone();
        let what = format!("the daemon of host {}", self.name);
        let info = interrupt.wait_for(&what, START_LIMIT, || {
            if let Some(status) = self.process.exit_status()? {
                return Err(LabError::DaemonEnded {
                    host: self.name.to_owned(),
                    status,
                    log: self.last_log_lines(),
                });
            }
            match self.client.host() {
                Err(ClientError::Unreachable { .. }) => Ok(None),
                answer => answer.map(Some).map_err(|source| self.refused(source)),
            }
        })?;
        Ok(info.listen)
    }

    /// The socket of its API.
    pub fn socket(&self) -> &Path {
        self.client.socket()
    }

    /// What the daemon logged last, each line on one of its own and indented; empty where that is nothing.
    pub fn last_log_lines(&self) -> String {
        last_lines(&self.log, LOG_LINES)
    }

    /// Starts a guest.
    ///
    /// # Errors
    /// When the host refuses or does not answer, as for all requests; or interrupted.
    pub fn run(&self, spec: &GuestSpec) -> Result<GuestInfo> {
        let spec = spec.clone();
        self.ask(move |client| client.run(&spec))
    }

    /// A guest of this host.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn guest(&self, name: &str) -> Result<GuestInfo> {
        let name = name.to_owned();
        self.ask(move |client| client.guest(&name))
    }

    /// What the agent in a guest of this host says.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn agent(&self, name: &str, request: AgentRequest) -> Result<AgentInfo> {
        let name = name.to_owned();
        self.ask(move |client| client.agent(&name, &request))
    }

    /// Ends a guest.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn stop(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.ask(move |client| client.stop(&name, false))
    }

    /// Begins to take checkpoints of a guest.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn checkpoint(&self, name: &str, request: CheckpointRequest) -> Result<CheckpointState> {
        let name = name.to_owned();
        self.ask(move |client| client.checkpoint(&name, &request))
    }

    /// The checkpoints of a guest that are being taken, else the last ones.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn checkpoint_state(&self, name: &str) -> Result<CheckpointState> {
        let name = name.to_owned();
        self.ask(move |client| client.checkpoint_state(&name))
    }

    /// Takes no more checkpoints of a guest.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn end_checkpoints(&self, name: &str) -> Result<CheckpointState> {
        let name = name.to_owned();
        self.ask(move |client| client.end_checkpoints(&name))
    }

    /// Begins to resume a checkpoint.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn resume(&self, request: ResumeRequest) -> Result<ResumeStarted> {
        self.ask(move |client| client.resume(&request))
    }

    /// The resume of a guest, under way or ended.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn resume_state(&self, name: &str) -> Result<ResumeState> {
        let name = name.to_owned();
        self.ask(move |client| client.resume_state(&name))
    }

    /// What a synthetic guest of this host has done.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn stats(&self, name: &str) -> Result<Stats> {
        let name = name.to_owned();
        self.ask(move |client| client.stats(&name))
    }

    /// Starts the measurement of a synthetic guest's longest gap anew.
    ///
    /// # Errors
    /// See [`Host::run`].
    pub fn reset_gap(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.ask(move |client| client.reset_gap(&name))
    }

    /// Moves a guest to another host (which is filled in) and waits until that has ended, one way or another. `watch` sees
    /// how it goes. One that takes longer than `limit` is cancelled and left to itself.
    ///
    /// # Errors
    /// See [`Host::run`]; and when the time is over. A migration that did not complete is a report.
    pub fn migrate(
        &self,
        guest: &str,
        destination: &Self,
        request: &MigrateRequest,
        limit: Option<Duration>,
        mut watch: impl FnMut(&Progress),
    ) -> Result<Report> {
        let request = MigrateRequest {
            to: destination.endpoint.clone(),
            ..request.clone()
        };
        let end = limit.map(|limit| Instant::now() + limit);
        let name = guest.to_owned();
        let started = self.ask(move |client| client.migrate(&name, &request))?;
        loop {
            let name = guest.to_owned();
            let migration = self.ask(move |client| client.migration(&name))?;
            match migration.stage {
                Stage::Sent { report } if migration.id == started.id => return Ok(*report),
                Stage::Outgoing { progress, .. } => watch(&progress),
                Stage::Sent { .. } | Stage::Incoming { .. } | Stage::Received { .. } => {}
            }
            if let (Some(limit), Some(end)) = (limit, end)
                && Instant::now() > end
            {
                let name = guest.to_owned();
                // Past the commit point that is refused, and nothing else can be done.
                let _ = self.ask(move |client| client.cancel(&name));
                let what = format!("the migration of {guest} to end");
                return Err(LabError::TimedOut { what, limit });
            }
            self.interrupt.sleep(LOOK)?;
        }
    }

    /// Forecasts the migration of a guest to another host, where the request wants a forecast: records the guest for `record`
    /// before, and goes by what the daemon and `past` know. Answers the request with it, by the strategy that it chose where it was to choose.
    ///
    /// # Errors
    /// See [`Host::run`]; and when no forecast can be made.
    pub fn forecast(
        &self,
        guest: &str,
        destination: &Self,
        request: &MigrateRequest,
        record: Duration,
        past: &Past,
        seed: u64,
    ) -> Result<MigrateRequest> {
        let mut request = MigrateRequest {
            to: destination.endpoint.clone(),
            ..request.clone()
        };
        let Some(goal) = request.goal.filter(|_| request.forecast.is_none()) else {
            return Ok(request);
        };
        let wish = ForecastWish {
            vm: guest,
            request: &request,
            goal,
            record,
            trace: None,
            past,
            simulations: SIMULATIONS,
            seed,
        };
        let forecast = forecasting::forecast(&self.client, &wish, |_| self.interrupt.check().is_ok());
        let forecast = forecast.map_err(|error| match error {
            ForecastingError::Interrupted => LabError::Interrupted,
            error => LabError::Forecast(error),
        })?;
        if request.auto {
            request.strategy = forecast.recommended;
        }
        request.forecast = Some(Box::new(forecast));
        Ok(request)
    }

    /// A request to the daemon that does not stand in the way of Ctrl-C.
    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Client) -> std::result::Result<T, ClientError> + Send + 'static,
    ) -> Result<T> {
        let client = Arc::clone(&self.client);
        let answer = self.interrupt.during(move || request(&client))?;
        answer.map_err(|source| self.refused(source))
    }

    fn refused(&self, source: ClientError) -> LabError {
        LabError::Host {
            host: self.name.to_owned(),
            source,
        }
    }
}

/// The last lines of a file, each on a line of its own and indented; empty where there is none.
pub fn last_lines(file: &Path, count: usize) -> String {
    let content = std::fs::read(file).unwrap_or_default();
    let content = String::from_utf8_lossy(&content);
    let lines: Vec<_> = content
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    lines[lines.len().saturating_sub(count)..]
        .iter()
        .fold(String::new(), |text, line| text + "\n    " + line)
}

/// The time it takes to carry out `work`, beside its result.
pub fn timed<T>(work: impl FnOnce() -> T) -> (T, std::ops::Range<Instant>) {
    let start = Instant::now();
    let result = work();
    (result, start..Instant::now())
}
