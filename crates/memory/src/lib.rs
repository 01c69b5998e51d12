//! Linux memory mechanisms behind a safe interface.
//!
//! * [`SharedMemory`]: guest RAM as a shared file that a running guest writes at the same time.
//! * [`Userfaultfd`]: page faults answered and writes tracked, in this process or in another one.
//! * [`RemoteProcess`]: a userfaultfd made inside a process that already runs, and found again later.
//! * [`PagemapScanner`], [`mappings_of`]: which pages of a process were written, and where it maps a file.
//! * [`WpAsyncTracker`]: the three together: the pages of a RAM file that a process writes.
//! * [`WriteGate`]: writes to a RAM file held up until somebody has seen to the page.
//! * [`SharedPageStates`]: one state byte a page in a file, so that a restarted daemon finds it again.
//!
//! Offsets and lengths are bytes; pages are [`PAGE_SIZE`] bytes. Addresses are `u64`, never pointers: most of
//! them belong to another process. Nearly all `unsafe` of the project lives here, and none of it leaks: no
//! function of this crate hands out a reference into memory that a guest shares.

mod attach;
mod doctor;
mod error;
mod fault_cost;
mod mapping;
mod maps;
mod page_costs;
mod page_states;
mod pagemap;
mod racy;
mod ram;
mod spawn;
mod tracker;
mod uffd;
mod write_gate;

pub use attach::{RemoteProcess, Syscall, UffdRequest};
pub use doctor::{Capabilities, Check};
pub use error::{Error, Result};
pub use fault_cost::WriteFaultCost;
pub use maps::{FileId, MapEntry, Mapping, mappings_of, read_maps};
pub use page_costs::PageCosts;
pub use page_states::SharedPageStates;
pub use pagemap::PagemapScanner;
pub use ram::{DataExtents, SharedMemory, TransferPipe};
pub use spawn::spawn_detached;
pub use tracker::WpAsyncTracker;
pub use uffd::{
    CopyMode, Event, FaultFlags, Features, Ioctls, Mode, Outcome, Permission, Stopped, UffdInfo, Userfaultfd,
};
pub use write_gate::{Held, WriteGate};

/// Bytes in a page: the unit of tracking, of faults and of transfer. x86_64 has this one base size.
pub const PAGE_SIZE: usize = 4096;
