//! Guest RAM: a shared file mapped into our process while a guest runs on it.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::mm::Advice;
use rustix::pipe::{PipeFlags, SpliceFlags};

mod extents;

pub use extents::DataExtents;

use crate::mapping::OwnMapping;
use crate::{Error, PAGE_SIZE, Result, racy};

/// Memory shared with a running guest: a memfd, or a file that somebody handed to us.
///
/// The guest writes at any time, so nothing here gives out a reference to its bytes: they are copied in and out,
/// may be torn while the guest runs, and are exact once it is paused. Offsets are bytes from the start of the
/// memory (not of the file, where the two differ).
pub struct SharedMemory {
    mapping: OwnMapping,
    file: OwnedFd,
    file_offset: u64,
}

impl SharedMemory {
    /// Creates anonymous shared memory of `len` bytes, a memfd that `name` labels in `/proc`.
    ///
    /// It is sealed against a change of its length, so that no process it is given to can take pages away from
    /// under us. The descriptor is close-on-exec.
    ///
    /// # Errors
    /// `len` is zero or not whole pages; the kernel has no memfd or no room.
    pub fn create(name: &str, len: u64) -> Result<Self> {
        check_length(len)?;
        let file = create_memfd(name)?;
        rustix::fs::ftruncate(&file, len).map_err(|e| Error::system(format!("size memfd {name}"), e))?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW)
            .map_err(|e| Error::system(format!("seal memfd {name}"), e))?;
        Self::from_fd(file, 0, len)
    }

    /// Maps `len` bytes of an open file from `offset` (both whole pages).
    ///
    /// Nobody may shrink the file while it is mapped: access beyond its end kills the process.
    ///
    /// # Errors
    /// The range is not whole pages or reaches past the end of the file; the file cannot be mapped for writing.
    pub fn from_fd(file: OwnedFd, offset: u64, len: u64) -> Result<Self> {
        check_length(len)?;
        let size = rustix::fs::fstat(&file)
            .map_err(|e| Error::system("size the RAM file", e))?
            .st_size as u64;
        let end = offset
            .checked_add(len)
            .filter(|_| offset.is_multiple_of(PAGE_SIZE as u64));
        let end = end.ok_or(Error::BadRange {
            start: offset,
            end: offset,
            what: "the RAM file",
        })?;
        if end > size {
            return Err(Error::BadLength {
                what: "the RAM file".into(),
                found: size,
                expected: end,
            });
        }
        let mapping = OwnMapping::new(file.as_fd(), offset, len as usize, "the RAM file")?;
        Ok(SharedMemory {
            mapping,
            file,
            file_offset: offset,
        })
    }

    /// The file behind the memory, to be inherited by or passed to another process.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where in the file the memory begins, in bytes.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Whether it holds no bytes (it never does; for the convention's sake).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The addresses at which our own process has it mapped: for a userfaultfd of our own process.
    pub fn addresses(&self) -> Range<u64> {
        self.mapping.addresses()
    }

    /// Copies `bytes.len()` bytes at `offset` out of the memory.
    ///
    /// # Panics
    /// The range reaches past the end; the same holds for all accesses below that return no error.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) {
        let src = self.pointer(offset, bytes.len());
        // SAFETY: `pointer` checked the range, and `bytes` is exclusively ours.
        unsafe { racy::copy_out(src, bytes.as_mut_ptr(), bytes.len()) };
    }

    /// Copies `bytes` into the memory at `offset`.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) {
        let dst = self.pointer(offset, bytes.len());
        // SAFETY: `pointer` checked the range, and `bytes` is ours to read.
        unsafe { racy::copy_in(bytes.as_ptr(), dst, bytes.len()) };
    }

    /// Writes `bytes` at `offset` through the file: pages that are not there yet are neither zeroed nor mapped first, which
    /// for fresh memory costs a good part less than [`SharedMemory::write_at`].
    ///
    /// # Errors
    /// What the file answers: no room, for one.
    pub fn write_through_file(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        // Checks the range.
        self.pointer(offset, bytes.len());
        let mut written = 0;
        while written < bytes.len() {
            let at = self.file_offset + offset + written as u64;
            match rustix::io::pwrite(&self.file, &bytes[written..], at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sets every byte of `range` to `byte`. For zero prefer [`SharedMemory::punch_hole`] on large ranges.
    pub fn fill(&self, range: Range<u64>, byte: u8) {
        let len = range
            .end
            .checked_sub(range.start)
            .expect("a range that ends before it starts") as usize;
        let dst = self.pointer(range.start, len);
        // SAFETY: `pointer` checked the range.
        unsafe { racy::fill(dst, byte, len) };
    }

    /// The aligned word at `offset` (a multiple of 8), relaxed.
    pub fn load_u64(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    /// Sets the aligned word at `offset` (a multiple of 8), relaxed.
    pub fn store_u64(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// Changes the aligned word at `offset` (a multiple of 8) atomically: `change` gets the old value and may run
    /// several times; `None` leaves the word as it is. `Ok` and `Err` hold the old value.
    pub fn fetch_update(&self, offset: u64, change: impl FnMut(u64) -> Option<u64>) -> Result<u64, u64> {
        self.word(offset)
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, change)
    }

    /// The byte that every byte of the page at `offset` equals, if it is uniform.
    ///
    /// A page in a hole reads as zero but is allocated by being read: ask [`SharedMemory::data_extents`] first.
    pub fn page_is_uniform(&self, offset: u64) -> Option<u8> {
        let page = self.pointer(offset, PAGE_SIZE);
        // Most pages that are not uniform differ in one of these few words: no need to look at the others.
        let first = self.load_u64(offset);
        if first != u64::from_ne_bytes([first as u8; 8])
            || [1024, 2048, 3072, PAGE_SIZE as u64 - 8]
                .iter()
                .any(|&at| self.load_u64(offset + at) != first)
        {
            return None;
        }
        assert!(offset.is_multiple_of(16), "a page at {offset:#x}");
        // SAFETY: `pointer` checked the range, the mapping starts at a page and `offset` was checked, and a page is
        // a multiple of 64 bytes.
        unsafe { racy::all_words_are(page, PAGE_SIZE, first) }.then_some(first as u8)
    }

    /// The xxh3-128 hash of the page at `offset`: of one copy of it, so never of two states mixed by reading twice.
    pub fn hash_page(&self, offset: u64) -> u128 {
        let mut copy = [0; PAGE_SIZE];
        self.read_at(offset, &mut copy);
        xxhash_rust::xxh3::xxh3_128(&copy)
    }

    /// Writes `header`, then every `(offset, length)` of `ranges` straight from the memory, to a blocking
    /// descriptor, with no copy in user space. Returns once all of it is written.
    ///
    /// # Errors
    /// A range reaches past the end ([`io::ErrorKind::InvalidInput`], nothing is written), or the write fails;
    /// then how much was written is unknown and the stream is of no use any more. That includes
    /// [`io::ErrorKind::WouldBlock`] when a time-out is set on the socket.
    pub fn write_range_to(&self, fd: BorrowedFd<'_>, header: &[u8], ranges: &[(u64, u64)]) -> io::Result<()> {
        let first = libc::iovec {
            iov_base: header.as_ptr().cast_mut().cast(),
            iov_len: header.len(),
        };
        let mut pending = Pending::new(self, first, ranges)?;
        while !pending.is_done() {
            let (vectors, count) = pending.next_batch();
            // SAFETY: the kernel only reads `count` initialised vectors, each inside `header` or inside the
            // mapping, which `self` keeps alive.
            let written = unsafe { libc::writev(fd.as_raw_fd(), vectors, count) };
            if pending.advance(written)? == Some(0) {
                return Err(io::ErrorKind::WriteZero.into());
            }
        }
        Ok(())
    }

    /// Reads every `(offset, length)` of `ranges` from a blocking descriptor straight into the memory, with no
    /// copy in user space. Returns once all of it has arrived.
    ///
    /// # Errors
    /// A range reaches past the end ([`io::ErrorKind::InvalidInput`], nothing is read), the stream ends early
    /// ([`io::ErrorKind::UnexpectedEof`]), or the read fails. Part of the ranges may have been overwritten then.
    pub fn read_range_from(&self, fd: BorrowedFd<'_>, ranges: &[(u64, u64)]) -> io::Result<()> {
        let nothing = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut pending = Pending::new(self, nothing, ranges)?;
        while !pending.is_done() {
            let (vectors, count) = pending.next_batch();
            // SAFETY: the kernel writes only to `count` initialised vectors, all inside the mapping, which `self`
            // keeps alive and which no reference covers.
            let read = unsafe { libc::readv(fd.as_raw_fd(), vectors, count) };
            if pending.advance(read)? == Some(0) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    }

    /// Moves `len` bytes from a blocking descriptor to `offset` of the memory by way of a pipe, all of it inside the
    /// kernel: no copy in user space, and unlike [`SharedMemory::read_range_from`] no page of our mapping is touched.
    ///
    /// New pages cost less CPU time this way than by a read into the mapping, which faults on each of them and zeroes it
    /// first: 0.71 instead of 0.96 s/GiB over TCP, by a buffer of 1 MiB and `pwrite` 0.77 (`examples/transfer_cost.rs`, on
    /// a busy machine). Where the file or the descriptor
    /// cannot be spliced it falls back to that read, and `pipe` remembers.
    ///
    /// # Errors
    /// As [`SharedMemory::read_range_from`]. After one the pipe may hold bytes of this transfer and is of no use any more.
    pub fn splice_range_from(
        &self,
        fd: BorrowedFd<'_>,
        pipe: &mut TransferPipe,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        if offset.checked_add(len).is_none_or(|end| end > self.len()) {
            return Err(past_the_end(offset, len, self.len()));
        }
        let (mut at, end) = (offset, offset + len);
        while at < end {
            if pipe.is_refused {
                return self.read_range_from(fd, &[(at, end - at)]);
            }
            match pipe.fill(fd, (end - at) as usize) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(came) => {
                    self.drain(pipe, at, came as u64)?;
                    at += came as u64;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::INVAL) => pipe.is_refused = true,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Empties the `len` bytes in `pipe` into the memory at `offset`.
    fn drain(&self, pipe: &mut TransferPipe, offset: u64, len: u64) -> io::Result<()> {
        let mut in_file = self.file_offset + offset;
        let end = in_file + len;
        while in_file < end {
            let rest = (end - in_file) as usize;
            let out = Some(&mut in_file);
            match rustix::pipe::splice(&pipe.out, None, &self.file, out, rest, SpliceFlags::empty()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                // The file cannot take it: what is in the pipe already is read into the mapping.
                Err(rustix::io::Errno::INVAL) => {
                    pipe.is_refused = true;
                    let at = in_file - self.file_offset;
                    return self.read_range_from(pipe.out.as_fd(), &[(at, end - in_file)]);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The parts of `range` that hold data, in order; everything between them is a hole that reads as zero.
    ///
    /// Someone else may punch holes (a balloon does) without the tracker seeing a write: a page that was data
    /// before and is in a hole now is *now zero*. File systems without holes report all of it as data.
    ///
    /// # Errors
    /// The iterator yields an error, and then ends, when the file refuses to tell.
    pub fn data_extents(&self, range: Range<u64>) -> DataExtents<'_> {
        DataExtents {
            memory: self,
            at: range.start,
            end: range.end.min(self.len()),
        }
    }

    /// Gives the pages of `range` (whole pages) back to the host: they read as zero from now on, everywhere.
    ///
    /// # Errors
    /// The range is not whole pages of the memory, or the file system cannot punch holes.
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        self.check_pages(&range)?;
        if range.is_empty() {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let start = self.file_offset + range.start;
        rustix::fs::fallocate(&self.file, flags, start, range.end - range.start)
            .map_err(|e| Error::system("punch a hole into the RAM file", e))
    }

    /// Allocates the pages of `range` (whole pages) and maps them into our process, so that touching them later
    /// costs nothing.
    ///
    /// # Errors
    /// The range is not whole pages of the memory, there is no room, or the kernel is older than 5.14.
    pub fn populate(&self, range: Range<u64>) -> Result<()> {
        self.check_pages(&range)?;
        let len = (range.end - range.start) as usize;
        let start = self.pointer(range.start, len);
        // SAFETY: the range is inside our mapping; populating does not change what it reads as.
        unsafe { rustix::mm::madvise(start.cast(), len, Advice::LinuxPopulateWrite) }
            .map_err(|e| Error::system("populate guest memory", e))
    }

    /// Drops our process's page table entries for `range` (whole pages): the next touch of each page maps it again. The
    /// file keeps what it holds.
    ///
    /// # Errors
    /// The range is not whole pages of the memory.
    pub fn forget_touches(&self, range: Range<u64>) -> Result<()> {
        self.check_pages(&range)?;
        let len = (range.end - range.start) as usize;
        let start = self.pointer(range.start, len);
        // SAFETY: the range is inside our mapping of a shared file, which keeps the content: what it reads as stays.
        unsafe { rustix::mm::madvise(start.cast(), len, Advice::LinuxDontNeed) }
            .map_err(|e| Error::system("drop the mapping of guest memory", e))
    }

    /// Bytes the host has allocated for the whole file.
    ///
    /// # Errors
    /// The file cannot be asked.
    pub fn allocated_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(&self.file).map_err(|e| Error::system("ask the RAM file's size", e))?;
        Ok(stat.st_blocks as u64 * 512)
    }

    /// A pointer to `len` bytes at `offset`, which are checked to lie inside the mapping.
    fn pointer(&self, offset: u64, len: usize) -> *mut u8 {
        let inside = offset
            .checked_add(len as u64)
            .is_some_and(|end| end <= self.len());
        assert!(
            inside,
            "{len} bytes at {offset:#x} reach past the end of {:#x} bytes of memory",
            self.len()
        );
        // SAFETY: `offset` was just found inside the mapping.
        unsafe { self.mapping.as_ptr().add(offset as usize) }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(
            offset.is_multiple_of(8),
            "offset {offset:#x} is not a multiple of 8"
        );
        let word = self.pointer(offset, size_of::<u64>()).cast::<u64>();
        // SAFETY: aligned, inside the mapping for as long as `self` lives, and an atomic may be shared with
        // anybody who writes it.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Refuses a range that is not whole pages of this memory.
    fn check_pages(&self, range: &Range<u64>) -> Result<()> {
        let whole = [range.start, range.end]
            .iter()
            .all(|at| at.is_multiple_of(PAGE_SIZE as u64));
        if whole && range.start <= range.end && range.end <= self.len() {
            return Ok(());
        }
        Err(Error::BadRange {
            start: range.start,
            end: range.end,
            what: "the guest memory",
        })
    }
}

fn check_length(len: u64) -> Result<()> {
    if len == 0 || !len.is_multiple_of(PAGE_SIZE as u64) || isize::try_from(len).is_err() {
        return Err(Error::BadRange {
            start: 0,
            end: len,
            what: "shared memory (at least one page)",
        });
    }
    Ok(())
}

fn create_memfd(name: &str) -> Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Guest RAM is never executed by the host. Kernels before 6.3 do not know the flag.
    match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create(name, flags),
        other => other,
    }
    .map_err(|e| Error::system(format!("create memfd {name}"), e))
}

fn past_the_end(offset: u64, len: u64, size: u64) -> io::Error {
    let what = format!("{len} bytes at {offset:#x} reach past the end of {size:#x} bytes of memory");
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// A pipe that bytes cross on their way from a descriptor into memory: see [`SharedMemory::splice_range_from`].
pub struct TransferPipe {
    out: OwnedFd,
    into: OwnedFd,
    /// The kernel cannot splice between these descriptors.
    is_refused: bool,
}

impl TransferPipe {
    /// What it wants to hold, so that a system call moves as much as a batch of pages.
    const BYTES: usize = 1 << 20;

    /// A pipe that is empty.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn new() -> io::Result<Self> {
        let (out, into) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        // A user without privileges may have used up what pipes may hold: then it stays smaller, and only slower.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, Self::BYTES);
        Ok(Self {
            out,
            into,
            is_refused: false,
        })
    }

    /// Takes at least one and at most `len` bytes in; 0 at the end of the stream.
    fn fill(&self, fd: BorrowedFd<'_>, len: usize) -> rustix::io::Result<usize> {
        rustix::pipe::splice(fd, None, &self.into, None, len, SpliceFlags::empty())
    }
}

/// Vectors a system call takes at once; the kernel's own limit is 1024.
const BATCH: usize = 128;

/// What is still to be transferred: the rest of `first`, then the ranges, in order.
struct Pending<'a> {
    memory: &'a SharedMemory,
    first: libc::iovec,
    ranges: &'a [(u64, u64)],
    /// Bytes of `ranges[0]` that are done.
    done: u64,
    batch: [libc::iovec; BATCH],
}

impl<'a> Pending<'a> {
    fn new(memory: &'a SharedMemory, first: libc::iovec, ranges: &'a [(u64, u64)]) -> io::Result<Self> {
        for &(offset, len) in ranges {
            if offset.checked_add(len).is_none_or(|end| end > memory.len()) {
                return Err(past_the_end(offset, len, memory.len()));
            }
        }
        let empty = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let mut pending = Pending {
            memory,
            first,
            ranges,
            done: 0,
            batch: [empty; BATCH],
        };
        pending.skip_finished();
        Ok(pending)
    }

    fn is_done(&self) -> bool {
        self.first.iov_len == 0 && self.ranges.is_empty()
    }

    /// The next vectors to transfer.
    fn next_batch(&mut self) -> (*const libc::iovec, i32) {
        let mut count = 0;
        if self.first.iov_len > 0 {
            self.batch[0] = self.first;
            count = 1;
        }
        let mut done = self.done;
        for &(offset, len) in self.ranges.iter().take(BATCH - count) {
            let (offset, len) = (offset + done, (len - done) as usize);
            let iov_base = self.memory.pointer(offset, len).cast();
            self.batch[count] = libc::iovec {
                iov_base,
                iov_len: len,
            };
            count += 1;
            done = 0;
        }
        (self.batch.as_ptr(), count as i32)
    }

    /// Takes note of what the system call answered; gives back the bytes it moved, `None` when a signal came first.
    fn advance(&mut self, answer: isize) -> io::Result<Option<usize>> {
        let Ok(moved) = usize::try_from(answer) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(None)
            } else {
                Err(error)
            };
        };
        let of_first = moved.min(self.first.iov_len);
        self.first.iov_base = self.first.iov_base.wrapping_byte_add(of_first);
        self.first.iov_len -= of_first;
        self.done += (moved - of_first) as u64;
        self.skip_finished();
        Ok(Some(moved))
    }

    fn skip_finished(&mut self) {
        while let Some((&(_, len), rest)) = self.ranges.split_first() {
            if self.done < len {
                break;
            }
            self.done -= len;
            self.ranges = rest;
        }
    }
}

#[cfg(test)]
mod tests;
