//! `vmferry bench report`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context as _, Result};
use clap::Args;
use vmferry_lab::bench::{Micro, Results};
use vmferry_report::{Source, page};

use super::render;
use crate::cli::Common;
use crate::commands::output;

/// Makes one page of the results of any number of scenarios: what was measured and on what, vmferry beside QEMU's own
/// migration, where it is behind, each figure with what the paper says, our plot, the table and the verdict, and where the
/// raw files are. The page is one HTML file that needs nothing else: no network, no script.
///
/// What is said and shown of a scenario that comes with vmferry is what this version says of it, as long as it measures the same.
/// Without --html the tables are printed, with --json the results.
#[derive(Debug, Args)]
pub(crate) struct ReportArgs {
    /// Results of `vmferry bench`
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Results of micro benches, to stand on the page too; `gather-micro` of the benches makes them
    #[arg(long, value_name = "FILE", requires = "html")]
    micro: Option<PathBuf>,
    /// The page to write
    #[arg(long, value_name = "OUT")]
    html: Option<PathBuf>,
}

pub(super) fn run(common: &Common, args: &ReportArgs) -> Result<ExitCode> {
    let read = |file: &PathBuf| -> Result<Source> {
        let (results, bytes) = Results::read(file)?;
        let name = file.file_name().unwrap_or(file.as_os_str());
        Ok(Source {
            file: name.to_string_lossy().into_owned(),
            bytes,
            results: results.renewed(),
        })
    };
    let sources = args.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    if let Some(file) = &args.html {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        let micro = args.micro.as_deref().map(Micro::read).transpose()?;
        let page = page(&sources, micro.as_ref(), now);
        std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match (common.json, &args.html) {
        (true, _) => output::json(&sources.iter().map(|source| &source.results).collect::<Vec<_>>())?,
        (false, Some(file)) => {
            let runs: usize = sources.iter().map(|source| source.results.runs.len()).sum();
            output::text(&format!(
                "{}: {runs} runs of {} scenarios\n",
                file.display(),
                sources.len()
            ))?;
        }
        (false, None) => {
            let tables = sources.iter().map(|source| render::results(&source.results));
            output::text(&tables.collect::<Vec<_>>().join("\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
