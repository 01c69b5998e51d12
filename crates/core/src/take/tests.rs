use proptest::prelude::*;

use super::*;

const PAGES: u64 = 40;

fn run(first: u64, count: u64) -> PageRun {
    PageRun::new(first, count)
}

fn set(pages: impl IntoIterator<Item = u64>) -> PageBitmap {
    let mut set = PageBitmap::new(PAGES);
    pages.into_iter().for_each(|page| {
        set.insert(page);
    });
    set
}

fn protect_all(taker: &mut Taker) {
    for run in bridged_runs(&taker.unprotected()) {
        taker.protect(run);
    }
}

/// Cuts with pages 0 to 29 in use.
fn cut(taker: &mut Taker) -> Cut {
    taker.look(set(0..30));
    protect_all(taker);
    taker.cut()
}

fn save_all(taker: &mut Taker) {
    while let Some(run) = taker.next(8) {
        taker.copied(run);
    }
}

#[test]
fn the_first_saves_all_that_holds_data_and_the_next_what_was_written() {
    let mut taker = Taker::new(PAGES);
    let first = cut(&mut taker);
    assert_eq!(
        (&first.save, first.inherit.count(), first.written.count()),
        (&set(0..30), 0, 0)
    );
    save_all(&mut taker);
    taker.commit();
    assert_eq!(taker.on_write(3, 9), OnWrite::Release(run(3, 1)));
    // A page that held nothing was never protected: it counts when it holds something.
    taker.look(set((0..30).chain([35])));
    protect_all(&mut taker);
    let second = taker.cut();
    assert_eq!(second.save, set([3, 35]));
    assert_eq!(second.written, set([3]));
    assert_eq!(second.inherit, set((0..30).filter(|&page| page != 3)));
}

#[test]
fn a_write_to_a_pending_page_copies_it_first() {
    let mut taker = Taker::new(PAGES);
    cut(&mut taker);
    assert_eq!(taker.on_write(7, 9), OnWrite::CopyFirst(run(7, 1)));
    // What is behind it is saved next, and it not again.
    assert_eq!(taker.next(4), Some(run(8, 4)));
    assert_eq!(taker.on_write(9, 9), OnWrite::Wait);
    assert_eq!(taker.copied(run(8, 4)), [run(9, 1)]);
    assert_eq!(taker.next(4), Some(run(12, 4)));
    assert_eq!(taker.on_write(35, 9), OnWrite::Release(run(35, 1)));
    assert_eq!(taker.copied(run(12, 4)), []);
    assert_eq!(taker.on_write(13, 0), OnWrite::Release(run(13, 1)));
    save_all(&mut taker);
    taker.commit();
    assert_eq!(cut(&mut taker).save, set([7, 9, 13]));
}

#[test]
fn who_writes_on_is_held_up_less_and_less_often() {
    let mut taker = Taker::new(PAGES);
    cut(&mut taker);
    save_all(&mut taker);
    // The last one ends where the guest holds nothing.
    for expected in [run(0, 1), run(1, 2), run(3, 4), run(7, 8), run(15, 15)] {
        assert_eq!(taker.on_write(expected.first, 0), OnWrite::Release(expected));
    }
    taker.commit();
}

#[test]
fn without_room_the_page_is_next() {
    let mut taker = Taker::new(PAGES);
    cut(&mut taker);
    assert_eq!(taker.next(4), Some(run(0, 4)));
    assert_eq!(taker.on_write(20, 0), OnWrite::Wait);
    assert_eq!(taker.on_write(20, 0), OnWrite::Wait);
    assert!(taker.has_waiting_writers());
    assert_eq!(taker.next(4), Some(run(20, 1)));
    assert_eq!(taker.copied(run(20, 1)), [run(20, 1)]);
    assert!(!taker.has_waiting_writers());
}

#[test]
fn what_was_given_up_is_saved_by_the_next() {
    let mut taker = Taker::new(PAGES);
    cut(&mut taker);
    save_all(&mut taker);
    taker.commit();
    taker.on_write(3, 9);
    assert_eq!(cut(&mut taker).save, set([3]));
    assert_eq!(taker.on_write(3, 0), OnWrite::Wait);
    taker.on_write(6, 9);
    assert_eq!(taker.abandon(), [run(3, 1)]);
    assert_eq!(cut(&mut taker).save, set([3, 6]));
    taker.abandon();
    taker.forget_saved();
    assert_eq!(cut(&mut taker).save, set(0..30));
}

#[test]
fn what_is_written_again_and_again_is_saved_first() {
    let mut taker = Taker::new(PAGES);
    for (writes, first) in [(vec![20, 5], 0), (vec![20, 9], 5), (vec![2, 20], 20)] {
        cut(&mut taker);
        assert_eq!(taker.next(1).map(|run| run.first), Some(first));
        taker.copied(run(first, 1));
        save_all(&mut taker);
        taker.commit();
        writes.into_iter().for_each(|page| {
            taker.on_write(page, 9);
        });
    }
}

#[test]
fn discarded_pages_are_not_inherited_and_lost_ones_are_noticed() {
    let mut taker = Taker::new(PAGES);
    cut(&mut taker);
    save_all(&mut taker);
    taker.commit();
    taker.on_discarded(run(10, 5));
    assert_eq!(taker.lost(), None);
    let second = taker.cut();
    assert_eq!((second.save.count(), second.inherit.count()), (0, 25));
    taker.commit();
    taker.on_write(2, 9);
    cut(&mut taker);
    taker.on_discarded(run(20, 5));
    assert_eq!(taker.lost(), None, "they are saved already");
    taker.on_discarded(run(0, 5));
    assert_eq!(taker.lost(), Some(2));
}

#[test]
fn close_runs_are_one_request() {
    let far = BRIDGED_PAGES + 12;
    let runs = bridged_runs(&set([0, 1, 10, far]));
    assert_eq!(runs, [run(0, 11), run(far, 1)]);
}

/// Something that happens to a guest whose checkpoints are taken.
#[derive(Clone, Debug)]
enum Step {
    Write(u64),
    /// A write that was released is told of once more.
    Again(u64, u64),
    /// The kernel refuses in the middle of protecting: some of it is protected, and the taker is told of none.
    ProtectPart(u64),
    Discard(u64, u64),
    Forget,
    Protect,
    Cut,
    Next(u64),
    Copied,
    Abandon,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..PAGES).prop_map(Step::Write),
        1 => (0..PAGES, 0..6u64).prop_map(|(page, room)| Step::Again(page, room)),
        1 => (0..PAGES).prop_map(Step::ProtectPart),
        1 => (0..PAGES, 1..6u64).prop_map(|(first, count)| Step::Discard(first, count)),
        1 => Just(Step::Forget),
        2 => Just(Step::Protect),
        2 => Just(Step::Cut),
        4 => (1..9u64).prop_map(Step::Next),
        4 => Just(Step::Copied),
        1 => Just(Step::Abandon),
    ]
}

/// A guest of versions, one a page, its driver, and the checkpoints it keeps.
struct World {
    taker: Taker,
    /// The number of the write that made a page what it is; 0 for a hole.
    memory: Vec<u32>,
    writes: u32,
    protected: PageBitmap,
    claimed: Vec<PageRun>,
    /// Writers that wait, each for a page.
    waiting: Vec<u64>,
    /// Memory at the cut that is being saved, and what is saved of it.
    moment: Option<(Vec<u32>, Vec<Option<u32>>)>,
    last: Vec<u32>,
    inherit: PageBitmap,
}

impl World {
    fn write(&mut self, page: u64, room_pages: u64) {
        if !self.protected.contains(page) {
            return self.change(page);
        }
        let Some(run) = self.answer(page, room_pages) else {
            return self.waiting.push(page);
        };
        assert!(run.first == page && run.pages().all(|page| self.protected.contains(page)));
        self.release(&[run]);
        self.change(page);
    }

    fn change(&mut self, page: u64) {
        self.writes += 1;
        self.memory[page as usize] = self.writes;
    }

    /// What to release for a write of `page`, its content kept where it has to be.
    fn answer(&mut self, page: u64, room_pages: u64) -> Option<PageRun> {
        match self.taker.on_write(page, room_pages) {
            OnWrite::Wait => None,
            OnWrite::CopyFirst(run) => {
                self.save(run);
                Some(run)
            }
            OnWrite::Release(run) => Some(run),
        }
    }

    /// A balloon takes pages, and the kernel forgets that they were protected.
    fn discard(&mut self, run: PageRun) {
        for page in run.pages() {
            self.memory[page as usize] = 0;
            self.protected.remove(page);
        }
        self.taker.on_discarded(run);
        if self.taker.lost().is_some() {
            self.abandon();
        }
    }

    fn abandon(&mut self) {
        let released = self.taker.abandon();
        self.release(&released);
        self.claimed.clear();
        self.moment = None;
    }

    fn save(&mut self, run: PageRun) {
        let (_, saved) = self.moment.as_mut().expect("a cut is being saved");
        run.pages()
            .for_each(|page| saved[page as usize] = Some(self.memory[page as usize]));
    }

    fn release(&mut self, runs: &[PageRun]) {
        for page in runs.iter().flat_map(|run| run.pages()) {
            self.protected.remove(page);
            while let Some(waits) = self.waiting.iter().position(|&waits| waits == page) {
                self.waiting.swap_remove(waits);
                self.change(page);
            }
        }
    }

    fn look(&mut self) {
        let mut data = PageBitmap::new(PAGES);
        (0..PAGES)
            .filter(|&page| self.memory[page as usize] > 0)
            .for_each(|page| {
                data.insert(page);
            });
        self.taker.look(data);
    }

    fn protect(&mut self) {
        self.look();
        for run in bridged_runs(&self.taker.unprotected()) {
            self.taker.protect(run);
            self.protected.insert_run(run);
        }
    }

    fn copied(&mut self) {
        if let Some(run) = self.claimed.pop() {
            self.save(run);
            let released = self.taker.copied(run);
            self.release(&released);
        }
        if self.moment.is_some() && self.taker.left() == 0 {
            self.taker.commit();
            let (moment, saved) = self.moment.take().expect("there is one");
            let inherit = &self.inherit;
            let content = |page: u64| match saved[page as usize] {
                Some(version) => version,
                None if inherit.contains(page) => self.last[page as usize],
                None => 0,
            };
            let checkpoint: Vec<u32> = (0..PAGES).map(content).collect();
            assert_eq!(checkpoint, moment);
            self.last = checkpoint;
        }
    }

    fn cut(&mut self) {
        if self.moment.is_none() {
            self.protect();
            let cut = self.taker.cut();
            self.inherit = cut.inherit;
            self.moment = Some((self.memory.clone(), vec![None; PAGES as usize]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever the guest writes and whenever a page is copied: what is kept is the memory of the cut, and nobody waits
    /// for ever.
    #[test]
    fn a_checkpoint_is_the_memory_of_one_moment(
        steps in prop::collection::vec((step(), 0..6u64), 1..200),
    ) {
        let mut world = World {
            taker: Taker::new(PAGES),
            memory: vec![0; PAGES as usize],
            writes: 0,
            protected: PageBitmap::new(PAGES),
            claimed: Vec::new(),
            waiting: Vec::new(),
            moment: None,
            last: vec![0; PAGES as usize],
            inherit: PageBitmap::new(PAGES),
        };
        for (step, room_pages) in steps {
            match step {
                Step::Write(page) => world.write(page, room_pages),
                Step::Again(page, room_pages) if !world.protected.contains(page) => {
                    if let Some(run) = world.answer(page, room_pages) {
                        world.release(&[run]);
                    }
                }
                Step::Again(page, room_pages) => world.write(page, room_pages),
                Step::ProtectPart(end) => {
                    world.look();
                    let part = world.taker.unprotected();
                    part.pages().filter(|&page| page < end).for_each(|page| {
                        world.protected.insert(page);
                    });
                }
                Step::Discard(first, count) => {
                    world.discard(PageRun::new(first, count.min(PAGES - first)));
                }
                Step::Forget if world.moment.is_none() => {
                    world.taker.forget_saved();
                    world.last.fill(u32::MAX);
                }
                Step::Forget => {}
                Step::Protect => world.protect(),
                Step::Cut => world.cut(),
                Step::Next(max) => {
                    let next = world.taker.next(max);
                    world.claimed.extend(next);
                }
                Step::Copied => world.copied(),
                Step::Abandon => world.abandon(),
            }
        }
        world.cut();
        while world.moment.is_some() {
            let next = world.taker.next(8);
            world.claimed.extend(next);
            world.copied();
        }
        prop_assert!(world.waiting.is_empty());
    }
}
