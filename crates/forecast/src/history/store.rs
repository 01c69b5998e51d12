//! The file in which a daemon keeps what its migrations teach: an embedded database, so that an end at any moment loses nothing
//! that was there.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use redb::{
    Database, ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::Record;

/// By the time of the end and the id; the value is JSON, so that records of other versions are understood as far as they go.
const MIGRATIONS: TableDefinition<'_, (u64, &str), &[u8]> = TableDefinition::new("migrations-1");
/// How many are kept; the oldest go first.
const KEPT: u64 = 10_000;
/// How long somebody else may have it open: a daemon that has just ended, or a process that is being started, which has all open files of
/// this one until it begins.
const PATIENCE: Duration = Duration::from_secs(2);

/// A history that cannot be used.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// The file is damaged, or no history.
    #[error(
        "the history {} is damaged or no history ({why}); move it away, and a new one begins",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the database says.
        why: String,
    },
    /// The system or the database did not do what was asked.
    #[error("the history {} cannot be used", path.display())]
    Failed {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<redb::Error>,
    },
}

/// A history, open for this process alone.
pub struct History {
    path: PathBuf,
    database: Database,
}

/// What a history holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// Records, the oldest first.
    pub records: Vec<Record>,
    /// Entries that are not understood.
    pub not_understood: usize,
}

impl History {
    /// Opens the history at `path`; makes it where there is none.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        let open = || {
            let database = create(path)?;
            let transaction = database.begin_write()?;
            transaction.open_table(MIGRATIONS)?;
            transaction.commit()?;
            Ok(database)
        };
        let database = guarded(path, open)?;
        Ok(Self {
            path: path.to_owned(),
            database,
        })
    }

    /// Adds a record. When this returns it is on disk.
    ///
    /// # Errors
    /// See [`HistoryError`]; then nothing has changed.
    pub fn append(&self, record: &Record) -> Result<(), HistoryError> {
        let value = serde_json::to_vec(record).expect("a record becomes JSON");
        guarded(&self.path, || {
            let transaction = self.database.begin_write()?;
            {
                let mut table = transaction.open_table(MIGRATIONS)?;
                table.insert((record.ended_unix_ms, record.id.as_str()), value.as_slice())?;
                while table.len()? > KEPT {
                    table.pop_first()?;
                }
            }
            transaction.commit()?;
            Ok(())
        })
    }

    /// Everything in it.
    ///
    /// # Errors
    /// See [`HistoryError`].
    pub fn all(&self) -> Result<Kept, HistoryError> {
        guarded(&self.path, || {
            let transaction = self.database.begin_read()?;
            let table = transaction.open_table(MIGRATIONS)?;
            let mut kept = Kept::default();
            for entry in table.iter()? {
                let (_, value) = entry?;
                match serde_json::from_slice(value.value()) {
                    Ok(record) => kept.records.push(record),
                    Err(_) => kept.not_understood += 1,
                }
            }
            Ok(kept)
        })
    }
}

/// Opens the file once nobody else has it open any more.
fn create(path: &Path) -> Result<Database, redb::DatabaseError> {
    let begun = Instant::now();
    loop {
        match Database::create(path) {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if begun.elapsed() < PATIENCE => {
                thread::sleep(Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

/// The database meets some damage with a panic, and a daemon has guests to keep.
fn guarded<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, HistoryError> {
    let damaged = |why: String| HistoryError::Damaged {
        path: path.to_owned(),
        why,
    };
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(redb::Error::Corrupted(why))) => Err(damaged(why)),
        Ok(Err(
            error @ (redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TableDoesNotExist(_)),
        )) => Err(damaged(error.to_string())),
        // What is no database at all comes as an error of reading it.
        Ok(Err(redb::Error::Io(error)))
            if matches!(
                error.kind(),
                std::io::ErrorKind::InvalidData | std::io::ErrorKind::UnexpectedEof
            ) =>
        {
            Err(damaged(error.to_string()))
        }
        Ok(Err(source)) => Err(HistoryError::Failed {
            path: path.to_owned(),
            source: Box::new(source),
        }),
        Err(_) => Err(damaged("the database gave up on it".into())),
    }
}
