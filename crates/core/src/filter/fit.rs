//! Whether the guest still does what the model says. Source: data-filter paper, section 3.3, "Maintain the Markov
//! model": sampled data is checked against "the probability distribution of states and state transitions".
//!
//! Both are Pearson's chi-square test of goodness of fit, rejecting at 0.001. What was observed since the last test
//! is compared with what the model expects of as many observations.
//!
//! - *States.* A stay in a state counts once (samples of one stay are not independent). Neighbouring states are
//!   merged, in order of their regions, until a cell expects `LEAST_EXPECTED`.
//! - *Transitions.* A pair is expected by its share among the transitions from its first state. Pairs are merged in
//!   order of their states until a cell expects `LEAST_EXPECTED`.
//!
//! Surprises are a cell of their own: states never seen before, and pairs never seen before. Their expected share is
//! `SURPRISE`, for pairs also the share that Good and Turing estimate (pairs seen once, of all seen) where that is
//! more. Fewer surprises than that speak for the model, so the cell counts only where there are more. The statistic
//! is divided by 1 + observed / learned, because the model's shares are estimates too.

use serde::{Deserialize, Serialize};

use super::model::Model;
use super::states::State;

/// Expected observations of a cell at least, the usual rule for the test.
const LEAST_EXPECTED: f64 = 5.0;
/// Share of observations that may be of what was never seen before.
const SURPRISE: f64 = 0.05;
/// Quantile of the normal distribution at 1 - 0.001.
const QUANTILE: f64 = 3.0902;

/// Result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChiSquare {
    /// The statistic.
    pub statistic: f64,
    /// Degrees of freedom.
    pub freedom: u32,
}

impl ChiSquare {
    /// There was nothing to test.
    const NOTHING: Self = Self {
        statistic: 0.0,
        freedom: 0,
    };

    /// Above this the hypothesis is rejected (by Wilson and Hilferty's approximation).
    pub fn critical(&self) -> f64 {
        let k = f64::from(self.freedom);
        if self.freedom == 0 {
            return f64::INFINITY;
        }
        let spread = 2.0 / (9.0 * k);
        k * (1.0 - spread + QUANTILE * spread.sqrt()).powi(3)
    }

    /// Whether the observations are what is expected.
    pub fn fits(&self) -> bool {
        self.statistic <= self.critical()
    }
}

/// Tests the states entered in `steps` (pairs of a state and the one after it).
pub fn states(model: &Model, steps: &[(State, State)]) -> ChiSquare {
    let mut observed = vec![0u32; model.states()];
    let entered = steps.iter().filter(|(from, to)| from != to);
    entered.for_each(|&(_, to)| observed[usize::from(to)] += 1);
    let total = sum(&observed);
    let learned = sum(model.entries());
    if total == 0.0 || learned == 0.0 {
        return ChiSquare::NOTHING;
    }
    let known = || {
        observed
            .iter()
            .zip(model.entries())
            .filter(|(_, entries)| **entries > 0)
    };
    let surprises = total - known().map(|(&observed, _)| f64::from(observed)).sum::<f64>();
    let mut cells = Cells::new(surprises, total, SURPRISE);
    for (&observed, &entries) in known() {
        let share = f64::from(entries) / learned;
        cells.add(f64::from(observed), total * share);
    }
    cells.test(total / learned)
}

/// Tests the transitions in `steps`.
pub fn transitions(model: &Model, steps: &[(State, State)]) -> ChiSquare {
    let (learned, once) = all_transitions(model);
    if steps.is_empty() || learned == 0.0 {
        return ChiSquare::NOTHING;
    }
    let total = steps.len() as f64;
    let surprising = steps
        .iter()
        .filter(|&&(from, to)| model.transitions(from, to) == 0);
    let mut cells = Cells::new(surprising.count() as f64, total, SURPRISE.max(once / learned));
    let mut from_states: Vec<_> = steps.iter().map(|&(from, _)| from).collect();
    from_states.sort_unstable();
    from_states.dedup();
    for from in from_states {
        let mut observed = vec![0u32; model.states()];
        let of_row = steps.iter().filter(|step| step.0 == from);
        of_row.for_each(|step| observed[usize::from(step.1)] += 1);
        let seen: Vec<_> = (0..model.states() as State)
            .map(|to| model.transitions(from, to))
            .collect();
        for (&observed_here, &seen_here) in observed.iter().zip(&seen).filter(|(_, seen)| **seen > 0) {
            let share = f64::from(seen_here) / sum(&seen);
            cells.add(f64::from(observed_here), sum(&observed) * share);
        }
    }
    cells.test(total / learned)
}

/// How many transitions the model saw, and how many pairs it saw once.
fn all_transitions(model: &Model) -> (f64, f64) {
    let states = model.states() as State;
    let pairs = (0..states).flat_map(|from| (0..states).map(move |to| model.transitions(from, to)));
    pairs.fold((0.0, 0.0), |(all, once), seen| {
        (all + f64::from(seen), once + f64::from(u8::from(seen == 1)))
    })
}

fn sum(counts: &[u32]) -> f64 {
    counts.iter().map(|&count| f64::from(count)).sum()
}

/// Cells under way: those full, and the one being filled, each observed and expected.
struct Cells {
    full: Vec<(f64, f64)>,
    filling: (f64, f64),
    surprises: (f64, f64),
    /// Expected, but of states that nothing is known of.
    missing: f64,
    /// Share of what is left for what is known.
    known_share: f64,
}

impl Cells {
    fn new(surprises: f64, total: f64, share: f64) -> Self {
        let share = share.min(surprises / total);
        Self {
            full: Vec::new(),
            filling: (0.0, 0.0),
            surprises: (surprises, total * share),
            missing: total * (1.0 - share),
            known_share: 1.0 - share,
        }
    }

    /// `expected` as if there were no surprises.
    fn add(&mut self, observed: f64, expected: f64) {
        self.filling.0 += observed;
        self.filling.1 += expected * self.known_share;
        self.missing -= expected * self.known_share;
        if self.filling.1 >= LEAST_EXPECTED {
            self.full.push(std::mem::take(&mut self.filling));
        }
    }

    /// `per_learned` observations were made for each one learned.
    fn test(mut self, per_learned: f64) -> ChiSquare {
        self.filling.1 += self.missing.max(0.0);
        match self.full.last_mut() {
            Some(last) => {
                last.0 += self.filling.0;
                last.1 += self.filling.1;
            }
            None => self.full.push(self.filling),
        }
        self.full.push(self.surprises);
        let cells = self.full.iter().filter(|(_, expected)| *expected > 0.0);
        let squares = cells
            .clone()
            .map(|(observed, expected)| (observed - expected).powi(2) / expected);
        ChiSquare {
            statistic: squares.sum::<f64>() / (1.0 + per_learned),
            freedom: (cells.count() as u32).saturating_sub(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tuning::Tuning;

    fn model(steps: &[(State, State)]) -> Model {
        let mut model = Model::new(1 << 12, &Tuning::default());
        steps
            .iter()
            .for_each(|&(from, to)| model.record_transition(from, to));
        model
    }

    /// Steps of a sequence of states.
    fn sequence(count: usize, state: impl Fn(usize) -> usize) -> Vec<(State, State)> {
        (0..count)
            .map(|at| (state(at) as State, state(at + 1) as State))
            .collect()
    }

    fn random(index: usize) -> usize {
        let mixed = (index as u64 + 7).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (mixed >> 32) as usize
    }

    #[test]
    fn critical_values_are_those_of_the_tables() {
        for (freedom, table) in [(1, 10.83), (2, 13.82), (5, 20.52), (20, 45.31), (100, 149.45)] {
            let critical = ChiSquare {
                statistic: 0.0,
                freedom,
            }
            .critical();
            assert!(
                (critical - table).abs() < 0.04 * table,
                "{freedom}: {critical}, {table}"
            );
        }
    }

    #[test]
    fn a_guest_that_goes_on_fits() {
        for state in [
            |at: usize| at * 13 % 64,
            |at| 7 + at / 11 % 2,
            |at| random(at) % 5,
            |at| random(at) % 20,
        ] {
            let model = model(&sequence(400, state));
            for window in 0..50 {
                let steps = sequence(20, |at| state(400 + window * 20 + at));
                let found = (states(&model, &steps), transitions(&model, &steps));
                assert!(found.0.fits() && found.1.fits(), "window {window}: {found:?}");
            }
        }
    }

    #[test]
    fn new_places_do_not_fit() {
        let model = model(&sequence(100, |at| at * 13 % 64));
        let steps = sequence(20, |at| 100 + at * 13 % 64);
        assert!(!states(&model, &steps).fits() && !transitions(&model, &steps).fits());
    }

    #[test]
    fn other_shares_of_the_same_places_do_not_fit() {
        let model = model(&sequence(400, |at| [1, 2, 3, 4, 5, 6, 7, 8][at % 8]));
        let steps = sequence(40, |at| [1, 2][at % 2]);
        assert!(!states(&model, &steps).fits());
    }

    #[test]
    fn other_ways_between_the_same_places_do_not_fit() {
        let model = model(&sequence(400, |at| at % 8));
        let backwards = sequence(40, |at| 7 - at % 8);
        assert!(states(&model, &backwards).fits());
        assert!(!transitions(&model, &backwards).fits());
    }

    #[test]
    fn a_guest_that_writes_anywhere_never_fits_what_little_is_known_of_it() {
        for learned in [20, 60, 100, 200] {
            let model = model(&sequence(learned, |at| random(at) % 256));
            let steps = sequence(20, |at| random(1000 + at) % 256);
            assert!(!states(&model, &steps).fits(), "after {learned} samples");
        }
    }
}
