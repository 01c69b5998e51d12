//! A file tree written as a `cpio` archive in the "newc" format, which is what Linux unpacks as an initramfs.
//!
//! Written here because the archive must hold device nodes, owners and times that an unprivileged builder cannot
//! give to files on disk, and because the same inputs must give the same bytes. Format: cpio(5), and
//! `Documentation/driver-api/early-userspace/buffer-format.rst` of Linux.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};

const S_IFLNK: u32 = 0o120_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFCHR: u32 = 0o020_000;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";

/// One entry of a [`Tree`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory,
    File {
        permissions: u32,
        content: Vec<u8>,
    },
    Symlink {
        target: String,
    },
    CharDevice {
        permissions: u32,
        major: u32,
        minor: u32,
    },
}

/// A file tree in memory, owned by root, in the order of its paths (so that every directory comes before what it holds).
#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// An empty tree.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a directory and its parents; a directory that is there already is fine.
    pub(crate) fn directory(&mut self, path: &str) -> Result<()> {
        self.insert(path, Node::Directory)
    }

    /// Adds a regular file with these permission bits, and its parents.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, content: Vec<u8>) -> Result<()> {
        ensure!(
            u32::try_from(content.len()).is_ok(),
            "/{path} is over the 4 GiB that a newc archive can hold"
        );
        self.insert(path, Node::File { permissions, content })
    }

    /// Adds a symbolic link, and its parents.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        self.insert(
            path,
            Node::Symlink {
                target: target.to_owned(),
            },
        )
    }

    /// Adds a character device node, and its parents.
    pub(crate) fn char_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) -> Result<()> {
        self.insert(
            path,
            Node::CharDevice {
                permissions,
                major,
                minor,
            },
        )
    }

    /// The paths in the tree, without a leading slash.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    fn insert(&mut self, path: &str, node: Node) -> Result<()> {
        let relative = !path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        ensure!(relative, "`{path}` is not a plain relative path");
        for (end, _) in path.match_indices('/') {
            let parent = self
                .nodes
                .entry(path[..end].to_owned())
                .or_insert(Node::Directory);
            ensure!(
                *parent == Node::Directory,
                "/{} holds /{path} but is not a directory",
                &path[..end]
            );
        }
        match self.nodes.get(path) {
            None => {
                self.nodes.insert(path.to_owned(), node);
                Ok(())
            }
            Some(present) if *present == node => Ok(()),
            Some(_) => bail!("/{path} was added twice with different content"),
        }
    }

    /// The tree as a newc archive. Equal trees give equal bytes.
    pub(crate) fn to_newc(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            write_entry(&mut archive, index + 1, path, node);
        }
        write_header(
            &mut archive,
            &Header {
                nlink: 1,
                ..Header::default()
            },
            TRAILER,
        );
        archive
    }
}

/// The header fields that differ between entries; owner, times and the device of the file system are always zero.
#[derive(Default)]
struct Header {
    ino: usize,
    mode: u32,
    nlink: u32,
    file_size: usize,
    rdev_major: u32,
    rdev_minor: u32,
}

fn write_entry(archive: &mut Vec<u8>, ino: usize, path: &str, node: &Node) {
    let header = Header {
        ino,
        nlink: 1,
        ..Header::default()
    };
    match node {
        Node::Directory => {
            write_header(
                archive,
                &Header {
                    mode: S_IFDIR | 0o755,
                    nlink: 2,
                    ..header
                },
                path,
            );
        }
        Node::File { permissions, content } => {
            write_header(
                archive,
                &Header {
                    mode: S_IFREG | permissions,
                    file_size: content.len(),
                    ..header
                },
                path,
            );
            write_padded(archive, content);
        }
        Node::Symlink { target } => {
            write_header(
                archive,
                &Header {
                    mode: S_IFLNK | 0o777,
                    file_size: target.len(),
                    ..header
                },
                path,
            );
            write_padded(archive, target.as_bytes());
        }
        Node::CharDevice {
            permissions,
            major,
            minor,
        } => {
            let mode = S_IFCHR | permissions;
            write_header(
                archive,
                &Header {
                    mode,
                    rdev_major: *major,
                    rdev_minor: *minor,
                    ..header
                },
                path,
            );
        }
    }
}

fn write_header(archive: &mut Vec<u8>, header: &Header, name: &str) {
    let Header {
        ino,
        mode,
        nlink,
        file_size,
        rdev_major,
        rdev_minor,
    } = header;
    let (uid, gid, mtime, dev_major, dev_minor, check) = (0, 0, 0, 0, 0, 0);
    let name_size = name.len() + 1;
    let text = format!(
        "{MAGIC}{ino:08X}{mode:08X}{uid:08X}{gid:08X}{nlink:08X}{mtime:08X}{file_size:08X}{dev_major:08X}\
         {dev_minor:08X}{rdev_major:08X}{rdev_minor:08X}{name_size:08X}{check:08X}{name}\0"
    );
    write_padded(archive, text.as_bytes());
}

/// Appends the bytes and zeros up to the next multiple of four, to which headers and contents are aligned.
fn write_padded(archive: &mut Vec<u8>, bytes: &[u8]) {
    archive.extend_from_slice(bytes);
    archive.resize(archive.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Tree {
        let mut tree = Tree::new();
        tree.file("bin/hello", 0o755, b"#!/bin/sh\necho hello\n".to_vec())
            .unwrap();
        tree.symlink("bin/hi", "hello").unwrap();
        tree.char_device("dev/console", 0o600, 5, 1).unwrap();
        tree.directory("proc").unwrap();
        tree.file("empty", 0o644, Vec::new()).unwrap();
        tree
    }

    /// The commands here that can read a cpio archive, with the arguments that come before cpio's own.
    fn readers() -> Vec<(&'static str, &'static [&'static str])> {
        let candidates: [(&str, &[&str]); 2] = [("cpio", &[]), ("busybox", &["cpio"])];
        let runs = |(name, first): &(&str, &[&str])| {
            let probe = Command::new(name)
                .args(*first)
                .arg("--help")
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            probe.is_ok()
        };
        candidates.into_iter().filter(runs).collect()
    }

    fn pipe_through(name: &str, arguments: &[&str], input: &[u8], folder: &std::path::Path) -> String {
        let mut child = Command::new(name)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{name} {arguments:?} refused the archive"
        );
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn headers_are_hexadecimal_and_everything_is_aligned() {
        let mut tree = Tree::new();
        tree.file("a", 0o644, b"12345".to_vec()).unwrap();
        let archive = tree.to_newc();
        let header = std::str::from_utf8(&archive[..110]).unwrap();
        let fields: Vec<u32> = (0..13)
            .map(|i| u32::from_str_radix(&header[6 + 8 * i..14 + 8 * i], 16).unwrap())
            .collect();
        assert_eq!(&header[..6], "070701");
        assert_eq!(fields, [1, 0o100_644, 0, 0, 1, 0, 5, 0, 0, 0, 0, 2, 0]);
        assert_eq!(&archive[110..112], b"a\0");
        assert_eq!(&archive[112..120], b"12345\0\0\0");
        assert_eq!(&archive[120..126], b"070701");
        assert_eq!(archive.len() % 4, 0);
    }

    #[test]
    fn parents_come_first_and_once() {
        let tree = sample();
        let paths: Vec<_> = tree.paths().collect();
        assert_eq!(
            paths,
            [
                "bin",
                "bin/hello",
                "bin/hi",
                "dev",
                "dev/console",
                "empty",
                "proc"
            ]
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        let mut tree = sample();
        assert!(tree.file("empty", 0o644, b"now full".to_vec()).is_err());
        assert!(tree.file("empty/inside", 0o644, Vec::new()).is_err());
        assert!(tree.directory("/absolute").is_err());
        assert!(tree.directory("up/../out").is_err());
        assert!(tree.directory("proc").is_ok());
    }

    #[test]
    fn equal_trees_give_equal_bytes() {
        assert_eq!(sample().to_newc(), sample().to_newc());
    }

    #[test]
    fn other_tools_list_and_unpack_it() {
        let archive = sample().to_newc();
        let readers = readers();
        if readers.is_empty() {
            println!("skipped: neither cpio nor busybox is installed");
        }
        for (name, first) in readers {
            let folder = std::env::temp_dir().join(format!("xtask-cpio-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            let listing = pipe_through(name, &[first, &["-t"]].concat(), &archive, &folder);
            let listed: Vec<_> = listing.lines().collect();
            assert_eq!(
                listed,
                [
                    "bin",
                    "bin/hello",
                    "bin/hi",
                    "dev",
                    "dev/console",
                    "empty",
                    "proc"
                ],
                "{name}"
            );
            pipe_through(
                name,
                &[first, &["-i", "-d", "bin/*", "empty"]].concat(),
                &archive,
                &folder,
            );
            assert_eq!(
                std::fs::read(folder.join("bin/hi")).unwrap(),
                b"#!/bin/sh\necho hello\n",
                "{name}"
            );
            assert_eq!(std::fs::read(folder.join("empty")).unwrap(), b"", "{name}");
            std::fs::remove_dir_all(&folder).unwrap();
        }
    }
}
