//! The same guest with its disks at other places.

use std::path::{Path, PathBuf};

use serde_json::Value;
use vmferry_guest::{DiskInfo, PlacedDisk, Result};

use crate::args::{join, key_values, options};
use crate::spec::{QemuConfig, unsuitable};

/// Options whose whole value is the path of an image.
const WHOLE: &[&str] = &[
    "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "sd", "mtdblock",
];
/// Options of which a key names an image.
const KEYED: &[(&str, &[&str])] = &[
    ("drive", &["file", "file.filename"]),
    ("blockdev", &["filename", "file.filename"]),
];

/// `config` with each of `disks` where `places` say. A path is rewritten only where the configuration names it as that of a
/// disk.
pub(crate) fn place(
    config: QemuConfig,
    name: &str,
    disks: &[DiskInfo],
    places: &[PlacedDisk],
) -> Result<QemuConfig> {
    let mut placed = config;
    for disk in disks {
        let Some(place) = places.iter().find(|place| place.id == disk.id) else {
            continue;
        };
        let mut found = false;
        let moved = Moved {
            from: &disk.path,
            to: &place.path,
        };
        let sites: Vec<(usize, String)> = options(&placed.args)
            .filter_map(|arg| Some((arg.at + 1, moved.in_option(arg.name, arg.value?)?)))
            .collect();
        for (at, value) in sites {
            placed.args[at] = value;
            found = true;
        }
        if !found {
            let problem = format!(
                "its arguments do not name its disk {} ({})",
                disk.id,
                disk.path.display()
            );
            return Err(unsuitable(
                name,
                problem,
                "give the disk with -drive or -blockdev",
            ));
        }
        for file in placed.files.iter_mut().filter(|file| **file == disk.path) {
            *file = place.path.clone();
        }
    }
    Ok(placed)
}

/// The paths that the configuration names as those of disks.
pub(crate) fn files(config: &QemuConfig) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for arg in options(&config.args) {
        let Some(value) = arg.value else { continue };
        let mut add = |path: &str| {
            let path = path.strip_prefix("file:").unwrap_or(path);
            // What has a scheme lies elsewhere.
            if !path.split('/').next().unwrap_or_default().contains(':') {
                found.push(PathBuf::from(path));
            }
        };
        if WHOLE.contains(&arg.name) {
            add(value);
        } else if let Some((_, keys)) = KEYED.iter().find(|(name, _)| *name == arg.name) {
            match serde_json::from_str::<Value>(value) {
                Ok(json) => file_names(&json, &mut add),
                Err(_) => key_values(value)
                    .iter()
                    .filter(|(key, _)| keys.contains(&key.as_str()))
                    .for_each(|(_, path)| add(path)),
            }
        }
    }
    found
}

fn file_names(json: &Value, add: &mut impl FnMut(&str)) {
    for (key, value) in json.as_object().into_iter().flatten() {
        match value {
            Value::String(path) if key == "filename" => add(path),
            nested => file_names(nested, add),
        }
    }
}

struct Moved<'a> {
    from: &'a Path,
    to: &'a Path,
}

impl Moved<'_> {
    /// The new value of an option, where it names the disk.
    fn in_option(&self, option: &str, value: &str) -> Option<String> {
        if WHOLE.contains(&option) {
            return self.path(value);
        }
        let (_, keys) = KEYED.iter().find(|(name, _)| *name == option)?;
        if value.starts_with('{') {
            let mut json: Value = serde_json::from_str(value).ok()?;
            return self.in_json(&mut json).then(|| json.to_string());
        }
        let mut found = false;
        let mut pairs = key_values(value);
        for (key, value) in &mut pairs {
            if keys.contains(&key.as_str())
                && let Some(path) = self.path(value)
            {
                *value = path;
                found = true;
            }
        }
        found.then(|| join(&pairs))
    }

    fn in_json(&self, json: &mut Value) -> bool {
        let Value::Object(members) = json else {
            return false;
        };
        let mut found = false;
        for (key, value) in members {
            match value {
                Value::String(text) if key == "filename" => {
                    if let Some(path) = self.path(text) {
                        *text = path;
                        found = true;
                    }
                }
                nested => found |= self.in_json(nested),
            }
        }
        found
    }

    fn path(&self, value: &str) -> Option<String> {
        let (scheme, path) = match value.strip_prefix("file:") {
            Some(path) => ("file:", path),
            None => ("", value),
        };
        (Path::new(path) == self.from).then(|| format!("{scheme}{}", self.to.display()))
    }
}

#[cfg(test)]
mod tests {
    use vmferry_guest::disks::Before;

    use super::*;

    fn placed(args: &[&str]) -> Result<Vec<String>> {
        let disk = DiskInfo {
            id: "d".into(),
            path: "/a,b/disk.img".into(),
            format: "raw".into(),
            bytes: 1 << 20,
            has_backing: false,
        };
        let there = PlacedDisk {
            id: "d".into(),
            path: "/c,d/disk.img".into(),
            was: Before::Nothing,
        };
        place(
            QemuConfig::new(64 << 20, args.iter().copied()),
            "vm",
            &[disk],
            &[there],
        )
        .map(|config| config.args)
    }

    #[test]
    fn every_way_to_name_a_disk_is_found() {
        for (option, before, after) in [
            (
                "-drive",
                "file=/a,,b/disk.img,if=virtio",
                "file=/c,,d/disk.img,if=virtio",
            ),
            (
                "-drive",
                "if=none,file=file:/a,,b/disk.img",
                "if=none,file=file:/c,,d/disk.img",
            ),
            ("-hda", "/a,b/disk.img", "/c,d/disk.img"),
            (
                "-blockdev",
                "driver=file,node-name=f,filename=/a,,b/disk.img",
                "driver=file,node-name=f,filename=/c,,d/disk.img",
            ),
            (
                "-blockdev",
                r#"{"driver":"raw","file":{"driver":"file","filename":"/a,b/disk.img"}}"#,
                r#"{"driver":"raw","file":{"driver":"file","filename":"/c,d/disk.img"}}"#,
            ),
        ] {
            assert_eq!(placed(&[option, before]).unwrap(), [option, after], "{before}");
            let config = QemuConfig::new(64 << 20, [option, before]);
            assert_eq!(files(&config), [PathBuf::from("/a,b/disk.img")], "{before}");
        }
    }

    #[test]
    fn what_is_no_disk_is_left_alone_and_a_disk_not_named_is_an_error() {
        for args in [
            ["-kernel", "/a,b/disk.img"],
            ["-drive", "file=/a,,b/disk.img2"],
            ["-netdev", "tap,script=/a,,b/disk.img"],
        ] {
            let error = placed(&args).unwrap_err().to_string();
            assert!(error.contains("do not name its disk d"), "{error}");
        }
    }
}
