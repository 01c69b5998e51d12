//! What has to be undone when a lab ends, however it ends: a flag that Ctrl-C sets, child processes, the folder.

use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::error::{LabError, Result};

/// How long a process may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(3);
/// How often a wait looks again.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// Whether somebody wants the work to end. The signal only sets a flag, so that every guard's `drop` runs.
#[derive(Clone)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Catches SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// When the system does not let them be caught.
    pub fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            signal_hook::flag::register(signal.as_raw(), Arc::clone(&flag))
                .map_err(LabError::system("catch signals"))?;
        }
        Ok(Self(flag))
    }

    /// An error once somebody wants the work to end.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            Err(LabError::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Sleeps, unless interrupted.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    pub fn sleep(&self, duration: Duration) -> Result<()> {
        let end = Instant::now() + duration;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(POLL));
        }
    }

    /// Does `work` on another thread and waits for it, unless interrupted; then the thread is left to itself.
    ///
    /// # Errors
    /// [`LabError::Interrupted`].
    ///
    /// # Panics
    /// When the work does.
    pub fn during<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || sender.send(work()));
        loop {
            self.check()?;
            match receiver.recv_timeout(POLL) {
                Ok(result) => return Ok(result),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(_) => return Err(LabError::Lost),
                },
            }
        }
    }

    /// Calls `attempt` until it has a result; `what` ends the sentence "waited 60 s for ".
    ///
    /// # Errors
    /// That of an attempt; or when the time is over, or interrupted.
    pub fn wait_for<T>(
        &self,
        what: &str,
        limit: Duration,
        mut attempt: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let end = Instant::now() + limit;
        loop {
            self.check()?;
            if let Some(result) = attempt()? {
                return Ok(result);
            }
            if Instant::now() > end {
                let what = what.to_owned();
                return Err(LabError::TimedOut { what, limit });
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A child process that ends with its guard.
pub struct Process(Child);

impl Process {
    /// Guards `child`.
    pub fn new(child: Child) -> Self {
        Self(child)
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn exit_status(&mut self) -> Result<Option<std::process::ExitStatus>> {
        self.0.try_wait().map_err(LabError::system("wait for a process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(GRACE);
    }
}

impl Process {
    /// Asks it to end, and after `grace` makes it.
    fn end(&mut self, grace: Duration) {
        if let (Ok(None), Some(pid)) = (self.0.try_wait(), pid(self.0.id())) {
            // It may end on its own in between, which is just as well.
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            let end = Instant::now() + grace;
            while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(POLL);
            }
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Whether process `id` exists and is one of this program's.
pub(crate) fn is_alive(id: u32) -> bool {
    let name = std::fs::read_to_string(format!("/proc/{id}/comm"));
    name.is_ok_and(|name| name.starts_with("vmferry"))
}

/// Kills every process that `list` finds, until it finds none or the time of grace is over.
pub(crate) fn kill_all(list: impl Fn() -> Vec<u32>) {
    let end = Instant::now() + GRACE;
    loop {
        let found = list();
        for pid in found.iter().filter_map(|&id| pid(id)) {
            // It may have ended since.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
        if found.is_empty() || Instant::now() > end {
            return;
        }
        std::thread::sleep(POLL);
    }
}

fn pid(id: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(id).ok()?)
}

/// Name of the folders of all runs, before the number of the process.
const FOLDER: &str = "vmferry-lab-";

/// Makes the folder of this run, which goes when it is dropped. Folders of runs that are gone go now.
///
/// # Errors
/// When there cannot be one.
pub fn scratch_folder() -> Result<TempDir> {
    let parent = std::env::temp_dir();
    remove_stale_folders(&parent);
    tempfile::Builder::new()
        .prefix(&format!("{FOLDER}{}-", std::process::id()))
        .tempdir_in(&parent)
        .map_err(LabError::system(format!("make a folder in {}", parent.display())))
}

fn remove_stale_folders(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let run = name
            .to_str()
            .and_then(|name| name.strip_prefix(FOLDER))
            .and_then(|rest| rest.split_once('-'));
        if run.is_some_and(|(id, _)| id.parse().is_ok_and(|id| !is_alive(id))) {
            // Another user's, perhaps.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_ends_with_its_guard_even_one_that_does_not_listen() {
        let mut command = Command::new("sh");
        let child = command
            .args(["-c", "trap '' TERM; while :; do sleep 0.1; done"])
            .spawn()
            .unwrap();
        let id = child.id();
        Process::new(child).end(Duration::from_millis(200));
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }

    #[test]
    fn a_wait_ends_by_result_and_by_interruption() {
        let interrupt = Interrupt(Arc::default());
        let mut calls = 0;
        let counted = interrupt.wait_for("the third call", Duration::from_secs(60), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(counted.unwrap(), 3);
        let late = interrupt
            .wait_for("nothing", Duration::ZERO, || Ok(None::<()>))
            .unwrap_err();
        assert_eq!(late.to_string(), "waited 0 s for nothing");
        interrupt.0.store(true, Ordering::Relaxed);
        assert!(
            interrupt
                .sleep(Duration::from_secs(60))
                .unwrap_err()
                .is_interrupted()
        );
    }

    #[test]
    fn folders_of_runs_that_are_gone_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let dead = parent.path().join(format!("{FOLDER}{}-x", child.id()));
        let other = parent.path().join(format!("{FOLDER}kept"));
        for folder in [&dead, &other] {
            std::fs::create_dir(folder).unwrap();
        }
        remove_stale_folders(parent.path());
        assert!(!dead.exists() && other.exists());
    }
}
