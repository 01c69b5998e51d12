//! The Markov model: how states follow each other, and the working set of each. Source: data-filter paper, sections
//! 3.2 (local writable working set, LWWS) and 3.3 ("Build the Markov model").

use serde::{Deserialize, Serialize};

use super::regions::Regions;
use super::states::{Observed, State};
use crate::bitmap::PageBitmap;
use crate::tuning::Tuning;

/// Working sets of one page at most, over all states: what bounds the memory of a model, 18 bytes a page. A guest
/// that keeps to its places needs one or two; one that writes everywhere at once, in which states tell nothing,
/// would need one a state. Regions that a state would add beyond the bound are not recorded.
pub const SETS_PER_PAGE: u64 = 16;
/// A page has to be dirty in so many samples of a state before it counts as written often.
const LEAST: u8 = 2;

/// The pages of one region in one state: how often each was dirty, and whether that is often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    region: u32,
    counts: Vec<u8>,
    /// Bit by bit from the region's first page on.
    pub(super) often: Vec<u64>,
    pub(super) first_page: u64,
}

/// The local writable working set of a state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct WorkingSet {
    samples: u8,
    pub(super) parts: Vec<Part>,
}

/// The model of one guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Model {
    regions: Regions,
    frequent_percent: u32,
    states: usize,
    /// `transitions[from * states + to]`.
    transitions: Vec<u32>,
    /// How often each state was entered from another one.
    entries: Vec<u32>,
    pub(super) sets: Vec<WorkingSet>,
    /// Pages in all parts of all sets.
    set_pages: u64,
}

impl Model {
    /// An empty model of a guest of `pages` pages.
    pub fn new(pages: u64, tuning: &Tuning) -> Self {
        let regions = Regions::new(pages, tuning);
        let states = regions.count() as usize + 1;
        Self {
            regions,
            frequent_percent: tuning.frequent_percent,
            states,
            transitions: vec![0; states * states],
            entries: vec![0; states],
            sets: vec![WorkingSet::default(); states],
            set_pages: 0,
        }
    }

    /// The regions that its states are.
    pub fn regions(&self) -> &Regions {
        &self.regions
    }

    /// Number of states.
    pub fn states(&self) -> usize {
        self.states
    }

    /// Number of states that were seen.
    pub fn seen_states(&self) -> usize {
        self.sets.iter().filter(|set| set.samples > 0).count()
    }

    /// How often `to` came right after `from`.
    pub fn transitions(&self, from: State, to: State) -> u32 {
        self.transitions[usize::from(from) * self.states + usize::from(to)]
    }

    /// How often each pair of states that was seen was, in no order that says anything.
    pub(super) fn all_transitions(&self) -> impl Iterator<Item = u32> {
        self.transitions.iter().copied().filter(|&seen| seen > 0)
    }

    /// How often each state came after another one or itself.
    pub(super) fn arrivals(&self) -> Vec<u64> {
        let mut arrivals = vec![0; self.states];
        for row in self.transitions.chunks_exact(self.states) {
            for (sum, &seen) in arrivals.iter_mut().zip(row) {
                *sum += u64::from(seen);
            }
        }
        arrivals
    }

    /// How often each state was entered from another: a stay counts once.
    pub fn entries(&self) -> &[u32] {
        &self.entries
    }

    /// One state came after the other.
    pub fn record_transition(&mut self, from: State, to: State) {
        let count = &mut self.transitions[usize::from(from) * self.states + usize::from(to)];
        *count = count.saturating_add(1);
        if from != to {
            self.entries[usize::from(to)] += 1;
        }
    }

    /// A sample of state `observed.state`: `dirty` are its pages.
    pub fn record_sample(&mut self, observed: &Observed, dirty: &PageBitmap) {
        let set = &mut self.sets[usize::from(observed.state)];
        if set.samples == u8::MAX {
            set.samples /= 2;
            for count in set.parts.iter_mut().flat_map(|part| &mut part.counts) {
                *count /= 2;
            }
        }
        set.samples += 1;
        for &region in &observed.hot {
            let run = self.regions.run(region);
            let known = set.parts.iter().any(|part| part.region == region);
            if !known && self.set_pages + run.count <= SETS_PER_PAGE * self.regions.pages() {
                self.set_pages += run.count;
                set.parts.push(Part {
                    region,
                    counts: vec![0; run.count as usize],
                    often: vec![0; run.count.div_ceil(64) as usize],
                    first_page: run.first,
                });
            }
        }
        let least = (u32::from(set.samples) * self.frequent_percent).div_ceil(100);
        let least = (least as u8).max(LEAST);
        for part in &mut set.parts {
            if observed.hot.binary_search(&part.region).is_ok() {
                part.count(dirty);
            }
            part.judge(least);
        }
    }

    /// The local writable working set of `state`.
    pub fn working_set(&self, state: State) -> PageBitmap {
        let mut set = PageBitmap::new(self.regions.pages());
        self.add_working_set(state, &mut set);
        set
    }

    /// Adds the local writable working set of `state` to `pages`.
    pub(super) fn add_working_set(&self, state: State, pages: &mut PageBitmap) {
        for part in &self.sets[usize::from(state)].parts {
            let (first_word, shift) = ((part.first_page / 64) as usize, part.first_page % 64);
            for (index, &often) in part.often.iter().enumerate().filter(|(_, often)| **often != 0) {
                pages.insert_word(first_word + index, often << shift);
                let carried = often.checked_shr(64 - shift as u32).unwrap_or(0);
                if carried != 0 {
                    pages.insert_word(first_word + index + 1, carried);
                }
            }
        }
    }

    /// Bytes it holds.
    pub fn memory_bytes(&self) -> u64 {
        let parts = self.sets.iter().flat_map(|set| &set.parts);
        let sets: usize = parts
            .map(|part| size_of::<Part>() + part.counts.len() + 8 * part.often.len())
            .sum();
        let states = self.states * (size_of::<WorkingSet>() + 4);
        (sets + states + 4 * self.transitions.len()) as u64
    }
}

impl Part {
    fn count(&mut self, dirty: &PageBitmap) {
        for (index, count) in self.counts.iter_mut().enumerate() {
            *count += u8::from(dirty.contains(self.first_page + index as u64));
        }
    }

    /// A page is written often that was dirty in `least` samples.
    fn judge(&mut self, least: u8) {
        for (often, counts) in self.often.iter_mut().zip(self.counts.chunks(64)) {
            *often = counts
                .iter()
                .enumerate()
                .fold(0, |word, (bit, &count)| word | u64::from(count >= least) << bit);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::states::observe;
    use super::*;

    fn tuning() -> Tuning {
        Tuning {
            regions: Some(10),
            ..Tuning::default()
        }
    }

    fn set(pages: &[u64]) -> PageBitmap {
        let mut set = PageBitmap::new(130);
        pages.iter().for_each(|&page| {
            set.insert(page);
        });
        set
    }

    fn sample(model: &mut Model, dirty: &PageBitmap) -> State {
        let observed = observe(model.regions(), dirty, 25);
        model.record_sample(&observed, dirty);
        observed.state
    }

    #[test]
    fn a_working_set_is_what_a_state_writes_often() {
        let mut model = Model::new(130, &tuning());
        // State 5 (pages 65 to 77), with region 0 beside it.
        assert_eq!(sample(&mut model, &set(&[1, 65, 66, 67])), 5);
        assert!(model.working_set(5).is_empty(), "once is not often");
        sample(&mut model, &set(&[1, 65, 66, 77]));
        assert_eq!(model.working_set(5), set(&[1, 65, 66]));
        sample(&mut model, &set(&[65, 66, 70]));
        sample(&mut model, &set(&[65, 70, 71]));
        sample(&mut model, &set(&[65, 70, 71]));
        assert_eq!(
            model.working_set(5),
            set(&[65, 66, 70]),
            "in half of five samples"
        );
        assert!(model.working_set(0).is_empty());
    }

    #[test]
    fn old_samples_fade() {
        let mut model = Model::new(130, &tuning());
        for _ in 0..300 {
            sample(&mut model, &set(&[65, 66]));
        }
        for _ in 0..300 {
            sample(&mut model, &set(&[65, 67]));
        }
        assert_eq!(model.working_set(5), set(&[65, 67]));
    }

    #[test]
    fn memory_is_bounded_however_the_guest_writes() {
        const PAGES: u64 = 1 << 16;
        let mut model = Model::new(PAGES, &Tuning::default());
        for state in 0..256u64 {
            // Everything is hot in every state.
            let mut dirty = PageBitmap::full(PAGES);
            for region in (0..256).filter(|&region| region != state) {
                dirty.remove(region * 256);
            }
            assert_eq!(u64::from(sample(&mut model, &dirty)), state);
        }
        let bound = 18 * PAGES + 4 * 257 * 257 + 16 * 256 * size_of::<Part>() as u64 + 257 * 64;
        assert!(
            model.memory_bytes() <= bound,
            "{} of {bound}",
            model.memory_bytes()
        );
    }

    proptest! {
        #[test]
        fn working_sets_match_a_plain_count(
            samples in prop::collection::vec(prop::collection::btree_set(0u64..130, 0..60), 1..20),
        ) {
            let mut model = Model::new(130, &tuning());
            let mut seen: Vec<(State, Observed, PageBitmap)> = Vec::new();
            for sample in &samples {
                let dirty = set(&sample.iter().copied().collect::<Vec<_>>());
                let observed = observe(model.regions(), &dirty, 25);
                model.record_sample(&observed, &dirty);
                seen.push((observed.state, observed, dirty));
            }
            for state in 0..11u16 {
                let of_state: Vec<_> = seen.iter().filter(|(of, ..)| *of == state).collect();
                let least = of_state.len().div_ceil(2).max(2);
                for page in 0..130u64 {
                    let region = (page / 13) as u32;
                    let times = of_state
                        .iter()
                        .filter(|(_, observed, dirty)| observed.hot.contains(&region) && dirty.contains(page))
                        .count();
                    prop_assert_eq!(model.working_set(state).contains(page), times >= least, "page {}", page);
                }
            }
        }
    }
}
