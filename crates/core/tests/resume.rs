//! Properties of a resume: every page comes exactly once whatever fails, what the guest waits for comes first, and no guest
//! runs before it may or is given up after it did.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use vmferry_core::resume::{
    Cause, Command, Event, Fetch, Interval, Next, Placed, Placement, Resume, ResumeMode, Setup, Work,
};
use vmferry_core::{PageBitmap, ResumeMode as SameMode};

const PAGES: u64 = 300;

fn set(pages: &BTreeSet<u64>) -> PageBitmap {
    let mut set = PageBitmap::new(PAGES);
    for &page in pages {
        set.insert(page);
    }
    set
}

/// What may happen in a resume.
#[derive(Clone, Debug)]
enum Step {
    /// A reader asks for work.
    Next,
    /// A reader that serves demands only asks for work.
    NextDemand,
    /// The guest touches a page.
    Touch(u64),
    /// One of the reads under way ends well.
    Done(usize),
    /// One of them fails.
    Fails(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Next),
        1 => Just(Step::NextDemand),
        3 => (0..PAGES).prop_map(Step::Touch),
        3 => any::<usize>().prop_map(Step::Done),
        1 => any::<usize>().prop_map(Step::Fails),
    ]
}

fn mode() -> impl Strategy<Value = SameMode> {
    prop_oneof![
        Just(ResumeMode::Eager),
        Just(ResumeMode::Lazy),
        Just(ResumeMode::Predictive)
    ]
}

/// A resume as its readers see it, with a book of its own.
struct Model {
    work: Work,
    data: BTreeSet<u64>,
    placed: BTreeSet<u64>,
    touched: BTreeSet<u64>,
    early: BTreeSet<u64>,
    under_way: Vec<Fetch>,
    started: bool,
    mode: ResumeMode,
}

impl Model {
    fn new(mode: ResumeMode, places: &[(u64, u32)], used: &BTreeSet<u64>) -> Self {
        let placement = Arc::new(Placement::new(PAGES, places.iter().copied()));
        let data: BTreeSet<u64> = placement.data().pages().collect();
        let interval = Interval {
            written: set(used),
            accessed: PageBitmap::new(PAGES),
        };
        let work = Work::new(placement, mode.policy(None), &interval);
        let early = match mode {
            ResumeMode::Eager => data.clone(),
            ResumeMode::Lazy => BTreeSet::new(),
            ResumeMode::Predictive => used.intersection(&data).copied().collect(),
        };
        assert_eq!(work.early_missing(), early.len() as u64);
        Self {
            work,
            data,
            placed: BTreeSet::new(),
            touched: BTreeSet::new(),
            early,
            under_way: Vec::new(),
            started: false,
            mode,
        }
    }

    /// A page that somebody waits for and nobody reads.
    fn waits(&self) -> bool {
        let read: BTreeSet<u64> = self
            .under_way
            .iter()
            .flat_map(|fetch| fetch.pages.clone())
            .collect();
        let waits = |page: &&u64| !self.placed.contains(page) && !read.contains(page);
        self.touched
            .iter()
            .any(|page| self.data.contains(page) && waits(&page))
    }

    fn take(&mut self, fetch: Fetch) {
        let waited = self.waits();
        assert!(!fetch.pages.is_empty());
        for page in &fetch.pages {
            assert!(self.data.contains(page) && !self.placed.contains(page));
            let twice = self.under_way.iter().any(|other| other.pages.contains(page));
            assert!(!twice, "page {page} is read twice at a time");
        }
        match fetch.cause {
            Cause::Demand => assert!(self.touched.contains(&fetch.pages[0])),
            _ => assert!(!waited, "{fetch:?} before a page that the guest waits for"),
        }
        match (self.mode, fetch.cause) {
            (ResumeMode::Lazy, cause) => {
                assert_eq!(
                    (cause, fetch.pages.len()),
                    (Cause::Demand, 1),
                    "lazy brings what is asked for"
                );
            }
            (_, Cause::Background) => assert!(self.started, "the background waits for the start"),
            _ => {}
        }
        self.under_way.push(fetch);
    }

    fn done(&mut self, which: usize) {
        if self.under_way.is_empty() {
            return;
        }
        let fetch = self.under_way.swap_remove(which % self.under_way.len());
        self.placed.extend(&fetch.pages);
        let all = self.placed == self.data;
        let early = self.early.is_subset(&self.placed);
        match self.work.placed(&fetch) {
            Placed::All => assert!(all),
            Placed::Early => assert!(early && !all),
            Placed::More => assert!(!all),
        }
        assert_eq!(self.work.missing(), (self.data.len() - self.placed.len()) as u64);
    }

    fn run(&mut self, step: &Step, now: Duration) {
        match step {
            Step::Next => match self.work.next(now) {
                Next::Fetch(fetch) => self.take(fetch),
                Next::Wait(_) => assert!(!self.waits()),
                Next::Done => assert_eq!(self.work.left().count(), 0),
            },
            Step::NextDemand => match self.work.next_demand() {
                Some(fetch) => self.take(fetch),
                None => assert!(!self.waits()),
            },
            Step::Touch(page) => {
                self.touched.insert(*page);
                self.work.demanded(now, *page);
            }
            Step::Done(which) => self.done(*which),
            Step::Fails(which) if !self.under_way.is_empty() => {
                let fetch = self.under_way.swap_remove(which % self.under_way.len());
                self.work.failed(&fetch);
            }
            Step::Fails(_) => {}
        }
    }
}

proptest! {
    #[test]
    fn every_page_comes_once_and_what_is_waited_for_first(
        mode in mode(),
        places in prop::collection::vec((0..PAGES, 0u32..20), 0..200),
        used in prop::collection::btree_set(0..PAGES, 0..60),
        steps in prop::collection::vec(step(), 0..200),
        start_at in 0usize..200,
    ) {
        let mut model = Model::new(mode, &places, &used);
        for (index, step) in steps.iter().enumerate() {
            if index == start_at {
                model.started = true;
                model.work.begin_background();
            }
            model.run(step, Duration::from_millis(index as u64));
        }
        // From here on nothing fails any more, and in the lazy mode the guest touches everything.
        model.started = true;
        model.work.begin_background();
        for page in 0..PAGES {
            if mode == ResumeMode::Lazy {
                model.run(&Step::Touch(page), Duration::from_secs(1));
            }
            model.run(&Step::Next, Duration::from_secs(1));
            model.run(&Step::Done(0), Duration::from_secs(1));
        }
        while !model.under_way.is_empty() {
            model.done(0);
        }
        prop_assert_eq!(&model.placed, &model.data);
        let counts = model.work.counts();
        let came = counts.before_start + counts.demanded + counts.beside_demanded + counts.background;
        prop_assert_eq!((counts.data, came), (model.data.len() as u64, model.data.len() as u64));
        prop_assert_eq!(model.work.next(Duration::ZERO), Next::Done);
    }

    #[test]
    fn a_guest_is_started_once_at_the_right_time_and_never_given_up_after_that(
        pages_follow in any::<bool>(),
        paused in any::<bool>(),
        events in prop::collection::vec(event(), 0..40),
    ) {
        let mut machine = Resume::new(Setup { pages_follow, paused });
        let (mut early, mut loaded, mut started, mut discarded) = (false, false, false, false);
        let mut running = false;
        for event in events {
            let before = format!("{machine:?}");
            let Ok(commands) = machine.handle(event.clone()) else {
                prop_assert_eq!(format!("{machine:?}"), before, "a refused event changes nothing");
                continue;
            };
            early |= matches!(event, Event::EarlyPlaced | Event::AllPlaced);
            loaded |= early && event == Event::Loaded;
            for command in commands {
                prop_assert!(!discarded, "{command:?} after the end");
                match command {
                    Command::Load => prop_assert!(early),
                    Command::Start => {
                        prop_assert!(loaded && !started);
                        prop_assert!(!paused || event == Event::GoOn);
                        started = true;
                        running = true;
                    }
                    Command::Pause => {
                        prop_assert!(running);
                        running = false;
                    }
                    Command::Unpause => {
                        prop_assert!(!running && started);
                        running = true;
                    }
                    Command::ReleaseFaults => prop_assert!(pages_follow && running),
                    Command::Discard => {
                        prop_assert!(!machine.owns());
                        discarded = true;
                    }
                    Command::ServeFaults => prop_assert!(pages_follow && !loaded),
                    Command::Announce | Command::BeginBackground => {}
                }
            }
        }
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::EarlyPlaced),
        3 => Just(Event::Loaded),
        3 => Just(Event::Started),
        1 => Just(Event::AllPlaced),
        1 => Just(Event::Lacking("the store is gone".into())),
        1 => Just(Event::Back),
        2 => Just(Event::GoOn),
        1 => Just(Event::Cancel),
        1 => Just(Event::Failed("out of memory".into())),
    ]
}
