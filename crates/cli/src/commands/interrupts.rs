//! Ctrl-C, counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};

/// Counts how often the user pressed Ctrl-C, which from now on does not end the process any more.
#[derive(Clone)]
pub(super) struct Interrupts(Arc<AtomicUsize>);

impl Interrupts {
    pub(super) fn watch() -> Result<Self> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        // Installed before this returns: no Ctrl-C gets lost in between.
        let mut signals = {
            let _context = runtime.enter();
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())
                .context("cannot watch for Ctrl-C")?
        };
        std::thread::spawn(move || {
            runtime.block_on(async {
                while signals.recv().await.is_some() {
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        Ok(Self(count))
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}
