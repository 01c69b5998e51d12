//! Files below `/proc`, parsed. Every parser is a function of the file's text.

pub(crate) mod cmdline;
pub(crate) mod iomem;
pub(crate) mod load;
pub(crate) mod maps;
pub(crate) mod sched;

use std::path::Path;

use crate::error::{AgentError, Result};

/// The text of a file of the system; bytes that are no text are replaced.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let bytes = std::fs::read(path).map_err(AgentError::file(path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The numbers among the names in a folder.
pub(crate) fn numbers_in(folder: impl AsRef<Path>) -> Vec<u32> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
