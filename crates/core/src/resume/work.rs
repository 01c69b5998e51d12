//! Which read comes next, page by page accounted for: shared by everybody who reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::{Interval, Pick, Placement, Predictive, ResumePages, ResumePolicy, View};
use crate::bitmap::PageBitmap;

/// Why pages are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// They have to be in place before the guest starts.
    Early,
    /// The guest waits for the first of them.
    Demand,
    /// It was their turn.
    Background,
}

/// A read: a group, and the pages of it to put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The group.
    pub group: u32,
    /// The pages, in the order in which they are to appear: one that the guest waits for is the first.
    pub pages: Vec<u64>,
    /// Why.
    pub cause: Cause,
}

/// What a reader does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// This.
    Fetch(Fetch),
    /// Nothing now: ask again at this time, or when a page was demanded or put back, or the background began.
    Wait(Option<Duration>),
    /// Nothing any more: every page was handed out. One that is put back changes that.
    Done,
}

/// What it meant that a read was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// Other reads are under way or to come.
    More,
    /// The guest may start: everything it needs for that is in place.
    Early,
    /// Every page is in place.
    All,
}

/// The pages of a resume that are not in place. Each is *left* until it is handed out in a [`Fetch`], which ends with
/// [`Work::placed`] or puts it back with [`Work::failed`]: no page is read twice at a time, and none is forgotten.
pub struct Work {
    placement: Arc<Placement>,
    policy: Box<dyn ResumePolicy>,
    /// Handed out to nobody, not in place.
    left: PageBitmap,
    /// Not in place, and the guest is not to start without it.
    early: PageBitmap,
    /// Of those, what is handed out to nobody.
    early_left: PageBitmap,
    /// Pages that are not in place.
    missing: u64,
    /// Pages that the guest waits for, the one that waits longest first; also those that are handed out, whose read may fail.
    waited_for: VecDeque<u64>,
    background: bool,
    counts: ResumePages,
}

impl Work {
    /// A resume from its start.
    pub fn new(placement: Arc<Placement>, policy: Box<dyn ResumePolicy>, interval: &Interval) -> Self {
        let (left, mut early) = (placement.data(), policy.before_start(&placement, interval));
        early.intersect_with(&left);
        let counts = ResumePages {
            data: left.count(),
            predicted: early.count(),
            ..ResumePages::default()
        };
        Self {
            missing: counts.data,
            left,
            early_left: early.clone(),
            early,
            counts,
            ..Self::of(placement, policy)
        }
    }

    /// A resume whose guest was started by an earlier daemon and lacks the pages in `missing`.
    pub fn recovered(placement: Arc<Placement>, policy: Box<dyn ResumePolicy>, missing: &PageBitmap) -> Self {
        let mut left = placement.data();
        let data = left.count();
        left.intersect_with(missing);
        let counts = ResumePages {
            data,
            by_earlier_daemon: data - left.count(),
            ..ResumePages::default()
        };
        Self {
            missing: left.count(),
            left,
            background: true,
            counts,
            ..Self::of(placement, policy)
        }
    }

    fn of(placement: Arc<Placement>, policy: Box<dyn ResumePolicy>) -> Self {
        let none = PageBitmap::new(placement.pages());
        Self {
            placement,
            policy,
            left: none.clone(),
            early: none.clone(),
            early_left: none,
            missing: 0,
            waited_for: VecDeque::new(),
            background: false,
            counts: ResumePages::default(),
        }
    }

    /// From here on pages are read in the background: the guest was started, or could be.
    pub fn begin_background(&mut self) {
        self.background = true;
    }

    /// From here on everything follows, whatever the policy was.
    pub fn bring_the_rest(&mut self) {
        self.policy = Box::new(Predictive::default());
        self.background = true;
    }

    /// The guest waits for `page`, at `now` since the request, which is not in place. Nothing is to be done for a page that is
    /// handed out already.
    pub fn demanded(&mut self, now: Duration, page: u64) {
        self.policy.faulted(now, page);
        if self.placement.group(page).is_some() && !self.waited_for.contains(&page) {
            self.waited_for.push_back(page);
        }
    }

    /// What the guest waits for, and nothing else.
    pub fn next_demand(&mut self) -> Option<Fetch> {
        let page = *self.waited_for.iter().find(|&&page| self.left.contains(page))?;
        let group = self.group_of(page);
        let mut pages = vec![page];
        if self.policy.takes_neighbours() {
            let left = |other: &&u64| **other != page && self.left.contains(**other);
            pages.extend(self.placement.members(group).iter().filter(left));
        }
        Some(self.hand_out(group, pages, Cause::Demand))
    }

    /// What a reader does next, at `now` since the request.
    pub fn next(&mut self, now: Duration) -> Next {
        if let Some(demand) = self.next_demand() {
            return Next::Fetch(demand);
        }
        if let Some(run) = self.early_left.next_run(0, 1) {
            let group = self.group_of(run.first);
            let pages = self.members_in(group, &self.early_left);
            return Next::Fetch(self.hand_out(group, pages, Cause::Early));
        }
        if self.left.is_empty() {
            return Next::Done;
        }
        if !self.background {
            return Next::Wait(None);
        }
        let view = View {
            now,
            placement: &self.placement,
            left: &self.left,
        };
        match self.policy.pick(&view) {
            Pick::Wait(until) => Next::Wait(until),
            Pick::Group(group) => {
                let pages = self.members_in(group, &self.left);
                assert!(
                    !pages.is_empty(),
                    "a policy picked a group of which nothing is left"
                );
                Next::Fetch(self.hand_out(group, pages, Cause::Background))
            }
        }
    }

    /// The pages of a read are in place.
    pub fn placed(&mut self, fetch: &Fetch) -> Placed {
        let count = fetch.pages.len() as u64;
        self.missing -= count;
        self.waited_for.retain(|page| !fetch.pages.contains(page));
        let had_early = !self.early.is_empty();
        for &page in &fetch.pages {
            self.early.remove(page);
        }
        match fetch.cause {
            Cause::Early => self.counts.before_start += count,
            Cause::Demand => {
                self.counts.demanded += 1;
                self.counts.beside_demanded += count - 1;
            }
            Cause::Background => self.counts.background += count,
        }
        match self.missing {
            0 => Placed::All,
            _ if had_early && self.early.is_empty() => Placed::Early,
            _ => Placed::More,
        }
    }

    /// A read failed: its pages are left again.
    pub fn failed(&mut self, fetch: &Fetch) {
        for &page in &fetch.pages {
            self.left.insert(page);
            if self.early.contains(page) {
                self.early_left.insert(page);
            }
        }
    }

    /// Whether the guest waits for a page of this read, whatever it was handed out for.
    pub fn waits_for(&self, fetch: &Fetch) -> bool {
        self.waited_for.iter().any(|page| fetch.pages.contains(page))
    }

    /// How many pages are not in place.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// How many of them the guest does not start without.
    pub fn early_missing(&self) -> u64 {
        self.early.count()
    }

    /// How pages came so far.
    pub fn counts(&self) -> ResumePages {
        self.counts
    }

    /// The pages that hold data and are not in place while nothing is handed out.
    pub fn left(&self) -> &PageBitmap {
        &self.left
    }

    fn group_of(&self, page: u64) -> u32 {
        self.placement.group(page).expect("only pages of groups are left")
    }

    fn members_in(&self, group: u32, set: &PageBitmap) -> Vec<u64> {
        let members = self.placement.members(group).iter().copied();
        members.filter(|&page| set.contains(page)).collect()
    }

    fn hand_out(&mut self, group: u32, pages: Vec<u64>, cause: Cause) -> Fetch {
        for &page in &pages {
            self.left.remove(page);
            self.early_left.remove(page);
        }
        Fetch { group, pages, cause }
    }
}
