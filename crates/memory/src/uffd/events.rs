//! Reading what a userfaultfd reports.

use std::ops::Range;
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::Duration;

use bitflags::bitflags;
use linux_raw_sys::general as raw;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::Userfaultfd;
use crate::{Error, Result};

/// Bytes in one message of the kernel (`struct uffd_msg`).
const MESSAGE: usize = size_of::<raw::uffd_msg>();
/// Messages read at once.
const BATCH: usize = 64;

bitflags! {
    /// What kind of access met the fault (`UFFD_PAGEFAULT_FLAG_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultFlags: u64 {
        /// A write (on a missing page; absent: a read).
        const WRITE = raw::UFFD_PAGEFAULT_FLAG_WRITE as u64;
        /// A write to a protected page.
        const WP = raw::UFFD_PAGEFAULT_FLAG_WP as u64;
        /// The file has the page, the process has not mapped it.
        const MINOR = raw::UFFD_PAGEFAULT_FLAG_MINOR as u64;
        // Bits of newer kernels are kept.
        const _ = !0;
    }
}

/// Something that happened in the process a userfaultfd belongs to. Addresses are of that process.
#[derive(Debug)]
pub enum Event {
    /// A thread touched a page and waits for it.
    PageFault {
        /// The page's address (the exact address with [`crate::Features::EXACT_ADDRESS`]).
        address: u64,
        /// The kind of access.
        flags: FaultFlags,
        /// The thread's id in our view, with [`crate::Features::THREAD_ID`]; else 0.
        thread: u32,
    },
    /// The process forked; this is the child's userfaultfd.
    Fork {
        /// Registered where the parent's is.
        child: OwnedFd,
    },
    /// A mapping moved.
    Remap {
        /// Where it was.
        from: u64,
        /// Where it is.
        to: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// Pages were dropped; touched again they are missing.
    Remove(Range<u64>),
    /// A range was unmapped.
    Unmap(Range<u64>),
}

impl Userfaultfd {
    /// Waits up to `timeout` (`None`: for ever) for something to be reported and adds what is there to `events`,
    /// at most 64 at a time. Gives back how many; 0 when the time was up, or when another thread was quicker.
    ///
    /// # Errors
    /// The userfaultfd was not set up by [`Userfaultfd::handshake`], or cannot be read.
    pub fn read_events(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> Result<usize> {
        let timeout = timeout.map(|t| {
            Timespec::try_from(t).unwrap_or(Timespec {
                tv_sec: i64::MAX,
                tv_nsec: 0,
            })
        });
        let mut poll = [PollFd::new(&self.fd, PollFlags::IN)];
        match rustix::event::poll(&mut poll, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(0),
            Ok(_) => {}
            Err(e) => return Err(Error::system("wait for page faults", e)),
        }
        let mut buffer = [0; BATCH * MESSAGE];
        let read = match rustix::io::read(&self.fd, &mut buffer) {
            Ok(read) => read,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            Err(e) => return Err(Error::system("read page faults", e)),
        };
        let before = events.len();
        events.extend(buffer[..read].chunks_exact(MESSAGE).filter_map(parse));
        Ok(events.len() - before)
    }
}

/// Decodes a message: the kind in its first byte, the arguments from byte 8 on. Unknown kinds are skipped: the
/// kernel reports only what the handshake asked for.
fn parse(message: &[u8]) -> Option<Event> {
    let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
    Some(match u32::from(message[0]) {
        raw::UFFD_EVENT_PAGEFAULT => Event::PageFault {
            flags: FaultFlags::from_bits_retain(word(8)),
            address: word(16),
            thread: word(24) as u32,
        },
        raw::UFFD_EVENT_FORK => {
            // SAFETY: the kernel made this descriptor for us while we read the message, and nobody else owns it.
            let child = unsafe { OwnedFd::from_raw_fd(word(8) as i32) };
            Event::Fork { child }
        }
        raw::UFFD_EVENT_REMAP => Event::Remap {
            from: word(8),
            to: word(16),
            len: word(24),
        },
        raw::UFFD_EVENT_REMOVE => Event::Remove(word(8)..word(16)),
        raw::UFFD_EVENT_UNMAP => Event::Unmap(word(8)..word(16)),
        _ => return None,
    })
}
