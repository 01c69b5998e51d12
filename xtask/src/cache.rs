//! The cache folder: kernel packages and the guest image live there, outside the source tree, and may be deleted at any time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// The cache folder, held by this process alone until it is dropped, so that two tasks at once do not build the same image.
pub(crate) struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens `$VMFERRY_CACHE`, else `$XDG_CACHE_HOME/vmferry`, else `~/.cache/vmferry`, made when missing. Waits while
    /// another task holds it.
    pub(crate) fn open() -> Result<Self> {
        let root = root_from(|name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        })
        .context("no cache folder: set VMFERRY_CACHE or HOME")?;
        let root = std::path::absolute(&root).context("the cache folder's path is not usable")?;
        fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the cache folder {}", root.display()))?;
        let path = root.join(".lock");
        let lock = File::create(&path).with_context(|| format!("cannot open {}", path.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self { root, _lock: lock })
    }

    /// Where unpacked kernel packages are kept.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("kernel")
    }

    /// The folder of the guest image: `vmlinuz`, `initramfs.cpio` and `image.json`.
    pub(crate) fn guest(&self) -> PathBuf {
        self.root.join("guest")
    }
}

fn root_from(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("VMFERRY_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|folder| folder.join("vmferry")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/vmferry")))
}

/// Writes the file when its content differs, by a rename, so that a reader sees the old or the new file whole.
/// Returns whether it was written.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<bool> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    let mut staged = path.as_os_str().to_owned();
    staged.push(".new");
    fs::write(&staged, content).with_context(|| format!("cannot write {}", Path::new(&staged).display()))?;
    fs::rename(&staged, path).with_context(|| format!("cannot replace {}", path.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(set: &[(&str, &str)]) -> Option<PathBuf> {
        root_from(|name| {
            set.iter()
                .find(|(key, _)| *key == name)
                .map(|(_, value)| PathBuf::from(value))
        })
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let all = [("VMFERRY_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        assert_eq!(root_with(&all), Some("/a".into()));
        assert_eq!(root_with(&all[1..]), Some("/b/vmferry".into()));
        assert_eq!(root_with(&all[2..]), Some("/c/.cache/vmferry".into()));
        assert_eq!(root_with(&[]), None);
    }

    #[test]
    fn replace_writes_only_what_differs() {
        let path = std::env::temp_dir().join(format!("xtask-replace-{}", std::process::id()));
        assert!(replace(&path, b"one").unwrap());
        assert!(!replace(&path, b"one").unwrap());
        assert!(replace(&path, b"two").unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"two");
        fs::remove_file(&path).unwrap();
    }
}
