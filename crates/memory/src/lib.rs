//! Linux memory mechanisms behind a safe interface.
//!
//! * [`SharedMemory`]: guest RAM as a shared file that a running guest writes at the same time.
//! * [`Userfaultfd`]: page faults answered and writes tracked, in this process or in another one.
//! * [`SharedPageStates`]: one state byte a page in a file, so that a restarted daemon finds it again.
//!
//! Offsets and lengths are bytes; pages are [`PAGE_SIZE`] bytes. Addresses are `u64`, never pointers: most of
//! them belong to another process. Nearly all `unsafe` of the project lives here, and none of it leaks: no
//! function of this crate hands out a reference into memory that a guest shares.

mod error;
mod mapping;
mod page_states;
mod racy;
mod ram;
mod spawn;
mod uffd;

pub use error::{Error, Result};
pub use page_states::SharedPageStates;
pub use ram::{DataExtents, SharedMemory};
pub use spawn::spawn_detached;
pub use uffd::{
    CopyMode, Event, FaultFlags, Features, Ioctls, Mode, Outcome, Permission, Stopped, UffdInfo, Userfaultfd,
};

/// Bytes in a page: the unit of tracking, of faults and of transfer. x86_64 has this one base size.
pub const PAGE_SIZE: usize = 4096;
