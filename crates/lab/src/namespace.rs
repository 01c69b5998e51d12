//! Network namespaces that go with their guard, and all processes in them.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::thread;

use rustix::thread::{
    CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_getaffinity, sched_setaffinity,
};

use crate::error::{LabError, Result};
use crate::guards;

/// Name of the namespaces of all runs, before the role.
const PREFIX: &str = "vmferry-";

/// A network namespace of this run.
pub struct Namespace {
    name: String,
    file: File,
    /// The processor of all that is started in it; any where unset.
    core: OnceLock<usize>,
}

impl Namespace {
    /// Makes `vmferry-ROLE-RUN`, with its loopback up.
    ///
    /// # Errors
    /// When `ip` is missing or fails.
    pub fn create(role: &str, run: &str) -> Result<Self> {
        let name = format!("{PREFIX}{role}-{run}");
        ip(&format!("netns add {name}"))?;
        let path = Path::new("/run/netns").join(&name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                remove(&name);
                return Err(LabError::system(format!("open {}", path.display()))(error));
            }
        };
        let namespace = Self {
            name,
            file,
            core: OnceLock::new(),
        };
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` with the words of `line` in it.
    pub(crate) fn ip(&self, line: &str) -> Result<()> {
        ip(&format!("-n {} {line}", self.name)).map(drop)
    }

    /// Runs `tc` with the words of `line` in it.
    pub(crate) fn tc(&self, line: &str) -> Result<()> {
        run("tc", &format!("-n {} {line}", self.name)).map(drop)
    }

    /// Runs `work` on a thread inside the namespace: sockets that it makes, and processes that it starts, stay there.
    ///
    /// # Errors
    /// When it cannot be entered.
    ///
    /// # Panics
    /// When the work does.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                if let Some(&core) = self.core.get() {
                    // Of this thread, which ends at once; what it starts has it from there.
                    let mut cores = CpuSet::new();
                    cores.set(core);
                    sched_setaffinity(None, &cores)?;
                }
                Ok(work())
            };
            scope
                .spawn(inside)
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
        .map_err(|error: rustix::io::Errno| {
            LabError::system(format!("enter the network namespace {}", self.name))(error.into())
        })
    }

    /// Bytes that left by a device of it so far: all layers above the wire's own counted.
    ///
    /// # Errors
    /// When it cannot be entered, or has no such device.
    pub fn sent_bytes(&self, device: &str) -> Result<u64> {
        let counters = self
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/dev"))?
            .map_err(LabError::system("read the counters of network devices"))?;
        sent_by(&counters, device).ok_or_else(|| {
            let missing = std::io::Error::new(std::io::ErrorKind::NotFound, "it is not listed");
            LabError::system(format!("read the counters of {device} in {}", self.name))(missing)
        })
    }

    /// Keeps what is started in it from now on, for good, on this processor.
    pub(crate) fn keep_on(&self, core: usize) {
        self.core.get_or_init(|| core);
    }

    /// Starts a process inside the namespace.
    ///
    /// # Errors
    /// When it does not start.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let program = command.get_program().to_owned();
        self.enter(|| command.spawn())?.map_err(LabError::system(format!(
            "start {}",
            Path::new(&program).display()
        )))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// The processors that this process may use.
///
/// # Errors
/// When the system does not say.
pub(crate) fn cores() -> Result<Vec<usize>> {
    let allowed = sched_getaffinity(None)
        .map_err(|error| LabError::system("ask for the processors of this process")(error.into()))?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&core| allowed.is_set(core))
        .collect())
}

/// Removes the namespaces of runs that are gone, with all processes in them. Returns the names.
pub fn remove_stale() -> Vec<String> {
    let listed = ip("netns list").unwrap_or_default();
    // A line reads `NAME` or `NAME (id: N)`.
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let stale: Vec<String> = names
        .filter(|name| run_of(name).is_some_and(|id| !guards::is_alive(id)))
        .map(str::to_owned)
        .collect();
    stale.iter().for_each(|name| remove(name));
    stale
}

/// The process whose run made a namespace of this name.
fn run_of(name: &str) -> Option<u32> {
    let (role, run) = name.strip_prefix(PREFIX)?.split_once('-')?;
    if !["a", "b", "net"].contains(&role) {
        return None;
    }
    run.split('-').next()?.parse().ok()
}

/// Kills what runs in the namespace and removes it. Its devices go with it.
fn remove(name: &str) {
    let us = std::process::id();
    guards::kill_all(|| {
        let listed = ip(&format!("netns pids {name}")).unwrap_or_default();
        listed
            .lines()
            .filter_map(|line| line.trim().parse().ok())
            .filter(|&id| id != us)
            .collect()
    });
    // There is nobody left to tell.
    let _ = ip(&format!("netns del {name}"));
}

/// What `/proc/net/dev` says that a device sent: the ninth number after its name.
fn sent_by(counters: &str, device: &str) -> Option<u64> {
    let numbers = counters.lines().find_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        (name.trim() == device).then_some(numbers)
    })?;
    numbers.split_whitespace().nth(8)?.parse().ok()
}

/// Runs `ip` with the words of `line` and returns what it printed.
pub(crate) fn ip(line: &str) -> Result<String> {
    run("ip", line)
}

fn run(program: &str, line: &str) -> Result<String> {
    let output = Command::new(program)
        .args(line.split_whitespace())
        .output()
        .map_err(LabError::system(format!("run `{program} {line}`")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said
            .lines()
            .map(str::trim)
            .filter(|said| !said.is_empty())
            .collect::<Vec<_>>()
            .join("; ");
        let line = format!("{program} {line}");
        return Err(LabError::Program { line, said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_counter_of_a_device_is_found() {
        let counters = "Inter-|   Receive   |  Transmit\n face |bytes packets ...\n    lo: 1 2 3 4 5 6 7 8 9 10\n\
                        uplink: 100 2 0 0 0 0 0 0 4200 7 0 0 0 0 0 0\n";
        assert_eq!(sent_by(counters, "uplink"), Some(4200));
        assert_eq!(sent_by(counters, "lo"), Some(9));
        assert_eq!(sent_by(counters, "up"), None);
    }

    #[test]
    fn names_tell_their_run() {
        assert_eq!(run_of("vmferry-a-123"), Some(123));
        assert_eq!(run_of("vmferry-net-123-4"), Some(123));
        for name in ["vmferry-c-123", "vmferry-a-x", "other-a-123", "vmferry-a"] {
            assert_eq!(run_of(name), None, "{name}");
        }
    }

    #[test]
    fn what_is_started_in_it_keeps_to_its_processor() {
        if crate::requirements::skips_namespaces() {
            return;
        }
        let namespace = Namespace::create("a", &format!("{}-core", std::process::id())).unwrap();
        let core = *cores().unwrap().last().unwrap();
        namespace.keep_on(core);
        let mut command = Command::new("grep");
        command.args(["Cpus_allowed_list", "/proc/self/status"]);
        let child = namespace
            .spawn(command.stdout(std::process::Stdio::piped()))
            .unwrap();
        let said = child.wait_with_output().unwrap().stdout;
        let said = String::from_utf8(said).unwrap();
        assert_eq!(said.split_whitespace().last(), Some(core.to_string().as_str()));
        assert!(
            cores().unwrap().contains(&core),
            "this thread's own are untouched"
        );
    }

    #[test]
    fn a_namespace_is_a_network_of_its_own_and_goes_with_its_processes() {
        if crate::requirements::skips_namespaces() {
            return;
        }
        let namespace = Namespace::create("a", &format!("{}-ns", std::process::id())).unwrap();
        let address = namespace.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            TcpStream::connect(address).unwrap();
            (listener, address)
        });
        let (_listener, address) = address.unwrap();
        assert!(
            TcpStream::connect(address).is_err(),
            "the listener must not be reachable from outside"
        );

        let mut child = namespace.spawn(Command::new("sleep").arg("1000")).unwrap();
        let name = namespace.name().to_owned();
        assert!(!remove_stale().contains(&name), "our own run is not stale");
        drop(namespace);
        assert!(!child.wait().unwrap().success());
        assert!(!ip("netns list").unwrap().contains(&name));
    }

    #[test]
    fn namespaces_of_runs_that_are_gone_are_removed() {
        if crate::requirements::skips_namespaces() {
            return;
        }
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let stale = Namespace::create("net", &gone.id().to_string()).unwrap();
        let name = stale.name.clone();
        // Somebody else's clean-up may have been faster.
        remove_stale();
        assert!(!ip("netns list").unwrap().contains(&name));
    }
}
