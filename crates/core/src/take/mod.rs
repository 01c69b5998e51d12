//! Taking a checkpoint of a guest that runs: which page may be written when, and which is saved next.
//!
//! The memory of one moment, the *cut*, is saved while the guest goes on (VMresume, section III; copy before write as in
//! QEMU's background snapshots). For that the driver holds up the guest's writes to *protected* pages; all others are *open*.
//!
//! # What is written, and what is known about it
//! A page that is open may be written at any moment without anybody knowing. So a page that was open at any time since the last
//! cut counts as written: the number of those is close to what was really written, since a page is opened only because the guest
//! wants to write it, or the pages before it one after the other. A page that holds nothing is not worth protecting; when it holds something later, it was open until then.
//!
//! # Why the pause does not grow with RAM
//! Most pages are protected while the guest runs ([`Taker::unprotected`], [`Taker::protect`]): that loses nothing, because what
//! is protected late still counts as written. In the pause only those remain that the guest has opened in the last moments.
//! What a device writes through a page pinned before the page was protected has arrived by then: a pause drains I/O. That is
//! why the [`Taker::cut`] may only come in a pause, and why nothing of `core::tracking` is needed after it.
//!
//! # After the cut
//! Each page of the cut goes *pending*, *being copied*, done. A write to a pending page is answered by copying the page first,
//! at once where there is room for the copy; else its writer waits and the page is the next one to be saved. A page that is
//! done stays protected until the guest writes it, which is how the next interval's writes are known.

mod report;
mod rounds;

pub use report::{InRun, TakeOutcome, TakePhase, TakeProgress, TakeReport, WriteFaults};
pub use rounds::{Live, LiveRounds, work_of};

use std::collections::VecDeque;

use crate::bitmap::PageBitmap;
use crate::pages::PageRun;

/// Protected pages between two runs that are to be protected are protected again rather than split a request: a page more costs
/// the kernel some sixty nanoseconds, a request more costs microseconds.
const BRIDGED_PAGES: u64 = 16;

/// Pages that are opened at once at most, to a guest that writes one after the other.
const MOST_AT_ONCE: u64 = 32;

/// What is to be done about a write that is held up. The run begins with the page of the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnWrite {
    /// Release these pages.
    Release(PageRun),
    /// Copy these pages, then release them.
    CopyFirst(PageRun),
    /// Nothing yet: the page is among those that [`Taker::copied`] answers.
    Wait,
}

/// What a cut found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Pages to be saved.
    pub save: PageBitmap,
    /// Pages that hold data and are as they were at the cut that was committed last.
    pub inherit: PageBitmap,
    /// Pages that were written since the last cut, or since watching began.
    pub written: PageBitmap,
}

/// The pages of a guest whose checkpoints are taken, one after the other. The driver asks and acts under one lock: what it is
/// told to do about a page is done before anybody else asks about it.
#[derive(Debug)]
pub struct Taker {
    /// Pages that hold data, as far as is known.
    data: PageBitmap,
    /// Pages whose writes are not held up.
    open: PageBitmap,
    /// Pages open at any time since the last cut.
    written: PageBitmap,
    /// Pages opened because the guest wanted to write them or seemed about to, since the last cut or since watching began.
    opened: PageBitmap,
    /// The same of the interval before: what is written again and again is saved first.
    opened_before: PageBitmap,
    /// Pages of `written` at cuts since the one that was committed last: not in any checkpoint yet.
    uncommitted: PageBitmap,
    saving: Option<Saving>,
}

/// How far a protected page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Of the cut, and not copied yet.
    Pending,
    Copying,
    /// Copied, or of no cut that is being saved.
    Done,
}

/// The pages of a cut on their way.
#[derive(Debug)]
struct Saving {
    pending: PageBitmap,
    copying: PageBitmap,
    /// Pages of both whose writers wait.
    wanted: PageBitmap,
    /// Pending ones of these, first come first served.
    urgent: VecDeque<u64>,
    /// Pending pages likely to be written soon.
    likely: PageBitmap,
    /// Behind the last write: a guest that writes on finds the page saved.
    ahead: Option<u64>,
    /// A page whose content was lost before it was copied.
    lost: Option<u64>,
}

impl Taker {
    /// For a guest of so many pages, of which nothing is saved and nothing is protected.
    pub fn new(pages: u64) -> Self {
        let none = PageBitmap::new(pages);
        Self {
            data: none.clone(),
            open: PageBitmap::full(pages),
            written: PageBitmap::full(pages),
            opened: none.clone(),
            opened_before: none.clone(),
            uncommitted: none,
            saving: None,
        }
    }

    /// Pages that hold data, as far as is known.
    pub fn data(&self) -> &PageBitmap {
        &self.data
    }

    /// Takes in which pages hold data now. Pages that do not any more may stay in the set: they read as zero.
    pub fn look(&mut self, data: PageBitmap) {
        self.data = data;
    }

    /// The pages that hold data and are not protected.
    pub fn unprotected(&self) -> PageBitmap {
        let mut unprotected = self.open.clone();
        unprotected.intersect_with(&self.data);
        unprotected
    }

    /// The pages of `run` are being protected, by the caller and before anybody else is told anything.
    pub fn protect(&mut self, run: PageRun) {
        for open in self.open.runs_in(run) {
            self.written.insert_run(open);
        }
        self.open.remove_run(run);
    }

    /// From now on it counts which pages the guest opens.
    pub fn watch(&mut self) {
        self.opened.clear();
    }

    /// The guest wants to write `page`, which is protected. `room_pages`: of how many pages copies can be kept.
    pub fn on_write(&mut self, page: u64, room_pages: u64) -> OnWrite {
        let stage = self.stage(page);
        let most = match stage {
            Stage::Pending => room_pages.min(MOST_AT_ONCE),
            Stage::Copying => 0,
            Stage::Done => MOST_AT_ONCE,
        };
        if most > 0 {
            let run = self.about_to_be_written(page, most);
            self.open.insert_run(run);
            self.opened.insert_run(run);
            let Some(saving) = self.saving.as_mut().filter(|_| stage == Stage::Pending) else {
                return OnWrite::Release(run);
            };
            saving.ahead = Some(run.end());
            saving.take(run);
            saving.wanted.remove_run(run);
            return OnWrite::CopyFirst(run);
        }
        self.opened.insert(page);
        let saving = self.saving.as_mut().expect("a page of it is not done");
        if stage == Stage::Pending {
            saving.ahead = Some(page + 1);
        }
        // A write may be reported twice.
        if saving.wanted.insert(page) && stage == Stage::Pending {
            saving.urgent.push_back(page);
        }
        OnWrite::Wait
    }

    /// How far a protected page is.
    fn stage(&self, page: u64) -> Stage {
        match &self.saving {
            Some(saving) if saving.pending.contains(page) => Stage::Pending,
            Some(saving) if saving.copying.contains(page) => Stage::Copying,
            _ => Stage::Done,
        }
    }

    /// `page` and those behind it that are opened with it, `most` in all: as many as were opened just before it, so that a guest
    /// that writes on and on is held up less and less often.
    fn about_to_be_written(&self, page: u64, most: u64) -> PageRun {
        let before = (0..page.min(most)).take_while(|back| self.opened.contains(page - 1 - back));
        let stage = self.stage(page);
        let goes_along = |&next: &u64| !self.open.contains(next) && self.stage(next) == stage;
        let behind = (page + 1..self.open.len()).take((before.count() as u64).min(most - 1) as usize);
        PageRun::new(page, 1 + behind.take_while(goes_along).count() as u64)
    }

    /// These pages were given back to the host: they read as zero, whatever they held.
    pub fn on_discarded(&mut self, run: PageRun) {
        if let Some(saving) = &mut self.saving {
            let unsaved = |set: &PageBitmap| set.runs_in(run).next();
            let lost = unsaved(&saving.pending).or_else(|| unsaved(&saving.copying));
            saving.lost = saving.lost.or(lost.map(|page| page.first));
        }
        self.data.remove_run(run);
        self.written.insert_run(run);
        // Whether the kernel still protects them is not known for sure: a page that counts as open is protected before the next cut.
        self.open.insert_run(run);
    }

    /// The guest stands still, its I/O is drained, and every page that holds data is protected: this moment is saved.
    ///
    /// # Panics
    /// When [`Taker::unprotected`] is not empty, or a cut is being saved.
    pub fn cut(&mut self) -> Cut {
        assert!(self.saving.is_none(), "one cut is saved at a time");
        assert!(
            self.unprotected().is_empty(),
            "a page that may be written is not part of a moment"
        );
        let mut save = self.written.clone();
        save.union_with(&self.uncommitted);
        save.intersect_with(&self.data);
        let mut inherit = self.data.clone();
        inherit.subtract(&save);
        let mut likely = self.opened.clone();
        if !self.opened_before.is_empty() {
            likely.intersect_with(&self.opened_before);
        }
        likely.intersect_with(&save);
        let none = PageBitmap::new(save.len());
        let opened = std::mem::replace(&mut self.opened, none.clone());
        let mut written = opened.clone();
        written.intersect_with(&self.data);
        self.opened_before = opened;
        self.uncommitted.union_with(&self.written);
        self.written.clear();
        self.saving = Some(Saving {
            pending: save.clone(),
            copying: none.clone(),
            wanted: none,
            urgent: VecDeque::new(),
            likely,
            ahead: None,
            lost: None,
        });
        Cut {
            save,
            inherit,
            written,
        }
    }

    /// The pages to copy next, at most `max_pages` of them: those a writer waits for, then those behind the last write, those
    /// that are written again and again, and the rest. None when all are copied or being copied.
    pub fn next(&mut self, max_pages: u64) -> Option<PageRun> {
        let saving = self.saving.as_mut()?;
        let run = saving.choose(max_pages)?;
        saving.take(run);
        saving.copying.insert_run(run);
        Some(run)
    }

    /// The pages of `run`, which [`Taker::next`] gave, are copied: the guest may write those that are answered, and they are to
    /// be released.
    pub fn copied(&mut self, run: PageRun) -> Vec<PageRun> {
        let Some(saving) = &mut self.saving else {
            return Vec::new();
        };
        saving.copying.remove_run(run);
        let runs: Vec<PageRun> = saving.wanted.runs_in(run).collect();
        saving.wanted.remove_run(run);
        runs.iter().for_each(|run| self.open.insert_run(*run));
        runs
    }

    /// Pages of the cut that are not copied yet.
    pub fn left(&self) -> u64 {
        self.saving
            .as_ref()
            .map_or(0, |saving| saving.pending.count() + saving.copying.count())
    }

    /// Whether writers wait for a page to be copied.
    pub fn has_waiting_writers(&self) -> bool {
        self.saving
            .as_ref()
            .is_some_and(|saving| !saving.wanted.is_empty())
    }

    /// A page of the cut whose content was lost, before it was copied, to somebody who takes memory from the guest.
    pub fn lost(&self) -> Option<u64> {
        self.saving.as_ref()?.lost
    }

    /// The cut is complete and kept: the next one inherits from it.
    ///
    /// # Panics
    /// When pages of it are not copied.
    pub fn commit(&mut self) {
        assert_eq!(self.left(), 0, "a checkpoint with pages that were not saved");
        self.saving = None;
        self.uncommitted.clear();
    }

    /// The cut is given up: what it was to save is saved by the next one. The pages whose writers wait are answered: they are
    /// to be released.
    pub fn abandon(&mut self) -> Vec<PageRun> {
        let Some(saving) = self.saving.take() else {
            return Vec::new();
        };
        let runs: Vec<PageRun> = saving.wanted.runs().collect();
        runs.iter().for_each(|run| self.open.insert_run(*run));
        runs
    }

    /// Nothing can be inherited any more: the next cut saves everything.
    pub fn forget_saved(&mut self) {
        self.uncommitted = PageBitmap::full(self.data.len());
    }
}

impl Saving {
    fn choose(&mut self, max_pages: u64) -> Option<PageRun> {
        while let Some(page) = self.urgent.pop_front() {
            if self.pending.contains(page) {
                return Some(PageRun::single(page));
            }
        }
        if let Some(page) = self.ahead
            && self.pending.contains(page)
        {
            let run = self.pending.next_run(page, max_pages)?;
            self.ahead = Some(run.end());
            return Some(run);
        }
        self.likely
            .next_run(0, max_pages)
            .or_else(|| self.pending.next_run(0, max_pages))
    }

    /// These are pending no more.
    fn take(&mut self, run: PageRun) {
        self.pending.remove_run(run);
        self.likely.remove_run(run);
    }
}

/// The runs to protect so that all of `pages` are, with as few requests as pay: what lies between close runs is taken in.
pub fn bridged_runs(pages: &PageBitmap) -> Vec<PageRun> {
    let mut runs: Vec<PageRun> = Vec::new();
    for run in pages.runs() {
        match runs.last_mut() {
            Some(last) if run.first - last.end() <= BRIDGED_PAGES => last.count = run.end() - last.first,
            _ => runs.push(run),
        }
    }
    runs
}

#[cfg(test)]
mod tests;
