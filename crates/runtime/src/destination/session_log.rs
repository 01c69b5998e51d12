//! The log of sessions of a host: what to tell a source that comes back to a session that does not live any more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use vmferry_core::handover::Record;
use vmferry_wire::{OwnerState, SessionToken};

use crate::error::RuntimeError;
use crate::journal::Journal;
use crate::lines::JsonLines;
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

/// The last entry of a session counts.
pub(super) struct SessionLog(Mutex<Inner>);

struct Inner {
    lines: JsonLines<Entry>,
    last: HashMap<String, Entry>,
}

impl SessionLog {
    pub(super) fn open(dir: &Path) -> Result<Self, RuntimeError> {
        let (lines, entries) = JsonLines::<Entry>::open(dir, "sessions")?;
        let last = entries
            .into_iter()
            .map(|entry| (entry.session.clone(), entry))
            .collect();
        let log = Self(Mutex::new(Inner { lines, last }));
        log.catch_up()?;
        Ok(log)
    }

    /// An earlier daemon may have ended between the journal of a guest and this log.
    fn catch_up(&self) -> Result<(), RuntimeError> {
        let admitted = |entry: &&Entry| entry.became == Became::Admitted;
        let entries: Vec<_> = self.lock().last.values().filter(admitted).cloned().collect();
        for entry in entries {
            if entry.was_taken()? {
                self.append(&Entry {
                    became: Became::Owner,
                    ..entry
                })?;
            }
        }
        Ok(())
    }

    pub(super) fn append(&self, entry: &Entry) -> Result<(), RuntimeError> {
        let mut inner = self.lock();
        inner.lines.append(entry)?;
        inner.last.insert(entry.session.clone(), entry.clone());
        Ok(())
    }

    /// What to tell about a session that does not live (any more). A guest that was admitted, was not taken
    /// and lives no more can never be committed: that is declined now, and stays so.
    pub(super) fn look_up(&self, token: SessionToken, epoch: u64) -> Result<OwnerState, RuntimeError> {
        let Some(entry) = self.entry(token).filter(|entry| entry.epoch == epoch) else {
            return Ok(OwnerState::Unknown);
        };
        let became = match entry.became {
            Became::Admitted if entry.was_taken()? => Became::Owner,
            Became::Admitted => Became::Declined,
            known => known,
        };
        if became != entry.became {
            self.append(&Entry { became, ..entry })?;
        }
        Ok(if became == Became::Owner {
            OwnerState::Owner
        } else {
            OwnerState::Declined
        })
    }

    /// Pages of the guest of a session.
    pub(super) fn pages(&self, token: SessionToken) -> u64 {
        self.entry(token).map_or(0, |entry| entry.pages)
    }

    fn entry(&self, token: SessionToken) -> Option<Entry> {
        self.lock().last.get(&token_text(token)).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Whether the guest's own journal says that this host took it, then or later.
    fn was_taken(&self) -> Result<bool, RuntimeError> {
        if !self.dir.join("journal").exists() {
            return Ok(false);
        }
        Ok(match Journal::open(&self.dir)?.last() {
            Some(Record::Declined { .. }) | None => false,
            Some(record) => record.epoch().0 >= self.epoch,
        })
    }
}
