//! Which parts of a memory hold data.

use std::ops::Range;

use rustix::fs::SeekFrom;

use super::SharedMemory;
use crate::{Error, Result};

/// Iterator of the parts of a [`SharedMemory`] that hold data: see [`SharedMemory::data_extents`].
pub struct DataExtents<'a> {
    pub(super) memory: &'a SharedMemory,
    pub(super) at: u64,
    pub(super) end: u64,
}

impl DataExtents<'_> {
    fn next_extent(&mut self) -> Result<Option<Range<u64>>> {
        while let Some(start) = self.seek(SeekFrom::Data)? {
            self.at = start;
            self.at = self.seek(SeekFrom::Hole)?.unwrap_or(self.end);
            // Data that was punched out between the two questions is an extent of nothing.
            if start < self.at {
                return Ok(Some(start..self.at));
            }
        }
        Ok(None)
    }

    /// The next offset in the memory at or after `at` that `seek` finds, if there is one before the end.
    fn seek(&self, seek: fn(u64) -> SeekFrom) -> Result<Option<u64>> {
        // The position of the open file is shared with whoever inherited it; nobody reads by position.
        match rustix::fs::seek(&self.memory.file, seek(self.memory.file_offset + self.at)) {
            Ok(found) => Ok(Some(found - self.memory.file_offset).filter(|&found| found < self.end)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            Err(e) => Err(Error::system("look for holes in the RAM file", e)),
        }
    }
}

impl Iterator for DataExtents<'_> {
    type Item = Result<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let extent = self.next_extent();
        if !matches!(extent, Ok(Some(_))) {
            self.at = self.end;
        }
        extent.transpose()
    }
}
