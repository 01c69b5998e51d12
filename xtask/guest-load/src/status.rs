//! What several threads of a load have found so far, and the line that says it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Passes that were well, and faults.
#[derive(Debug, Default)]
pub(crate) struct Status {
    passes: AtomicU64,
    faults: AtomicU64,
    first_fault: Mutex<Option<String>>,
}

impl Status {
    /// A pass ended.
    pub(crate) fn pass(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was wrong. The first time it is printed at once.
    pub(crate) fn fault(&self, what: &str) {
        let mut first = self.first_fault.lock().unwrap_or_else(PoisonError::into_inner);
        self.faults.fetch_add(1, Ordering::Relaxed);
        if first.is_none() {
            println!("guest-load: CORRUPT {what}");
            *first = Some(what.to_owned());
        }
    }

    /// All of it in a line.
    pub(crate) fn line(&self) -> String {
        match &*self.first_fault.lock().unwrap_or_else(PoisonError::into_inner) {
            None => format!("ok passes={}", self.passes.load(Ordering::Relaxed)),
            Some(fault) => format!(
                "CORRUPT {} times, first {fault}",
                self.faults.load(Ordering::Relaxed)
            ),
        }
    }
}
