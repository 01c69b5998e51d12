//! Host daemons, each in a network namespace of its own, talked to by the command.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::guest::TestGuest;
use crate::network::Network;
use crate::vmferry::{Answer, program};

/// Port of the daemons.
pub const PORT: u16 = 7120;

/// Two hosts, each with a daemon, in namespaces joined by a link. Everything ends with it, also when a test fails.
pub struct Hosts {
    /// Where guests start.
    pub source: HostDaemon,
    /// Where they go.
    pub destination: HostDaemon,
    /// The link.
    pub network: Network,
    /// A folder for what a test needs besides.
    pub dir: tempfile::TempDir,
}

impl Hosts {
    /// Starts both.
    ///
    /// # Panics
    /// When something does not start.
    #[allow(clippy::new_without_default, reason = "it starts processes")]
    pub fn new() -> Self {
        Self::with_destination("")
    }

    /// The same, with shell commands that the destination's daemon finds done. It has a mount namespace of its own: what
    /// they mount is there for nobody else. `$DIR` is the folder of the test.
    ///
    /// # Panics
    /// See [`Hosts::new`].
    pub fn with_destination(prelude: &str) -> Self {
        let network = Network::new();
        let dir = tempfile::tempdir().expect("a temporary directory can be made");
        let source = HostDaemon::start(&network, 0, dir.path(), "");
        let destination = HostDaemon::start(&network, 1, dir.path(), prelude);
        Self {
            source,
            destination,
            network,
            dir,
        }
    }

    /// From now on guests go the other way.
    pub fn swap(&mut self) {
        std::mem::swap(&mut self.source, &mut self.destination);
    }

    /// Kills a daemon like a crash does, and starts it again on the same state. Its QEMUs go on meanwhile.
    pub fn crash_source(&mut self) {
        self.source.crash();
        self.restart_source();
    }

    /// Starts the source's daemon again after [`HostDaemon::crash`].
    pub fn restart_source(&mut self) {
        self.source.start_again(&self.network);
    }

    /// Ends the source's daemon as an operator does, and starts it again on the same state.
    ///
    /// # Panics
    /// When it does not end well.
    pub fn renew_source(&mut self) {
        self.source.stop();
        self.restart_source();
    }

    /// The same at the destination.
    pub fn crash_destination(&mut self) {
        self.destination.crash();
        self.destination.start_again(&self.network);
    }

    /// Starts the destination's daemon again after [`HostDaemon::crash`].
    pub fn restart_destination(&mut self) {
        self.destination.start_again(&self.network);
    }

    /// Starts a guest at the source and waits until its load runs.
    ///
    /// # Panics
    /// When it does not.
    pub fn run(&self, guest: &TestGuest) -> Value {
        let memory = guest.spec.config["memory_bytes"].as_u64().expect("a number") >> 20;
        let args = guest.spec.config["args"].as_array().expect("a list").clone();
        let mut command = self.source.command();
        command.args([
            "run",
            &guest.spec.name,
            "--memory",
            &format!("{memory}M"),
            "--json",
        ]);
        if guest.spec.config["agent"] == true {
            command.arg("--agent");
        }
        command.arg("--");
        command.args(args.iter().map(|arg| arg.as_str().expect("a text")));
        let started = Answer::of(&mut command).expect_json();
        guest.console.wait_for("guest-load: ok");
        started
    }

    /// `vmferry migrate VM --to DESTINATION ... --json`, run at the source.
    pub fn migrate(&self, name: &str, options: &[&str]) -> Answer {
        let to = self.destination.endpoint();
        self.source
            .call(&[&["migrate", name, "--to", &to], options].concat())
    }

    /// The same, not waiting for the end.
    ///
    /// # Panics
    /// When it does not begin.
    pub fn begin(&self, name: &str, options: &[&str]) {
        let begun = self.migrate(name, &[options, &["--detach"]].concat());
        assert_eq!(begun.code, Some(0), "{begun:?}");
    }

    /// Waits for the end of the migration that [`Hosts::begin`] began, and returns the source's report.
    ///
    /// # Panics
    /// When it never ends.
    pub fn wait_for_report(&self, name: &str) -> Value {
        let mut report = Value::Null;
        crate::eventually("the migration ends", || {
            let status = self.source.call(&["status", name]).expect_json();
            report = status["migration"]["report"].clone();
            status["migration"]["stage"] == "sent"
        });
        report
    }
}

/// A daemon.
pub struct HostDaemon {
    index: usize,
    state: PathBuf,
    prelude: String,
    child: Child,
}

impl HostDaemon {
    fn start(network: &Network, index: usize, dir: &Path, prelude: &str) -> Self {
        let state = dir.join(["a", "b"][index]);
        std::fs::create_dir_all(&state).expect("a folder can be made");
        let child = spawn(network, index, &state, prelude);
        let prelude = prelude.to_owned();
        let mut daemon = Self {
            index,
            state,
            prelude,
            child,
        };
        daemon.wait_ready();
        daemon
    }

    fn start_again(&mut self, network: &Network) {
        self.child = spawn(network, self.index, &self.state, &self.prelude);
        self.wait_ready();
    }

    /// Ends it without a warning.
    ///
    /// # Panics
    /// When it has ended already.
    pub fn crash(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ended");
    }

    /// Ends it as an operator does.
    ///
    /// # Panics
    /// When it has ended already, or does not end well.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }

    fn wait_ready(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        while self.call(&["status"]).code != Some(0) {
            let ended = self.child.try_wait().expect("it is our child");
            assert!(
                ended.is_none() && Instant::now() < until,
                "no daemon: {ended:?}\n{}",
                self.log()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where guests arrive.
    pub fn endpoint(&self) -> String {
        format!("tcp:{}:{PORT}", Network::address(self.index))
    }

    /// The directory of a guest at this host.
    pub fn guest_dir(&self, name: &str) -> PathBuf {
        self.state.join("guests").join(name)
    }

    /// The socket of its API.
    pub fn api(&self) -> PathBuf {
        self.state.join("api.sock")
    }

    /// What it logged, of all its lives.
    pub fn log(&self) -> String {
        std::fs::read_to_string(log_path(&self.state)).unwrap_or_default()
    }

    /// `vmferry` of this host, without a subcommand yet.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program());
        command.arg("--host-socket").arg(self.api());
        command
    }

    /// Runs `vmferry ... --json` at this host.
    pub fn call(&self, arguments: &[&str]) -> Answer {
        Answer::of(self.command().args(arguments).arg("--json"))
    }

    /// A guest of this host as `vmferry list` shows it.
    ///
    /// # Panics
    /// When the list cannot be had.
    pub fn guest(&self, name: &str) -> Option<Value> {
        let list = self.call(&["list"]).expect_json();
        let found = list
            .as_array()
            .expect("a list")
            .iter()
            .find(|guest| guest["name"] == name);
        found.cloned()
    }

    /// Checks that this host runs a guest and nothing is left of any migration.
    ///
    /// # Panics
    /// When that does not come true.
    pub fn assert_owns(&self, name: &str) {
        crate::eventually("the guest is this host's and runs", || {
            self.guest(name)
                .is_some_and(|guest| guest["role"] == "owner" && guest["state"] == "running")
        });
    }

    /// The process of a guest.
    ///
    /// # Panics
    /// When there is none.
    pub fn guest_pid(&self, name: &str) -> u32 {
        let guest = self.guest(name).expect("the guest is here");
        guest["pid"]
            .as_u64()
            .and_then(|pid| pid.try_into().ok())
            .expect("a process")
    }
}

impl Drop for HostDaemon {
    fn drop(&mut self) {
        // It may have ended. Its guests end with the network.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            println!("log of daemon {}:\n{}", self.index, self.log());
        }
    }
}

fn log_path(state: &Path) -> PathBuf {
    state.join("daemon.log")
}

fn spawn(network: &Network, index: usize, state: &Path, prelude: &str) -> Child {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log_path(state))
        .expect("a log can be made");
    network
        .command(index, "sh")
        .args(["-ec", &format!("{prelude}\nexec \"$@\""), "sh"])
        .arg(program())
        .args([
            "host",
            "--listen",
            &format!("tcp:{}:{PORT}", Network::address(index)),
            "--state-dir",
        ])
        .arg(state)
        .env("DIR", state.parent().expect("it lies in the folder of the test"))
        .env("RUST_LOG", "info,vmferry_runtime=debug")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("the daemon starts")
}
