//! What the agent hands over about the guest's kernel, so that the host finds free pages by itself.

use serde::{Deserialize, Serialize};

use crate::error::{ProtoError, Result};
use crate::map::MAX_FRAMES;

/// The most extents of `struct page`s.
pub const MAX_EXTENTS: usize = 2048;
/// The most bytes of a kernel's release or of a reason.
pub const MAX_TEXT_BYTES: usize = 256;
/// The highest order of a free block that any kernel has.
pub const MAX_ORDER: u32 = 16;

/// The guest's kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// As `uname -r` says.
    #[serde(deserialize_with = "crate::message::one_line")]
    pub release: String,
    /// Where its `struct page`s lie; absent where that could not be found out.
    pub struct_pages: Option<StructPages>,
    /// Why it could not; else empty.
    #[serde(deserialize_with = "crate::message::one_line")]
    pub why_not: String,
}

/// Where the kernel keeps its `struct page`s in guest-physical memory, and how a free block is known by them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StructPages {
    /// Bytes of a `struct page`, a divisor of 4096.
    pub size_bytes: u16,
    /// How the first page of a free block is known.
    pub rule: FreeRule,
    /// Where the structures lie, ascending by frame.
    pub extents: Vec<Extent>,
}

/// A page is the first of a free block when a masked word has a value, its reference count is zero, and its order is
/// none too high. All offsets are in bytes, of little-endian `u32`s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeRule {
    /// Where the page's type is (`_mapcount`).
    pub type_offset: u16,
    /// The bits of it that count.
    pub type_mask: u32,
    /// What they are in a free page.
    pub type_value: u32,
    /// Where the reference count is.
    pub refcount_offset: u16,
    /// Where the order is (`private`).
    pub order_offset: u16,
    /// The highest order.
    pub max_order: u8,
}

/// Consecutive `struct page`s in consecutive guest-physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The page frame that the first of them describes.
    pub first_frame: u64,
    /// How many frames.
    pub frames: u64,
    /// Guest-physical address of the first of them.
    pub address: u64,
}

impl Kernel {
    pub(crate) fn check(&self) -> Result<()> {
        for (what, text) in [
            ("a kernel's release in bytes", &self.release),
            ("a reason in bytes", &self.why_not),
        ] {
            bound(what, text.len() as u64, MAX_TEXT_BYTES as u64)?;
        }
        self.struct_pages.as_ref().map_or(Ok(()), StructPages::check)
    }
}

impl StructPages {
    /// Refuses what cannot be: sizes and offsets that do not fit, extents out of order or beyond all memory.
    fn check(&self) -> Result<()> {
        let size = self.size_bytes;
        if size == 0 || 4096 % size != 0 || !size.is_multiple_of(4) {
            return Err(ProtoError::TooLong {
                what: "a struct page in bytes",
                came: size.into(),
                limit: 4096,
            });
        }
        let FreeRule {
            type_offset,
            refcount_offset,
            order_offset,
            max_order,
            ..
        } = self.rule;
        for offset in [type_offset, refcount_offset, order_offset] {
            bound("an offset in a struct page", offset.into(), u64::from(size) - 4)?;
        }
        bound("an order", max_order.into(), MAX_ORDER.into())?;
        bound("extents", self.extents.len() as u64, MAX_EXTENTS as u64)?;
        let mut reached = 0;
        for extent in &self.extents {
            if extent.first_frame < reached {
                return Err(ProtoError::Twice {
                    frame: extent.first_frame,
                    reached,
                });
            }
            reached = extent.first_frame.saturating_add(extent.frames);
            let last = extent.address / 4096;
            if reached > MAX_FRAMES || last >= MAX_FRAMES || !extent.address.is_multiple_of(4) {
                return Err(ProtoError::Beyond {
                    frame: reached.max(last),
                    limit: MAX_FRAMES,
                });
            }
        }
        Ok(())
    }
}

pub(crate) fn bound(what: &'static str, came: u64, limit: u64) -> Result<()> {
    if came > limit {
        return Err(ProtoError::TooLong { what, came, limit });
    }
    Ok(())
}
