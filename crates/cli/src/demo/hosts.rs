//! The two host daemons of a demo, and what it asks of them.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use vmferry_core::report::{Progress, Report};
use vmferry_core::{Limits, Strategy};
use vmferry_guest::GuestSpec;

use super::guards::{Interrupt, Interrupted, Process};
use super::namespace::Namespace;
use super::narrate;
use crate::api::{GuestInfo, MigrateRequest, Stage};
use crate::client::{Client, ClientError};

/// How long a daemon may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a migration is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Pre-copy goes on in rounds until the rest takes less than this: a tenth of what is usual, since the guest is idle enough
/// for it and the link fast enough.
const DOWNTIME_GOAL: Duration = Duration::from_millis(30);
/// Lines of a daemon's log that are shown when something went wrong.
const LOG_LINES: usize = 12;

/// A host daemon, running as a process of its own until it is dropped.
pub(super) struct Host {
    /// `a` or `b`.
    pub(super) name: &'static str,
    /// Where guests arrive, as an endpoint.
    pub(super) endpoint: String,
    client: Arc<Client>,
    process: Process,
    log: PathBuf,
    interrupt: Interrupt,
}

impl Host {
    /// Starts the daemon with its files in `folder`/NAME, listening at `address`: inside `namespace`, or here.
    pub(super) fn start(
        name: &'static str,
        folder: &Path,
        address: (Ipv4Addr, u16),
        namespace: Option<&Namespace>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let folder = folder.join(name);
        std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let log = folder.join("log");
        let socket = folder.join("api.sock");
        let program = std::env::current_exe().context("cannot find the program that is running")?;
        let mut command = Command::new(program);
        command
            .arg("host")
            .args(["--listen", &format!("tcp:{}:{}", address.0, address.1)]);
        command
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--api")
            .arg(&socket);
        let log_file = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file);
        // A Ctrl-C at the terminal is for us alone; we take the daemons down in order.
        command.process_group(0);
        // The log is a file.
        command.env("NO_COLOR", "1");
        let child = match namespace {
            Some(namespace) => namespace.spawn(&mut command)?,
            None => command.spawn().context("cannot start a host daemon")?,
        };
        let process = Process::new(child);
        let client = Arc::new(Client::new(socket)?);
        let interrupt = interrupt.clone();
        let mut host = Self {
            name,
            endpoint: String::new(),
            client,
            process,
            log,
            interrupt,
        };
        host.endpoint = host.wait_until_ready()?;
        Ok(host)
    }

    fn wait_until_ready(&mut self) -> Result<String> {
        let interrupt = self.interrupt.clone();
        let what = format!("the daemon of host {}", self.name);
        let info = interrupt.wait_for(&what, START_LIMIT, || {
            if let Some(status) = self.process.exit_status()? {
                bail!(
                    "the daemon of host {} ended ({status}){}",
                    self.name,
                    last_lines(&self.log, LOG_LINES)
                );
            }
            match self.client.host() {
                Err(ClientError::Unreachable { .. }) => Ok(None),
                answer => Ok(Some(answer?)),
            }
        })?;
        Ok(info.listen)
    }

    /// Starts a guest.
    pub(super) fn run(&self, spec: &GuestSpec) -> Result<GuestInfo> {
        let spec = spec.clone();
        self.ask(move |client| client.run(&spec))
    }

    /// A guest of this host.
    pub(super) fn guest(&self, name: &str) -> Result<GuestInfo> {
        let name = name.to_owned();
        self.ask(move |client| client.guest(&name))
    }

    /// What a synthetic guest of this host has done.
    pub(super) fn stats(&self, name: &str) -> Result<vmferry_guest_synth::Stats> {
        let name = name.to_owned();
        self.ask(move |client| client.stats(&name))
    }

    /// Starts the measurement of a synthetic guest's longest gap anew.
    pub(super) fn reset_gap(&self, name: &str) -> Result<()> {
        let name = name.to_owned();
        self.ask(move |client| client.reset_gap(&name))
    }

    /// Moves a guest to another host and waits until that has ended, one way or another. `watch` sees how it goes.
    pub(super) fn migrate(
        &self,
        guest: &str,
        destination: &Self,
        strategy: Strategy,
        mut watch: impl FnMut(&Progress),
    ) -> Result<Report> {
        let request = MigrateRequest {
            to: destination.endpoint.clone(),
            strategy,
            limits: Limits {
                downtime: DOWNTIME_GOAL,
                ..Limits::default()
            },
            tuning: Default::default(),
            streams: None,
            verify: true,
        };
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
            self.interrupt.sleep(LOOK)?;
        }
    }

    /// A request to the daemon that does not stand in the way of Ctrl-C.
    fn ask<T: Send + 'static>(
        &self,
        request: impl FnOnce(&Client) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T> {
        let client = Arc::clone(&self.client);
        let answer = self.interrupt.during(move || request(&client))?;
        answer.with_context(|| format!("host {} did not do it", self.name))
    }
}

/// Shows what the daemons logged last, unless it was the user who ended the demo.
pub(super) fn narrate_logs(hosts: &[Host], error: &anyhow::Error) {
    if error.is::<Interrupted>() {
        return;
    }
    for host in hosts {
        match last_lines(&host.log, LOG_LINES) {
            lines if lines.is_empty() => {}
            lines => narrate(&format!("log of host {}:{lines}", host.name)),
        }
    }
}

/// The last lines of a file, each on a line of its own and indented; empty where there is none.
pub(super) fn last_lines(file: &Path, count: usize) -> String {
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
pub(super) fn timed<T>(work: impl FnOnce() -> T) -> (T, std::ops::Range<Instant>) {
    let start = Instant::now();
    let result = work();
    (result, start..Instant::now())
}
