//! What commands print.

use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

/// Prints a value as JSON on stdout.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}

/// Prints text on stdout; unlike `println!` it does not panic when nobody reads.
pub(super) fn text(text: &str) -> Result<()> {
    Ok(io::stdout().lock().write_all(text.as_bytes())?)
}
