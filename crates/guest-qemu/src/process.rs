//! The process of a QEMU: watched whether it is our child or not.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tracing::info;

/// Names a process for good: a pid alone may be given to another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: u32,
    /// Clock ticks since boot at which it started.
    pub(crate) start_ticks: u64,
}

/// A process held by a pidfd.
pub(crate) struct QemuProcess {
    id: ProcessId,
    pidfd: OwnedFd,
    exit: Arc<OnceLock<ExitStatus>>,
}

impl QemuProcess {
    /// Takes over a child; it is reaped as soon as it ends.
    pub(crate) fn of_child(mut child: Child) -> io::Result<Self> {
        let watched = Self::open(child.id()).and_then(|process| {
            let pidfd = process.pidfd.try_clone()?;
            Ok((process, pidfd))
        });
        let (process, pidfd) = watched.inspect_err(|_| {
            // Nobody else would know of it.
            let _ = child.kill();
            let _ = child.wait();
        })?;
        let exit = Arc::clone(&process.exit);
        thread::Builder::new().name("qemu-reaper".into()).spawn(move || {
            // Not in `wait`: that would also be told when a thread of QEMU is stopped to inject a call.
            while !ended(&pidfd, None) {}
            if let Ok(status) = child.wait() {
                info!(pid = child.id(), %status, "QEMU ended");
                let _ = exit.set(status);
            }
        })?;
        Ok(process)
    }

    /// Finds the process that `id` names, and no other that got its pid later.
    pub(crate) fn find(id: ProcessId) -> io::Result<Self> {
        let process = Self::open(id.pid)?;
        if process.id != id {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "its pid belongs to another process now",
            ));
        }
        if !process.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it waits to be reaped"));
        }
        Ok(process)
    }

    /// Holds the process that has `pid` now.
    pub(crate) fn open(pid: u32) -> io::Result<Self> {
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let raw = raw.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a process id"))?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
        // Read after the pidfd was opened: while it is alive the pid is not reused.
        let id = ProcessId {
            pid,
            start_ticks: start_ticks(pid)?,
        };
        Ok(Self {
            id,
            pidfd,
            exit: Arc::default(),
        })
    }

    pub(crate) fn id(&self) -> ProcessId {
        self.id
    }

    pub(crate) fn pid(&self) -> u32 {
        self.id.pid
    }

    pub(crate) fn is_alive(&self) -> bool {
        !self.wait(Duration::ZERO)
    }

    /// Waits for its end at most `timeout`; answers whether it ended.
    pub(crate) fn wait(&self, timeout: Duration) -> bool {
        ended(&self.pidfd, Some(timeout))
    }

    /// Ends it at once.
    pub(crate) fn kill(&self) {
        // The only error is that it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// How it ended, as far as known.
    pub(crate) fn end(&self) -> String {
        // The reaper is told at the same moment as we are.
        for _ in 0..50 {
            match self.exit.get() {
                Some(status) => return format!("QEMU (pid {}) ended with {status}", self.id.pid),
                None if Arc::strong_count(&self.exit) == 1 => break,
                None => thread::sleep(Duration::from_millis(1)),
            }
        }
        format!("QEMU (pid {}) ended", self.id.pid)
    }
}

/// Waits until the process of `pidfd` has ended, at most `timeout`.
fn ended(pidfd: &OwnedFd, timeout: Option<Duration>) -> bool {
    let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, timeout.as_ref()), Ok(1..))
}

fn start_ticks(pid: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field, the name, may hold anything: count from its closing parenthesis. Start time is field 22.
    stat.rsplit_once(')')
        .and_then(|(_, fields)| fields.split_whitespace().nth(19))
        .and_then(|ticks| ticks.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unknown form of /proc/PID/stat"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_watched_killed_and_reaped() {
        let process = QemuProcess::of_child(Command::new("sleep").arg("1000").spawn().unwrap()).unwrap();
        assert!(process.is_alive());
        assert!(QemuProcess::find(process.id()).unwrap().is_alive());
        process.kill();
        assert!(process.wait(Duration::from_secs(10)));
        assert!(process.end().contains("signal: 9"), "{}", process.end());
        assert!(QemuProcess::find(process.id()).is_err());
    }

    #[test]
    fn a_reused_pid_is_another_process() {
        let own = QemuProcess::open(std::process::id()).unwrap().id();
        let stranger = ProcessId {
            start_ticks: own.start_ticks + 1,
            ..own
        };
        assert!(QemuProcess::find(own).is_ok());
        assert!(QemuProcess::find(stranger).is_err());
    }
}
