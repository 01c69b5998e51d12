//! The kernel modules that the guest needs, in an order in which `insmod` can load them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{command, setup};

/// What the guest cannot do without.
const NEEDED: [&str; 6] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
];

/// What is taken along where the kernel has it: the bus of QEMU's `microvm`.
const WANTED: [&str; 1] = ["virtio_mmio"];

/// One module, ready for `insmod`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    /// The module's name with underscores, as the kernel says it.
    pub(crate) name: String,
    /// The uncompressed module.
    pub(crate) content: Vec<u8>,
}

/// Reads the modules below the folder and orders them. What the kernel has built in is left out.
pub(crate) fn in_load_order(folder: &Path) -> Result<Vec<Module>> {
    let files = find_files(folder)?;
    let builtin = read_builtin(&folder.join("modules.builtin"));
    let mut contents = BTreeMap::new();
    let mut dependencies = |name: &str| -> Result<Option<Vec<String>>> {
        if builtin.contains(name) {
            return Ok(None);
        }
        let path = files.get(name).with_context(|| {
            format!(
                "the kernel in {} has no module {name}: delete that folder to fetch another",
                folder.display()
            )
        })?;
        let content = decompress(path)?;
        let depends =
            parse_depends(&content).with_context(|| format!("{} is not a module", path.display()))?;
        contents.insert(name.to_owned(), content);
        Ok(Some(depends))
    };
    let wanted = WANTED.into_iter().filter(|name| files.contains_key(*name));
    let order = order(NEEDED.into_iter().chain(wanted), &mut dependencies)?;
    let module = |name: String| Module {
        content: contents.remove(&name).unwrap_or_default(),
        name,
    };
    Ok(order.into_iter().map(module).collect())
}

/// Depth first: a module comes after all it depends on, each once. `dependencies` says `None` for what is built in.
fn order<'a>(
    wanted: impl IntoIterator<Item = &'a str>,
    dependencies: &mut impl FnMut(&str) -> Result<Option<Vec<String>>>,
) -> Result<Vec<String>> {
    fn visit(
        name: &str,
        path: &mut Vec<String>,
        done: &mut Vec<String>,
        dependencies: &mut impl FnMut(&str) -> Result<Option<Vec<String>>>,
    ) -> Result<()> {
        if done.iter().any(|module| module == name) {
            return Ok(());
        }
        if path.iter().any(|module| module == name) {
            bail!(
                "modules depend on each other in a circle: {} -> {name}",
                path.join(" -> ")
            );
        }
        let Some(depends) = dependencies(name)? else {
            return Ok(());
        };
        path.push(name.to_owned());
        for dependency in depends {
            visit(&dependency, path, done, dependencies)?;
        }
        path.pop();
        done.push(name.to_owned());
        Ok(())
    }

    let mut done = Vec::new();
    for name in wanted {
        visit(name, &mut Vec::new(), &mut done, dependencies)?;
    }
    Ok(done)
}

/// The modules that a module says it depends on: the `depends=` entry of its `.modinfo`, a list of NUL-ended strings.
/// The entry is found by its text, which saves reading the ELF sections; `None` where there is none.
fn parse_depends(module: &[u8]) -> Option<Vec<String>> {
    const ENTRY: &[u8] = b"\0depends=";
    let start = module.windows(ENTRY.len()).position(|window| window == ENTRY)? + ENTRY.len();
    let end = start + module[start..].iter().position(|&byte| byte == 0)?;
    let list = std::str::from_utf8(&module[start..end]).ok()?;
    Some(
        list.split(',')
            .filter(|name| !name.is_empty())
            .map(canonical)
            .collect(),
    )
}

/// All modules below the folder by name.
fn find_files(folder: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
                files.insert(name, entry.path());
            }
        }
    }
    Ok(files)
}

/// `virtio_rng` for `virtio-rng.ko.xz`; `None` for what is no module.
fn module_name(file: &str) -> Option<String> {
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"]
        .iter()
        .find_map(|suffix| file.strip_suffix(suffix))?;
    Some(canonical(stem))
}

/// File names mix `-` and `_`, which the kernel takes for the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

fn read_builtin(list: &Path) -> BTreeSet<String> {
    let list = fs::read_to_string(list).unwrap_or_default();
    list.lines()
        .filter_map(|line| module_name(line.rsplit('/').next()?))
        .collect()
}

/// The module's content; Debian 13 packs modules with xz, Ubuntu 24.04 with zstd. Done by the tools of these names rather
/// than by two more libraries to build before any task can run.
fn decompress(path: &Path) -> Result<Vec<u8>> {
    let (tool, package) = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => ("xz", "xz-utils"),
        Some("zst") => ("zstd", "zstd"),
        Some("gz") => ("gzip", "gzip"),
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    setup::install_program(tool, package)?;
    command::output(Command::new(tool).args(["-d", "-c"]).arg(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order_of(wanted: &[&str], known: &[(&str, Option<&[&str]>)]) -> Result<Vec<String>> {
        let mut dependencies = |name: &str| {
            let (_, depends) = known
                .iter()
                .find(|(module, _)| *module == name)
                .context("no such module")?;
            Ok(depends.map(|names| names.iter().map(ToString::to_string).collect()))
        };
        order(wanted.iter().copied(), &mut dependencies)
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let known: [(&str, Option<&[&str]>); 5] = [
            ("virtio_net", Some(&["virtio_ring", "net_failover"])),
            ("net_failover", Some(&["failover"])),
            ("failover", Some(&[])),
            ("virtio_blk", Some(&["virtio_ring"])),
            ("virtio_ring", Some(&[])),
        ];
        let order = order_of(&["virtio_blk", "virtio_net"], &known).unwrap();
        assert_eq!(
            order,
            [
                "virtio_ring",
                "virtio_blk",
                "failover",
                "net_failover",
                "virtio_net"
            ]
        );
    }

    #[test]
    fn what_is_built_in_is_not_loaded() {
        let order = order_of(
            &["virtio_blk"],
            &[("virtio_blk", Some(&["virtio"])), ("virtio", None)],
        )
        .unwrap();
        assert_eq!(order, ["virtio_blk"]);
    }

    #[test]
    fn circles_and_missing_modules_are_errors() {
        let circle = order_of(&["a"], &[("a", Some(&["b"])), ("b", Some(&["a"]))]).unwrap_err();
        assert!(circle.to_string().contains("a -> b -> a"), "{circle}");
        assert!(order_of(&["a"], &[("a", Some(&["b"]))]).is_err());
    }

    #[test]
    fn the_depends_entry_is_read() {
        let module = b"\x7fELF...\0license=GPL\0depends=virtio-ring,virtio,net_failover\0name=virtio_net\0";
        assert_eq!(
            parse_depends(module).unwrap(),
            ["virtio_ring", "virtio", "net_failover"]
        );
        assert_eq!(parse_depends(b"\0depends=\0").unwrap(), Vec::<String>::new());
        assert_eq!(parse_depends(b"\x7fELF"), None);
    }

    #[test]
    fn module_names_are_canonical() {
        assert_eq!(module_name("virtio-rng.ko.xz").as_deref(), Some("virtio_rng"));
        assert_eq!(module_name("virtio_net.ko").as_deref(), Some("virtio_net"));
        assert_eq!(module_name("modules.builtin"), None);
    }
}
