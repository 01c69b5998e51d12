//! Stock QEMU as a vmferry guest: nothing in it is patched, everything is done from outside.
//!
//! RAM lies in memfds that QEMU inherits as shared file backends ([`QemuBackend`]); writes are tracked and page
//! faults answered through a userfaultfd made inside QEMU's process by one injected system call; device state
//! goes through QEMU's own migration stream with shared RAM left out, driven over [`qmp`]. QEMU lives on when
//! the daemon does not, and is found again. What is deliberately absent: any table of QEMU versions, and any
//! `unsafe`.
#![forbid(unsafe_code)]

mod agent;
mod args;
mod attach;
mod backend;
mod cmdline;
mod disks;
mod faults;
mod guest;
mod launch;
mod mappings;
mod migrate_in;
mod migrate_out;
mod paths;
mod probe;
mod process;
mod record;
mod rings;
mod tracker;
mod uffd;
mod write_holds;

pub mod physical;
pub mod plain;
pub mod qmp;
pub mod spec;

pub use attach::attach;
pub use backend::QemuBackend;
pub use guest::QemuGuest;
pub use physical::GuestPhysicalMap;
pub use plain::PlainQemu;
pub use probe::{QemuInfo, probe};
pub use spec::QemuConfig;
