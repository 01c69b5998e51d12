//! What pages hold: found by looking at some of them.

use serde::{Deserialize, Serialize};

use crate::error::TraceError;

/// Most regions that content is told apart for.
pub const MOST_REGIONS: usize = 4096;
/// Most pages that were looked at in a region: with all regions together they can still be counted.
const MOST_LOOKED_AT: u32 = u32::MAX / MOST_REGIONS as u32;

/// The content of some pages.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blend {
    /// Pages looked at.
    pub looked_at: u32,
    /// Of these, the pages of one byte.
    pub uniform: u32,
    /// Bytes that LZ4 makes of one, of the pages that are not uniform; 1 where it does not shrink them.
    pub lz4: f32,
    /// The same of zstd at level 1.
    pub zstd: f32,
    /// The same of zstd at level 5.
    pub zstd_5: f32,
}

/// The content of a guest's memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Content {
    /// Pages of a region; the last one may have fewer.
    pub region_pages: u64,
    /// What the pages that hold data hold, region by region.
    pub regions: Vec<Blend>,
    /// What the pages hold that samples found dirty.
    pub written: Blend,
    /// Bytes that the difference to an earlier version makes of one, of pages that are written again and again; unknown
    /// where none was seen twice.
    pub delta: Option<f32>,
}

impl Default for Blend {
    /// Nothing is known: pages that do not shrink.
    fn default() -> Self {
        Self {
            looked_at: 0,
            uniform: 0,
            lz4: 1.0,
            zstd: 1.0,
            zstd_5: 1.0,
        }
    }
}

impl Blend {
    /// The share of pages of one byte, 0 to 1.
    pub fn uniform_share(&self) -> f64 {
        f64::from(self.uniform) / f64::from(self.looked_at.max(1))
    }

    fn is_sound(&self) -> bool {
        let ratio = |ratio: f32| ratio > 0.0 && ratio <= 1.0;
        let counts = self.uniform <= self.looked_at && self.looked_at <= MOST_LOOKED_AT;
        counts && ratio(self.lz4) && ratio(self.zstd) && ratio(self.zstd_5)
    }
}

impl Content {
    /// What the data around `page` holds.
    pub fn around(&self, page: u64) -> Blend {
        let region = page.checked_div(self.region_pages).unwrap_or(0);
        self.regions.get(region as usize).copied().unwrap_or_default()
    }

    /// It came from outside.
    pub(crate) fn check(&self) -> Result<(), TraceError> {
        let delta = self.delta.is_none_or(|delta| (0.0..=1.0).contains(&delta));
        let blends = self.regions.iter().chain([&self.written]);
        match self.regions.len() <= MOST_REGIONS && delta && blends.clone().all(Blend::is_sound) {
            true => Ok(()),
            false => Err(TraceError::Nonsense("the content of its pages is none".into())),
        }
    }
}
