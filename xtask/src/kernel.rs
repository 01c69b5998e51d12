//! The guest's kernel: a distribution's package, fetched by apt (which checks its signature) and unpacked into the cache.
//! It is never installed on the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{cache::Cache, command, setup};

/// Packages that depend on the newest kernel of their kind, best first: kernels made for virtual machines are small.
const META_PACKAGES: [&str; 4] = [
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-generic",
    "linux-image-amd64",
];

/// An unpacked kernel package.
pub(crate) struct Kernel {
    /// The kernel's release, as `uname -r` says it in the guest.
    pub(crate) release: String,
    /// The name of the package folder in the cache: package and version.
    pub(crate) package: String,
    root: PathBuf,
}

impl Kernel {
    /// The newest kernel in the cache; with none there, one is fetched.
    pub(crate) fn get(cache: &Cache) -> Result<Self> {
        let kernels = cache.kernels();
        match Self::newest_in(&kernels)? {
            Some(kernel) => Ok(kernel),
            None => Self::fetch(&kernels),
        }
    }

    /// The compressed kernel.
    pub(crate) fn vmlinuz(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The folder of the kernel's modules.
    pub(crate) fn modules(&self) -> PathBuf {
        let modules = Path::new("lib/modules").join(&self.release);
        let merged = self.root.join("usr").join(&modules);
        if merged.is_dir() {
            merged
        } else {
            self.root.join(modules)
        }
    }

    fn newest_in(kernels: &Path) -> Result<Option<Self>> {
        let Ok(entries) = fs::read_dir(kernels) else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.context("cannot list the kernels in the cache")?;
            // What begins with a dot was left behind by a fetch that did not end.
            if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                found.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        found.sort();
        found.pop().map(|(_, root)| Self::open(root)).transpose()
    }

    fn open(root: PathBuf) -> Result<Self> {
        let boot = root.join("boot");
        let names = fs::read_dir(&boot)
            .with_context(|| format!("no kernel in {}: delete that folder", root.display()))?;
        let release = names
            .flatten()
            .find_map(|entry| Some(entry.file_name().to_str()?.strip_prefix("vmlinuz-")?.to_owned()))
            .with_context(|| format!("no vmlinuz in {}: delete {}", boot.display(), root.display()))?;
        let package = root
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(Self {
            release,
            package,
            root,
        })
    }

    fn fetch(kernels: &Path) -> Result<Self> {
        if !command::exists("apt-get") || !command::exists("dpkg") {
            bail!("no apt-get: the guest's kernel comes from a Debian or Ubuntu package");
        }
        // What is there was left behind by a fetch that was stopped: the cache is ours alone.
        let staging = kernels.join(".fetch");
        let _ = fs::remove_dir_all(&staging);
        let unpacked = staging.join("unpacked");
        fs::create_dir_all(&unpacked).with_context(|| format!("cannot make {}", unpacked.display()))?;
        // No lists of packages, as in a fresh container, or old ones that name files which the mirror has replaced since.
        download(&staging).or_else(|error| match setup::is_root() {
            true => setup::update_lists().and_then(|()| download(&staging)),
            false => Err(error),
        })?;
        let mut name = String::new();
        for entry in fs::read_dir(&staging)
            .context("cannot list what was fetched")?
            .flatten()
        {
            let deb = entry.path();
            if deb.extension().is_some_and(|extension| extension == "deb") {
                command::run(Command::new("dpkg").arg("-x").arg(&deb).arg(&unpacked))?;
                let stem = deb.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                name = if stem.starts_with("linux-image") {
                    stem
                } else {
                    name
                };
            }
        }
        let root = kernels.join(name);
        fs::rename(&unpacked, &root)
            .with_context(|| format!("cannot move the kernel to {}", root.display()))?;
        fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
        Self::open(root)
    }
}

/// Downloads the packages that hold the newest kernel which apt knows.
fn download(folder: &Path) -> Result<()> {
    let packages = META_PACKAGES.into_iter().find_map(|meta| resolve(meta, depends));
    let packages = packages.with_context(|| format!("apt knows none of {}", META_PACKAGES.join(", ")))?;
    eprintln!("fetching the guest's kernel: {}", packages.join(", "));
    // The sandbox user of apt cannot write into our folder; apt would warn and then do as this option says.
    let download = ["-o", "APT::Sandbox::User=root", "download"];
    let arguments: Vec<_> = download
        .into_iter()
        .chain(packages.iter().map(String::as_str))
        .collect();
    setup::apt(&arguments, folder)
        .with_context(|| format!("cannot fetch {} (is there a network?)", packages.join(", ")))
}

/// From a meta package to the package with the kernel itself and the one with its modules, where that is another.
/// `None` when the package is not known.
fn resolve(meta: &str, depends: impl Fn(&str) -> Vec<String>) -> Option<Vec<String>> {
    let mut image = meta.to_owned();
    // Two steps at most have been seen: Ubuntu's linux-image-virtual once went by way of linux-image-generic.
    for _ in 0..4 {
        let dependencies = depends(&image);
        if is_kernel(&image) {
            let modules = dependencies
                .into_iter()
                .find(|name| name.starts_with("linux-modules-"));
            return Some(std::iter::once(image).chain(modules).collect());
        }
        image = dependencies
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))?;
    }
    None
}

/// Whether the name is that of a kernel and not of a meta package: a version follows.
fn is_kernel(package: &str) -> bool {
    let name = package.strip_prefix("linux-image-").unwrap_or_default();
    name.strip_prefix("unsigned-")
        .unwrap_or(name)
        .starts_with(|first: char| first.is_ascii_digit())
}

fn depends(package: &str) -> Vec<String> {
    let listing = command::text(Command::new("apt-cache").args(["depends", "--important", package]));
    parse_depends(&listing.unwrap_or_default())
}

/// The names after `Depends:` in what `apt-cache depends` prints; virtual packages stand in angle brackets and are left out.
fn parse_depends(listing: &str) -> Vec<String> {
    let name = |line: &str| {
        let line = line.trim_start().trim_start_matches('|');
        let name = line
            .strip_prefix("PreDepends:")
            .or_else(|| line.strip_prefix("Depends:"))?
            .trim();
        (!name.starts_with('<')).then(|| name.split(':').next().unwrap_or(name).to_owned())
    };
    listing.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_lines_are_read() {
        let listing = "linux-image-6.8.0-60-generic\n  Depends: kmod\n |Depends: linux-base\n  Depends: <linux-initramfs-tool>\n    dracut\n  Depends: linux-modules-6.8.0-60-generic\n";
        assert_eq!(
            parse_depends(listing),
            ["kmod", "linux-base", "linux-modules-6.8.0-60-generic"]
        );
    }

    fn packages(of: &'static [(&str, &[&str])]) -> impl Fn(&str) -> Vec<String> {
        move |name| {
            let entry = of.iter().find(|(package, _)| *package == name);
            entry
                .map(|(_, names)| names.iter().map(ToString::to_string).collect())
                .unwrap_or_default()
        }
    }

    #[test]
    fn debian_has_kernel_and_modules_in_one_package() {
        let debian = packages(&[
            ("linux-image-cloud-amd64", &["linux-image-6.1.0-56-cloud-amd64"]),
            ("linux-image-6.1.0-56-cloud-amd64", &["kmod", "linux-base"]),
        ]);
        let found = resolve("linux-image-cloud-amd64", debian).unwrap();
        assert_eq!(found, ["linux-image-6.1.0-56-cloud-amd64"]);
    }

    #[test]
    fn ubuntu_has_modules_apart_and_chained_meta_packages() {
        let ubuntu = packages(&[
            ("linux-image-virtual", &["linux-firmware", "linux-image-generic"]),
            (
                "linux-image-generic",
                &["linux-image-6.8.0-60-generic", "intel-microcode"],
            ),
            (
                "linux-image-6.8.0-60-generic",
                &["kmod", "linux-modules-6.8.0-60-generic"],
            ),
        ]);
        let found = resolve("linux-image-virtual", ubuntu).unwrap();
        assert_eq!(
            found,
            ["linux-image-6.8.0-60-generic", "linux-modules-6.8.0-60-generic"]
        );
    }

    #[test]
    fn what_apt_does_not_know_gives_nothing_and_circles_end() {
        assert_eq!(resolve("linux-image-cloud-amd64", packages(&[])), None);
        let circle = packages(&[
            ("linux-image-a", &["linux-image-b"]),
            ("linux-image-b", &["linux-image-a"]),
        ]);
        assert_eq!(resolve("linux-image-a", circle), None);
    }

    #[test]
    fn a_version_makes_a_kernel() {
        assert!(is_kernel("linux-image-6.1.0-56-cloud-amd64"));
        assert!(is_kernel("linux-image-unsigned-6.8.0-60-generic"));
        assert!(!is_kernel("linux-image-cloud-amd64"));
    }
}
