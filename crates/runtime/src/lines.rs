//! A file of JSON lines, each forced to disk before anyone acts on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::RuntimeError;

/// Appends only. A line that a crash or a full disk cut short was never acted on, and is cut off.
pub(crate) struct JsonLines<T> {
    path: PathBuf,
    file: File,
    /// Length up to the last whole line.
    whole: u64,
    line: PhantomData<T>,
}

impl<T: Serialize + DeserializeOwned> JsonLines<T> {
    /// Opens or creates the file `name` in `dir`; answers it with its lines.
    pub(crate) fn open(dir: &Path, name: &str) -> Result<(Self, Vec<T>), RuntimeError> {
        let path = dir.join(name);
        let failed = |what| {
            let path = path.clone();
            move |source| RuntimeError::File { what, path, source }
        };
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let mut file = options.open(&path).map_err(failed("open"))?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed("read"))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            file.set_len(whole as u64).map_err(failed("trim"))?;
        }
        let mut lines = Vec::new();
        for (number, line) in text[..whole].lines().enumerate() {
            let line = serde_json::from_str(line).map_err(|e| RuntimeError::Damaged {
                path: path.clone(),
                why: format!("line {}: {e}", number + 1),
            })?;
            lines.push(line);
        }
        // The name must be on disk as well as the lines.
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(failed("sync the directory of"))?;
        let whole = whole as u64;
        Ok((
            Self {
                path,
                file,
                whole,
                line: PhantomData,
            },
            lines,
        ))
    }

    /// Appends a line and forces it to disk.
    ///
    /// # Errors
    /// When that fails. The line is cut off again as far as possible, but may be on the disk.
    pub(crate) fn append(&mut self, line: &T) -> Result<(), RuntimeError> {
        let written = serde_json::to_vec(line)
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                self.file.write_all(&line).and_then(|()| self.file.sync_data())?;
                Ok(line.len() as u64)
            });
        match written {
            Ok(bytes) => {
                self.whole += bytes;
                Ok(())
            }
            Err(source) => {
                // A torn line would swallow the next one.
                let _ = self.file.set_len(self.whole);
                Err(RuntimeError::File {
                    what: "append to",
                    path: self.path.clone(),
                    source,
                })
            }
        }
    }
}
