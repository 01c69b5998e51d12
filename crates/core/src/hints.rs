//! What a guest says about its own pages: classes in the order of their worth, and free pages.
//!
//! The classes and their order are those of Abe, Geambasu, Joshi and Satyanarayanan, "Urgent virtual machine eviction
//! with enlightened post-copy" (2015), Table 1. They come from an agent in the guest, which can harm nothing but the
//! guest it runs in: a wrong class costs that guest time.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bitmap::PageBitmap;
use crate::pages::PageRun;

/// What a page is used for, the most urgent first. A page of several classes has the first of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u8)]
pub enum Class {
    /// Code of the kernel.
    KernelCode = 0,
    /// Data of the kernel.
    KernelAllocated = 1,
    /// Memory that devices are talked to through.
    MemoryIo = 2,
    /// Page tables.
    PageTables = 3,
    /// Executable pages of processes that ran lately.
    UserCode = 4,
    /// All other pages of processes that ran lately.
    UserData = 5,
    /// Cached files in use.
    FileActive = 6,
    /// Cached files not used for a while.
    FileInactive = 7,
    /// Everything else: idle processes, and pages nobody knows anything about.
    Other = 8,
    /// Not used: what it holds need not cross.
    Free = 9,
}

impl Class {
    /// All of them, the most urgent first.
    pub const ALL: [Self; 10] = [
        Self::KernelCode,
        Self::KernelAllocated,
        Self::MemoryIo,
        Self::PageTables,
        Self::UserCode,
        Self::UserData,
        Self::FileActive,
        Self::FileInactive,
        Self::Other,
        Self::Free,
    ];

    /// Its place in the order, from 0.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The class at this place of the order.
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }

    /// Its name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::KernelCode => "kernel code",
            Self::KernelAllocated => "kernel allocated",
            Self::MemoryIo => "memory-mapped I/O",
            Self::PageTables => "page tables",
            Self::UserCode => "user code",
            Self::UserData => "user data",
            Self::FileActive => "active file cache",
            Self::FileInactive => "inactive file cache",
            Self::Other => "other",
            Self::Free => "free",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The classes of all pages of a guest at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Hints {
    /// The number of the class of each page.
    classes: Vec<u8>,
    free: PageBitmap,
}

impl Hints {
    /// Hints about `pages` pages that say nothing: all of them are [`Class::Other`].
    pub fn new(pages: u64) -> Self {
        Self {
            classes: vec![Class::Other.number(); pages as usize],
            free: PageBitmap::new(pages),
        }
    }

    /// Hints that know which pages are free and nothing else.
    pub fn with_free(free: PageBitmap) -> Self {
        let mut hints = Self::new(free.len());
        for run in free.runs() {
            hints.classes[run.first as usize..run.end() as usize].fill(Class::Free.number());
        }
        Self { free, ..hints }
    }

    /// Says that the pages of `run` are of `class`.
    ///
    /// # Panics
    /// When the run reaches beyond the pages.
    pub fn set(&mut self, run: PageRun, class: Class) {
        self.classes[run.first as usize..run.end() as usize].fill(class.number());
        if class == Class::Free {
            self.free.insert_run(run);
        } else {
            self.free.remove_run(run);
        }
    }

    /// Pages they are about.
    pub fn pages(&self) -> u64 {
        self.classes.len() as u64
    }

    /// The class of `page`; [`Class::Other`] beyond the last one.
    pub fn class_of(&self, page: u64) -> Class {
        self.classes
            .get(page as usize)
            .and_then(|&number| Class::of_number(number))
            .unwrap_or(Class::Other)
    }

    /// The pages that are free by the guest's own account.
    ///
    /// They were free when it looked. Only those not written since (by a tracker armed *before* it looked) may be
    /// dropped.
    pub fn free(&self) -> &PageBitmap {
        &self.free
    }

    /// The pages of `class`.
    pub fn pages_of(&self, class: Class) -> PageBitmap {
        let mut pages = PageBitmap::new(self.pages());
        let mut at = 0;
        for same in self.classes.chunk_by(|a, b| a == b) {
            if same[0] == class.number() {
                pages.insert_run(PageRun::new(at, same.len() as u64));
            }
            at += same.len() as u64;
        }
        pages
    }

    /// The pages of each class, in the order of [`Class::ALL`].
    pub fn by_class(&self) -> Vec<PageBitmap> {
        let mut classes = vec![PageBitmap::new(self.pages()); Class::ALL.len()];
        let mut at = 0;
        for same in self.classes.chunk_by(|a, b| a == b) {
            let run = PageRun::new(at, same.len() as u64);
            classes[usize::from(same[0])].insert_run(run);
            at = run.end();
        }
        classes
    }

    /// How many pages each class has, in the order of [`Class::ALL`].
    pub fn counts(&self) -> [u64; Class::ALL.len()] {
        let mut counts = [0; Class::ALL.len()];
        for &number in &self.classes {
            counts[usize::from(number)] += 1;
        }
        counts
    }
}

impl fmt::Debug for Hints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = Class::ALL.iter().map(|class| class.name()).zip(self.counts());
        f.debug_map().entries(counts).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_paper_and_free_is_last() {
        for (number, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(class.number()), number);
            assert_eq!(Class::of_number(class.number()), Some(class));
        }
        assert_eq!(Class::of_number(10), None);
        assert!(Class::KernelCode < Class::PageTables && Class::Other < Class::Free);
    }

    #[test]
    fn free_pages_may_be_known_beforehand() {
        let mut known = Hints::new(100);
        known.set(PageRun::new(10, 20), Class::Free);
        assert_eq!(Hints::with_free(known.free().clone()), known);
    }

    #[test]
    fn a_later_word_replaces_an_earlier_one() {
        let mut hints = Hints::new(100);
        hints.set(PageRun::new(10, 20), Class::Free);
        hints.set(PageRun::new(15, 5), Class::UserData);
        assert_eq!(hints.free().count(), 15);
        assert_eq!(hints.class_of(15), Class::UserData);
        assert_eq!(hints.class_of(10_000), Class::Other);
        assert_eq!(
            hints.pages_of(Class::UserData).runs().collect::<Vec<_>>(),
            [PageRun::new(15, 5)]
        );
        assert_eq!(hints.counts()[usize::from(Class::Other.number())], 80);
        for (class, pages) in Class::ALL.into_iter().zip(hints.by_class()) {
            assert_eq!(pages, hints.pages_of(class));
        }
        assert!(format!("{hints:?}").contains("\"free\": 15"));
    }
}
