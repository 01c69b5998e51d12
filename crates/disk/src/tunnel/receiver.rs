//! The destination's end of a tunnel: frames become writes to a disk.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::frame::{BLOCK_BYTES, FromSource, Hash, ToSource, hash_of};
use super::index::{Index, Place};
use super::sender::WINDOW_BLOCKS;
use crate::error::{DiskError, Result};

/// The disks that a tunnel may read from, and the one that it writes to.
pub trait Target {
    /// Size of the disk in bytes.
    fn bytes(&self) -> u64;
    /// Writes to the disk.
    ///
    /// # Errors
    /// When that fails.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    /// Makes a range of the disk read as zeros.
    ///
    /// # Errors
    /// When that fails.
    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()>;
    /// Puts everything on stable storage.
    ///
    /// # Errors
    /// When that fails.
    fn flush(&mut self) -> Result<()>;
    /// Reads from the disk of that number, which may be another one of the guest.
    ///
    /// # Errors
    /// When that fails: then the block crosses.
    fn read(&mut self, place: Place, block: &mut [u8]) -> Result<()>;
}

/// Carries frames out on a disk.
pub struct Receiver<T> {
    target: T,
    /// Number of the disk.
    disk: u16,
    /// The disk held something before: what lies at the very place of a block may be that block.
    had_content: bool,
    index: Arc<Mutex<Index>>,
    /// Questions whose data has to come.
    open: BTreeMap<u64, (u64, Hash)>,
    block: Vec<u8>,
}

impl<T: Target> Receiver<T> {
    /// For disk number `disk`, which `had_content` before. Disks of a guest share their index.
    pub fn new(target: T, disk: u16, had_content: bool, index: Arc<Mutex<Index>>) -> Self {
        Self {
            target,
            disk,
            had_content,
            index,
            open: BTreeMap::new(),
            block: vec![0; BLOCK_BYTES],
        }
    }

    /// Carries a frame out; answers what to tell the source.
    ///
    /// # Errors
    /// When the frame makes no sense, or the disk fails.
    pub fn take(&mut self, frame: FromSource) -> Result<Option<ToSource>> {
        match frame {
            FromSource::Ask { number, offset, hash } => {
                self.check(offset, BLOCK_BYTES as u64)?;
                let has = self.put_known(offset, &hash)?;
                if !has {
                    if self.open.len() >= WINDOW_BLOCKS {
                        return Err(DiskError::unexpected(
                            "another question",
                            "the data of those that are open",
                        ));
                    }
                    self.open.insert(number, (offset, hash));
                }
                Ok(Some(ToSource::Answer { number, has }))
            }
            FromSource::Data { number, data } => {
                let (offset, hash) = self.open.remove(&number).ok_or_else(|| {
                    DiskError::unexpected(
                        format!("the data of question {number}"),
                        "that of an open question",
                    )
                })?;
                if data.len() != BLOCK_BYTES || hash_of(&data) != hash {
                    return Err(DiskError::unexpected(
                        "data of another hash",
                        "the block that was asked about",
                    ));
                }
                self.target.write(offset, &data)?;
                self.note(offset, hash);
                Ok(None)
            }
            FromSource::Write { offset, data } => {
                self.check(offset, data.len() as u64)?;
                self.target.write(offset, &data)?;
                Ok(None)
            }
            FromSource::Zero { offset, bytes } => {
                self.check(offset, bytes)?;
                self.target.zero(offset, bytes)?;
                Ok(None)
            }
            FromSource::Flush { number } => {
                self.target.flush()?;
                Ok(Some(ToSource::Flushed { number }))
            }
        }
    }

    /// Puts a block in place that is here already. Whether it is, is seen by reading it.
    fn put_known(&mut self, offset: u64, hash: &Hash) -> Result<bool> {
        let here = Place {
            disk: self.disk,
            offset,
        };
        let known = self
            .index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .find(hash);
        let in_place = (self.had_content || known == Some(here)).then_some(here);
        for place in in_place.into_iter().chain(known.filter(|&place| place != here)) {
            // A block that cannot be read is not here.
            if self.target.read(place, &mut self.block).is_err() || hash_of(&self.block) != *hash {
                continue;
            }
            if place != here {
                self.target.write(offset, &self.block)?;
            }
            self.note(offset, *hash);
            return Ok(true);
        }
        Ok(false)
    }

    fn note(&self, offset: u64, hash: Hash) {
        let place = Place {
            disk: self.disk,
            offset,
        };
        self.index
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .seen(hash, place);
    }

    fn check(&self, offset: u64, bytes: u64) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.target.bytes() => Ok(()),
            _ => Err(DiskError::unexpected(
                format!("a range of {bytes} bytes at {offset}"),
                format!("one within the {} bytes of the disk", self.target.bytes()),
            )),
        }
    }
}
