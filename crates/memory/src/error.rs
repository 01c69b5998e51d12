//! What can go wrong with the kernel's memory mechanisms.

use std::io;

use crate::Features;

/// The result of most functions in this crate. Plain transfers of bytes use [`std::io::Result`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of this crate: one line that says what was wrong and, where the user can act, how to mend it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed in a way that has no better name.
    #[error("could not {what}")]
    System {
        /// What was attempted, to follow "could not".
        what: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A range lies outside what it must lie in, or is not made of whole pages.
    #[error("range {start:#x}..{end:#x} is not made of whole pages inside {what}")]
    BadRange {
        /// First byte of the range.
        start: u64,
        /// One past the last byte of the range.
        end: u64,
        /// What the range was meant to lie in.
        what: &'static str,
    },
    /// A file is not of the length that was expected.
    #[error("{what} holds {found} bytes where {expected} are needed")]
    BadLength {
        /// Which file.
        what: String,
        /// Its length in bytes.
        found: u64,
        /// The length needed, in bytes.
        expected: u64,
    },
    /// No way to a userfaultfd is permitted to this process.
    #[error(
        "userfaultfd is not permitted: run as root or with CAP_SYS_PTRACE, allow access to /dev/userfaultfd, \
         or (in a container) allow the userfaultfd system call"
    )]
    UserfaultfdForbidden {
        /// Why the last way tried failed.
        #[source]
        source: io::Error,
    },
    /// The kernel's userfaultfd lacks features that are needed.
    #[error("the kernel's userfaultfd lacks {missing}: vmferry needs Linux 6.7 or newer")]
    FeaturesMissing {
        /// The features asked for and not there.
        missing: Features,
    },
    /// The userfaultfd was set up before, with fewer features than are needed now.
    #[error("the userfaultfd is already set up without {missing}: a new one is needed")]
    FeaturesFixed {
        /// The features asked for and not enabled.
        missing: Features,
    },
    /// Another userfaultfd is registered on the range.
    #[error(
        "another userfaultfd is registered on {start:#x}..{end:#x}: it must let go first (an earlier vmferry, \
         or a migration of the hypervisor's own)"
    )]
    AlreadyRegistered {
        /// First address of the range.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// The process whose memory was meant has exited.
    #[error("the process whose memory was meant is gone")]
    ProcessGone,
    /// The process is in the middle of a change of its mappings that waits to be heard of by [`crate::Userfaultfd::read_events`].
    #[error("{start:#x}..{end:#x} cannot be protected: the process keeps changing its mappings")]
    MappingsChanging {
        /// First address of the range.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// The kernel has no PAGEMAP_SCAN.
    #[error("the kernel cannot scan for written pages (PAGEMAP_SCAN): vmferry needs Linux 6.7 or newer")]
    NoPagemapScan {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A scan met memory that is not registered for tracking.
    #[error(
        "{start:#x}..{end:#x} is not tracked: the process changed its mappings, or tracking was not started"
    )]
    NotTracked {
        /// First address of the scan.
        start: u64,
        /// One past the last address.
        end: u64,
    },
    /// The process has no shared mapping of the file.
    #[error(
        "process {pid} has no shared mapping of the RAM file: its RAM must be a file mapped with share=on"
    )]
    NotMapped {
        /// The process.
        pid: u32,
    },
    /// We may not trace the process.
    #[error(
        "process {pid} may not be traced: run as root, as its user with kernel.yama.ptrace_scope = 0, \
         or with CAP_SYS_PTRACE"
    )]
    TraceForbidden {
        /// The process.
        pid: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A debugger holds the process.
    #[error("process {pid} is traced by process {tracer} (a debugger?): that one must let go first")]
    AlreadyTraced {
        /// The process.
        pid: u32,
        /// Who traces it.
        tracer: u32,
    },
    /// No thread of the process stopped in time, or an injected call did not return.
    #[error(
        "process {pid} did not answer in time: its threads may be stuck in the kernel (a dead disk or mount?)"
    )]
    AttachTimedOut {
        /// The process.
        pid: u32,
    },
    /// The process would have to inject calls into itself.
    #[error("a process cannot attach to itself")]
    OwnProcess,
    /// The process does not run in 64-bit mode.
    #[error("process {pid} does not run 64-bit x86 code: only such processes can be attached to")]
    NotX8664 {
        /// The process.
        pid: u32,
    },
    /// No code in the process holds a `syscall` instruction.
    #[error("process {pid} has no system call instruction mapped: it cannot be attached to")]
    NoSyscallInstruction {
        /// The process.
        pid: u32,
    },
    /// This build cannot inject system calls.
    #[error("attaching to a process works on x86_64 only")]
    UnsupportedArchitecture,
    /// An injected system call ran and failed.
    #[error("system call {number} failed in process {pid}")]
    InjectedCall {
        /// The call's number.
        number: i64,
        /// The process.
        pid: u32,
        /// Its answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// A failed system call, named by what it was to do ("could not ...").
    pub(crate) fn system(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Error::System {
            what: what.into(),
            source: source.into(),
        }
    }
}
