//! A shared file mapping in our own process, unmapped on drop, and the book of all that are alive.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::{Error, Result};

/// Address ranges (start to end) of every [`OwnMapping`] that is alive.
///
/// A userfaultfd of our own process may change what memory reads as, so it may only be let loose on memory that
/// safe code never sees by reference: on these mappings (see [`with_own_mapping`]).
static ALIVE: Mutex<BTreeMap<u64, u64>> = Mutex::new(BTreeMap::new());

/// A `MAP_SHARED` mapping of a file, owned by us and written by others at any time.
pub(crate) struct OwnMapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain shared memory that other processes write anyway; every access to it goes through
// `racy` or atomics, so which of our threads makes it does not matter.
unsafe impl Send for OwnMapping {}
// SAFETY: as above.
unsafe impl Sync for OwnMapping {}

impl OwnMapping {
    /// Maps `len` bytes of `file` from `offset` for reading and writing; `what` names the file in errors.
    pub(crate) fn new(file: BorrowedFd<'_>, offset: u64, len: usize, what: &str) -> Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choosing (no MAP_FIXED) disturbs nothing.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                offset,
            )
        };
        let start = start.map_err(|e| Error::system(format!("map {what}"), e))?;
        let start = NonNull::new(start.cast::<u8>()).expect("mmap without MAP_FIXED never returns null");
        let mapping = OwnMapping { start, len };
        // Guest memory has no business in a core dump of ours; a kernel that cannot leave it out is no error.
        // SAFETY: the range is our own new mapping, and this advice does not change its contents.
        let _ = unsafe { rustix::mm::madvise(mapping.as_ptr().cast(), len, Advice::LinuxDontDump) };
        let addresses = mapping.addresses();
        ALIVE
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(addresses.start, addresses.end);
        Ok(mapping)
    }

    /// The first byte. Valid for reads and writes of [`OwnMapping::len`] bytes while `self` lives.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The addresses it occupies in our process.
    pub(crate) fn addresses(&self) -> Range<u64> {
        let start = self.start.as_ptr() as u64;
        start..start + self.len as u64
    }
}

impl Drop for OwnMapping {
    fn drop(&mut self) {
        let mut alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
        alive.remove(&self.addresses().start);
        // Under the lock: nobody may find the range in the book and use it after it is gone.
        // SAFETY: the mapping is ours, and no reference into it outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of our own mapping: {unmapped:?}");
    }
}

/// Runs `action` if `range` lies inside a mapping of ours that is alive, which then stays mapped meanwhile.
pub(crate) fn with_own_mapping<T>(range: &Range<u64>, action: impl FnOnce() -> Result<T>) -> Result<T> {
    let alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
    let inside = alive
        .range(..=range.start)
        .next_back()
        .is_some_and(|(_, &end)| range.start <= range.end && range.end <= end);
    if !inside {
        let what = "one shared memory of this process";
        return Err(Error::BadRange {
            start: range.start,
            end: range.end,
            what,
        });
    }
    action()
}
