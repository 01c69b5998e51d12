//! Project tasks: `cargo xtask <task>`. What belongs to the result of a task goes to stdout, all other talk to stderr.

#![forbid(unsafe_code)]

mod cache;
mod command;
mod cpio;
mod database;
mod demo;
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

/// The root of the source tree.
fn repository() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.clone(), PathBuf::from)
}
