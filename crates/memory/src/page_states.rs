//! One state byte a page, in a file that outlives its daemon.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::mapping::OwnMapping;
use crate::{Error, Result};

/// An array of atomic bytes, one a page, in a shared file mapping.
///
/// Post-copy keeps there which page is missing, claimed or filled. The file lives on while a guest does, so a
/// daemon that was killed in the middle finds every page's state again. The meaning of the values is the
/// caller's; a new file holds zeros. Nobody may shrink the file while it is mapped: access beyond its end kills
/// the process.
pub struct SharedPageStates {
    mapping: OwnMapping,
}

impl SharedPageStates {
    /// Creates the file at `path` for `pages` pages, all zero, replacing what was there.
    ///
    /// # Errors
    /// The file cannot be created, sized or mapped.
    pub fn create(path: &Path, pages: usize) -> Result<Self> {
        let what = format!("page states {}", path.display());
        // A new inode rather than a truncated one: an earlier daemon may still have the old one mapped.
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::system(format!("replace {what}"), e));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|e| Error::system(format!("create {what}"), e))?;
        file.set_len(pages as u64)
            .map_err(|e| Error::system(format!("size {what}"), e))?;
        Ok(SharedPageStates {
            mapping: OwnMapping::new(file.as_fd(), 0, pages, &what)?,
        })
    }

    /// Opens the file at `path`, which must have been created for exactly `pages` pages.
    ///
    /// # Errors
    /// The file cannot be opened or mapped, or is of another length.
    pub fn open(path: &Path, pages: usize) -> Result<Self> {
        let what = format!("page states {}", path.display());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|e| Error::system(format!("open {what}"), e))?;
        let found = file
            .metadata()
            .map_err(|e| Error::system(format!("size {what}"), e))?
            .len();
        if found != pages as u64 {
            return Err(Error::BadLength {
                what,
                found,
                expected: pages as u64,
            });
        }
        Ok(SharedPageStates {
            mapping: OwnMapping::new(file.as_fd(), 0, pages, &what)?,
        })
    }

    /// How many pages.
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All states, for whole-array passes.
    pub fn as_slice(&self) -> &[AtomicU8] {
        // SAFETY: the mapping is readable and writable for its whole length while `self` lives, and nobody
        // reaches it but by atomics (in this process: only through this slice).
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast::<AtomicU8>(), self.mapping.len()) }
    }

    /// The state of `page`.
    ///
    /// # Panics
    /// `page` is out of range; the same holds for the other accesses.
    pub fn load(&self, page: usize, order: Ordering) -> u8 {
        self.as_slice()[page].load(order)
    }

    /// Sets the state of `page`.
    pub fn store(&self, page: usize, state: u8, order: Ordering) {
        self.as_slice()[page].store(state, order);
    }

    /// Sets the state of `page` to `new` if it is `current`; otherwise gives back what it is.
    pub fn compare_exchange(
        &self,
        page: usize,
        current: u8,
        new: u8,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u8, u8> {
        self.as_slice()[page].compare_exchange(current, new, success, failure)
    }

    /// How many pages are in `state`. Exact only while nobody changes any.
    pub fn count(&self, state: u8) -> usize {
        self.as_slice()
            .iter()
            .filter(|s| s.load(Ordering::Relaxed) == state)
            .count()
    }

    /// The first page at or after `start` that is in `state`.
    pub fn find(&self, state: u8, start: usize) -> Option<usize> {
        let rest = self.as_slice().get(start..)?;
        rest.iter()
            .position(|s| s.load(Ordering::Relaxed) == state)
            .map(|i| start + i)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

    use super::*;

    #[test]
    fn survives_its_owner() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("states");
        let states = SharedPageStates::create(&path, 10_000).unwrap();
        assert_eq!(states.count(0), 10_000);
        assert_eq!(states.compare_exchange(77, 0, 1, AcqRel, Acquire), Ok(0));
        assert_eq!(states.compare_exchange(77, 0, 1, AcqRel, Acquire), Err(1));
        states.store(9_999, 2, Release);
        drop(states);

        let states = SharedPageStates::open(&path, 10_000).unwrap();
        assert_eq!((states.load(77, Acquire), states.load(9_999, Relaxed)), (1, 2));
        assert_eq!(
            (states.count(0), states.find(2, 0), states.find(1, 78)),
            (9_998, Some(9_999), None)
        );
        assert_eq!(states.find(0, 10_000), None);
    }

    #[test]
    fn two_mappings_see_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("states");
        let (one, two) = (
            SharedPageStates::create(&path, 100).unwrap(),
            SharedPageStates::open(&path, 100).unwrap(),
        );
        one.store(5, 3, Release);
        assert_eq!(two.load(5, Acquire), 3);
    }

    #[test]
    fn creating_again_leaves_the_old_mapping_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("states");
        let old = SharedPageStates::create(&path, 5000).unwrap();
        old.store(4999, 9, Relaxed);
        let new = SharedPageStates::create(&path, 10).unwrap();
        assert_eq!((new.len(), new.count(0), old.load(4999, Relaxed)), (10, 10, 9));
    }

    #[test]
    fn another_length_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("states");
        drop(SharedPageStates::create(&path, 100).unwrap());
        let refused = SharedPageStates::open(&path, 101).err().expect("length differs");
        assert!(
            matches!(
                refused,
                Error::BadLength {
                    found: 100,
                    expected: 101,
                    ..
                }
            ),
            "{refused}"
        );
        assert!(SharedPageStates::open(&folder.path().join("none"), 1).is_err());
    }
}
