//! What this machine lets vmferry do, and what to change where it does not.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::{Features, Mode, PAGE_SIZE, PagemapScanner, Permission, SharedMemory, Userfaultfd};

/// What was found out about this machine, and by this user's rights.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// The kernel's release, as `uname -r` gives it.
    pub kernel: String,
    /// The machine's architecture.
    pub architecture: String,
    /// The strongest way to make a userfaultfd, if there is any.
    pub userfaultfd: Option<Permission>,
    /// The names of the userfaultfd features the kernel has.
    pub features: Vec<String>,
    /// Whether writes to shared memory can be tracked by the kernel: really tried.
    pub tracking: bool,
    /// Whether the kernel knows PAGEMAP_SCAN.
    pub pagemap_scan: bool,
    /// Whether anonymous shared memory can be made.
    pub memfd: bool,
    /// Yama's `kernel.yama.ptrace_scope` (0 to 3); none where the kernel has no Yama.
    pub ptrace_scope: Option<u32>,
    /// `vm.unprivileged_userfaultfd`; none where there is no such setting.
    pub unprivileged_userfaultfd: Option<bool>,
    /// The huge page setting for shared memory in force (`never`, `advise`, `within_size`, ...).
    pub shmem_huge_pages: Option<String>,
    /// Whether we are root, to whom Yama's scopes 1 and 2 do not apply.
    pub root: bool,
}

/// One line of a doctor's report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// Whether vmferry can do nothing useful on real guests without it.
    pub required: bool,
    /// What was found.
    pub found: String,
    /// What to change, where it is not as it should be.
    pub hint: Option<String>,
}

impl Capabilities {
    /// Finds out. Tries the mechanisms on a few pages of its own; changes nothing.
    pub fn probe() -> Self {
        let system = rustix::system::uname();
        let opened = Userfaultfd::open();
        let features = opened
            .as_ref()
            .ok()
            .and_then(|_| Userfaultfd::probe_features().ok());
        let known = features.unwrap_or(Features::empty());
        Capabilities {
            kernel: system.release().to_string_lossy().into_owned(),
            architecture: system.machine().to_string_lossy().into_owned(),
            userfaultfd: opened.ok().map(|(_, permission)| permission),
            features: known.iter_names().map(|(name, _)| name.to_owned()).collect(),
            tracking: try_tracking().unwrap_or(false),
            pagemap_scan: PagemapScanner::open(std::process::id()).is_ok(),
            memfd: SharedMemory::create("vmferry-doctor", PAGE_SIZE as u64).is_ok(),
            ptrace_scope: setting("/proc/sys/kernel/yama/ptrace_scope").and_then(|s| s.parse().ok()),
            unprivileged_userfaultfd: setting("/proc/sys/vm/unprivileged_userfaultfd").map(|s| s == "1"),
            shmem_huge_pages: setting("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
                .and_then(|s| chosen(&s)),
            root: rustix::process::geteuid().is_root(),
        }
    }

    /// Whether the kernel has every one of `features`.
    pub fn has(&self, features: Features) -> bool {
        features
            .iter_names()
            .all(|(name, _)| self.features.iter().any(|known| known == name))
    }

    /// The findings one by one, each with a hint where something is to be mended.
    pub fn checks(&self) -> Vec<Check> {
        vec![
            self.check_kernel(),
            self.check_userfaultfd(),
            self.check_tracking(),
            self.check_post_copy(),
            self.check_ptrace(),
            Check {
                name: "shared memory".into(),
                ok: self.memfd,
                required: true,
                found: if self.memfd { "memfd works" } else { "no memfd" }.into(),
                hint: (!self.memfd)
                    .then(|| "allow memfd_create and enough memory (limits of the container?)".into()),
            },
            self.check_huge_pages(),
        ]
    }

    fn check_kernel(&self) -> Check {
        let ok = self.pagemap_scan && self.architecture == "x86_64";
        let hint = match (self.pagemap_scan, ok) {
            (_, true) => None,
            (false, _) => Some("use Linux 6.7 or newer (PAGEMAP_SCAN)".into()),
            (true, false) => Some("attaching to QEMU works on x86_64 only".into()),
        };
        Check {
            name: "kernel".into(),
            ok,
            required: true,
            found: format!("Linux {} on {}", self.kernel, self.architecture),
            hint,
        }
    }

    fn check_userfaultfd(&self) -> Check {
        let found = match self.userfaultfd {
            Some(Permission::SystemCall) => "permitted",
            Some(Permission::Device) => "permitted by /dev/userfaultfd",
            Some(Permission::UserModeOnly) => {
                "for faults in user mode only: enough to track, not for post-copy"
            }
            None => "not permitted",
        };
        let ok = matches!(
            self.userfaultfd,
            Some(Permission::SystemCall | Permission::Device)
        );
        let hint = "run as root or with CAP_SYS_PTRACE, give the user /dev/userfaultfd, or set \
                    vm.unprivileged_userfaultfd = 1; in a container also allow the userfaultfd system call";
        Check {
            name: "userfaultfd".into(),
            ok,
            required: self.userfaultfd != Some(Permission::UserModeOnly),
            found: found.into(),
            hint: (!ok).then(|| hint.into()),
        }
    }

    fn check_tracking(&self) -> Check {
        let found = if self.tracking {
            "writes to shared memory are tracked"
        } else if self.userfaultfd.is_none() {
            "not tried: no userfaultfd"
        } else if !self.has(Features::TRACKING) {
            "the kernel lacks WP_ASYNC, WP_UNPOPULATED or WP_HUGETLBFS_SHMEM"
        } else {
            "a tried write was not seen"
        };
        let hint = "use Linux 6.7 or newer, with CONFIG_USERFAULTFD and CONFIG_PTE_MARKER_UFFD_WP";
        Check {
            name: "dirty tracking".into(),
            ok: self.tracking,
            required: true,
            found: found.into(),
            hint: (!self.tracking).then(|| hint.into()),
        }
    }

    fn check_post_copy(&self) -> Check {
        let ok = self.has(Features::HYBRID);
        let found = if ok {
            "missing and minor faults on shared memory"
        } else {
            "some faults are not reported"
        };
        let hint = "use Linux 5.14 or newer with CONFIG_USERFAULTFD, and permit userfaultfd";
        Check {
            name: "post-copy".into(),
            ok,
            required: false,
            found: found.into(),
            hint: (!ok).then(|| hint.into()),
        }
    }

    fn check_ptrace(&self) -> Check {
        let (ok, found) = match self.ptrace_scope {
            None => (true, "no Yama".into()),
            Some(0) => (true, "kernel.yama.ptrace_scope = 0".into()),
            Some(scope @ (1 | 2)) => (self.root, format!("kernel.yama.ptrace_scope = {scope}")),
            Some(scope) => (
                false,
                format!("kernel.yama.ptrace_scope = {scope}: nobody may trace"),
            ),
        };
        let hint = match self.ptrace_scope {
            Some(scope) if scope >= 3 => {
                "this lasts until the machine is booted again: boot with another setting"
            }
            _ => "run as root or with CAP_SYS_PTRACE, or set kernel.yama.ptrace_scope = 0",
        };
        Check {
            name: "attaching".into(),
            ok,
            required: true,
            found,
            hint: (!ok).then(|| hint.into()),
        }
    }

    fn check_huge_pages(&self) -> Check {
        let found = self.shmem_huge_pages.clone().unwrap_or_else(|| "unknown".into());
        Check {
            name: "huge pages for shared memory".into(),
            // Worth knowing, never wrong: tracking splits them and post-copy installs small pages.
            ok: true,
            required: false,
            found,
            hint: None,
        }
    }
}

/// Tracks one write to a page of our own, end to end.
fn try_tracking() -> crate::Result<bool> {
    let memory = SharedMemory::create("vmferry-doctor", 4 * PAGE_SIZE as u64)?;
    let (uffd, _) = Userfaultfd::open()?;
    uffd.handshake(Features::TRACKING)?;
    uffd.register(memory.addresses(), Mode::WP)?;
    uffd.write_protect(memory.addresses(), true)?;
    memory.store_u64(2 * PAGE_SIZE as u64, 1);
    let mut scanner = PagemapScanner::open(std::process::id())?;
    let expected = memory.addresses().start + 2 * PAGE_SIZE as u64;
    let mut seen = Vec::new();
    scanner.scan_written(memory.addresses(), true, |written| seen.push(written))?;
    Ok(seen.len() == 1 && seen[0] == (expected..expected + PAGE_SIZE as u64))
}

fn setting(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The bracketed word of `always [never] deny`.
fn chosen(setting: &str) -> Option<String> {
    Some(setting.split_once('[')?.1.split_once(']')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bracketed_word() {
        assert_eq!(
            chosen("always within_size advise [never] deny force").as_deref(),
            Some("never")
        );
        assert_eq!(chosen("nothing chosen"), None);
    }

    /// A machine that has everything gets no hints; one that has nothing gets a hint for each thing it lacks.
    #[test]
    fn hints_go_with_what_is_missing() {
        let good = Capabilities {
            kernel: "6.18.0".into(),
            architecture: "x86_64".into(),
            userfaultfd: Some(Permission::SystemCall),
            features: (Features::TRACKING | Features::HYBRID)
                .iter_names()
                .map(|(n, _)| n.into())
                .collect(),
            tracking: true,
            pagemap_scan: true,
            memfd: true,
            ptrace_scope: Some(1),
            unprivileged_userfaultfd: Some(false),
            shmem_huge_pages: Some("never".into()),
            root: true,
        };
        assert!(
            good.checks().iter().all(|check| check.ok && check.hint.is_none()),
            "{:?}",
            good.checks()
        );

        let bad = Capabilities {
            userfaultfd: None,
            features: Vec::new(),
            tracking: false,
            pagemap_scan: false,
            memfd: false,
            root: false,
            ..good.clone()
        };
        let failed: Vec<Check> = bad.checks().into_iter().filter(|check| !check.ok).collect();
        assert_eq!(failed.len(), 6, "{failed:?}");
        assert!(failed.iter().all(|check| check.hint.is_some()), "{failed:?}");
        let json = serde_json::to_string(&bad).unwrap();
        assert_eq!(serde_json::from_str::<Capabilities>(&json).unwrap(), bad);
    }

    /// What the probe says of this machine agrees with what the mechanisms do when asked directly.
    #[test]
    fn the_probe_tells_the_truth() {
        let probed = Capabilities::probe();
        assert_eq!(probed.userfaultfd.is_some(), Userfaultfd::open().is_ok());
        assert_eq!(probed.tracking, try_tracking().unwrap_or(false));
        assert!(!probed.kernel.is_empty());
        if probed.tracking {
            assert!(
                probed.pagemap_scan && probed.has(Features::TRACKING) && probed.memfd,
                "{probed:?}"
            );
        }
    }
}
