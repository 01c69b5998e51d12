//! The bits of the userfaultfd interface, under the kernel's names.

use std::fmt;

use bitflags::bitflags;
use linux_raw_sys::general as raw;
use serde::{Deserialize, Serialize};

/// By which way this process may make a userfaultfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Permission {
    /// The system call: root, `CAP_SYS_PTRACE`, or `vm.unprivileged_userfaultfd` = 1.
    SystemCall,
    /// `/dev/userfaultfd`, by its file permissions.
    Device,
    /// Faults in user mode only. Write tracking is complete even so; a missing page touched by a system call
    /// makes that call fail with `EFAULT`.
    UserModeOnly,
}

bitflags! {
    /// What a userfaultfd can do (`UFFD_FEATURE_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// Synchronous write-protect faults are reported.
        const PAGEFAULT_FLAG_WP = raw::UFFD_FEATURE_PAGEFAULT_FLAG_WP as u64;
        /// Forks are reported, each with a userfaultfd for the child. Needs `CAP_SYS_PTRACE`.
        const EVENT_FORK = raw::UFFD_FEATURE_EVENT_FORK as u64;
        /// `mremap` is reported.
        const EVENT_REMAP = raw::UFFD_FEATURE_EVENT_REMAP as u64;
        /// `madvise` that drops pages is reported.
        const EVENT_REMOVE = raw::UFFD_FEATURE_EVENT_REMOVE as u64;
        /// `munmap` is reported.
        const EVENT_UNMAP = raw::UFFD_FEATURE_EVENT_UNMAP as u64;
        /// Missing faults on hugetlbfs.
        const MISSING_HUGETLBFS = raw::UFFD_FEATURE_MISSING_HUGETLBFS as u64;
        /// Missing faults on shared memory.
        const MISSING_SHMEM = raw::UFFD_FEATURE_MISSING_SHMEM as u64;
        /// A fault raises `SIGBUS` instead of being reported.
        const SIGBUS = raw::UFFD_FEATURE_SIGBUS as u64;
        /// Faults carry the thread's id.
        const THREAD_ID = raw::UFFD_FEATURE_THREAD_ID as u64;
        /// Minor faults on hugetlbfs.
        const MINOR_HUGETLBFS = raw::UFFD_FEATURE_MINOR_HUGETLBFS as u64;
        /// Minor faults on shared memory.
        const MINOR_SHMEM = raw::UFFD_FEATURE_MINOR_SHMEM as u64;
        /// Fault addresses are exact, not of the page.
        const EXACT_ADDRESS = raw::UFFD_FEATURE_EXACT_ADDRESS as u64;
        /// Write protection on shared memory and hugetlbfs.
        const WP_HUGETLBFS_SHMEM = raw::UFFD_FEATURE_WP_HUGETLBFS_SHMEM as u64;
        /// Write protection covers pages that are not there yet.
        const WP_UNPOPULATED = raw::UFFD_FEATURE_WP_UNPOPULATED as u64;
        /// Pages can be poisoned.
        const POISON = raw::UFFD_FEATURE_POISON as u64;
        /// Write-protect faults resolve themselves, and `PAGEMAP_SCAN` tells which pages were written. Linux 6.7.
        const WP_ASYNC = raw::UFFD_FEATURE_WP_ASYNC as u64;
        /// Pages can be moved.
        const MOVE = raw::UFFD_FEATURE_MOVE as u64;
        // Bits of newer kernels are kept.
        const _ = !0;
    }

    /// What a range is registered for (`UFFDIO_REGISTER_MODE_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Mode: u64 {
        /// Faults on pages the file does not have.
        const MISSING = raw::UFFDIO_REGISTER_MODE_MISSING as u64;
        /// Writes to protected pages.
        const WP = raw::UFFDIO_REGISTER_MODE_WP as u64;
        /// Faults on pages the file has and the process has not mapped yet. Alone it reports nothing on holes.
        const MINOR = raw::UFFDIO_REGISTER_MODE_MINOR as u64;
    }

    /// How pages are installed.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct CopyMode: u64 {
        /// Do not wake threads that wait for the page: several requests, then one [`crate::Userfaultfd::wake`].
        const DONTWAKE = raw::UFFDIO_COPY_MODE_DONTWAKE as u64;
        /// Install it write-protected (a copied page, in a range registered for it).
        const WP = raw::UFFDIO_COPY_MODE_WP as u64;
    }

    /// The requests that a registered range supports.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ioctls: u64 {
        /// [`crate::Userfaultfd::wake`].
        const WAKE = 1 << raw::_UFFDIO_WAKE;
        /// [`crate::Userfaultfd::copy`].
        const COPY = 1 << raw::_UFFDIO_COPY;
        /// [`crate::Userfaultfd::zeropage`].
        const ZEROPAGE = 1 << raw::_UFFDIO_ZEROPAGE;
        /// [`crate::Userfaultfd::write_protect`].
        const WRITEPROTECT = 1 << raw::_UFFDIO_WRITEPROTECT;
        /// [`crate::Userfaultfd::continue_range`].
        const CONTINUE = 1 << raw::_UFFDIO_CONTINUE;
        // Bits of newer kernels are kept.
        const _ = !0;
    }
}

impl Features {
    /// What tracking the writes to a guest's shared memory takes.
    pub const TRACKING: Features = Features::WP_ASYNC
        .union(Features::WP_UNPOPULATED)
        .union(Features::WP_HUGETLBFS_SHMEM);
    /// What holding up the writes to a guest's shared memory takes.
    pub const HOLDING: Features = Features::PAGEFAULT_FLAG_WP.union(Features::WP_HUGETLBFS_SHMEM);
    /// What post-copy into shared memory takes.
    pub const POST_COPY: Features = Features::MISSING_SHMEM;
    /// What a hybrid (pages sent earlier and dirtied since) takes on top of post-copy.
    pub const HYBRID: Features = Features::MISSING_SHMEM.union(Features::MINOR_SHMEM);
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        bitflags::parser::to_writer(self, f)
    }
}
