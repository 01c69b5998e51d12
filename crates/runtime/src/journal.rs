//! The journal of a guest: who owns it, on disk before anyone acts on it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_core::Epoch;
use vmferry_core::handover::Record;

use crate::error::RuntimeError;
use crate::lines::JsonLines;

/// Lines of JSON, one [`Record`] each, forced to disk one by one. The last whole line counts: a line that a
/// crash cut short was never acted on.
pub struct Journal(Mutex<Inner>);

struct Inner {
    lines: JsonLines<Record>,
    last: Option<Record>,
}

impl Journal {
    /// Opens or creates the journal in a guest's directory.
    ///
    /// # Errors
    /// When the file cannot be read or created, or holds something else.
    pub fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let (lines, records) = JsonLines::open(dir, "journal")?;
        let last = records.into_iter().next_back();
        Ok(Self(Mutex::new(Inner { lines, last })))
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
        let mut inner = self.lock();
        inner.lines.append(record)?;
        inner.last = Some(record.clone());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
