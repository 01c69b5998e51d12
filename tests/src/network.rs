//! Two network namespaces joined by a link, which go with their guard, and all processes in them.

use std::fs::File;
use std::net::TcpStream;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Two hosts and the link between them.
pub struct Network {
    names: [String; 2],
}

/// Name of the link's device at both ends.
const DEVICE: &str = "link0";
/// What the names of all runs begin with; the number of the process follows.
const PREFIX: &str = "vmferry-test-";
const ADDRESSES: [&str; 2] = ["10.93.0.1", "10.93.0.2"];

impl Network {
    /// Makes them, with a link of no limit.
    ///
    /// # Panics
    /// When `ip` fails.
    #[allow(clippy::new_without_default, reason = "it changes the system")]
    pub fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        remove_stale();
        let run = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let network = Self {
            names: ["a", "b"].map(|role| format!("{PREFIX}{run}-{role}")),
        };
        let [a, b] = &network.names;
        for name in [a, b] {
            ip(&["netns", "add", name]);
        }
        ip(&[
            "-n", a, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", b,
        ]);
        for (name, address) in network.names.iter().zip(ADDRESSES) {
            ip(&[
                "-n",
                name,
                "address",
                "add",
                &format!("{address}/24"),
                "dev",
                DEVICE,
            ]);
            ip(&["-n", name, "link", "set", "lo", "up"]);
            ip(&["-n", name, "link", "set", DEVICE, "up"]);
        }
        network
    }

    /// The address of host `index`.
    pub fn address(index: usize) -> &'static str {
        ADDRESSES[index]
    }

    /// `program` as a command that runs at host `index`.
    pub fn command(&self, index: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[index]]).arg(program);
        command
    }

    /// A connection from host `from` to `port` of the other one.
    ///
    /// # Panics
    /// When nobody listens there.
    pub fn connect(&self, from: usize, port: u16) -> TcpStream {
        let namespace =
            File::open(Path::new("/run/netns").join(&self.names[from])).expect("the namespace is there");
        let inside = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter it");
            TcpStream::connect((ADDRESSES[1 - from], port)).expect("the other host listens")
        };
        // A socket belongs to the namespace of the thread that makes it.
        thread::scope(|scope| scope.spawn(inside).join().expect("the thread does not panic"))
    }

    /// Limits what each end sends to `rate`, as `tc` reads it: `100mbit`.
    ///
    /// # Panics
    /// When `tc` fails.
    pub fn shape(&self, rate: &str) {
        for name in &self.names {
            run(
                "tc",
                &[
                    "-n", name, "qdisc", "replace", "dev", DEVICE, "root", "tbf", "rate", rate, "burst",
                    "128k", "latency", "50ms",
                ],
            );
        }
    }

    /// Takes the limit away.
    ///
    /// # Panics
    /// When `tc` fails, also where there is no limit.
    pub fn unshape(&self) {
        for name in &self.names {
            run("tc", &["-n", name, "qdisc", "del", "dev", DEVICE, "root"]);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.names.iter().for_each(|name| remove(name));
    }
}

/// Removes what a run left that was killed.
fn remove_stale() {
    let listed = Command::new("ip").args(["netns", "list"]).output();
    let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    for name in listed
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
    {
        let run = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if run.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(name);
        }
    }
}

fn remove(name: &str) {
    end_all(name);
    // There may be none, where making it failed.
    let _ = Command::new("ip").args(["netns", "del", name]).output();
}

/// Kills every process in a namespace.
fn end_all(name: &str) {
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        let listed = Command::new("ip").args(["netns", "pids", name]).output();
        let listed = listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let pids: Vec<i32> = listed
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.trim().parse().ok())
            .collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids.into_iter().filter_map(Pid::from_raw) {
            // It may have ended since.
            let _ = kill_process(pid, Signal::KILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}
