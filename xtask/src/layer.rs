//! Layers of the guest image: programs that only some workloads need, too heavy for every guest to carry. An initramfs is one
//! archive after the other, so a layer is an archive of its own, kept beside the base and given to the guests that need it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::cpio::Tree;
use crate::{command, database, image, libraries, setup, sources};

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layer {
    /// redis.
    Redis,
    /// PostgreSQL, with tables.
    Database,
    /// A C compiler, an assembler, and files for them.
    Compile,
}

impl Layer {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Redis, Self::Database, Self::Compile];

    /// Its name in file names and on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Database => "database",
            Self::Compile => "compile",
        }
    }

    /// Its files, of programs that are installed where they are missing.
    pub(crate) fn tree(self) -> Result<Tree> {
        match self {
            Self::Redis => redis(),
            Self::Database => database::tree(),
            Self::Compile => compile(),
        }
        .with_context(|| format!("no layer {}", self.name()))
    }
}

fn redis() -> Result<Tree> {
    let mut tree = Tree::new();
    // One program under several names; the package of the server would also start one on this machine.
    setup::install_program("redis-check-rdb", "redis-tools")?;
    let server = libraries::program("redis-check-rdb", "redis-tools")?;
    image::add_program(&mut tree, "bin/redis-server", &server)?;
    Ok(tree)
}

fn compile() -> Result<Tree> {
    let mut tree = Tree::new();
    setup::install_program("gcc", "gcc")?;
    setup::install_program("as", "binutils")?;
    image::add_program(&mut tree, "bin/cc1", &compiler_proper()?)?;
    image::add_program(&mut tree, "bin/as", &libraries::program("as", "binutils")?)?;
    for (name, content) in sources::write() {
        tree.file(&format!("usr/src/build/{name}"), 0o644, content.into_bytes())?;
    }
    Ok(tree)
}

/// `gcc` itself only starts this program, which takes C in and gives assembly out.
fn compiler_proper() -> Result<PathBuf> {
    let path = command::text(Command::new("gcc").arg("-print-prog-name=cc1"))?;
    std::fs::canonicalize(Path::new(path.trim())).context("gcc has no cc1: install it anew")
}
