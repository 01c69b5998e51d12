//! The forecast. Source: data-filter paper, section 4.2, figure 3, lines 13 to 23: from the current state on, one
//! state after the other for as long as the send list takes, and the union of their working sets.
//!
//! The paper leaves open how `Forecast(curr)` chooses among the states that may follow. Always the likeliest would
//! stay for ever in a state that is left rarely; chance would make every forecast another. So the walk takes the
//! ways out of a state in turn, each as often as its share (a rotor-router walk; shares by Sainte-Laguë): it visits
//! states about as often as the chain does, and two forecasts from the same state are the same.

use super::model::Model;
use super::states::State;
use crate::bitmap::PageBitmap;

/// Longest walk: 51 s in samples of 50 ms. A guest that has come by a place at all has come by it then, and it
/// bounds the time of a forecast.
pub const MOST_STEPS: u32 = 1024;

/// The ways out of a state: where to, how often seen, how often taken in this walk.
type Ways = Vec<(State, u32, u32)>;

impl Model {
    /// The pages expected to be dirtied within `steps` samples after one of state `from`.
    pub fn forecast(&self, from: State, steps: u32) -> PageBitmap {
        let mut pages = PageBitmap::new(self.regions().pages());
        let mut ways: Vec<Option<Ways>> = vec![None; self.states()];
        let mut added = vec![false; self.states()];
        let mut current = from;
        for _ in 0..steps.min(MOST_STEPS) {
            let ways = ways[usize::from(current)].get_or_insert_with(|| self.ways_out(current));
            let Some(next) = take(ways) else {
                break;
            };
            current = next;
            if !std::mem::replace(&mut added[usize::from(current)], true) {
                self.add_working_set(current, &mut pages);
            }
        }
        pages
    }

    fn ways_out(&self, from: State) -> Ways {
        (0..self.states() as State)
            .map(|to| (to, self.transitions(from, to), 0))
            .filter(|&(_, seen, _)| seen > 0)
            .collect()
    }
}

/// The way whose turn it is: highest `seen / (2 taken + 1)`, of several the lowest state.
fn take(ways: &mut Ways) -> Option<State> {
    let way = ways.iter_mut().reduce(|best, way| {
        let (mine, its) = (u64::from(way.1), u64::from(best.1));
        if mine * (2 * u64::from(best.2) + 1) > its * (2 * u64::from(way.2) + 1) {
            way
        } else {
            best
        }
    })?;
    way.2 += 1;
    Some(way.0)
}

#[cfg(test)]
mod tests {
    use super::super::states::observe;
    use super::*;
    use crate::pages::PageRun;
    use crate::tuning::Tuning;

    /// Each of ten states writes its region of ten pages.
    fn model(transitions: &[(State, State, u32)]) -> Model {
        let tuning = Tuning {
            regions: Some(10),
            ..Tuning::default()
        };
        let mut model = Model::new(100, &tuning);
        for region in 0..10 {
            let mut dirty = PageBitmap::new(100);
            dirty.insert_run(PageRun::new(region * 10, 10));
            let observed = observe(model.regions(), &dirty, 25);
            (0..2).for_each(|_| model.record_sample(&observed, &dirty));
        }
        for &(from, to, times) in transitions {
            (0..times).for_each(|_| model.record_transition(from, to));
        }
        model
    }

    fn regions(pages: &PageBitmap) -> Vec<u64> {
        pages
            .runs()
            .flat_map(|run| run.first / 10..run.end() / 10)
            .collect()
    }

    #[test]
    fn it_reaches_as_far_as_the_time() {
        let model = model(&[(1, 2, 5), (2, 3, 5), (3, 4, 5)]);
        assert!(model.forecast(1, 0).is_empty());
        assert_eq!(regions(&model.forecast(1, 2)), [2, 3]);
        assert_eq!(
            regions(&model.forecast(1, 50)),
            [2, 3, 4],
            "nobody knows what follows 4"
        );
        assert!(model.forecast(7, 50).is_empty());
    }

    #[test]
    fn ways_are_taken_as_often_as_they_were_seen() {
        let model = model(&[(1, 1, 9), (1, 2, 1), (2, 1, 1)]);
        assert_eq!(regions(&model.forecast(1, 4)), [1]);
        assert_eq!(regions(&model.forecast(1, 10)), [1, 2], "once in ten");
    }
}
