//! What a later daemon needs to find the guest again: `guest.json` in the guest's directory.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmferry_guest::{FaultMode, GuestError, Result};
use vmferry_memory::FileId;

use crate::process::ProcessId;

/// The guest's process, monitor and RAM files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) process: ProcessId,
    pub(crate) qmp: PathBuf,
    pub(crate) blocks: Vec<BlockRecord>,
    /// Set while faults are registered.
    pub(crate) faults: Option<FaultMode>,
}

/// A RAM block and its file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BlockRecord {
    pub(crate) name: String,
    pub(crate) bytes: u64,
    pub(crate) file_offset: u64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) inode: u64,
}

impl BlockRecord {
    pub(crate) fn file(&self) -> FileId {
        FileId {
            major: self.major,
            minor: self.minor,
            inode: self.inode,
        }
    }
}

/// The record and its file, kept the same.
pub(crate) struct RecordFile {
    path: PathBuf,
    /// `None` once the guest was ended.
    record: Mutex<Option<Record>>,
}

impl RecordFile {
    /// Writes a new record into the guest's directory.
    pub(crate) fn create(dir: &Path, record: Record) -> Result<Self> {
        let file = Self {
            path: path(dir),
            record: Mutex::new(Some(record)),
        };
        file.change(|_| ())?;
        Ok(file)
    }

    /// Reads what an earlier daemon wrote.
    pub(crate) fn open(dir: &Path) -> Result<(Self, Record)> {
        let path = path(dir);
        let read = || -> io::Result<Record> { Ok(serde_json::from_slice(&fs::read(&path)?)?) };
        let record =
            read().map_err(|error| GuestError::operation(format!("reading {}", path.display()), error))?;
        Ok((
            Self {
                path,
                record: Mutex::new(Some(record.clone())),
            },
            record,
        ))
    }

    /// The faults that are registered.
    pub(crate) fn fault_mode(&self) -> Option<FaultMode> {
        self.lock().as_ref().and_then(|record| record.faults)
    }

    /// Changes the record; its file has the old or the new content, whatever happens.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Record)) -> Result<()> {
        let mut guard = self.lock();
        let Some(record) = &mut *guard else { return Ok(()) };
        change(record);
        let write = || {
            let new = self.path.with_extension("json.new");
            fs::write(&new, serde_json::to_vec_pretty(record)?)?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|error: io::Error| {
            GuestError::operation(format!("writing {}", self.path.display()), error)
        })
    }

    /// Forgets the guest.
    pub(crate) fn remove(&self) {
        *self.lock() = None;
        let _ = fs::remove_file(&self.path);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Record>> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("guest.json")
}

/// Opens `file`, which process `pid` has open or mapped, for reading and writing.
pub(crate) fn open_file_of(pid: u32, file: FileId) -> io::Result<OwnedFd> {
    let is_file = |path: &Path| {
        fs::metadata(path).is_ok_and(|found| {
            let device = found.dev();
            found.ino() == file.inode
                && (rustix::fs::major(device), rustix::fs::minor(device)) == (file.major, file.minor)
        })
    };
    for folder in ["fd", "map_files"] {
        for entry in fs::read_dir(format!("/proc/{pid}/{folder}"))
            .into_iter()
            .flatten()
            .flatten()
        {
            if is_file(&entry.path()) {
                return Ok(OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(entry.path())?
                    .into());
            }
        }
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("process {pid} does not have the RAM file open"),
    ))
}
