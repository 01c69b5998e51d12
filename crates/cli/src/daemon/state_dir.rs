//! The directory in which a daemon keeps its guests.
//!
//! ```text
//! STATE/lock                  held by the daemon that uses it
//! STATE/api.sock              the API, unless it was put elsewhere
//! STATE/sessions              what became of sessions that arrived (kept by the runtime)
//! STATE/reports/*.json        reports
//! STATE/paths.json            the ways to other hosts, as they were measured
//! STATE/history               what migrations away leave for the models (an embedded database)
//! STATE/guests/NAME/spec.json what the guest was made from; written before anything is started
//! STATE/guests/NAME/arriving  there while the guest is not this host's yet
//! STATE/guests/NAME/leaving   there while a migration away is under way
//! STATE/guests/NAME/learned   what was learned of the guest, while no daemon runs (kept by the runtime)
//! STATE/guests/NAME/...       journal and session (kept by the runtime), what the backend keeps
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use vmferry_guest::GuestSpec;

use crate::names;

/// Something that a guest's directory says about a migration under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marker {
    /// The guest is not this host's yet.
    Arriving,
    /// A migration away has begun, so the guest may be found paused.
    Leaving,
    /// Checkpoints are being taken, so the guest may be found paused.
    Checkpointed,
}

impl Marker {
    fn file(self) -> &'static str {
        match self {
            Self::Arriving => "arriving",
            Self::Leaving => "leaving",
            Self::Checkpointed => "checkpointed",
        }
    }
}

/// The directory, for this process alone while it holds this.
pub(super) struct StateDir {
    path: PathBuf,
    lock: File,
}

impl StateDir {
    /// Makes it where it is missing, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path)?;
        for dir in [path.clone(), path.join("guests"), path.join("reports")] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            made.with_context(|| {
                format!(
                    "cannot make the state directory {}; run as root or choose one with --state-dir",
                    dir.display()
                )
            })?;
        }
        let lock = lock(&path.join("lock"))?;
        Ok(Self { path, lock })
    }

    /// Lets the next daemon have it. To be called last: threads that end late may keep this object for a while.
    pub(super) fn unlock(&self) {
        if let Err(error) = rustix::fs::flock(&self.lock, FlockOperation::Unlock) {
            tracing::warn!("cannot unlock {}: {error}", self.path.display());
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn history(&self) -> PathBuf {
        self.path.join("history")
    }

    pub(super) fn reports(&self) -> PathBuf {
        self.path.join("reports")
    }

    /// The directory of a guest whose name was checked.
    pub(super) fn guest(&self, name: &str) -> PathBuf {
        debug_assert!(names::check(name).is_ok());
        self.path.join("guests").join(name)
    }

    /// A fresh directory for a guest, with its specification, and marked as arriving if it is.
    pub(super) fn create_guest(&self, spec: &GuestSpec, arriving: bool) -> Result<PathBuf> {
        let dir = self.create_dir(&spec.name)?;
        let marked = if arriving {
            set_marker(&dir, Marker::Arriving)
        } else {
            Ok(())
        };
        marked.and_then(|()| store_spec(&dir, spec)).map_err(|error| {
            remove_guest(&dir);
            anyhow::Error::new(error).context(format!("cannot fill {}", dir.display()))
        })?;
        Ok(dir)
    }

    /// A fresh directory for a guest. Without a specification in it, a restarted daemon removes it.
    pub(super) fn create_dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.guest(name);
        if dir.exists() {
            bail!("{} is there already; remove it if nothing uses it", dir.display());
        }
        let made = DirBuilder::new().mode(0o700).create(&dir);
        // Its name has to be on disk as well as what it will hold.
        made.and_then(|()| File::open(self.path.join("guests"))?.sync_all())
            .with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(dir)
    }

    /// Names of all guests that have a directory, and what is no guest's.
    pub(super) fn guests(&self) -> Result<Vec<String>> {
        let guests = self.path.join("guests");
        let mut found = Vec::new();
        for entry in fs::read_dir(&guests).with_context(|| format!("cannot read {}", guests.display()))? {
            match entry?.file_name().into_string() {
                Ok(name) if names::check(&name).is_ok() => found.push(name),
                other => tracing::warn!(
                    "{} holds {other:?}, which is no guest: left alone",
                    guests.display()
                ),
            }
        }
        found.sort();
        Ok(found)
    }
}

/// Writes what a guest was made from into its directory.
pub(super) fn store_spec(dir: &Path, spec: &GuestSpec) -> io::Result<()> {
    store(&dir.join("spec.json"), &serde_json::to_vec_pretty(spec)?)
}

/// The specification in a guest's directory; none where it was never completed, so that nothing was started.
pub(super) fn load_spec(dir: &Path) -> Result<Option<GuestSpec>> {
    let path = dir.join("spec.json");
    match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged", path.display())),
    }
}

/// Leaves a marker in a guest's directory, on disk when this returns.
pub(super) fn set_marker(dir: &Path, marker: Marker) -> io::Result<()> {
    File::create(dir.join(marker.file()))?.sync_all()?;
    File::open(dir)?.sync_all()
}

pub(super) fn has_marker(dir: &Path, marker: Marker) -> bool {
    dir.join(marker.file()).exists()
}

/// Removes a marker that may not be there.
pub(super) fn clear_marker(dir: &Path, marker: Marker) {
    match fs::remove_file(dir.join(marker.file())) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => tracing::warn!("cannot remove {}/{}: {error}", dir.display(), marker.file()),
    }
}

/// Removes the directory of a guest of which nothing is left.
pub(super) fn remove_guest(dir: &Path) {
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", dir.display());
    }
}

/// Writes a file so that after a crash either the old or the new one is there, whole.
pub(super) fn store(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)
}

/// The lock is not the process's id in the file, which is for people: it ends with the daemon, however that ends.
fn lock(path: &Path) -> Result<File> {
    let options = &mut OpenOptions::new();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).ok();
            bail!(
                "another `vmferry host` (process {}) uses {}; stop it, or choose another --state-dir",
                holder.trim(),
                path.parent().unwrap_or(path).display()
            );
        }
        Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> GuestSpec {
        GuestSpec {
            name: name.into(),
            backend: "synth".into(),
            config: serde_json::Value::Null,
        }
    }

    #[test]
    fn one_daemon_at_a_time() {
        let temp = tempfile::tempdir().unwrap();
        let first = StateDir::open(temp.path()).unwrap();
        let error = StateDir::open(temp.path()).err().unwrap().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        first.unlock();
        StateDir::open(temp.path()).unwrap();
    }

    #[test]
    fn guests_are_found_again_and_strangers_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path()).unwrap();
        let dir = state.create_guest(&spec("web"), true).unwrap();
        state.create_guest(&spec("db"), false).unwrap();
        fs::create_dir(temp.path().join("guests/.hidden")).unwrap();
        assert_eq!(state.guests().unwrap(), ["db", "web"]);
        assert_eq!(load_spec(&dir).unwrap(), Some(spec("web")));
        assert!(has_marker(&dir, Marker::Arriving) && !has_marker(&dir, Marker::Leaving));
        clear_marker(&dir, Marker::Arriving);
        assert!(!has_marker(&dir, Marker::Arriving));
        assert!(state.create_guest(&spec("web"), false).is_err());
        remove_guest(&dir);
        assert_eq!(state.guests().unwrap(), ["db"]);
    }

    #[test]
    fn a_damaged_specification_is_an_error_and_none_is_none() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(load_spec(temp.path()).unwrap(), None);
        fs::write(temp.path().join("spec.json"), "{").unwrap();
        assert!(load_spec(temp.path()).is_err());
    }
}
