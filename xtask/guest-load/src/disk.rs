//! The disk load: random blocks of a device written and read back, half of them with direct I/O, by several threads so that
//! requests are in flight at any moment.
//!
//! The device *writes* into the guest's memory when the guest reads. Such a write passes the page tables by, which is what dirty
//! tracking must not miss. So every thread keeps what it has read in a pool of buffers and checks these again and again, long
//! after the read.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pattern::{self, PAGE};
use crate::status::Status;

const BLOCK: usize = 16 << 10;
const BLOCKS_PER_MIB: usize = (1 << 20) / BLOCK;

/// `O_DIRECT` of x86-64 Linux, the one constant that would need a dependency.
const O_DIRECT: i32 = 0o40_000;

/// Two threads with direct I/O and two through the page cache.
const THREADS: usize = 4;

/// Buffers of read blocks that each thread keeps.
const POOL: usize = 64;

/// Requests between two checks of the whole pool; through the page cache also between two syncs.
const REQUESTS_PER_PASS: usize = 64;

/// Writes and reads the first `mib` MiB of the device, for ever, `rate_mib_s` MiB/s of both together; 0: as fast as it goes.
pub(crate) fn run(device: &str, mib: usize, rate_mib_s: usize) -> Result<Infallible, String> {
    let blocks = mib * BLOCKS_PER_MIB / THREADS;
    let status = Arc::new(Status::default());
    for thread in 0..THREADS {
        let mode = if thread % 2 == 0 {
            Mode::Direct
        } else {
            Mode::Buffered
        };
        let file = open(Path::new(device), mode).map_err(|error| format!("cannot open {device}: {error}"))?;
        let mut worker = Worker::new(file, mode, thread * blocks, blocks, Arc::clone(&status));
        std::thread::spawn(move || {
            loop {
                let begun = Instant::now();
                if let Err(error) = worker.pass() {
                    worker.status.fault(&format!("I/O failed: {error}"));
                }
                if let Some(time) = pass_time(rate_mib_s) {
                    std::thread::sleep(time.saturating_sub(begun.elapsed()));
                }
            }
        });
    }
    loop {
        std::thread::sleep(Duration::from_secs(1));
        println!("guest-load: {}", status.line());
    }
}

/// How long a pass of each thread may take at least.
fn pass_time(rate_mib_s: usize) -> Option<Duration> {
    let mib = (THREADS * REQUESTS_PER_PASS) as f64 / BLOCKS_PER_MIB as f64;
    (rate_mib_s > 0).then(|| Duration::from_secs_f64(mib / rate_mib_s as f64))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Direct,
    Buffered,
}

fn open(device: &Path, mode: Mode) -> std::io::Result<File> {
    let flags = if mode == Mode::Direct { O_DIRECT } else { 0 };
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(device)
}

/// One thread, which alone uses its part of the device.
struct Worker {
    file: File,
    mode: Mode,
    first_block: usize,
    /// The version of each block on the device; 0: not written yet.
    versions: Vec<u64>,
    outgoing: Buffer,
    pool: Vec<Kept>,
    random: u64,
    status: Arc<Status>,
}

/// A block that was read, and what it must hold for as long as it is kept.
struct Kept {
    buffer: Buffer,
    content: Option<(u64, u64)>,
}

impl Worker {
    fn new(file: File, mode: Mode, first_block: usize, blocks: usize, status: Arc<Status>) -> Self {
        let pool = (0..POOL)
            .map(|_| Kept {
                buffer: Buffer::new(),
                content: None,
            })
            .collect();
        let random = 0x2545_F491_4F6C_DD1D ^ (first_block as u64 + 1);
        Self {
            file,
            mode,
            first_block,
            versions: vec![0; blocks],
            outgoing: Buffer::new(),
            pool,
            random,
            status,
        }
    }

    fn pass(&mut self) -> std::io::Result<()> {
        for _ in 0..REQUESTS_PER_PASS {
            let (index, slot) = (self.pick(self.versions.len()), self.pick(POOL));
            if self.versions[index] == 0 || self.pick(2) == 0 {
                self.write(index)?;
            } else {
                self.read(index, slot)?;
            }
        }
        for slot in 0..POOL {
            self.check(slot);
        }
        if self.mode == Mode::Buffered {
            self.file.sync_data()?;
            // Clean pages are dropped, so that reads go to the device; not permitted outside the guest, and not needed there.
            let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
        }
        self.status.pass();
        Ok(())
    }

    fn write(&mut self, index: usize) -> std::io::Result<()> {
        let (place, version) = (self.place(index), self.versions[index] + 1);
        pattern::fill(self.outgoing.bytes(), place, version);
        self.file
            .write_all_at(self.outgoing.bytes(), place * BLOCK as u64)?;
        self.versions[index] = version;
        Ok(())
    }

    fn read(&mut self, index: usize, slot: usize) -> std::io::Result<()> {
        self.check(slot);
        let place = self.place(index);
        self.pool[slot].content = None;
        self.file
            .read_exact_at(self.pool[slot].buffer.bytes(), place * BLOCK as u64)?;
        self.pool[slot].content = Some((place, self.versions[index]));
        self.check(slot);
        Ok(())
    }

    fn check(&mut self, slot: usize) {
        let Kept { buffer, content } = &mut self.pool[slot];
        let Some((place, version)) = *content else { return };
        if let Err(fault) = pattern::check(buffer.bytes(), place, version) {
            let mode = if self.mode == Mode::Direct {
                "direct"
            } else {
                "buffered"
            };
            self.status.fault(&format!("{mode} block {fault}"));
            *content = None;
        }
    }

    fn place(&self, index: usize) -> u64 {
        (self.first_block + index) as u64
    }

    /// A number below the bound: xorshift64.
    fn pick(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }
}

/// A block that starts at a page, as direct I/O wants it.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let bytes = vec![0; BLOCK + PAGE];
        let start = bytes.as_ptr().align_offset(PAGE);
        Self { bytes, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + BLOCK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worker(name: &str) -> Worker {
        let path = std::env::temp_dir().join(format!("guest-load-{name}-{}", std::process::id()));
        std::fs::write(&path, vec![0; 8 * BLOCK]).unwrap();
        let file = open(&path, Mode::Buffered).unwrap();
        std::fs::remove_file(&path).unwrap();
        Worker::new(file, Mode::Direct, 0, 8, Arc::default())
    }

    #[test]
    fn a_sound_device_stays_ok() {
        let mut worker = worker("sound");
        for _ in 0..20 {
            worker.pass().unwrap();
        }
        assert_eq!(worker.status.line(), "ok passes=20");
    }

    #[test]
    fn a_block_that_fell_back_is_found() {
        let mut worker = worker("old");
        for _ in 0..20 {
            worker.pass().unwrap();
        }
        worker.file.write_all_at(&[0; 8 * BLOCK], 0).unwrap();
        worker.pass().unwrap();
        assert!(
            worker.status.line().starts_with("CORRUPT"),
            "{}",
            worker.status.line()
        );
    }

    #[test]
    fn a_kept_buffer_that_changed_is_found() {
        let mut worker = worker("kept");
        for _ in 0..20 {
            worker.pass().unwrap();
        }
        let slot = worker
            .pool
            .iter()
            .position(|kept| kept.content.is_some())
            .unwrap();
        worker.pool[slot].buffer.bytes().fill(0);
        worker.check(slot);
        assert!(
            worker.status.line().contains("all zero"),
            "{}",
            worker.status.line()
        );
    }
}
