//! Which pages of a checkpoint lie together in its store.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::thread::JoinHandle;

use vmferry_core::PageRun;
use vmferry_core::resume::Placement;
use vmferry_store::{Hash, PageSource, Reader, StoreError};

/// The most pages that come with one read. A chunk may hold content that is found at many places of a guest; a guest that waits
/// for one of them is not to wait for all.
const GROUP_PAGES: u32 = 64;
/// Pages that are asked about at once.
const STEP_PAGES: u64 = 32 << 10;

/// A checkpoint, open for reading, whose pages are being looked up on a thread of its own. That takes the longer the more memory
/// the guest has; creating the guest takes longer still, and need not wait for it.
pub struct Survey {
    pub(super) reader: Arc<Reader>,
    places: JoinHandle<Result<Placement, StoreError>>,
}

impl Survey {
    /// Begins to look the pages up.
    pub fn begin(reader: Reader) -> Self {
        let reader = Arc::new(reader);
        let read = Arc::clone(&reader);
        Self {
            places: super::spawn("resume places", move || placement(&read)),
            reader,
        }
    }

    /// Waits until it is done.
    ///
    /// # Errors
    /// When the store does not give the tables.
    pub(super) fn end(self) -> Result<Placement, StoreError> {
        let panicked = |panic| std::panic::resume_unwind(panic);
        self.places.join().unwrap_or_else(panicked)
    }
}

/// The group that is being filled from a chunk, or with pages of equal bytes.
struct Open {
    group: u32,
    pages: u32,
}

/// Looks every page of the checkpoint up. Pages of a chunk are a group, and so are neighbouring pages of equal bytes, which
/// cost no read; pages of zeros hold no data.
///
/// # Errors
/// When the store does not give the tables.
fn placement(reader: &Reader) -> Result<Placement, StoreError> {
    let pages = reader.manifest().layout.pages();
    let mut places = Vec::new();
    let mut open: HashMap<Option<Hash>, Open> = HashMap::new();
    let mut groups = 0;
    for first in (0..pages).step_by(STEP_PAGES as usize) {
        let run = PageRun::new(first, STEP_PAGES.min(pages - first));
        for (page, source) in run.pages().zip(reader.sources(run)?) {
            let chunk = match source {
                PageSource::Hole | PageSource::Uniform(0) => continue,
                PageSource::Uniform(_) => None,
                PageSource::Stored { chunk, .. } => Some(chunk),
            };
            let mut next = || {
                groups += 1;
                Open {
                    group: groups - 1,
                    pages: 0,
                }
            };
            let open = match open.entry(chunk) {
                Entry::Vacant(vacant) => vacant.insert(next()),
                Entry::Occupied(occupied) => {
                    let open = occupied.into_mut();
                    if open.pages == GROUP_PAGES {
                        *open = next();
                    }
                    open
                }
            };
            open.pages += 1;
            places.push((page, open.group));
        }
    }
    Ok(Placement::new(pages, places))
}
