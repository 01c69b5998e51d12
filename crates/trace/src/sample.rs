//! What was seen in a short time.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_core::sampling::Coverage;
use vmferry_core::sampling::coverage::CHUNK_PAGES;

use crate::error::TraceError;
use crate::page_set::PageSet;

/// Longest trace that makes sense: a year. What is added to times within it overflows nothing.
const MOST_TIME: Duration = Duration::from_secs(366 * 24 * 3600);
/// Longest run of pages that a look at parts of memory finds: the last chunk of a group beside the first one of the next.
const MOST_RUN_PAGES: u64 = 2 * CHUNK_PAGES;

/// The pages that a guest dirtied within a short time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When the time began, microseconds since recording began.
    pub start_us: u64,
    /// When it ended.
    pub end_us: u64,
    /// Samples of one burst follow each other without a gap.
    pub burst: u32,
    /// Which pages were looked at.
    pub coverage: Coverage,
    /// Of these, the dirty ones.
    pub dirty: PageSet,
    /// CPU time that the guest used meanwhile, microseconds, where that is known.
    pub cpu_us: Option<u64>,
}

/// How busy a guest was, by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadMark {
    /// When, microseconds since recording began.
    pub at_us: u64,
    /// Load average over a minute.
    pub load_average: Option<f32>,
    /// Memory that could be had without swapping, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Operations done for clients so far, by a guest that counts them.
    pub operations: Option<u64>,
}

impl Sample {
    /// How long it is.
    pub fn length(&self) -> Duration {
        Duration::from_micros(self.end_us.saturating_sub(self.start_us))
    }

    /// When it began, since recording began.
    pub fn start(&self) -> Duration {
        Duration::from_micros(self.start_us)
    }

    /// When it ended.
    pub fn end(&self) -> Duration {
        Duration::from_micros(self.end_us)
    }

    /// How many pages of all of RAM were dirtied: an estimate where a part was looked at.
    pub fn dirty_pages(&self) -> u64 {
        self.dirty.count() * u64::from(self.coverage.stride())
    }

    /// Bytes that it takes in memory.
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + self.dirty.memory_bytes()) as u64
    }

    /// It came from outside, after a sample that ended at `after_us`.
    pub(crate) fn check(&self, pages: u64, after_us: u64) -> Result<(), TraceError> {
        let nonsense = |why: &str| Err(TraceError::Nonsense(why.to_owned()));
        if self.start_us < after_us || self.end_us <= self.start_us {
            return nonsense("its samples do not follow each other");
        }
        if self.end() > MOST_TIME {
            return nonsense("its samples come from more than a year after its begin");
        }
        if Coverage::one_in(self.coverage.stride(), 0).stride() != self.coverage.stride() {
            return nonsense("a sample looked at parts that are none");
        }
        self.dirty.check(pages)?;
        match self.coverage.is_all() || self.may_have_seen(pages) {
            true => Ok(()),
            false => nonsense("a sample found pages dirty that it did not look at"),
        }
    }

    /// Whether one look at a part of `pages` pages can have found as much as this. Each page stands for many others, so a run
    /// over all of memory in a few bytes of a file would be work without end. (Which chunk of its group a page lies in changes no
    /// such bound, and early files have some that lie in another one.)
    fn may_have_seen(&self, pages: u64) -> bool {
        let group_pages = u64::from(self.coverage.stride()) * CHUNK_PAGES;
        let looked_at = pages.div_ceil(group_pages) * CHUNK_PAGES;
        self.dirty.count() <= looked_at && self.dirty.runs().all(|run| run.count <= MOST_RUN_PAGES)
    }
}
