//! A guest that writes as a trace says: first what was recorded, then what the recording makes likely.
//!
//! Longer than the recording it goes on by the Markov model of the data filter ([`vmferry_core::filter`]): the hottest region
//! of a sample is its state, states follow each other as often as they did, and each state writes what one of its samples,
//! drawn by chance, wrote. Pages that one sample only ever wrote say that there is more where they came from (Good and
//! Turing): as often as such pages were seen, a page is seen that never was before. So where such a sample is drawn again they
//! move in their region to pages that were never seen written: what a guest has written over a long time keeps growing, as it did,
//! the slower the less is left. A block that is drawn twice is such a sample too.

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_xoshiro::Xoshiro256PlusPlus;
use vmferry_core::filter::Model;
use vmferry_core::filter::states::{State, observe};
use vmferry_core::sampling::Ready;
use vmferry_core::{PageBitmap, PageRun, Tuning};
use vmferry_trace::{Content, PageSet, Sample, Trace};

use crate::asking::Told;
use crate::background;
use crate::error::SimError;
use crate::growth::Growth;
use crate::neighbours::{Neighbours, group_of};
use crate::units::{Units, chance, mix};

/// Samples of a block: what the bootstrap draws, and what stays together.
const BLOCK_SAMPLES: usize = 10;
/// Places that are tried for a page that moves.
const PLACES: u64 = 4;

/// A trace in units, with its model.
#[derive(Debug)]
pub(crate) struct Recorded {
    pub(crate) units: Units,
    pub(crate) data: PageBitmap,
    pub(crate) content: Content,
    pub(crate) device_state_bytes: Option<u64>,
    pub(crate) vm: String,
    pub(crate) backend: String,
    pub(crate) pinned_io: bool,
    samples: Vec<UnitSample>,
    /// Samples of each block, first and end.
    blocks: Vec<(usize, usize)>,
    model: Model,
    by_state: Vec<Vec<usize>>,
    /// Units in one sample only.
    once: PageBitmap,
    /// Units that were ever written.
    written: PageBitmap,
    /// The others that hold data, and how many of these are in each region.
    unseen: PageBitmap,
    unseen_in: Vec<u32>,
    growth: Growth,
    /// What its agent said.
    pub(crate) told: Option<Told>,
    /// What a sampler of the host learned of it, once that was asked for.
    learned: OnceLock<Option<Ready>>,
}

#[derive(Debug)]
struct UnitSample {
    length: Duration,
    dirty: PageSet,
    state: State,
    /// Units of a group of which one chunk was looked at; none where all of memory was.
    group: Option<u64>,
}

impl Recorded {
    /// Makes a trace ready, in at most `most_units` units.
    pub(crate) fn new(trace: &Trace, most_units: u64) -> Result<Self, SimError> {
        trace.check_not_empty()?;
        let units = Units::new(trace.pages(), most_units);
        let count = units.count();
        let tuning = Tuning::default();
        let mut recorded = Self {
            units,
            data: PageBitmap::new(count),
            content: trace.content.clone(),
            device_state_bytes: trace.header.device_state_bytes,
            vm: trace.header.vm.clone(),
            backend: trace.header.backend.clone(),
            pinned_io: trace.header.pinned_io,
            samples: Vec::new(),
            blocks: Vec::new(),
            model: Model::new(count, &tuning),
            by_state: Vec::new(),
            once: PageBitmap::new(count),
            written: PageBitmap::new(count),
            unseen: PageBitmap::new(count),
            unseen_in: Vec::new(),
            growth: Growth::of(trace),
            told: trace.hints.as_ref().map(|told| Told::new(told, units)),
            learned: OnceLock::new(),
        };
        trace
            .resident
            .runs()
            .for_each(|run| units.add(run, &mut recorded.data));
        recorded.by_state = vec![Vec::new(); recorded.model.states()];
        let usual = trace.header.interval() * 7 / 10;
        let mut dirty = PageBitmap::new(count);
        for burst in trace.bursts() {
            let first = recorded.samples.len();
            // Short samples tell how writes spread within one; where there are no others they have to do.
            let has_usual = burst.iter().any(|sample| sample.length() >= usual);
            for sample in burst
                .iter()
                .filter(|sample| !has_usual || sample.length() >= usual)
            {
                add_units(sample, units, trace.pages(), &mut dirty);
                recorded.sample(sample, &mut dirty, first, &tuning);
            }
            let end = recorded.samples.len();
            let blocks = (first..end).step_by(BLOCK_SAMPLES);
            recorded
                .blocks
                .extend(blocks.map(|from| (from, (from + BLOCK_SAMPLES).min(end))));
        }
        recorded.data.union_with(&recorded.written);
        recorded.unseen = recorded.data.clone();
        recorded.unseen.subtract(&recorded.written);
        recorded.unseen_in = recorded.model.regions().dirty_pages(&recorded.unseen);
        Ok(recorded)
    }

    fn sample(&mut self, seen: &Sample, dirty: &mut PageBitmap, burst_first: usize, tuning: &Tuning) {
        let state = observe(self.model.regions(), dirty, tuning.hot_percent).state;
        if self.samples.len() > burst_first {
            let before = self.samples[self.samples.len() - 1].state;
            self.model.record_transition(before, state);
        }
        self.by_state[usize::from(state)].push(self.samples.len());
        self.samples.push(UnitSample {
            length: seen.length(),
            dirty: PageSet::from_bitmap(dirty),
            state,
            group: group_of(seen.coverage, self.units),
        });
        // Of those seen now, the ones that were written before are not in one sample only.
        let mut new = dirty.clone();
        new.subtract(&self.written);
        self.once.subtract(dirty);
        self.once.union_with(&new);
        self.written.union_with(dirty);
        dirty.clear();
    }

    pub(crate) fn pages(&self) -> u64 {
        self.units.count()
    }

    pub(crate) fn units(&self) -> Units {
        self.units
    }

    /// What the host's sampler knows when a migration begins ([`crate::background`]).
    pub(crate) fn learned(&self) -> Option<Ready> {
        self.learned.get_or_init(|| background::learned(self)).clone()
    }

    /// A guest that begins where the recording does.
    pub(crate) fn replay(&self, seed: u64) -> Replay<'_> {
        Replay::new(self, (0..self.blocks.len()).map(Block::first).collect(), seed)
    }

    /// A guest that does what blocks of the recording show, drawn anew by `seed`; it begins anywhere.
    pub(crate) fn resampled(&self, seed: u64) -> Replay<'_> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed ^ 0xb007);
        let blocks = self.blocks.len();
        let mut seen = vec![false; blocks];
        let drawn = (0..blocks).map(|_| {
            let block = rng.random_range(0..blocks);
            let again = std::mem::replace(&mut seen[block], true);
            Block { block, again }
        });
        Replay {
            elsewhere: true,
            ..Replay::new(self, drawn.collect(), seed)
        }
    }
}

/// Adds the units that `sample` found dirty, and those that unseen ones stand for.
fn add_units(sample: &Sample, units: Units, pages: u64, dirty: &mut PageBitmap) {
    let coverage = sample.coverage;
    for run in sample.dirty.runs() {
        if coverage.is_all() {
            units.add(run, dirty);
            continue;
        }
        let mut rest = Some(run);
        while let Some(run) = rest {
            // A chunk at a time: each stands for others.
            let chunk_end = (run.first / CHUNK + 1) * CHUNK;
            let (head, tail) = run.split_at(chunk_end - run.first);
            coverage
                .stood_for(head, pages)
                .for_each(|stood| units.add(stood, dirty));
            rest = tail;
        }
    }
}

const CHUNK: u64 = vmferry_core::sampling::coverage::CHUNK_PAGES;

/// A block to be replayed.
#[derive(Clone, Copy, Debug)]
struct Block {
    block: usize,
    /// It was before: now the guest does the like of it.
    again: bool,
}

impl Block {
    fn first(block: usize) -> Self {
        Self { block, again: false }
    }
}

/// A stretch of the guest's time in which it writes what one sample shows.
#[derive(Clone, Copy, Debug)]
struct Segment {
    sample: usize,
    start: Duration,
    end: Duration,
    /// By this it differs from what was recorded.
    shift: Option<u64>,
}

/// An access of the guest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Access {
    /// In the guest's own time.
    pub at: Duration,
    pub unit: u64,
}

/// What a guest writes in its own time, which stands still while it does.
pub(crate) struct Replay<'a> {
    pub(crate) recorded: &'a Recorded,
    rng: Xoshiro256PlusPlus,
    /// Blocks still to be replayed.
    blocks: VecDeque<Block>,
    /// Samples of the block under way still to be replayed, and whether they were before.
    left: std::ops::Range<usize>,
    again: bool,
    /// Those that may still be asked for.
    segments: VecDeque<Segment>,
    /// Up to here there are segments.
    reached: Duration,
    state: State,
    /// Time beyond the recording.
    extended: Duration,
    /// Of parts of memory that were not looked at it does what those near by show ([`Neighbours`]), not what they were taken for.
    elsewhere: bool,
    seed: u64,
}

impl<'a> Replay<'a> {
    fn new(recorded: &'a Recorded, blocks: VecDeque<Block>, seed: u64) -> Self {
        Self {
            recorded,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            blocks,
            left: 0..0,
            again: false,
            segments: VecDeque::new(),
            reached: Duration::ZERO,
            state: 0,
            extended: Duration::ZERO,
            elsewhere: false,
            seed,
        }
    }

    /// How far it went beyond the recording.
    pub(crate) fn extended(&self) -> Duration {
        self.extended
    }

    /// Adds to `dirty` what is written from `from` to `until`; nothing before `from` is asked for later.
    pub(crate) fn add_dirty(&mut self, from: Duration, until: Duration, dirty: &mut PageBitmap) {
        self.reach(until);
        self.forget_before(from);
        for segment in self.segments.iter().take_while(|segment| segment.start < until) {
            let begins = from.max(segment.start).saturating_sub(segment.start);
            let ends = until.min(segment.end).saturating_sub(segment.start);
            let length = (segment.end - segment.start).as_secs_f64().max(1e-9);
            let (begins, ends) = (begins.as_secs_f64() / length, ends.as_secs_f64() / length);
            self.each_run(segment, &mut |run| match ends - begins > 0.999 {
                true => dirty.insert_run(run),
                false => self.add_part(segment, begins, ends, run, dirty),
            });
        }
    }

    /// The accesses from `from` on to units of `missing`, in the segment of that time, by time; and when that ends. What is read beside
    /// what is written, so many units for each, is what the guest writes another time: programs keep what belongs together together.
    pub(crate) fn accesses(
        &mut self,
        from: Duration,
        missing: &PageBitmap,
        reads_per_write: f64,
    ) -> (Vec<Access>, Duration) {
        self.reach(from + Duration::from_nanos(1));
        self.forget_before(from);
        let segment = self.segments[0];
        let length = segment.end - segment.start;
        let sample = &self.recorded.samples[segment.sample];
        let step = 1.0 / sample.dirty.count().max(1) as f64;
        let salt = self.seed ^ mix(segment.start.as_nanos() as u64);
        let mut accesses = Vec::new();
        let mut access = |run: PageRun| {
            let begins = chance(salt ^ mix(run.first));
            for unit in run.pages().filter(|&unit| missing.contains(unit)) {
                let along = (begins + (unit - run.first) as f64 * step).fract();
                let at = segment.start + length.mul_f64(along);
                accesses.push(Access { at, unit });
            }
        };
        self.each_run(&segment, &mut access);
        let near = self.near(sample);
        for read in 0..reads_per_write.ceil() as u64 {
            let shift = salt ^ mix(!read);
            let share = reads_per_write - read as f64;
            for run in sample.dirty.runs() {
                self.each_part(run, &mut |part, wanders| {
                    if wanders && (share >= 1.0 || chance(shift ^ part.first) < share) {
                        each_place(near, part.first, self.moved(part, shift), &mut access);
                    }
                });
            }
        }
        accesses.retain(|access| access.at >= from);
        accesses.sort_by_key(|access| access.at);
        (accesses, segment.end)
    }

    fn add_part(&self, segment: &Segment, begins: f64, ends: f64, run: PageRun, dirty: &mut PageBitmap) {
        let part = ends - begins;
        // Within the part for the first time with the probability that time gives; again with what is left to the growth.
        let again = (self.recorded.growth.share(part) - part) / (1.0 - part).max(1e-9);
        let salt = self.seed ^ segment.start.as_nanos() as u64;
        for unit in run.pages() {
            let at = chance(salt ^ mix(unit));
            let first_time = (begins..ends).contains(&at);
            if first_time || (again > 0.0 && chance(salt ^ mix(!unit) ^ begins.to_bits()) < again) {
                dirty.insert(unit);
            }
        }
    }

    /// The runs that `segment` writes. What wanders does so where it was seen; only then it is told where else that is done.
    fn each_run(&self, segment: &Segment, each: &mut impl FnMut(PageRun)) {
        let sample = &self.recorded.samples[segment.sample];
        let near = self.near(sample);
        for run in sample.dirty.runs() {
            match segment.shift {
                Some(shift) => {
                    self.each_moved(run, shift, &mut |seen, run| each_place(near, seen, run, each));
                }
                None => each_place(near, run.first, run, each),
            }
        }
    }

    /// Where what `sample` saw is done, if not only there.
    fn near(&self, sample: &UnitSample) -> Option<Neighbours> {
        let group = sample.group.filter(|_| self.elsewhere);
        group.map(|group| Neighbours::new(group, self.recorded.pages(), self.seed))
    }

    /// `run` as another sample would have it: what of it was seen once only, elsewhere in its region. Each with the unit from which on it
    /// was seen.
    fn each_moved(&self, run: PageRun, shift: u64, each: &mut impl FnMut(u64, PageRun)) {
        // What stays is in one piece, so that it is gone through in one go.
        let mut stays: Option<PageRun> = None;
        self.each_part(run, &mut |part, wanders| {
            if wanders {
                stays.take().into_iter().for_each(|run| each(run.first, run));
                each(part.first, self.moved(part, shift));
            } else {
                let first = stays.map_or(part.first, |stays| stays.first);
                stays = Some(PageRun::new(first, part.end() - first));
            }
        });
        stays.into_iter().for_each(|run| each(run.first, run));
    }

    /// The parts of `run` by regions, and whether they were seen once only. A long run is as long wherever it is: a region's part of it
    /// stays within that region.
    fn each_part(&self, run: PageRun, each: &mut impl FnMut(PageRun, bool)) {
        let region_units = self.recorded.model.regions().run(0).count;
        let mut rest = Some(run);
        while let Some(run) = rest {
            let (part, tail) = run.split_at(region_units - run.first % region_units);
            rest = tail;
            each(part, self.recorded.once.contains(part.first));
        }
    }

    /// `run`, which lies within a region, elsewhere in it: where nothing was seen written yet, else anywhere where there is data.
    fn moved(&self, run: PageRun, shift: u64) -> PageRun {
        let recorded = self.recorded;
        let regions = recorded.model.regions();
        let index = (run.first / regions.run(0).count) as u32;
        let region = regions.run(index);
        let last = region.end() - run.count;
        let drawn = |attempt: u64| mix(shift ^ run.first ^ attempt << 56);
        let first = match recorded.unseen_in[index as usize] {
            0 => (0..PLACES)
                .map(|attempt| region.first + drawn(attempt) % (last - region.first + 1))
                .find(|&first| recorded.data.contains(first)),
            unseen => nth_in(&recorded.unseen, region, drawn(0) % u64::from(unseen)),
        };
        first.map_or(run, |first| PageRun::new(first.min(last), run.count))
    }

    fn reach(&mut self, until: Duration) {
        while self.reached < until {
            let (sample, shift, beyond) = self.next_sample();
            let of_sample = &self.recorded.samples[sample];
            self.state = of_sample.state;
            let end = self.reached + of_sample.length.max(Duration::from_micros(1));
            self.segments.push_back(Segment {
                sample,
                start: self.reached,
                end,
                shift,
            });
            if beyond {
                self.extended += end - self.reached;
            }
            self.reached = end;
        }
    }

    /// The sample that the guest does next, how it differs from what was recorded, and whether it is beyond the recording.
    fn next_sample(&mut self) -> (usize, Option<u64>, bool) {
        if self.left.is_empty()
            && let Some(Block { block, again }) = self.blocks.pop_front()
        {
            let (first, end) = self.recorded.blocks[block];
            (self.left, self.again) = (first..end, again);
        }
        if let Some(sample) = self.left.next() {
            let shift = self.again.then(|| self.rng.next_u64());
            return (sample, shift, false);
        }
        let samples = &self.recorded.by_state[usize::from(self.next_state())];
        let sample = samples[self.rng.random_range(0..samples.len())];
        (sample, Some(self.rng.next_u64()), true)
    }

    /// A state that may follow, as often as it did; any that was seen where none ever did.
    fn next_state(&mut self) -> State {
        let model = &self.recorded.model;
        let states = model.states() as State;
        let total: u32 = (0..states).map(|to| model.transitions(self.state, to)).sum();
        if total == 0 {
            let any = self.rng.random_range(0..self.recorded.samples.len());
            return self.recorded.samples[any].state;
        }
        let mut drawn = self.rng.random_range(0..total);
        for to in 0..states {
            let seen = model.transitions(self.state, to);
            if drawn < seen {
                return to;
            }
            drawn -= seen;
        }
        self.state
    }

    fn forget_before(&mut self, time: Duration) {
        while self.segments.front().is_some_and(|segment| segment.end <= time) {
            self.segments.pop_front();
        }
    }
}

/// Where `run` is done, which stands for what was seen from the unit `seen` on.
fn each_place(near: Option<Neighbours>, seen: u64, run: PageRun, each: &mut impl FnMut(PageRun)) {
    match near {
        Some(near) if seen == run.first => near.each_place(run, each),
        Some(near) => near.each_place_of(seen, run, each),
        None => each(run),
    }
}

/// The unit of `set` in `run` that `before` others in it are before.
fn nth_in(set: &PageBitmap, run: PageRun, mut before: u64) -> Option<u64> {
    for index in run.first / 64..run.end().div_ceil(64) {
        let within = PageRun::new(index * 64, 64);
        let from = u64::MAX << run.first.saturating_sub(within.first);
        let until = u64::MAX >> within.end().saturating_sub(run.end());
        let mut word = set.words()[index as usize] & from & until;
        let count = u64::from(word.count_ones());
        if before >= count {
            before -= count;
            continue;
        }
        for _ in 0..before {
            word &= word - 1;
        }
        return Some(within.first + u64::from(word.trailing_zeros()));
    }
    None
}

#[cfg(test)]
mod tests {
    use vmferry_core::RamLayout;
    use vmferry_core::sampling::Coverage;
    use vmferry_trace::{Header, Plan};

    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    /// A guest of 512 MiB, all of it data, so that a region has 512 pages.
    fn recorded(samples: impl Iterator<Item = Vec<PageRun>>) -> Recorded {
        let header = Header {
            vm: "guest".into(),
            backend: "synth".into(),
            layout: RamLayout::single("ram", 512 << 20).unwrap(),
            started_unix_ms: 0,
            interval_us: INTERVAL.as_micros() as u64,
            plan: Plan::Full,
            page_cost_ns: 1250,
            processors: 1,
            pinned_io: false,
            device_state_bytes: None,
        };
        let mut trace = Trace::new(header, PageSet::from_runs([PageRun::new(0, 131_072)]));
        let samples = (0..).zip(samples).map(|(index, runs)| Sample {
            start_us: index * 50_000,
            end_us: (index + 1) * 50_000,
            burst: 0,
            coverage: Coverage::ALL,
            dirty: PageSet::from_runs(runs),
            cpu_us: None,
        });
        trace.samples.extend(samples);
        Recorded::new(&trace, 1 << 20).unwrap()
    }

    #[test]
    fn a_sequential_writer_goes_on_as_fast_beyond_the_recording() {
        let recorded = recorded((0..20).map(|sample| vec![PageRun::new(sample * 5000, 5000)]));
        let mut replay = recorded.replay(1);
        let mut dirty = PageBitmap::new(recorded.pages());
        replay.add_dirty(INTERVAL * 30, INTERVAL * 31, &mut dirty);
        assert!((4000..=5000).contains(&dirty.count()), "{} pages", dirty.count());
    }

    #[test]
    fn each_unit_of_a_set_within_a_run_is_found_by_its_number() {
        let mut set = PageBitmap::new(300);
        for unit in (0..300).filter(|&unit| chance(unit) < 0.4) {
            set.insert(unit);
        }
        for run in [(0, 300), (3, 61), (64, 64), (70, 200), (250, 50), (299, 1)] {
            let run = PageRun::new(run.0, run.1);
            let found = (0..).map_while(|before| nth_in(&set, run, before));
            assert!(found.eq(set.pages_in(run)), "{run:?}");
        }
    }

    #[test]
    fn what_stays_where_it_was_stays_in_one_piece() {
        // The first is seen twice, the second once.
        let recorded = recorded(
            [(300, 3000), (300, 3000), (9000, 100)]
                .into_iter()
                .map(|(first, count)| vec![PageRun::new(first, count)]),
        );
        let replay = recorded.replay(1);
        let parts = |run| {
            let mut parts = Vec::new();
            replay.each_moved(run, 7, &mut |_, part| parts.push(part));
            parts
        };
        assert_eq!(parts(PageRun::new(300, 3000)), [PageRun::new(300, 3000)]);
        let moved = parts(PageRun::new(9000, 100));
        assert_eq!(moved.len(), 1);
        assert_eq!((moved[0].first / 512, moved[0].count), (9000 / 512, 100));
    }
}
