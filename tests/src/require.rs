//! Requirements of tests.

use std::path::PathBuf;
use std::sync::OnceLock;

/// Something a test needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// QEMU and the guest image.
    Qemu,
    /// To be root.
    Root,
    /// A userfaultfd that tracks writes and serves faults.
    Userfaultfd,
    /// A browser.
    Chromium,
}

impl Requirement {
    /// Its name in `VMFERRY_REQUIRE`.
    const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Root => "root",
            Self::Userfaultfd => "uffd",
            Self::Chromium => "chromium",
        }
    }

    /// What is missing, if something is.
    fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!rustix::process::geteuid().is_root()).then(|| "not root".into()),
            Self::Chromium => crate::browser::program()
                .is_none()
                .then(|| "no chromium that runs (on Debian: `apt-get install chromium`)".into()),
            Self::Userfaultfd => {
                let can = vmferry_memory::Capabilities::probe();
                (!(can.tracking && can.pagemap_scan))
                    .then(|| "userfaultfd with WP_ASYNC and PAGEMAP_SCAN is not permitted".into())
            }
            Self::Qemu => {
                let kernel = image_dir().join("vmlinuz");
                if !kernel.exists() {
                    return Some(format!(
                        "no guest image in {}; make it with `cargo xtask image`",
                        image_dir().display()
                    ));
                }
                // Asked once: every test of a file needs it, and they start at the same moment.
                static LACKING: OnceLock<Option<String>> = OnceLock::new();
                LACKING
                    .get_or_init(|| {
                        vmferry_guest_qemu::probe("qemu-system-x86_64")
                            .err()
                            .map(|e| chain(&e))
                    })
                    .clone()
            }
        }
    }
}

/// Whether all of these are there. Says what is not; fails where `VMFERRY_REQUIRE` names it.
///
/// # Panics
/// See above.
pub fn all(requirements: &[Requirement]) -> bool {
    let required = std::env::var("VMFERRY_REQUIRE").unwrap_or_default();
    requirements.iter().all(|requirement| {
        let Some(missing) = requirement.missing() else {
            return true;
        };
        let must = required.split(',').any(|name| name.trim() == requirement.name());
        assert!(!must, "required here, but missing: {missing}");
        println!("skipped: {missing}");
        false
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |said, cause| format!("{said}: {cause}"))
}

/// Returns from the test where a requirement is missing.
#[macro_export]
macro_rules! need {
    ($($requirement:ident),+) => {
        if !$crate::require::all(&[$($crate::Requirement::$requirement),+]) {
            return;
        }
    };
}

/// Where the guest image lies.
pub fn image_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("VMFERRY_GUEST_IMAGE") {
        return dir.into();
    }
    vmferry_lab::requirements::default_image().unwrap_or_else(|| "/var/cache/vmferry/guest".into())
}
