//! What a guest says that its pages are used for.

use serde::{Deserialize, Serialize};
use vmferry_core::PAGE_SIZE;
use vmferry_core::hints::{Class, Hints};

use crate::error::TraceError;
use crate::file::decode_next;
use crate::page_set::PageSet;

/// A guest whose account takes more bytes than this is recorded without it.
const MOST_BYTES: usize = 64 << 20;

/// What a guest's agent said at the end of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHints {
    /// How long it took to say so, microseconds; of a guest whose free pages can be told exactly, with finding out how. The recording's
    /// cost is without it.
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

    /// Decodes what came from outside, a class at a time: in memory an empty set takes many times what it takes in a part.
    pub(crate) fn read(part: &[u8], pages: u64) -> Result<Self, TraceError> {
        let ((took_us, exact, count), mut rest) = decode_next::<(u64, bool, u64)>(part)?;
        if count != Class::ALL.len() as u64 {
            return nonsense("what its pages are used for are other classes than there are");
        }
        let mut classes = Vec::new();
        for _ in Class::ALL {
            let (class, after) = decode_next::<PageSet>(rest)?;
            classes.push(class);
            rest = after;
        }
        let hints = Self {
            took_us,
            exact,
            classes,
        };
        hints.check(pages).map(|()| hints)
    }

    fn check(&self, pages: u64) -> Result<(), TraceError> {
        self.classes.iter().try_for_each(|class| class.check(pages))?;
        // Through all of them side by side, because RAM may be said to be larger than any bitmap.
        let mut heads: Vec<_> = self.classes.iter().map(|class| (None, class.runs())).collect();
        heads.iter_mut().for_each(|(head, runs)| *head = runs.next());
        let mut end = 0;
        loop {
            let ahead = heads.iter_mut().filter(|(head, _)| head.is_some());
            let next = ahead.min_by_key(|(head, _)| head.map(|run| run.first));
            let run = next.and_then(|(head, runs)| std::mem::replace(head, runs.next()));
            match run {
                None => return Ok(()),
                Some(run) if run.first < end => return nonsense("a page is used for two things"),
                Some(run) => end = run.end(),
            }
        }
    }
}

fn nonsense<T>(why: &str) -> Result<T, TraceError> {
    Err(TraceError::Nonsense(why.to_owned()))
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
        let why = GuestHints::read(&postcard::to_stdvec(&fewer).unwrap(), 100).unwrap_err();
        assert!(why.to_string().contains("other classes"), "{why}");
    }

    /// Of sets that are empty more than memory has would fit in a part.
    #[test]
    fn what_claims_many_classes_is_refused_before_any_is_read() {
        let mut part = postcard::to_stdvec(&(7u64, true, u64::MAX)).unwrap();
        part.resize(3 << 20, 0);
        let why = GuestHints::read(&part, 100).unwrap_err();
        assert!(why.to_string().contains("other classes"), "{why}");
    }

    /// As large as RAM may be: no bitmap of that is made.
    #[test]
    fn two_uses_of_a_page_are_found_however_much_memory_is_claimed() {
        let all = vmferry_core::layout::MAX_RAM_BYTES / PAGE_SIZE;
        let told = GuestHints {
            took_us: 1,
            exact: true,
            classes: vec![PageSet::from_runs([PageRun::new(0, all)]); Class::ALL.len()],
        };
        assert!(told.check(all).unwrap_err().to_string().contains("two things"));
    }
}
