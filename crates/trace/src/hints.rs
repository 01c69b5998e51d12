//! What a guest says that its pages are used for.

use serde::{Deserialize, Serialize};
use vmferry_core::hints::{Class, Hints};
use vmferry_core::{PAGE_SIZE, PageBitmap};

use crate::error::TraceError;
use crate::page_set::PageSet;

/// A guest whose account takes more bytes than this is recorded without it.
const MOST_BYTES: usize = 64 << 20;

/// What a guest's agent said at the end of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHints {
    /// How long it took to say so, microseconds; the recording's cost is without it.
    pub took_us: u64,
    /// Whether it can be told exactly which pages are free while the guest stands still; else only by its own list.
    pub exact: bool,
    /// The pages of each class, in the order of [`Class::ALL`].
    classes: Vec<PageSet>,
}

/// How much of a guest's memory is of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassBytes {
    /// Which.
    pub class: Class,
    /// How much.
    pub bytes: u64,
}

impl GuestHints {
    /// What `hints` say; none where memory is in so many pieces that a trace would be mostly that.
    pub fn new(hints: &Hints, took_us: u64, exact: bool) -> Option<Self> {
        let classes: Vec<PageSet> = hints.by_class().iter().map(PageSet::from_bitmap).collect();
        let bytes: usize = classes.iter().map(PageSet::memory_bytes).sum();
        (bytes <= MOST_BYTES).then_some(Self {
            took_us,
            exact,
            classes,
        })
    }

    /// The classes and their pages, the most urgent first.
    pub fn classes(&self) -> impl Iterator<Item = (Class, &PageSet)> {
        Class::ALL.into_iter().zip(&self.classes)
    }

    /// How much memory each class has that has any.
    pub fn used_for(&self) -> Vec<ClassBytes> {
        let bytes = |(class, pages): (Class, &PageSet)| ClassBytes {
            class,
            bytes: pages.count() * PAGE_SIZE,
        };
        self.classes().map(bytes).filter(|used| used.bytes > 0).collect()
    }

    /// It came from outside.
    pub(crate) fn check(&self, pages: u64) -> Result<(), TraceError> {
        let nonsense = |why: &str| Err(TraceError::Nonsense(why.to_owned()));
        if self.classes.len() != Class::ALL.len() {
            return nonsense("what its pages are used for are other classes than there are");
        }
        let mut all = PageBitmap::new(pages);
        let mut count = 0;
        for class in &self.classes {
            class.check(pages)?;
            class.add_to(&mut all);
            count += class.count();
        }
        match all.count() == count {
            true => Ok(()),
            false => nonsense("a page is used for two things"),
        }
    }
}

#[cfg(test)]
mod tests {
    use vmferry_core::PageRun;

    use super::*;

    #[test]
    fn a_page_is_of_one_class_of_those_that_there_are() {
        let mut hints = Hints::new(100);
        hints.set(PageRun::new(10, 20), Class::Free);
        let told = GuestHints::new(&hints, 5, true).unwrap();
        told.check(100).unwrap();
        let free = ClassBytes {
            class: Class::Free,
            bytes: 20 * PAGE_SIZE,
        };
        assert_eq!(told.used_for()[1..], [free]);
        let mut twice = told.clone();
        twice.classes[0] = PageSet::from_runs([PageRun::new(15, 1)]);
        assert!(twice.check(100).unwrap_err().to_string().contains("two things"));
        let mut fewer = told;
        fewer.classes.pop();
        assert!(fewer.check(100).is_err());
    }
}
