//! `cargo xtask demo`: everything that `vmferry demo` needs, then `vmferry demo` in our place.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::{command, image, setup};

/// What was asked for on the command line.
pub(crate) struct Options {
    /// Only the JSON of `vmferry demo` on stdout.
    pub(crate) json: bool,
    /// The synthetic guest, for which nothing has to be set up.
    pub(crate) synthetic: bool,
    /// Passed to `vmferry demo` as they are.
    pub(crate) extra: Vec<String>,
}

/// Sets up, builds, and becomes `vmferry demo`. One process from here on: a Ctrl-C and the exit status are the demo's own.
pub(crate) fn run(options: &Options) -> Result<Infallible> {
    let guest = if options.synthetic { None } else { guest_image() };
    let vmferry = build_vmferry()?;
    let mut demo = Command::new(&vmferry);
    demo.args(arguments(options, guest));
    let error = demo.exec();
    Err(error).with_context(|| format!("cannot start {}", vmferry.display()))
}

/// The guest image, or, after one line that says what is missing, none.
fn guest_image() -> Option<PathBuf> {
    match prepare() {
        Ok(folder) => Some(folder),
        Err(error) => {
            eprintln!("{error:#}; running the synthetic guest");
            None
        }
    }
}

fn prepare() -> Result<PathBuf> {
    if !setup::is_root() {
        bail!("not root: QEMU's demo makes network namespaces");
    }
    setup::install()?;
    let image = image::build(&Cache::open()?, &[])?;
    eprintln!("{}", image.summary);
    Ok(image.folder)
}

fn arguments(options: &Options, guest: Option<PathBuf>) -> Vec<std::ffi::OsString> {
    let mut arguments = vec!["demo".into()];
    match guest {
        Some(folder) => arguments.extend(["--image".into(), folder.into()]),
        None => arguments.push("--synthetic".into()),
    }
    if options.json {
        arguments.push("--json".into());
    }
    arguments.extend(options.extra.iter().map(Into::into));
    arguments
}

/// Builds the release binary and returns where cargo put it.
pub(crate) fn build_vmferry() -> Result<PathBuf> {
    let root = crate::repository();
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |folder| root.join(folder));
    eprintln!("building vmferry");
    let arguments = ["build", "--release", "--package", "vmferry-cli", "--target-dir"];
    command::run(command::cargo().args(arguments).arg(&target))?;
    Ok(target.join("release/vmferry"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: bool, extra: &[&str], guest: Option<&str>) -> String {
        let extra = extra.iter().map(ToString::to_string).collect();
        let arguments = arguments(
            &Options {
                json,
                synthetic: false,
                extra,
            },
            guest.map(PathBuf::from),
        );
        arguments
            .iter()
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_demo_is_told_which_guest_and_how_to_print() {
        assert_eq!(
            line(false, &[], Some("/cache/guest")),
            "demo --image /cache/guest"
        );
        assert_eq!(
            line(true, &["--memory", "1G"], None),
            "demo --synthetic --json --memory 1G"
        );
    }
}
