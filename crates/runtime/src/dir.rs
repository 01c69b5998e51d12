//! The directory of one guest on this host.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::RuntimeError;

/// Where everything of one guest lies on this host: its journal, the session it is part of, the states of its
/// pages while they arrive, and what its backend keeps there.
#[derive(Clone, Debug)]
pub struct GuestDir {
    path: PathBuf,
}

impl GuestDir {
    /// The directory at `path`, which exists.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The states of pages that still arrive. The file exists only while some do.
    pub fn page_states(&self) -> PathBuf {
        self.path.join("pages.state")
    }

    /// What was learned of the guest. There while no daemon runs that could know it.
    pub fn learned(&self) -> PathBuf {
        self.path.join("learned")
    }

    /// The resume from a checkpoint that a restarted daemon has to take up again.
    pub fn resume(&self) -> PathBuf {
        self.path.join("resume.json")
    }

    /// The session that a restarted daemon has to take up again.
    pub(crate) fn session(&self) -> PathBuf {
        self.path.join("session.json")
    }
}

/// Writes `value` so that after a crash either the old or the new file is there, whole.
///
/// # Errors
/// When the file cannot be written.
pub fn store_json(path: &Path, value: &impl Serialize) -> Result<(), RuntimeError> {
    let failed = |what| {
        move |source| RuntimeError::File {
            what,
            path: path.to_owned(),
            source,
        }
    };
    let new = path.with_extension("new");
    let bytes = serde_json::to_vec_pretty(value).map_err(|e| failed("encode")(e.into()))?;
    let mut file = File::create(&new).map_err(failed("create"))?;
    file.write_all(&bytes)
        .and_then(|()| file.sync_all())
        .map_err(failed("write"))?;
    fs::rename(&new, path).map_err(failed("replace"))
}

/// Reads what [`store_json`] wrote; none where there is no file.
///
/// # Errors
/// When the file cannot be read, or holds something else.
pub fn load_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RuntimeError> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    let damaged = |e: serde_json::Error| RuntimeError::Damaged {
        path: path.to_owned(),
        why: e.to_string(),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(damaged)
}

/// Reads a file; none where there is none.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>, RuntimeError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RuntimeError::File {
            what: "read",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Removes a file that may not be there.
pub fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!(path = %path.display(), %error, "cannot remove");
    }
}
