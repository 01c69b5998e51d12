//! Project tasks: `cargo xtask <task>`. What belongs to the result of a task goes to stdout, all other talk to stderr.

#![forbid(unsafe_code)]

mod cache;
mod command;
mod cpio;
mod database;
mod demo;
mod evaluate;
mod image;
mod kernel;
mod layer;
mod libraries;
mod modules;
mod setup;
mod sources;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};
use layer::Layer;

/// Project tasks of vmferry.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what the demo and the tests need (Debian, Ubuntu; as root).
    Setup,
    /// Build the guest image in the cache folder, and print where it is.
    Image {
        /// Layers of programs for heavier workloads, built beside it; those that are there stay.
        #[arg(long, value_delimiter = ',')]
        layers: Vec<Layer>,
        /// Every layer.
        #[arg(long)]
        all: bool,
    },
    /// Show a live migration: install what is missing, build all, then run `vmferry demo`.
    Demo {
        /// Print the reports as JSON on stdout, and nothing else there.
        #[arg(long)]
        json: bool,
        /// Migrate the synthetic guest, which needs neither QEMU nor root.
        #[arg(long)]
        synthetic: bool,
        /// Arguments for `vmferry demo`.
        #[arg(last = true)]
        extra: Vec<String>,
    },
    /// Measure every scenario within a budget of time, and the micro benches; write raw results, the page and the state. It goes on
    /// where it was ended.
    Evaluate {
        /// In the small sizes of the scenarios.
        #[arg(long)]
        quick: bool,
        /// How long it may take, as in 90m or 6h, building not counted.
        #[arg(long, value_name = "TIME", default_value = "2h", value_parser = budget)]
        budget: Duration,
        /// Only these scenarios.
        #[arg(long, value_name = "NAME", value_delimiter = ',')]
        only: Vec<String>,
        /// Without the micro benches.
        #[arg(long)]
        no_micro: bool,
        /// Where it all goes.
        #[arg(long, value_name = "FOLDER", default_value = "docs/evaluation")]
        folder: PathBuf,
    },
    /// Check everything that must hold before a change is merged.
    Test {
        /// Without set-up, documentation and the tests on QEMU.
        #[arg(long)]
        fast: bool,
    },
    /// Check the rules of style that no other tool knows.
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().task {
        Task::Setup => setup::install(),
        Task::Image { all: true, .. } => build_image(&Layer::ALL),
        Task::Image { layers, .. } => build_image(&layers),
        Task::Demo {
            json,
            synthetic,
            extra,
        } => {
            let Err(error) = demo::run(&demo::Options {
                json,
                synthetic,
                extra,
            });
            Err(error)
        }
        Task::Evaluate {
            quick,
            budget,
            only,
            no_micro,
            folder,
        } => evaluate::run(&evaluate::Options {
            quick,
            budget,
            only,
            no_micro,
            folder: repository().join(folder),
        }),
        Task::Test { fast } => test::run(fast),
        Task::Tidy => tidy::run(&repository()),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}

fn build_image(layers: &[Layer]) -> Result<()> {
    let image = image::build(&cache::Cache::open()?, layers)?;
    eprintln!("{}", image.summary);
    println!("{}", image.folder.display());
    Ok(())
}

/// A time as in `90m`, `6h` or `30s`.
fn budget(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time; write for example 90m or 6h");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(number * seconds))
}

/// The root of the source tree.
fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}
