//! Where a process has what mapped: `/proc/PID/maps`.

use std::ops::Range;
use std::os::fd::AsFd;

use crate::{Error, Result};

/// A file, told from all others by device and inode, whatever names lead to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// Major number of the device.
    pub major: u32,
    /// Minor number of the device.
    pub minor: u32,
    /// The inode.
    pub inode: u64,
}

impl FileId {
    /// The identity of an open file.
    ///
    /// (Some file systems with their own notion of devices, like btrfs, show another number in `/proc/PID/maps`;
    /// memfds, tmpfs and hugetlbfs, where guest RAM lives, do not.)
    ///
    /// # Errors
    /// The file cannot be asked.
    pub fn of(file: impl AsFd) -> Result<Self> {
        let stat = rustix::fs::fstat(file).map_err(|e| Error::system("identify the RAM file", e))?;
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        Ok(FileId {
            major,
            minor,
            inode: stat.st_ino,
        })
    }
}

/// Addresses at which a process has a part of a file mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The addresses, in that process.
    pub addresses: Range<u64>,
    /// What the first of them maps: bytes from the start of the file.
    pub file_offset: u64,
}

impl Mapping {
    /// What it maps: bytes of the file.
    pub fn file_range(&self) -> Range<u64> {
        self.file_offset..self.file_offset + (self.addresses.end - self.addresses.start)
    }
}

/// Every shared mapping of `file` in process `pid`, in order of addresses.
///
/// There may be several: QEMU maps a pc-dimm's backend a second time, and writes through one mapping do not show
/// in the page tables of another. All of them must be tracked.
///
/// # Errors
/// There is no such process, or we may not look into it.
pub fn mappings_of(pid: u32, file: FileId) -> Result<Vec<Mapping>> {
    let shared = read_maps(pid)?
        .into_iter()
        .filter(|entry| entry.file == Some(file) && entry.shared);
    let mut mappings: Vec<Mapping> = Vec::new();
    for MapEntry {
        addresses,
        file_offset,
        ..
    } in shared
    {
        // The kernel splits one mapping where its attributes change.
        match mappings.last_mut() {
            Some(last)
                if last.addresses.end == addresses.start
                    && last.file_offset + (addresses.start - last.addresses.start) == file_offset =>
            {
                last.addresses.end = addresses.end;
            }
            _ => mappings.push(Mapping {
                addresses,
                file_offset,
            }),
        }
    }
    Ok(mappings)
}

/// One line of `/proc/PID/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// The addresses.
    pub addresses: Range<u64>,
    /// Whether code may be run there, and read.
    pub executable: bool,
    /// Whether writes reach the file (`MAP_SHARED`).
    pub shared: bool,
    /// What the first address maps: bytes from the start of the file.
    pub file_offset: u64,
    /// The file; none for anonymous memory.
    pub file: Option<FileId>,
    /// The path, or a name in brackets such as `[vdso]`; may be empty.
    pub path: String,
}

/// All mappings of process `pid`, in order of addresses.
///
/// # Errors
/// There is no such process, or we may not look into it.
pub fn read_maps(pid: u32) -> Result<Vec<MapEntry>> {
    let path = format!("/proc/{pid}/maps");
    let text = std::fs::read_to_string(&path).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::ProcessGone,
        _ => Error::system(
            format!("read {path} (it takes the rights to trace the process)"),
            e,
        ),
    })?;
    Ok(text.lines().filter_map(parse_line).collect())
}

/// Parses `start-end perms offset major:minor inode   path`, numbers hexadecimal but for the inode.
fn parse_line(line: &str) -> Option<MapEntry> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut rest = line;
    let mut field = || {
        let (field, after) = rest
            .trim_start()
            .split_once(' ')
            .unwrap_or((rest.trim_start(), ""));
        rest = after;
        field
    };
    let (start, end) = field().split_once('-')?;
    let permissions = field().as_bytes();
    let file_offset = hex(field())?;
    let (major, minor) = field().split_once(':')?;
    let inode = field().parse().ok()?;
    let file = FileId {
        major: hex(major)? as u32,
        minor: hex(minor)? as u32,
        inode,
    };
    Some(MapEntry {
        addresses: hex(start)?..hex(end)?,
        executable: permissions.first() == Some(&b'r') && permissions.get(2) == Some(&b'x'),
        shared: permissions.get(3) == Some(&b's'),
        file_offset,
        file: (inode != 0).then_some(file),
        path: rest.trim_start().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SharedMemory;

    #[test]
    fn lines_are_parsed() {
        let line = "7f1c2a000000-7f1c3a000000 rw-s 00200000 00:01 2057                       /memfd:pc ram (deleted)";
        let expected = MapEntry {
            addresses: 0x7f1c_2a00_0000..0x7f1c_3a00_0000,
            executable: false,
            shared: true,
            file_offset: 0x20_0000,
            file: Some(FileId {
                major: 0,
                minor: 1,
                inode: 2057,
            }),
            path: "/memfd:pc ram (deleted)".into(),
        };
        assert_eq!(parse_line(line), Some(expected));
        let vdso =
            parse_line("7ffd0c5c9000-7ffd0c5cb000 r-xp 00000000 00:00 0                  [vdso]").unwrap();
        assert!(vdso.executable && !vdso.shared && vdso.file.is_none() && vdso.path == "[vdso]");
        let anonymous = parse_line("7f1c2a000000-7f1c3a000000 --xp 00000000 00:00 0 ").unwrap();
        assert!(!anonymous.executable && anonymous.path.is_empty());
        assert_eq!(parse_line("garbage"), None);
    }

    #[test]
    fn every_mapping_of_a_file_is_found() {
        let memory = SharedMemory::create("maps-test", 1 << 20).unwrap();
        let again =
            SharedMemory::from_fd(memory.fd().try_clone_to_owned().unwrap(), 1 << 19, 1 << 19).unwrap();
        let other = SharedMemory::create("maps-test", 1 << 20).unwrap();
        let own = std::process::id();

        let mut expected = [
            Mapping {
                addresses: memory.addresses(),
                file_offset: 0,
            },
            Mapping {
                addresses: again.addresses(),
                file_offset: 1 << 19,
            },
        ];
        expected.sort_by_key(|m| m.addresses.start);
        // Mappings that happen to continue each other merge into one: compare what is covered.
        let found = mappings_of(own, FileId::of(memory.fd()).unwrap()).unwrap();
        for Mapping {
            addresses,
            file_offset,
        } in &expected
        {
            let covered = found.iter().any(|m| {
                m.addresses.start <= addresses.start
                    && addresses.end <= m.addresses.end
                    && m.file_offset + (addresses.start - m.addresses.start) == *file_offset
            });
            assert!(covered, "{addresses:x?} missing in {found:x?}");
        }
        let total: u64 = found.iter().map(|m| m.addresses.end - m.addresses.start).sum();
        assert_eq!(total, (1 << 20) + (1 << 19));
        drop(other);

        let empty = SharedMemory::create("maps-test", 4096).unwrap();
        let id = FileId::of(empty.fd()).unwrap();
        drop(empty);
        assert_eq!(mappings_of(own, id).unwrap(), []);
    }

    #[test]
    fn a_process_that_is_not_there() {
        assert!(matches!(read_maps(u32::MAX >> 1), Err(Error::ProcessGone)));
    }
}
