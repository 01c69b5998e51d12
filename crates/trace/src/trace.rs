//! A trace in memory.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmferry_core::{PageBitmap, RamLayout};

use crate::content::Content;
use crate::error::TraceError;
use crate::header::Header;
use crate::hints::GuestHints;
use crate::page_set::PageSet;
use crate::sample::{LoadMark, Sample};

/// What recording cost the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// How long it took, microseconds.
    pub took_us: u64,
    /// The time that it is estimated to have cost the guest, microseconds: faults of pages, arming and scans.
    pub cost_us: u64,
    /// Scans made.
    pub scans: u64,
}

impl Cost {
    /// The share of the guest's time, percent.
    pub fn percent(&self) -> f64 {
        100.0 * self.cost_us as f64 / self.took_us.max(1) as f64
    }
}

/// What a guest wrote over a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Which guest, when and how.
    pub header: Header,
    /// The pages that held data at the beginning; all others were holes.
    pub resident: PageSet,
    /// What they hold.
    pub content: Content,
    /// What was dirtied, in order of time.
    pub samples: Vec<Sample>,
    /// How busy the guest was.
    pub loads: Vec<LoadMark>,
    /// What its pages were used for at the end, where an agent in the guest said so.
    pub hints: Option<GuestHints>,
    /// What recording cost; unknown of a part of a trace.
    pub cost: Option<Cost>,
}

impl Trace {
    /// A trace without samples.
    pub fn new(header: Header, resident: PageSet) -> Self {
        Self {
            header,
            resident,
            content: Content::default(),
            samples: Vec::new(),
            loads: Vec::new(),
            hints: None,
            cost: None,
        }
    }

    /// Pages of the guest's RAM.
    pub fn pages(&self) -> u64 {
        self.header.pages()
    }

    /// Pages that hold data: those at the beginning, and those written since.
    pub fn data(&self) -> PageBitmap {
        let mut data = PageBitmap::new(self.pages());
        self.resident.add_to(&mut data);
        for sample in &self.samples {
            sample.dirty.add_to(&mut data);
        }
        data
    }

    /// Time that samples cover.
    pub fn observed(&self) -> Duration {
        self.samples.iter().map(Sample::length).sum()
    }

    /// Time from its begin to its last sample's end.
    pub fn length(&self) -> Duration {
        self.samples.last().map_or(Duration::ZERO, Sample::end)
    }

    /// Its bursts: samples that follow each other without a gap.
    pub fn bursts(&self) -> impl Iterator<Item = &[Sample]> {
        self.samples.chunk_by(|one, next| one.burst == next.burst)
    }

    /// Checks that it is of a guest with this RAM.
    ///
    /// # Errors
    /// When it is of another one.
    pub fn check_of(&self, layout: &RamLayout) -> Result<(), TraceError> {
        if &self.header.layout == layout {
            return Ok(());
        }
        Err(TraceError::Nonsense(format!(
            "it is of a guest of {} pages in {} blocks, not of one of {} pages in {}",
            self.pages(),
            self.header.layout.blocks().len(),
            layout.pages(),
            layout.blocks().len()
        )))
    }

    /// Checks that there is something to go by.
    ///
    /// # Errors
    /// [`TraceError::Empty`].
    pub fn check_not_empty(&self) -> Result<(), TraceError> {
        match self.samples.is_empty() {
            true => Err(TraceError::Empty),
            false => Ok(()),
        }
    }
}
