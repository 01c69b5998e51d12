//! The threads that copy pages of a cut and hand them to the store.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmferry_core::PAGE_SIZE;
use vmferry_store::Writer;

use super::error::Result;
use super::shared::Shared;

/// Pages that are copied and handed over at once.
const BATCH_PAGES: u64 = 256;
/// How long a saver with nothing to do waits before it looks again.
const IDLE: Duration = Duration::from_millis(5);

/// What savers count.
#[derive(Default)]
pub(super) struct Saved {
    pub(super) pages: AtomicU64,
}

/// Saves until nothing of the cut is left, or it is given up.
pub(super) fn save(shared: &Shared, writer: &Writer, saved: &Saved) {
    if let Err(error) = save_all(shared, writer, saved) {
        shared.fail(error);
    }
}

fn save_all(shared: &Shared, writer: &Writer, saved: &Saved) -> Result<()> {
    let mut content = vec![0; (BATCH_PAGES * PAGE_SIZE) as usize];
    while !shared.has_failed() {
        // A writer that waits needs its page copied, not stored.
        let waiting = shared.lock().taker.has_waiting_writers();
        let has_stored = !waiting && store_copies(shared, writer, saved)?;
        if has_stored {
            continue;
        }
        match shared.claim(BATCH_PAGES) {
            Some(run) => {
                let content = &mut content[..run.bytes() as usize];
                shared.vm.ram().read(run, content);
                shared.copied(run)?;
                writer.pages(run, content)?;
                saved.pages.fetch_add(run.count, Ordering::Relaxed);
            }
            None if shared.is_copied() => return Ok(()),
            None => {
                if !store_copies(shared, writer, saved)? {
                    shared.copies.wait(IDLE);
                }
            }
        }
    }
    Ok(())
}

/// Hands copies to the store; false when there were none.
fn store_copies(shared: &Shared, writer: &Writer, saved: &Saved) -> Result<bool> {
    let runs = shared.copies.take(BATCH_PAGES as usize);
    for (run, content) in &runs {
        writer.pages(*run, content)?;
        saved.pages.fetch_add(run.count, Ordering::Relaxed);
    }
    Ok(!runs.is_empty())
}
