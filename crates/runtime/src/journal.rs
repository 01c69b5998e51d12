//! The journal of a guest: who owns it, on disk before anyone acts on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use vmferry_core::Epoch;
use vmferry_core::handover::Record;

use crate::error::RuntimeError;

/// Lines of JSON, one [`Record`] each, forced to disk one by one. The last whole line counts: a line that a
/// crash cut short was never acted on.
pub struct Journal {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    last: Option<Record>,
}

impl Journal {
    /// Opens or creates the journal in a guest's directory.
    ///
    /// # Errors
    /// When the file cannot be read or created, or holds something else.
    pub fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let path = dir.join("journal");
        let failed = |what| {
            let path = path.clone();
            move |source| RuntimeError::File { what, path, source }
        };
        let mut options = OpenOptions::new();
        let mut file = options
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(failed("open"))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed("read"))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(failed("trim"))?;
        }
        let last = match text[..whole].lines().next_back() {
            None => None,
            Some(line) => Some(serde_json::from_str(line).map_err(|e| RuntimeError::Damaged {
                path: path.clone(),
                why: format!("its last line is no record: {e}"),
            })?),
        };
        // The name must be on disk as well as the lines.
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(failed("sync the directory of"))?;
        Ok(Self {
            inner: Mutex::new(Inner { file, last }),
            path,
        })
    }

    /// The record that counts.
    pub fn last(&self) -> Option<Record> {
        self.lock().last.clone()
    }

    /// The epoch of the record that counts; a guest that never moved is in epoch 0.
    pub fn epoch(&self) -> Epoch {
        self.last().map_or(Epoch::default(), |record| record.epoch())
    }

    /// Appends a record and forces it to disk.
    ///
    /// # Errors
    /// When that fails: then it is not known whether the record counts.
    pub fn append(&self, record: &Record) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::File {
            what: "append to",
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(record).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        let mut inner = self.lock();
        inner
            .file
            .write_all(&line)
            .and_then(|()| inner.file.sync_data())
            .map_err(failed)?;
        inner.last = Some(record.clone());
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_counts() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.last(), None);
        journal.append(&Record::Owner { epoch: Epoch(1) }).unwrap();
        journal.append(&Record::Declined { epoch: Epoch(2) }).unwrap();
        let path = dir.path().join("journal");
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str(r#"{"record":"owner","ep"#);
        std::fs::write(&path, text).unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.last(), Some(Record::Declined { epoch: Epoch(2) }));
        journal.append(&Record::Owner { epoch: Epoch(3) }).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().epoch(), Epoch(3));
    }

    #[test]
    fn a_damaged_journal_is_an_error_not_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("journal"), "nonsense\n").unwrap();
        assert!(matches!(
            Journal::open(dir.path()),
            Err(RuntimeError::Damaged { .. })
        ));
    }
}
