//! The shared libraries that a program needs, by asking the dynamic linker that would load it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::command;

/// Every library that the program loads, and the dynamic linker itself, by the paths under which they are looked up.
/// Empty for a static program.
pub(crate) fn needed_by(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(program)
        .env("LC_ALL", "C")
        .output()
        .context("cannot start `ldd`")?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // The one for a program without a dynamic section, the other for a static one that can be put anywhere.
    if said.contains("not a dynamic executable") || said.contains("statically linked") {
        return Ok(Vec::new());
    }
    parse_ldd(&said).with_context(|| format!("cannot find the libraries of {}", program.display()))
}

/// Lines are `name => path (address)`, `path (address)` for the linker, and `linux-vdso.so.1 (address)`, which is no file.
fn parse_ldd(listing: &str) -> Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in listing.lines().map(str::trim) {
        let (name, location) = line.split_once(" => ").unwrap_or((line, line));
        if location.starts_with("not found") {
            bail!("{name} is not installed");
        }
        let path = location.split(" (").next().unwrap_or(location);
        if path.starts_with('/') {
            libraries.push(PathBuf::from(path));
        }
    }
    if libraries.is_empty() {
        bail!("`ldd` said: {}", listing.lines().next().unwrap_or("nothing"));
    }
    Ok(libraries)
}

/// The program's path, or an error that says how to get it.
pub(crate) fn program(name: &str, package: &str) -> Result<PathBuf> {
    command::find(name).with_context(|| format!("{name} is not installed: run `apt-get install {package}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_is_read() {
        let listing = "\tlinux-vdso.so.1 (0x00007f9227193000)\n\
            \tlibevent-2.1.so.7 => /lib/x86_64-linux-gnu/libevent-2.1.so.7 (0x00007f92270ce000)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f9227195000)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libevent-2.1.so.7",
            "/lib64/ld-linux-x86-64.so.2",
        ]
        .map(PathBuf::from);
        assert_eq!(parse_ldd(listing).unwrap(), expected);
    }

    #[test]
    fn a_missing_library_is_named() {
        let error = parse_ldd("\tlibevent-2.1.so.7 => not found\n").unwrap_err();
        assert_eq!(error.to_string(), "libevent-2.1.so.7 is not installed");
        assert!(parse_ldd("ldd: exited with unknown exit code (139)\n").is_err());
    }

    #[test]
    fn the_libraries_of_a_real_program_exist() {
        let libraries = needed_by(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            libraries
                .iter()
                .any(|path| path.to_string_lossy().contains("libc.so")),
            "{libraries:?}"
        );
        assert!(libraries.iter().all(|path| path.is_file()), "{libraries:?}");
    }
}
