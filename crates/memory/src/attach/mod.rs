//! Reaching into a running process: system calls made in its name, and its file descriptors.

#[cfg(target_arch = "x86_64")]
mod code;
#[cfg(target_arch = "x86_64")]
mod net;
#[cfg_attr(not(target_arch = "x86_64"), path = "session_unsupported.rs")]
mod session;
mod threads;

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use self::session::{CallCode, Session};
use crate::uffd::{IOC_NEW, USER_MODE_ONLY};
use crate::{Error, Result, Userfaultfd};

/// How long a thread may take to stop, and an injected call to return.
const PATIENCE: Duration = Duration::from_secs(3);

/// A system call to be made by another process: its number there, and up to six arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// The number (`libc::SYS_*` of the target's architecture, which is ours).
    pub number: i64,
    /// The arguments; pointers are addresses in the target.
    pub arguments: [u64; 6],
}

/// How a userfaultfd is to be made in another process, by that process's rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UffdRequest {
    /// By the system call, for all faults. Needs `CAP_SYS_PTRACE` in the target, or
    /// `vm.unprivileged_userfaultfd` = 1.
    Full,
    /// By the system call, for faults in user mode only: enough to track writes, not for post-copy.
    UserModeOnly,
    /// From `/dev/userfaultfd`, which the target has open at this descriptor (passed to it beforehand).
    Device {
        /// The descriptor's number in the target.
        remote_fd: RawFd,
    },
}

/// Another process, held by a pidfd, into which system calls can be injected.
///
/// An injection stops one thread of the process (by `ptrace`, 50 to 200 us), lets it make the call, puts back all
/// that was changed and lets go, whatever happens in between; should we be killed, the thread puts itself back. The thread is one that sleeps where it can be
/// stopped without noticing, if there is any; others may see `EINTR`, as after any signal. Injection needs the
/// right to trace the process, a target that no debugger holds, and, where the target runs under a seccomp
/// filter, one that lets the call pass.
#[derive(Debug)]
pub struct RemoteProcess {
    pid: u32,
    pidfd: OwnedFd,
    /// Where its code makes system calls, once that was looked for.
    code: OnceLock<CallCode>,
}

impl RemoteProcess {
    /// Takes hold of process `pid`, which must not be our own.
    ///
    /// # Errors
    /// [`Error::ProcessGone`] when there is no such process; [`Error::OwnProcess`].
    pub fn open(pid: u32) -> Result<Self> {
        if pid == std::process::id() {
            return Err(Error::OwnProcess);
        }
        let raw = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(Error::ProcessGone)?;
        match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(RemoteProcess {
                pid,
                pidfd,
                code: OnceLock::new(),
            }),
            Err(Errno::SRCH | Errno::INVAL) => Err(Error::ProcessGone),
            Err(e) => Err(Error::system(format!("open process {pid}"), e)),
        }
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the process still runs.
    pub fn is_alive(&self) -> bool {
        let mut poll = [PollFd::new(&self.pidfd, PollFlags::IN)];
        // A pidfd becomes readable when its process has exited.
        matches!(rustix::event::poll(&mut poll, Some(&Timespec::default())), Ok(0))
    }

    /// The pidfd: readable once the process has exited.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Has the process make `call`; gives back what the call returned.
    ///
    /// # Errors
    /// [`Error::InjectedCall`] when the call itself failed; otherwise why it could not be made
    /// ([`Error::TraceForbidden`], [`Error::AlreadyTraced`], [`Error::AttachTimedOut`], [`Error::ProcessGone`] and
    /// others).
    pub fn inject(&self, call: Syscall) -> Result<i64> {
        self.with_session(|session| session.syscall(call))
    }

    /// Makes a userfaultfd in the process and fetches a copy of it, leaving the process's own copy open: should
    /// we die, faults there wait for our successor instead of reading zeros. Gives back the copy and the number
    /// of the process's own descriptor.
    ///
    /// # Errors
    /// As [`RemoteProcess::inject`] and [`RemoteProcess::getfd`].
    pub fn steal_userfaultfd(&self, request: UffdRequest) -> Result<(Userfaultfd, RawFd)> {
        self.with_session(|session| self.fetch_new(session, request))
    }

    /// Makes a userfaultfd in the process and takes it over wholly: the process keeps no copy. Should we die, the kernel
    /// ends what was registered with it: right for held writes ([`crate::WriteGate`]), wrong for missing pages.
    ///
    /// # Errors
    /// As [`RemoteProcess::steal_userfaultfd`].
    pub fn take_userfaultfd(&self, request: UffdRequest) -> Result<Userfaultfd> {
        self.with_session(|session| {
            let (uffd, remote_fd) = self.fetch_new(session, request)?;
            session.syscall(close(remote_fd))?;
            Ok(uffd)
        })
    }

    /// Has a stopped thread make a userfaultfd, and fetches a copy of it.
    fn fetch_new(&self, session: &mut Session, request: UffdRequest) -> Result<(Userfaultfd, RawFd)> {
        let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64;
        let by_syscall = |flags| Syscall {
            number: libc::SYS_userfaultfd,
            arguments: [flags, 0, 0, 0, 0, 0],
        };
        let make = match request {
            UffdRequest::Full => by_syscall(flags),
            UffdRequest::UserModeOnly => by_syscall(flags | u64::from(USER_MODE_ONLY)),
            UffdRequest::Device { remote_fd } => Syscall {
                number: libc::SYS_ioctl,
                arguments: [remote_fd as u64, IOC_NEW.into(), flags, 0, 0, 0],
            },
        };
        let remote_fd = session.syscall(make)? as RawFd;
        match self.getfd(remote_fd).and_then(Userfaultfd::from_fd) {
            Ok(uffd) => Ok((uffd, remote_fd)),
            Err(e) => {
                let _ = session.syscall(close(remote_fd));
                Err(e)
            }
        }
    }

    /// Copies the process's descriptor number `remote_fd` into ours. The process is not stopped for it.
    ///
    /// # Errors
    /// There is no such descriptor, we may not trace the process, or [`Error::ProcessGone`].
    pub fn getfd(&self, remote_fd: RawFd) -> Result<OwnedFd> {
        rustix::process::pidfd_getfd(&self.pidfd, remote_fd, PidfdGetfdFlags::empty()).map_err(|e| match e {
            Errno::SRCH => Error::ProcessGone,
            Errno::PERM => Error::TraceForbidden {
                pid: self.pid,
                source: e.into(),
            },
            _ => Error::system(format!("fetch descriptor {remote_fd} of process {}", self.pid), e),
        })
    }

    /// The numbers of all userfaultfds the process has open: where a restarted daemon finds the one that its
    /// predecessor left. Tell them apart by [`Userfaultfd::info`].
    ///
    /// # Errors
    /// [`Error::ProcessGone`], or we may not look into the process.
    pub fn find_userfaultfds(&self) -> Result<Vec<RawFd>> {
        let folder = format!("/proc/{}/fd", self.pid);
        let entries = std::fs::read_dir(&folder).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Error::ProcessGone,
            _ => Error::system(
                format!("read {folder} (it takes the rights to trace the process)"),
                e,
            ),
        })?;
        let mut found: Vec<RawFd> = entries
            .filter_map(std::result::Result::ok)
            .filter(|entry| {
                std::fs::read_link(entry.path())
                    .is_ok_and(|target| target.as_os_str() == "anon_inode:[userfaultfd]")
            })
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        found.sort_unstable();
        Ok(found)
    }

    /// Has the process drop its mappings of `range`, so that the next touch of each page faults again. What the
    /// file behind it holds stays.
    ///
    /// # Errors
    /// As [`RemoteProcess::inject`].
    pub fn madvise_dontneed(&self, range: Range<u64>) -> Result<()> {
        let len = range.end.saturating_sub(range.start);
        let arguments = [range.start, len, libc::MADV_DONTNEED as u64, 0, 0, 0];
        self.inject(Syscall {
            number: libc::SYS_madvise,
            arguments,
        })
        .map(drop)
    }

    /// Has the process close its descriptor `remote_fd`: for a userfaultfd with nothing registered any more.
    /// Closing the last copy of one that has faults waiting lets them read zeros.
    ///
    /// # Errors
    /// As [`RemoteProcess::inject`].
    pub fn close_remote(&self, remote_fd: RawFd) -> Result<()> {
        self.inject(close(remote_fd)).map(drop)
    }

    /// Stops a thread of the process and runs `action` on it.
    ///
    /// Only the thread that attached may use `ptrace`, and when it ends the kernel lets go of whatever it still
    /// held. So each session has a thread of its own: the target is let go even where detaching failed.
    fn with_session<T: Send>(&self, action: impl FnOnce(&mut Session) -> Result<T> + Send) -> Result<T> {
        let run = || {
            let code = match self.code.get() {
                Some(code) => *code,
                None => {
                    let found = CallCode::find(self.pid)?;
                    *self.code.get_or_init(|| found)
                }
            };
            for thread in threads::by_suitability(self.pid)? {
                match Session::start(self.pid, thread, code, PATIENCE) {
                    Ok(mut session) => return action(&mut session),
                    // Threads come and go, and some are stuck: the next one may do.
                    Err(Error::ProcessGone | Error::AttachTimedOut { .. }) => {}
                    Err(e) => return Err(e),
                }
            }
            Err(Error::AttachTimedOut { pid: self.pid })
        };
        let result = std::thread::scope(|scope| {
            let worker = std::thread::Builder::new()
                .name("inject".into())
                .spawn_scoped(scope, run);
            let worker = worker.map_err(|e| Error::system("start a thread to attach with", e))?;
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        // A process that died meanwhile explains all other errors.
        result.map_err(|e| if self.is_alive() { e } else { Error::ProcessGone })
    }
}

impl AsRawFd for RemoteProcess {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

fn close(remote_fd: RawFd) -> Syscall {
    Syscall {
        number: libc::SYS_close,
        arguments: [remote_fd as u64, 0, 0, 0, 0, 0],
    }
}
