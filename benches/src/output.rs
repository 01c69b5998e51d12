//! What a bench prints, and the same as JSON.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::Figures;

/// Figures of a bench: each is printed at once, and written to the file of `--json FILE` at the end.
#[derive(Debug, Default)]
pub struct Output {
    file: Option<PathBuf>,
    entries: Map<String, Value>,
}

impl Output {
    /// For the arguments of this process; what else `cargo bench` passes is left alone.
    ///
    /// # Errors
    /// When `--json` comes without a file.
    pub fn from_args() -> Result<Self> {
        let mut arguments = std::env::args_os().skip(1);
        let mut output = Self::default();
        while let Some(argument) = arguments.next() {
            if argument == "--json" {
                output.file = Some(
                    arguments
                        .next()
                        .context("--json needs the name of a file")?
                        .into(),
                );
            }
        }
        Ok(output)
    }

    /// A measurement with its unit.
    pub fn figures(&mut self, name: &str, unit: &str, figures: &Figures) {
        println!("{name}: {figures} {unit}");
        let (min, max) = figures.range();
        self.entries.insert(
            name.to_owned(),
            json!({ "median": figures.median(), "min": min, "max": max, "unit": unit, "values": figures.values() }),
        );
    }

    /// How the medians of two measurements compare, and what is demanded of it.
    pub fn ratio(&mut self, name: &str, ratio: f64, wanted: &str) {
        println!("{name}: {ratio:.2} (wanted: {wanted})");
        self.entries
            .insert(name.to_owned(), json!({ "ratio": ratio, "wanted": wanted }));
    }

    /// Writes the file, where one was asked for.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(self) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        let text = serde_json::to_string_pretty(&Value::Object(self.entries))?;
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))
    }
}
