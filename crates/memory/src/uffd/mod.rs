//! userfaultfd: page faults of a process answered by us, and its writes tracked by the kernel.

mod events;
mod flags;
mod info;
mod install;

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use linux_raw_sys::general::{uffdio_api, uffdio_range, uffdio_register};
use linux_raw_sys::ioctl::{UFFDIO_API, UFFDIO_REGISTER, UFFDIO_UNREGISTER, UFFDIO_WAKE};
use rustix::io::Errno;
use rustix::ioctl::Updater;
use rustix::mm::UserfaultfdFlags;

pub use events::{Event, FaultFlags};
pub use flags::{CopyMode, Features, Ioctls, Mode, Permission};
pub use info::UffdInfo;
pub use install::{Outcome, Stopped};

use crate::mapping::with_own_mapping;
use crate::{Error, Result};

/// `UFFD_API`: the one version of the interface there is.
const API: u64 = 0xAA;
/// `USERFAULTFD_IOC_NEW`, on `/dev/userfaultfd`: `_IO(0xAA, 0)`.
pub(crate) const IOC_NEW: u32 = 0xAA00;
/// `UFFD_USER_MODE_ONLY`, as a flag of the system call.
pub(crate) const USER_MODE_ONLY: u32 = 1;

/// An open userfaultfd, of our own process or of another one.
///
/// A userfaultfd belongs to the memory of the process that *made* it, wherever the descriptor travels; all
/// addresses are of that process. Requests are `ioctl`s: every one of them works from outside. At most one
/// userfaultfd can be registered on a range.
///
/// # Memory safety
/// What is done to another process's memory cannot break ours. In our own process a userfaultfd could change
/// what the memory under any reference reads as, so one made by [`Userfaultfd::open`] registers only addresses of
/// a live [`crate::SharedMemory`], which nobody holds references into (the kernel installs pages only in
/// registered ranges, so the check at registration covers all requests).
///
/// # Closing
/// Closing the *last* copy of the descriptor wakes all waiting faults, and they read zeros. Leave a copy open in
/// the process it belongs to ([`crate::RemoteProcess::steal_userfaultfd`] does): its faults then wait for whoever
/// takes over.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    of_own_process: bool,
}

impl Userfaultfd {
    /// Makes one for our own process in the strongest way permitted: by the system call, by `/dev/userfaultfd`,
    /// or for faults in user mode only (then a system call that touches a missing page fails with `EFAULT`).
    ///
    /// # Errors
    /// [`Error::UserfaultfdForbidden`] when none of them is permitted.
    pub fn open() -> Result<(Self, Permission)> {
        let mut refusal = None;
        for permission in [
            Permission::SystemCall,
            Permission::Device,
            Permission::UserModeOnly,
        ] {
            match Self::open_by(permission) {
                Ok(uffd) => return Ok((uffd, permission)),
                Err(e) => refusal = Some(e),
            }
        }
        Err(refusal.expect("three ways were tried"))
    }

    /// Makes one for our own process in the way asked for and no other.
    ///
    /// # Errors
    /// [`Error::UserfaultfdForbidden`] when that way is not permitted.
    pub fn open_by(permission: Permission) -> Result<Self> {
        let by_syscall = |extra| {
            let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK | extra;
            // SAFETY: the descriptor goes into a type that keeps it to memory nobody holds references into.
            unsafe { rustix::mm::userfaultfd(flags) }.map_err(std::io::Error::from)
        };
        let made = match permission {
            Permission::SystemCall => by_syscall(UserfaultfdFlags::empty()),
            Permission::UserModeOnly => by_syscall(UserfaultfdFlags::from_bits_retain(USER_MODE_ONLY)),
            Permission::Device => open_device(),
        };
        let fd = made.map_err(|source| Error::UserfaultfdForbidden { source })?;
        Ok(Userfaultfd {
            fd,
            of_own_process: true,
        })
    }

    /// Takes over a userfaultfd of *another* process: one received over a socket, or fetched by
    /// [`crate::RemoteProcess::getfd`]. It is made non-blocking.
    ///
    /// Like `/proc/self/mem`, a descriptor of our own process smuggled in here could do anything to our memory;
    /// for that there is [`Userfaultfd::open`].
    ///
    /// # Errors
    /// The descriptor is not a userfaultfd.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let uffd = Userfaultfd {
            fd,
            of_own_process: false,
        };
        uffd.info()?;
        let flags =
            rustix::fs::fcntl_getfl(&uffd.fd).map_err(|e| Error::system("ask userfaultfd flags", e))?;
        rustix::fs::fcntl_setfl(&uffd.fd, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(|e| Error::system("make the userfaultfd non-blocking", e))?;
        Ok(uffd)
    }

    /// The features this kernel can offer, asked on a userfaultfd of its own.
    ///
    /// # Errors
    /// [`Error::UserfaultfdForbidden`], or the kernel does not answer.
    pub fn probe_features() -> Result<Features> {
        let (uffd, _) = Self::open()?;
        uffd.request_features(Features::empty())
            .map_err(|e| Error::system("ask the kernel for userfaultfd features", e))
    }

    /// Switches the `required` features on; gives back those that are on. The kernel takes this once for each
    /// userfaultfd: on one that was set up before (by an earlier daemon), it only checks that they are on.
    ///
    /// # Errors
    /// [`Error::FeaturesMissing`] when the kernel lacks some, [`Error::FeaturesFixed`] when it was set up
    /// before without them.
    pub fn handshake(&self, required: Features) -> Result<Features> {
        if let Some(enabled) = self.info()?.features {
            let missing = required - enabled;
            return if missing.is_empty() {
                Ok(enabled)
            } else {
                Err(Error::FeaturesFixed { missing })
            };
        }
        match self.request_features(required) {
            Ok(_) => Ok(required),
            Err(Errno::INVAL) => {
                let missing = required - Self::probe_features()?;
                Err(Error::FeaturesMissing { missing })
            }
            Err(e) => Err(Error::system("set the userfaultfd up", e)),
        }
    }

    /// `UFFDIO_API`: switches `features` on and gives back all that the kernel knows.
    fn request_features(&self, features: Features) -> Result<Features, Errno> {
        let mut api = uffdio_api {
            api: API,
            features: features.bits(),
            ioctls: 0,
        };
        // SAFETY: the opcode takes exactly this struct.
        unsafe { self.ioctl::<UFFDIO_API, _>(&mut api) }?;
        Ok(Features::from_bits_retain(api.features))
    }

    /// Registers the pages of `range` for `mode`; gives back the requests the range supports. Registering again
    /// adds modes.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`] when another userfaultfd has the range; [`Error::BadRange`] when it is not
    /// whole pages, or (for one of our own process) not inside a live [`crate::SharedMemory`]; the range is not
    /// mapped or does not support the mode.
    pub fn register(&self, range: Range<u64>, mode: Mode) -> Result<Ioctls> {
        let mut request = uffdio_register {
            range: as_kernel_range(&range)?,
            mode: mode.bits(),
            ioctls: 0,
        };
        // SAFETY: the opcode takes exactly this struct. What registering may do to memory: see the type.
        let mut register = || match unsafe { self.ioctl::<UFFDIO_REGISTER, _>(&mut request) } {
            Ok(()) => Ok(Ioctls::from_bits_retain(request.ioctls)),
            Err(Errno::BUSY) => Err(Error::AlreadyRegistered {
                start: range.start,
                end: range.end,
            }),
            Err(e) => Err(self.range_error("register", &range, e)),
        };
        if self.of_own_process {
            with_own_mapping(&range, register)
        } else {
            register()
        }
    }

    /// Takes the pages of `range` out of this userfaultfd's care: faults there are the kernel's again, all that wait are woken, and
    /// write protection is lifted. Pages that are not there read as zero.
    ///
    /// The kernel itself wakes those that wait for missing pages, and does so first: a fault that comes between that and the end of its
    /// care, by the lock of its mapping alone (Linux 6.7 and later), would wait for ever. Once it is out of care none can come that waits.
    ///
    /// # Errors
    /// The range is not whole pages, or not mapped.
    pub fn unregister(&self, range: Range<u64>) -> Result<()> {
        let mut request = as_kernel_range(&range)?;
        // SAFETY: the opcode takes exactly this struct.
        unsafe { self.ioctl::<UFFDIO_UNREGISTER, _>(&mut request) }
            .map_err(|e| self.range_error("unregister", &range, e))?;
        self.wake(range)
    }

    /// Wakes every thread that waits on a fault in `range`. A fault that is not resolved is reported again.
    ///
    /// # Errors
    /// The range is not whole pages.
    pub fn wake(&self, range: Range<u64>) -> Result<()> {
        let mut request = as_kernel_range(&range)?;
        // SAFETY: the opcode takes exactly this struct.
        unsafe { self.ioctl::<UFFDIO_WAKE, _>(&mut request) }
            .map_err(|e| self.range_error("wake faults in", &range, e))
    }

    /// One request with its argument, which the kernel may update.
    ///
    /// # Safety
    /// `T` must be the type that the opcode takes.
    unsafe fn ioctl<const OPCODE: u32, T>(&self, argument: &mut T) -> Result<(), Errno> {
        // SAFETY: passed on to the caller.
        unsafe { rustix::ioctl::ioctl(&self.fd, Updater::<{ OPCODE }, T>::new(argument)) }
    }

    /// The error of a request over `range`.
    fn range_error(&self, verb: &str, range: &Range<u64>, error: Errno) -> Error {
        match error {
            Errno::SRCH => Error::ProcessGone,
            _ => Error::system(
                format!("{verb} {:#x}..{:#x} by userfaultfd", range.start, range.end),
                error,
            ),
        }
    }
}

impl AsFd for Userfaultfd {
    /// For polling it together with other descriptors.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn as_kernel_range(range: &Range<u64>) -> Result<uffdio_range> {
    let page = crate::PAGE_SIZE as u64;
    if range.start >= range.end || !range.start.is_multiple_of(page) || !range.end.is_multiple_of(page) {
        let what = "the process's memory (at least one page)";
        return Err(Error::BadRange {
            start: range.start,
            end: range.end,
            what,
        });
    }
    Ok(uffdio_range {
        start: range.start,
        len: range.end - range.start,
    })
}

/// Makes a userfaultfd through `/dev/userfaultfd`, whose file permissions decide who may.
fn open_device() -> std::io::Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: this request takes the flags by value and touches no memory.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW.into(), flags) };
    if made < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(made) })
}

#[cfg(test)]
mod tests;
