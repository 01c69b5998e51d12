//! `cargo run -p vmferry-benches --bin gather-micro -- OUT [FILE...]`: puts what criterion left in `target/criterion`, and the files that
//! benches wrote with `--json`, into one file for `vmferry bench report --micro`.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use vmferry_lab::bench::Micro;

fn main() -> Result<()> {
    let mut files = std::env::args_os().skip(1).map(PathBuf::from);
    let out = files
        .next()
        .context("say where to write: gather-micro OUT [FILE...]")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")),
        PathBuf::from,
    );
    let micro = Micro::gather(&target.join("criterion"), &files.collect::<Vec<_>>())?;
    let mut text = serde_json::to_string_pretty(&micro)?;
    text.push('\n');
    std::fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}: {} functions", out.display(), micro.functions.len());
    Ok(())
}
