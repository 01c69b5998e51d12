//! The log of sessions of a host: what to tell a source that comes back to a session that does not live any more.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vmferry_core::handover::Record;
use vmferry_wire::{OwnerState, SessionToken};

use crate::error::RuntimeError;
use crate::journal::Journal;
use crate::link::token_text;

/// What became of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Became {
    /// A guest was admitted.
    Admitted,
    /// This host took it.
    Owner,
    /// This host will never take it.
    Declined,
}

/// A line of the log.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Entry {
    pub session: String,
    pub vm: String,
    /// Directory of the guest: its journal tells what a crash kept out of this log.
    pub dir: PathBuf,
    pub epoch: u64,
    pub pages: u64,
    pub became: Became,
}

/// Lines of JSON, forced to disk one by one; the last one of a session counts.
pub(super) struct SessionLog {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    file: File,
    last: HashMap<String, Entry>,
}

impl SessionLog {
    pub(super) fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let path = dir.join("sessions");
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
        let mut last = HashMap::new();
        for (number, line) in text[..whole].lines().enumerate() {
            let entry: Entry = serde_json::from_str(line).map_err(|e| RuntimeError::Damaged {
                path: path.clone(),
                why: format!("line {}: {e}", number + 1),
            })?;
            last.insert(entry.session.clone(), entry);
        }
        let log = Self {
            inner: Mutex::new(Inner { file, last }),
            path,
        };
        log.catch_up()?;
        Ok(log)
    }

    /// An earlier daemon may have ended between the journal of a guest and this log.
    fn catch_up(&self) -> Result<(), RuntimeError> {
        let admitted: Vec<_> = {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner
                .last
                .values()
                .filter(|entry| entry.became == Became::Admitted)
                .cloned()
                .collect()
        };
        for entry in admitted
            .into_iter()
            .filter(|entry| entry.dir.join("journal").exists())
        {
            let taken = match Journal::open(&entry.dir)?.last() {
                Some(Record::Declined { .. }) | None => false,
                Some(record) => record.epoch().0 >= entry.epoch,
            };
            if taken {
                self.append(&Entry {
                    became: Became::Owner,
                    ..entry
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn append(&self, entry: &Entry) -> Result<(), RuntimeError> {
        let failed = |source| RuntimeError::File {
            what: "append to",
            path: self.path.clone(),
            source,
        };
        let mut line = serde_json::to_vec(entry).map_err(|e| failed(e.into()))?;
        line.push(b'\n');
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner
            .file
            .write_all(&line)
            .and_then(|()| inner.file.sync_data())
            .map_err(failed)?;
        inner.last.insert(entry.session.clone(), entry.clone());
        Ok(())
    }

    /// What to tell about a session that does not live (any more). A guest that was admitted and lives no more
    /// can never be committed: that is declined now, and stays so.
    pub(super) fn look_up(&self, token: SessionToken, epoch: u64) -> Result<OwnerState, RuntimeError> {
        let entry = self.entry(token).filter(|entry| entry.epoch == epoch);
        Ok(match entry {
            None => OwnerState::Unknown,
            Some(Entry {
                became: Became::Owner,
                ..
            }) => OwnerState::Owner,
            Some(Entry {
                became: Became::Declined,
                ..
            }) => OwnerState::Declined,
            Some(
                entry @ Entry {
                    became: Became::Admitted,
                    ..
                },
            ) => {
                self.append(&Entry {
                    became: Became::Declined,
                    ..entry
                })?;
                OwnerState::Declined
            }
        })
    }

    /// Pages of the guest of a session.
    pub(super) fn pages(&self, token: SessionToken) -> u64 {
        self.entry(token).map_or(0, |entry| entry.pages)
    }

    fn entry(&self, token: SessionToken) -> Option<Entry> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last.get(&token_text(token)).cloned()
    }
}
