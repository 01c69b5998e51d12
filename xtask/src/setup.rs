//! What the demo and the tests need of the machine, and installing what is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::{command, image};

/// A package of Debian and Ubuntu, and how to see that what it brings is there.
struct Requirement {
    package: &'static str,
    is_met: fn() -> bool,
}

const REQUIREMENTS: [Requirement; 5] = [
    Requirement {
        package: "qemu-system-x86",
        is_met: || command::exists("qemu-system-x86_64"),
    },
    Requirement {
        package: "qemu-utils",
        is_met: || command::exists("qemu-img"),
    },
    Requirement {
        package: "iproute2",
        is_met: || command::exists("ip") && command::exists("tc"),
    },
    Requirement {
        package: "busybox-static",
        is_met: has_busybox,
    },
    Requirement {
        package: "memcached",
        is_met: || command::exists("memcached"),
    },
];

/// Installs what is missing; does nothing, and needs neither root nor network, when all is there.
pub(crate) fn install() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    install_packages(&missing)
}

/// Makes sure that a program is there which only some machines need.
pub(crate) fn install_program(program: &str, package: &str) -> Result<()> {
    if command::exists(program) {
        Ok(())
    } else {
        install_packages(&[package])
    }
}

/// Makes sure that there is a browser to look at the report's page. Fails where there is none that runs without more ado: Ubuntu's
/// package is a stub for a snap, which does not work in containers.
pub(crate) fn install_browser() -> Result<()> {
    if has_browser() {
        return Ok(());
    }
    install_packages(&["chromium"])?;
    ensure!(
        has_browser(),
        "the package chromium is here but does not run (on Ubuntu it is a stub for a snap)"
    );
    Ok(())
}

/// Whether a Chromium runs.
pub(crate) fn has_browser() -> bool {
    let version = |program| command::text(Command::new(program).arg("--version"));
    let mut programs = ["chromium", "chromium-browser", "google-chrome"].into_iter();
    programs.any(|program| version(program).is_ok_and(|version| version.contains("Chrom")))
}

fn install_packages(missing: &[&str]) -> Result<()> {
    let names = missing.join(", ");
    if !command::exists("apt-get") {
        bail!("no apt-get: cannot install {names}");
    }
    if !is_root() {
        bail!("not root: cannot install {names}");
    }
    eprintln!("installing {names}");
    // No lists, as in a fresh container, or old ones that name files which the mirror has replaced since.
    let known = missing.iter().all(|package| is_known(package));
    let attempt = if known {
        apt_install(missing)
    } else {
        Err(anyhow!("unknown to apt"))
    };
    let retried = attempt.or_else(|_| update_lists().and_then(|()| apt_install(missing)));
    retried.with_context(|| format!("cannot install {names} (is there a network?)"))
}

/// Whether we are root.
pub(crate) fn is_root() -> bool {
    command::text(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Fetches the lists of packages; needs root.
pub(crate) fn update_lists() -> Result<()> {
    if !is_root() {
        bail!("not root: cannot fetch apt's lists of packages (run `apt-get update`)");
    }
    apt(&["update"], Path::new("/")).context("cannot fetch apt's lists of packages (is there a network?)")
}

fn missing() -> Vec<&'static str> {
    REQUIREMENTS
        .iter()
        .filter(|requirement| !(requirement.is_met)())
        .map(|requirement| requirement.package)
        .collect()
}

/// A busybox that is not static will do (its libraries go along) if it has the commands that the guest uses.
fn has_busybox() -> bool {
    let listed = command::text(Command::new("busybox").arg("--list")).unwrap_or_default();
    let applets: Vec<_> = listed.lines().collect();
    image::APPLETS.iter().all(|applet| applets.contains(applet))
}

/// Whether apt has a version of the package to install.
fn is_known(package: &str) -> bool {
    let policy = command::text(
        Command::new("apt-cache")
            .args(["policy", package])
            .env("LC_ALL", "C"),
    );
    policy.is_ok_and(|policy| policy.contains("Candidate: ") && !policy.contains("Candidate: (none)"))
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let arguments = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    apt(&arguments, Path::new("/"))
}

/// Runs `apt-get` and keeps its talk to itself; its last words are in the error.
pub(crate) fn apt(arguments: &[&str], folder: &Path) -> Result<()> {
    let patience = ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"];
    let mut apt = Command::new("apt-get");
    apt.arg("-qq").args(patience).args(arguments).current_dir(folder);
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    let output = apt
        .stdin(Stdio::null())
        .output()
        .context("cannot start `apt-get`")?;
    ensure!(output.status.success(), "{}", command::last_words(&output));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_requirement_can_be_asked_for() {
        for Requirement { package, is_met } in REQUIREMENTS {
            assert_eq!(is_met(), !missing().contains(&package), "{package}");
        }
    }
}
