//! The files that a QEMU command line names.
//!
//! Found are plain paths only: what QEMU reads over a protocol (`nbd://...`), from JSON or from a configuration
//! file is left to QEMU's own error. A file that QEMU creates itself needs only its folder.

use std::path::{Path, PathBuf};

use crate::args::{Arg, key_values, options};

/// Options whose whole value is the path of a file that must exist.
const FILE_OPTIONS: &[&str] = &[
    "kernel",
    "initrd",
    "bios",
    "dtb",
    "hda",
    "hdb",
    "hdc",
    "hdd",
    "cdrom",
    "fda",
    "fdb",
    "pflash",
    "mtdblock",
    "sd",
    "readconfig",
    "L",
];
/// Keys within options that name a file that must exist.
const FILE_KEYS: &[(&str, &[&str])] = &[
    ("drive", &["file", "file.filename"]),
    ("blockdev", &["filename", "file.filename"]),
    ("device", &["romfile"]),
    ("object", &["file", "filename", "dir", "path"]),
    ("fsdev", &["path"]),
    ("virtfs", &["path"]),
    ("smbios", &["file"]),
    ("fw_cfg", &["file"]),
    ("acpitable", &["file", "data"]),
    ("netdev", &["script", "downscript"]),
    ("nic", &["script", "downscript"]),
    ("vnc", &["password-file"]),
];
/// Options that take a character device in its short form.
const CHARACTER_OPTIONS: &[&str] = &[
    "serial",
    "parallel",
    "monitor",
    "debugcon",
    "virtioconsole",
    "gdb",
];

/// The first file or folder that is named and does not exist, and the argument that names it.
pub(crate) fn first_missing(args: &[String]) -> Option<(PathBuf, String)> {
    options(args).find_map(|arg| {
        let path = needed_by(arg).into_iter().find(|path| !path.exists())?;
        Some((path, format!("-{} {}", arg.name, arg.value.unwrap_or_default())))
    })
}

/// The paths that have to exist for an option to work.
fn needed_by(arg: Arg<'_>) -> Vec<PathBuf> {
    let Some(value) = arg.value else { return Vec::new() };
    if FILE_OPTIONS.contains(&arg.name) {
        return plain_path(value)
            .filter(|path| !is_data_file(arg.name, path))
            .into_iter()
            .collect();
    }
    if arg.name == "chardev" {
        return needed_by_chardev(&key_values(value)).into_iter().collect();
    }
    if CHARACTER_OPTIONS.contains(&arg.name) {
        return needed_by_character_device(value).into_iter().collect();
    }
    if arg.name == "D" {
        return folder_of(Path::new(value)).into_iter().collect();
    }
    let Some((_, keys)) = FILE_KEYS.iter().find(|(name, _)| *name == arg.name) else {
        return Vec::new();
    };
    let pairs = key_values(value);
    // vmferry replaces the file of a memory backend by its own.
    if pairs
        .first()
        .is_some_and(|(_, kind)| kind.starts_with("memory-backend-"))
    {
        return Vec::new();
    }
    let is_file = |(key, value): &(String, String)| {
        (keys.contains(&key.as_str()) && value != "no")
            .then(|| plain_path(value))
            .flatten()
            .filter(|path| !is_data_file(arg.name, path))
    };
    pairs.iter().filter_map(is_file).collect()
}

/// `-chardev KIND,path=...`
fn needed_by_chardev(pairs: &[(String, String)]) -> Option<PathBuf> {
    let get = |key: &str| {
        pairs
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    };
    let path = Path::new(get("path")?);
    let listens = get("server").is_some_and(|value| value != "off");
    match get("").unwrap_or_default() {
        "file" => folder_of(path),
        "socket" if listens => folder_of(path),
        _ => Some(path.to_owned()),
    }
}

/// `file:PATH`, `unix:PATH,server=on`, `pipe:PATH` or the path of a device.
fn needed_by_character_device(value: &str) -> Option<PathBuf> {
    let pairs = key_values(value);
    let target = pairs.first().map(|(_, target)| target.as_str())?;
    let listens = pairs.iter().any(|(key, value)| key == "server" && value != "off");
    match target.split_once(':') {
        Some(("file", path)) => folder_of(Path::new(path)),
        Some(("unix", path)) if listens => folder_of(Path::new(path)),
        Some(("unix" | "pipe", path)) => Some(path.into()),
        _ => target.starts_with('/').then(|| target.into()),
    }
}

/// The path in `value`, unless it is a URL, JSON or another form of QEMU's own.
fn plain_path(value: &str) -> Option<PathBuf> {
    let value = value.strip_prefix("file:").unwrap_or(value);
    let colon = value.find(':').unwrap_or(value.len());
    let slash = value.find('/').unwrap_or(value.len());
    (!value.is_empty() && (colon == value.len() || slash < colon)).then(|| value.into())
}

/// Firmware named without a folder is looked up in QEMU's own data folders.
fn is_data_file(option: &str, path: &Path) -> bool {
    ["bios", "device"].contains(&option) && path.components().count() == 1
}

fn folder_of(path: &Path) -> Option<PathBuf> {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_missing_file_is_found() {
        let missing = [
            ["-kernel", "/no/vmlinuz"],
            ["-initrd", "/no/initrd"],
            ["-bios", "/no/bios"],
            ["-drive", "file=/no/disk.img,format=raw,if=virtio"],
            ["-drive", "if=pflash,file=/no/OVMF.fd"],
            ["-blockdev", "driver=file,node-name=a,filename=/no/disk"],
            ["-cdrom", "/no/a.iso"],
            ["-chardev", "socket,id=c,path=/no/sock"],
            ["-chardev", "file,id=c,path=/no/log"],
            ["-serial", "file:/no/log"],
            ["-serial", "unix:/no/sock,server=on,wait=off"],
            ["-fw_cfg", "name=opt/x,file=/no/blob"],
            ["-object", "secret,id=s,file=/no/secret"],
            ["-netdev", "tap,id=n,script=/no/up"],
        ];
        for args in missing {
            let args = args.map(String::from);
            let (path, argument) = first_missing(&args).unwrap_or_else(|| panic!("{args:?}"));
            assert!(path.starts_with("/no"), "{args:?}");
            assert!(argument.starts_with(&args[0]), "{argument}");
        }
    }

    #[test]
    fn what_is_no_path_is_left_to_qemu() {
        let fine = [
            ["-drive", "file=nbd://host/export,if=virtio"],
            ["-drive", "file=json:{},if=virtio"],
            ["-netdev", "tap,id=n,script=no,downscript=no"],
            ["-serial", "stdio"],
            ["-serial", "file:/tmp/new.log"],
            ["-monitor", "none"],
            ["-chardev", "socket,id=c,path=/tmp/new.sock,server=on,wait=off"],
            ["-append", "root=/dev/vda"],
            ["-object", "memory-backend-file,id=d,size=1M,mem-path=/no/file"],
            ["-gdb", "tcp::1234"],
            ["-bios", "bios-microvm.bin"],
            ["-device", "virtio-net-pci,romfile=efi-virtio.rom"],
            ["-device", "virtio-net-pci,romfile="],
        ];
        for args in fine {
            assert_eq!(first_missing(&args.map(String::from)), None, "{args:?}");
        }
    }
}
