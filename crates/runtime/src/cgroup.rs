//! A control group of the kernel for some threads of this process, with a share of CPU: version 2 where the `cpu`
//! controller is there, else version 1.
//!
//! Version 2 allows threads of one process in different groups only in a *threaded* subtree; the group of this process
//! becomes its root by the first threaded child, and nothing changes for whoever else is in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Shortest period: a thread that is throttled stands still for a part of one, whatever it holds.
const PERIOD: Duration = Duration::from_millis(10);
/// The kernel takes no smaller quota.
const LEAST_QUOTA_US: u64 = 1000;
/// Most periods at very small shares.
const LONGEST_PERIOD_US: u64 = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

/// A group. It goes when this is dropped, if its threads have ended.
#[derive(Debug)]
pub(crate) struct ThreadGroup {
    version: Version,
    dir: PathBuf,
}

impl ThreadGroup {
    /// Makes a group named `name` below the one of this process.
    ///
    /// # Errors
    /// One line: why there is none.
    pub(crate) fn create(name: &str) -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|e| format!("cannot read {path}: {e}"));
        let (mounts, own) = (read("/proc/self/mountinfo")?, read("/proc/self/cgroup")?);
        let mut reasons = Vec::new();
        for version in [Version::V2, Version::V1] {
            let made = find(version, &mounts, &own).and_then(|parent| Self::below(version, &parent, name));
            match made {
                Ok(group) => return Ok(group),
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    fn below(version: Version, parent: &Path, name: &str) -> Result<Self, String> {
        if version == Version::V2 {
            let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
            if !controllers.split_whitespace().any(|name| name == "cpu") {
                return Err(format!("cgroup v2 has no cpu controller at {}", parent.display()));
            }
        }
        let dir = parent.join(name);
        fs::create_dir(&dir).map_err(|e| format!("cannot make the control group {}: {e}", dir.display()))?;
        // From here on it is removed if it is of no use.
        let group = Self { version, dir };
        if version == Version::V2 {
            group.write("cgroup.type", "threaded")?;
            write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        }
        Ok(group)
    }

    /// Limits its threads to `percent` of one core, or not.
    pub(crate) fn limit(&self, percent: Option<u32>) -> Result<(), String> {
        let (quota_us, period_us) = percent.map_or((None, PERIOD.as_micros() as u64), |percent| {
            let (quota_us, period_us) = quota(percent);
            (Some(quota_us), period_us)
        });
        match self.version {
            Version::V2 => {
                let quota = quota_us.map_or_else(|| "max".to_owned(), |quota_us| quota_us.to_string());
                self.write("cpu.max", &format!("{quota} {period_us}"))
            }
            Version::V1 => {
                // Never more than all cores for a moment, whatever the old values are.
                self.write("cpu.cfs_quota_us", "-1")?;
                self.write("cpu.cfs_period_us", &period_us.to_string())?;
                match quota_us {
                    Some(quota_us) => self.write("cpu.cfs_quota_us", &quota_us.to_string()),
                    None => Ok(()),
                }
            }
        }
    }

    /// Moves the calling thread into it.
    pub(crate) fn join(&self) -> Result<(), String> {
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        match self.version {
            Version::V2 => self.write("cgroup.threads", &thread),
            Version::V1 => self.write("tasks", &thread),
        }
    }

    /// How long its threads were kept from running.
    pub(crate) fn throttled(&self) -> Duration {
        let stat = fs::read_to_string(self.dir.join("cpu.stat")).unwrap_or_default();
        let value = |name: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        match self.version {
            Version::V2 => Duration::from_micros(value("throttled_usec ").unwrap_or(0)),
            Version::V1 => Duration::from_nanos(value("throttled_time ").unwrap_or(0)),
        }
    }

    /// What it is, for reports.
    pub(crate) fn kind(&self) -> &'static str {
        match self.version {
            Version::V1 => "cgroup v1",
            Version::V2 => "cgroup v2",
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        write(&self.dir.join(file), text)
    }
}

impl Drop for ThreadGroup {
    fn drop(&mut self) {
        // Busy while a thread of it lives: then it is left behind, empty soon, and harmless.
        if let Err(error) = fs::remove_dir(&self.dir) {
            tracing::debug!(dir = %self.dir.display(), %error, "a control group stays behind");
        }
    }
}

/// Microseconds of CPU time in a period, and the period.
fn quota(percent: u32) -> (u64, u64) {
    let percent = u64::from(percent.max(1));
    let shortest = (LEAST_QUOTA_US * 100).div_ceil(percent);
    let period_us = (PERIOD.as_micros() as u64).max(shortest).min(LONGEST_PERIOD_US);
    (period_us * percent / 100, period_us)
}

/// Directory of the group this process is in.
fn find(version: Version, mounts: &str, own: &str) -> Result<PathBuf, String> {
    let (kind, none) = match version {
        Version::V2 => ("cgroup2", "cgroup v2 is not mounted"),
        Version::V1 => ("cgroup", "cgroup v1 has no cpu controller mounted"),
    };
    let group = own.lines().find_map(|line| {
        // number:controllers:path
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let ours = match version {
            Version::V2 => controllers.is_empty(),
            Version::V1 => has_cpu(controllers),
        };
        ours.then_some(path)
    });
    let mount = mounts.lines().find_map(|line| {
        // id parent device root mount-point options... - type source super-options
        let (place, system) = line.split_once(" - ")?;
        let mut place = place.split(' ').skip(3);
        let (root, point) = (place.next()?, place.next()?);
        let mut system = system.split(' ');
        let right = system.next()? == kind && (version == Version::V2 || has_cpu(system.nth(1)?));
        right.then_some((root, point))
    });
    let (group, (root, point)) = group.zip(mount).ok_or_else(|| none.to_owned())?;
    // Inside of a container the mount may begin at the process's own group.
    let below = group.strip_prefix(root).unwrap_or("").trim_start_matches('/');
    Ok(Path::new(point).join(below))
}

fn has_cpu(list: &str) -> bool {
    list.split(',').any(|controller| controller == "cpu")
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|e| format!("cannot write {text:?} to {}: {e}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 25 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
";
    const OWN: &str =
        "4:cpuset:/\n3:cpu,cpuacct:/system.slice/vmferry.service\n0::/system.slice/vmferry.service\n";

    #[test]
    fn the_own_group_is_found_in_either_version() {
        assert_eq!(
            find(Version::V1, MOUNTS, OWN).unwrap(),
            Path::new("/sys/fs/cgroup/cpu,cpuacct/system.slice/vmferry.service")
        );
        assert_eq!(
            find(Version::V2, MOUNTS, OWN).unwrap(),
            Path::new("/sys/fs/cgroup/unified/system.slice/vmferry.service")
        );
        let container = "31 30 0:27 /docker/1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            find(Version::V2, container, "0::/docker/1/inner\n").unwrap(),
            Path::new("/sys/fs/cgroup/inner")
        );
        assert!(
            find(Version::V1, container, "0::/\n")
                .unwrap_err()
                .contains("no cpu controller")
        );
        assert!(find(Version::V2, "", OWN).unwrap_err().contains("not mounted"));
    }

    #[test]
    fn quotas_are_ones_the_kernel_takes() {
        assert_eq!(quota(50), (5_000, 10_000));
        assert_eq!(quota(400), (40_000, 10_000));
        assert_eq!(quota(1), (1_000, 100_000));
        for percent in 1..=6400 {
            let (quota_us, period_us) = quota(percent);
            assert!(quota_us >= LEAST_QUOTA_US && (1_000..=LONGEST_PERIOD_US).contains(&period_us));
            let share = quota_us as f64 / period_us as f64 * 100.0;
            assert!(
                (share / f64::from(percent) - 1.0).abs() < 0.01,
                "{percent}: {share}"
            );
        }
    }

    /// A directory takes the same writes as a control group; what the kernel makes of them it does not show.
    #[test]
    fn a_threaded_group_is_made_below_the_own_one() {
        let parent = tempfile::tempdir().unwrap();
        let without = ThreadGroup::below(Version::V2, parent.path(), "vm").unwrap_err();
        assert!(without.contains("no cpu controller"), "{without}");
        fs::write(parent.path().join("cgroup.controllers"), "cpuset cpu io\n").unwrap();
        let group = ThreadGroup::below(Version::V2, parent.path(), "vm").unwrap();
        let read = |file: &str| fs::read_to_string(parent.path().join(file)).unwrap();
        assert_eq!(
            (read("vm/cgroup.type"), read("cgroup.subtree_control")),
            ("threaded".into(), "+cpu".into())
        );
        group.limit(Some(25)).unwrap();
        assert_eq!(read("vm/cpu.max"), "2500 10000");
        group.limit(None).unwrap();
        assert_eq!(read("vm/cpu.max"), "max 10000");
        group.join().unwrap();
        assert!(read("vm/cgroup.threads").parse::<u32>().is_ok());
        fs::write(
            parent.path().join("vm/cpu.stat"),
            "nr_throttled 3\nthrottled_usec 1500\n",
        )
        .unwrap();
        assert_eq!(group.throttled(), Duration::from_micros(1500));
    }
}
