//! What a lab needs of this machine.

use std::path::{Path, PathBuf};

use rustix::fs::Access;
use vmferry_memory::{Capabilities, Permission};

/// The programs it runs, and where they come from.
const PROGRAMS: [(&str, &str); 3] = [
    ("qemu-system-x86_64", "QEMU"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
];
/// The files of a guest image, as `cargo xtask image` makes them.
pub(crate) const KERNEL: &str = "vmlinuz";
const INITRAMFS: &str = "initramfs.cpio";

/// The initramfs of a guest image, with a layer of further programs or without.
pub(crate) fn initramfs(layer: Option<&str>) -> String {
    layer.map_or_else(|| INITRAMFS.to_owned(), |layer| format!("initramfs-{layer}.cpio"))
}

/// What is missing for a lab with a QEMU guest, in words, or nothing.
pub fn missing_for_qemu(image: Option<&Path>) -> Option<String> {
    not_root()
        .or_else(no_programs)
        .or_else(|| no_image(image))
        .or_else(no_mechanism)
        .or_else(no_tap)
}

/// What is missing for hosts in network namespaces, in words, or nothing.
pub fn missing_for_network() -> Option<String> {
    not_root().or_else(|| {
        let tools = PROGRAMS.into_iter().filter(|(_, package)| *package == "iproute2");
        first_missing(tools)
    })
}

/// Whether a test has to be left out that makes namespaces. Fails where they may not be missing.
#[cfg(test)]
pub(crate) fn skips_namespaces() -> bool {
    let missing = missing_for_network();
    if let Some(why) = &missing {
        let required = std::env::var("VMFERRY_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|name| name == "root"), "{why}");
        eprintln!("skipped: {why}");
    }
    missing.is_some()
}

/// The folder of the guest image that `cargo xtask image` made.
pub fn default_image() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let cache = variable("VMFERRY_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("vmferry")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/vmferry")))?;
    Some(cache.join("guest"))
}

fn not_root() -> Option<String> {
    (!rustix::process::geteuid().is_root()).then(|| "not root (for network namespaces and taps)".into())
}

fn no_programs() -> Option<String> {
    first_missing(PROGRAMS.into_iter())
}

fn first_missing(mut programs: impl Iterator<Item = (&'static str, &'static str)>) -> Option<String> {
    let (program, package) = programs.find(|(program, _)| !is_program(program))?;
    Some(format!("{program} ({package}) is not installed"))
}

fn no_image(image: Option<&Path>) -> Option<String> {
    let Some(folder) = image else {
        return Some("no folder with a guest image (--image)".into());
    };
    let file = [KERNEL, INITRAMFS]
        .into_iter()
        .map(|name| folder.join(name))
        .find(|file| !file.is_file())?;
    Some(format!(
        "no guest image: {} does not exist (`cargo xtask image` makes it)",
        file.display()
    ))
}

fn no_mechanism() -> Option<String> {
    let capabilities = Capabilities::probe();
    let faults = matches!(
        capabilities.userfaultfd,
        Some(Permission::SystemCall | Permission::Device)
    ) && capabilities.tracking;
    (!faults).then(|| "no userfaultfd as QEMU needs it (`vmferry doctor` tells more)".into())
}

fn no_tap() -> Option<String> {
    let tun = Path::new("/dev/net/tun");
    (!tun.exists()).then(|| format!("no {} for the guest's network", tun.display()))
}

fn is_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .any(|file| file.is_file() && rustix::fs::access(&file, Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_image_is_named() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(KERNEL), "").unwrap();
        let missing = no_image(Some(folder.path())).unwrap();
        assert!(missing.contains("initramfs.cpio"), "{missing}");
        std::fs::write(folder.path().join(INITRAMFS), "").unwrap();
        assert_eq!(no_image(Some(folder.path())), None);
    }

    #[test]
    fn programs_are_found_in_the_path() {
        assert!(is_program("sh"));
        assert!(!is_program("no-such-program"));
    }
}
