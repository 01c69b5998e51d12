//! The one userfaultfd inside QEMU's process.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::{debug, warn};
use vmferry_guest::{GuestError, Result};
use vmferry_memory::{Error, Features, RemoteProcess, UffdRequest, Userfaultfd};

use crate::guest::QemuGuest;
use crate::mappings::Mappings;
use crate::qmp::commands::{CloseFd, GetFd};

/// Under this name QEMU holds `/dev/userfaultfd` for a moment.
const DEVICE_FD_NAME: &str = "vmferry-userfaultfd";

/// The userfaultfd that tracking and faults share: a range can be registered with one only, and the process
/// keeps its own copy open, so that its faults wait while no daemon is there to answer them.
#[derive(Default)]
pub(crate) struct InQemu {
    copy: Mutex<Option<Arc<Userfaultfd>>>,
}

impl QemuGuest {
    /// The userfaultfd of QEMU's process: the one at hand, the one an earlier daemon left there, or a new one.
    ///
    /// It is set up with everything any use needs, as the kernel allows that once.
    pub(crate) fn userfaultfd(&self, needed: Features) -> Result<Arc<Userfaultfd>> {
        let mut copy = self.uffd.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if copy.is_none() {
            let remote = self.remote()?;
            let found = find_usable(&remote);
            *copy = Some(Arc::new(match found {
                Some(uffd) => uffd,
                None => self.inject(&remote)?,
            }));
        }
        let uffd = copy.as_ref().expect("just made");
        uffd.handshake(needed)
            .map_err(|error| cannot("setting up the userfaultfd in QEMU", error))?;
        Ok(Arc::clone(uffd))
    }

    /// The userfaultfd that an earlier daemon left in QEMU.
    pub(crate) fn left_userfaultfd(&self) -> Result<Option<Arc<Userfaultfd>>> {
        let mut copy = self.uffd.copy.lock().unwrap_or_else(PoisonError::into_inner);
        if copy.is_none() {
            *copy = find_usable(&self.remote()?).map(Arc::new);
        }
        Ok(copy.clone())
    }

    /// Ends the write tracking that an earlier daemon may have left on: the guest pays for it, and nobody looks.
    pub(crate) fn end_tracking_of_predecessor(&self) {
        if self.record.fault_mode().is_some() {
            return;
        }
        let Ok(Some(uffd)) = self.left_userfaultfd() else {
            return;
        };
        let Ok(mappings) = Mappings::find(self.process.pid(), &self.ram) else {
            return;
        };
        for run in mappings.runs() {
            if let Err(error) = uffd.unregister(run.addresses.clone()) {
                debug!(%error, "tracking of an earlier daemon is not ended");
            }
        }
    }

    pub(crate) fn remote(&self) -> Result<RemoteProcess> {
        RemoteProcess::open(self.process.pid()).map_err(|error| match error {
            Error::ProcessGone => self.gone(),
            error => cannot("reaching into QEMU's process", error),
        })
    }

    /// A new userfaultfd of QEMU's process of which QEMU keeps no copy: what was registered with it ends with us.
    pub(crate) fn own_userfaultfd(&self) -> Result<Userfaultfd> {
        self.make(&self.remote()?, RemoteProcess::take_userfaultfd)
    }

    /// Has QEMU make the userfaultfd that it keeps a copy of.
    fn inject(&self, remote: &RemoteProcess) -> Result<Userfaultfd> {
        let steal = |remote: &RemoteProcess, request| remote.steal_userfaultfd(request).map(|(uffd, _)| uffd);
        let uffd = self.make(remote, steal)?;
        uffd.handshake(wanted_features())
            .map_err(|error| cannot("setting up the userfaultfd in QEMU", error))?;
        Ok(uffd)
    }

    /// Has QEMU make a userfaultfd, by the system call or, where QEMU's rights do not suffice for that, out of
    /// a `/dev/userfaultfd` that we open for it.
    fn make(
        &self,
        remote: &RemoteProcess,
        fetch: impl Fn(&RemoteProcess, UffdRequest) -> vmferry_memory::Result<Userfaultfd>,
    ) -> Result<Userfaultfd> {
        let made = match fetch(remote, UffdRequest::Full) {
            Err(Error::InjectedCall { .. }) => self.make_by_device(remote, fetch),
            made => made,
        };
        made.map_err(|error| cannot("making a userfaultfd in QEMU's process", error))
    }

    fn make_by_device(
        &self,
        remote: &RemoteProcess,
        fetch: impl Fn(&RemoteProcess, UffdRequest) -> vmferry_memory::Result<Userfaultfd>,
    ) -> vmferry_memory::Result<Userfaultfd> {
        let forbidden = |source| Error::UserfaultfdForbidden { source };
        let device = Path::new("/dev/userfaultfd");
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(device)
            .map_err(forbidden)?;
        let name = || DEVICE_FD_NAME.to_owned();
        self.qmp
            .run_with_fds(&GetFd { fdname: name() }, &[opened.as_fd()])
            .map_err(|error| forbidden(std::io::Error::other(error)))?;
        let made = fd_open_at(remote.pid(), device)
            .ok_or_else(|| forbidden(std::io::Error::other("QEMU did not take /dev/userfaultfd")))
            .and_then(|remote_fd| fetch(remote, UffdRequest::Device { remote_fd }));
        if let Err(error) = self.qmp.run(&CloseFd { fdname: name() }) {
            warn!(%error, "QEMU keeps /dev/userfaultfd open");
        }
        made
    }
}

/// What tracking, post-copy and hybrids need, as far as this kernel has it; each use checks its own part.
fn wanted_features() -> Features {
    let wanted = Features::TRACKING | Features::HYBRID;
    Userfaultfd::probe_features().map_or(wanted, |offered| wanted & offered)
}

/// A userfaultfd that vmferry left in the process, ready for every use.
fn find_usable(remote: &RemoteProcess) -> Option<Userfaultfd> {
    let wanted = wanted_features();
    let left = remote.find_userfaultfds().ok()?;
    left.into_iter()
        .filter_map(|fd| remote.getfd(fd).and_then(Userfaultfd::from_fd).ok())
        .find(|uffd| uffd.handshake(wanted).is_ok())
}

/// The number of the descriptor at which process `pid` has `path` open.
fn fd_open_at(pid: u32, path: &Path) -> Option<RawFd> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    entries
        .flatten()
        .find(|entry| std::fs::read_link(entry.path()).is_ok_and(|target| target == path))
        .and_then(|entry| entry.file_name().to_str()?.parse().ok())
}

fn cannot(doing: &str, error: Error) -> GuestError {
    GuestError::operation(doing, error)
}
