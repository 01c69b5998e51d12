//! The serial console of a guest: a file that both hosts' QEMUs append to.

use std::path::{Path, PathBuf};

/// What the guest printed.
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// The console in this file.
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Everything it printed so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// How often a text was printed.
    pub fn count(&self, text: &str) -> usize {
        self.text().matches(text).count()
    }

    /// Waits until the guest printed `text`.
    ///
    /// # Panics
    /// When it never does; with what it printed.
    pub fn wait_for(&self, text: &str) {
        crate::eventually(&format!("the guest prints {text:?}"), || {
            let printed = self.text();
            assert!(
                !printed.contains("Kernel panic"),
                "the guest panicked:\n{printed}"
            );
            printed.contains(text)
        });
    }

    /// Checks that the guest goes on: its load passes over its data `times` more, and never finds it damaged.
    ///
    /// # Panics
    /// When it found damage, or stands still.
    pub fn assert_healthy(&self, times: usize) {
        let before = self.count("guest-load: ok");
        crate::eventually("the guest's load goes on", || {
            self.count("guest-load: ok") >= before + times
        });
        let printed = self.text();
        assert!(
            !printed.contains("CORRUPT"),
            "the guest found its data damaged:\n{printed}"
        );
        assert!(
            !printed.contains("Kernel panic"),
            "the guest panicked:\n{printed}"
        );
    }
}
