//! A guest of one boot sector that counts in memory and checks what it counted.
//!
//! Every pass adds one to the first and last word of 112 pages (0x10000 to 0x7ffff) after checking that both hold
//! the count of the pass before. The count of passes stands at 0x604; a wrong word makes it write 0xdeadbeef to
//! 0x600 and halt.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::PageRun;
use vmferry_guest::{Guest, GuestRam, GuestState};
use vmferry_guest_qemu::{QemuBackend, QemuConfig, QemuGuest};
use vmferry_memory::Userfaultfd;

pub(crate) const MIB: u64 = 1 << 20;
/// RAM of the guests here.
pub(crate) const RAM_BYTES: u64 = 64 * MIB;
/// The pages the guest writes all the time.
pub(crate) const HOT: PageRun = PageRun::new(0x10, 112);
const PATIENCE: Duration = Duration::from_secs(60);

/// Assembled from 16-bit code: clear the pages, then count for ever.
const CODE: [u8; 120] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0x66, 0x31, 0xd2, 0x66, 0x89, 0x16,
    0x00, 0x06, 0x66, 0x89, 0x16, 0x04, 0x06, 0xbb, 0x00, 0x10, 0x8e, 0xc3, 0x26, 0x66, 0x89, 0x16, 0x00,
    0x00, 0x26, 0x66, 0x89, 0x16, 0xfc, 0x0f, 0x81, 0xc3, 0x00, 0x01, 0x81, 0xfb, 0x00, 0x80, 0x72, 0xe8,
    0xbb, 0x00, 0x10, 0x8e, 0xc3, 0x26, 0x66, 0x39, 0x16, 0x00, 0x00, 0x75, 0x2c, 0x26, 0x66, 0x39, 0x16,
    0xfc, 0x0f, 0x75, 0x24, 0x66, 0x89, 0xd1, 0x66, 0x41, 0x26, 0x66, 0x89, 0x0e, 0x00, 0x00, 0x26, 0x66,
    0x89, 0x0e, 0xfc, 0x0f, 0x81, 0xc3, 0x00, 0x01, 0x81, 0xfb, 0x00, 0x80, 0x72, 0xd3, 0x66, 0x42, 0x66,
    0x89, 0x16, 0x04, 0x06, 0xeb, 0xc7, 0x66, 0xc7, 0x06, 0x00, 0x06, 0xef, 0xbe, 0xad, 0xde, 0xf4, 0xeb,
    0xfd,
];

/// A folder with a boot disk, and whatever guests put into their folders within it.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
}

impl Host {
    /// `None`, with the reason printed, where these tests cannot run.
    pub(crate) fn new() -> Option<Self> {
        let skip = |why: &str| {
            eprintln!("skipped: {why}");
            None
        };
        if Command::new("qemu-system-x86_64")
            .arg("--version")
            .output()
            .is_err()
        {
            return skip("qemu-system-x86_64 is not installed");
        }
        if let Err(error) = Userfaultfd::open() {
            return skip(&error.to_string());
        }
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        let mut disk = CODE.to_vec();
        disk.resize(510, 0);
        disk.extend([0x55, 0xaa]);
        disk.resize(MIB as usize, 0);
        fs::write(host.disk(), disk).unwrap();
        Some(host)
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.dir.path().join("boot.img")
    }

    /// A folder for one guest.
    pub(crate) fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// A guest that boots the disk, with these arguments besides.
    pub(crate) fn config(&self, args: &[&str]) -> QemuConfig {
        let drive = format!("file={},format=raw,if=virtio", self.disk().display());
        QemuConfig::new(
            RAM_BYTES,
            ["-drive", &drive].into_iter().chain(args.iter().copied()),
        )
    }

    /// Starts it and waits until it counts.
    pub(crate) fn boot(&self, args: &[&str]) -> Running {
        let spec = self.config(args).into_spec("bench");
        let guest = Running::new(QemuBackend.start(&spec, &self.folder("source")).unwrap());
        guest.wait_for_progress();
        guest
    }
}

/// A guest that ends with its test.
pub(crate) struct Running(Option<QemuGuest>);

impl std::ops::Deref for Running {
    type Target = QemuGuest;

    fn deref(&self) -> &QemuGuest {
        self.0.as_ref().expect("left only with the value itself")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(guest) = &self.0 {
            guest.destroy();
        }
    }
}

impl Running {
    pub(crate) fn new(guest: QemuGuest) -> Self {
        Self(Some(guest))
    }

    /// Lets go of it as a daemon that ends does: the guest runs on.
    pub(crate) fn leave(mut self) {
        self.0 = None;
    }

    /// Passes counted so far, as in its own memory.
    pub(crate) fn passes(&self) -> u32 {
        word(self.ram(), 0x604)
    }

    /// Waits until a few more passes are done, and nothing was found wrong.
    pub(crate) fn wait_for_progress(&self) {
        wait_for_boot(self.ram());
        self.wait_for_progress_from(self.passes());
    }

    /// The same from a count known otherwise: that of the source, where memory is not all there yet.
    pub(crate) fn wait_for_progress_from(&self, before: u32) {
        let start = Instant::now();
        while !(4..1 << 30).contains(&self.passes().wrapping_sub(before)) {
            assert_eq!(self.state(), GuestState::Running);
            assert_ne!(
                word(self.ram(), 0x600),
                0xdead_beef,
                "the guest found its memory changed"
            );
            assert!(start.elapsed() < PATIENCE, "the guest does not count");
            thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Waits until the boot sector runs: before, firmware uses the place of its count for itself.
pub(crate) fn wait_for_boot(ram: &GuestRam) {
    let start = Instant::now();
    // Its pages are cleared first, then counted up together.
    let counts = |ram: &GuestRam| word(ram, 0x1_0000).wrapping_sub(word(ram, 0x604)) < 1 << 16;
    while word(ram, 0x7c00).to_le_bytes() != CODE[..4] || word(ram, 0x1_0000) < 4 || !counts(ram) {
        assert!(start.elapsed() < PATIENCE, "the guest does not boot");
        thread::sleep(Duration::from_millis(2));
    }
}

/// A word of the guest's memory. Looking at a page that is not there yet would make it: it is left alone.
pub(crate) fn word(ram: &GuestRam, address: u64) -> u32 {
    if !ram.data_pages().unwrap().contains(address / 4096) {
        return 0;
    }
    let mut page = [0; 4096];
    ram.read(PageRun::single(address / 4096), &mut page);
    let at = (address % 4096) as usize;
    u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
}

/// The numbers of the userfaultfds that a process has open.
pub(crate) fn userfaultfds(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path()).is_ok_and(|to| to == Path::new("anon_inode:[userfaultfd]"))
        })
        .count()
}
