//! How sure a figure is: bootstrap intervals of medians and of ratios of medians, and a test whether two sets of runs differ.
//!
//! All of it is without assumptions on how the figures are distributed, and the same figures always give the same answer.
//!
//! *Intervals* are percentile bootstrap intervals (Efron 1979). With few runs they are short of what they promise: fewer
//! than six runs never hold the true median between their smallest and largest with 95 % ([`most_coverage`]); whoever shows an
//! interval of so few runs says that beside it.
//!
//! *The test* is that of Mann and Whitney (1947), exact by counting all ways to deal the ranks, ties included. Where there
//! are too many ways to count, a sample of them is drawn.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// How much of the bootstrap distribution lies inside of an interval.
pub const CONFIDENCE: f64 = 0.95;

/// How often figures are drawn anew.
const RESAMPLES: usize = 2000;
/// Decides what is drawn.
const SEED: u64 = 0x5eed;
/// From so many runs on, both sides together, ways to deal the ranks are drawn and not counted.
const COUNTED: usize = 60;
/// How many are drawn then.
const DEALS: usize = 20_000;

/// Where a figure lies with [`CONFIDENCE`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

impl Interval {
    /// Whether a value lies inside of it.
    pub fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }
}

/// The interval of the median; none of fewer than two figures.
pub fn of_median(figures: &[f64]) -> Option<Interval> {
    interval(figures.len(), |numbers| resampled_median(figures, numbers))
}

/// The interval of the ratio of two medians, as of runs that have nothing to do with each other; none where a side has fewer
/// than two figures.
pub fn of_ratio(figures: &[f64], divisors: &[f64]) -> Option<Interval> {
    interval(figures.len().min(divisors.len()), |numbers| {
        resampled_median(figures, numbers) / resampled_median(divisors, numbers)
    })
}

/// How often the range from the smallest to the largest of so many figures holds the true median: no interval made of them can
/// promise more.
pub fn most_coverage(count: usize) -> f64 {
    1.0 - 2.0 * 0.5f64.powi(i32::try_from(count).unwrap_or(i32::MAX))
}

fn interval(count: usize, mut draw: impl FnMut(&mut SplitMix64) -> f64) -> Option<Interval> {
    if count < 2 {
        return None;
    }
    let mut numbers = SplitMix64::seed_from_u64(SEED);
    let mut drawn: Vec<f64> = (0..RESAMPLES).map(|_| draw(&mut numbers)).collect();
    // A divisor of zero says nothing.
    drawn.retain(|figure| figure.is_finite());
    drawn.sort_by(f64::total_cmp);
    let beyond = (1.0 - CONFIDENCE) / 2.0;
    (!drawn.is_empty()).then(|| Interval {
        low: quantile(&drawn, beyond),
        high: quantile(&drawn, 1.0 - beyond),
    })
}

fn resampled_median(figures: &[f64], numbers: &mut SplitMix64) -> f64 {
    let mut drawn: Vec<f64> = figures
        .iter()
        .map(|_| figures[below(numbers, figures.len())])
        .collect();
    drawn.sort_by(f64::total_cmp);
    quantile(&drawn, 0.5)
}

/// Of sorted figures, on a line between the two beside it.
///
/// # Panics
/// When there are none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * (at - at.floor())
}

/// What the test of Mann and Whitney says of two sets of figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// How likely a difference as large as this one is where there is none, of both signs.
    pub p: f64,
    /// Size of the effect, Cliff's delta: -1 where every second figure is below every first one, 1 where every one is above.
    pub delta: f64,
}

/// Whether the second figures differ from the first; none where a side has none.
pub fn difference(first: &[f64], second: &[f64]) -> Option<Difference> {
    if first.is_empty() || second.is_empty() {
        return None;
    }
    let ranks = doubled_ranks(first, second);
    let (total, dealt) = (first.len() + second.len(), second.len());
    let sum: u64 = ranks[first.len()..].iter().sum();
    // Twice its mean: the mean rank is (total + 1) / 2, and ranks are doubled.
    let mean = (dealt * (total + 1)) as u64;
    let distance = sum.abs_diff(mean);
    let p = match total <= COUNTED {
        true => counted(&ranks, dealt, mean, distance),
        false => drawn(ranks.clone(), dealt, mean, distance),
    };
    // U of the second from its sum of ranks.
    let u = sum as f64 / 2.0 - (dealt * (dealt + 1)) as f64 / 2.0;
    let delta = 2.0 * u / (first.len() * dealt) as f64 - 1.0;
    Some(Difference { p, delta })
}

/// The smallest probability that [`difference`] can give for so many figures without ties: where that is above a level, no
/// difference whatever reaches it.
pub fn least_p(first: usize, second: usize) -> f64 {
    // 2 / C(first + second, second)
    let ways = (1..=second).fold(1.0, |ways, index| ways * (first + index) as f64 / index as f64);
    (2.0 / ways).min(1.0)
}

/// Probabilities of many tests adjusted so that of what is called a difference at a level, at most that share is none
/// (Benjamini and Hochberg 1995). In the order in which they came.
pub fn adjusted(probabilities: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..probabilities.len()).collect();
    order.sort_by(|&one, &other| probabilities[one].total_cmp(&probabilities[other]));
    let mut adjusted = vec![1.0; probabilities.len()];
    let mut least = 1.0f64;
    for (rank, &index) in order.iter().enumerate().rev() {
        least = least.min(probabilities[index] * probabilities.len() as f64 / (rank + 1) as f64);
        adjusted[index] = least;
    }
    adjusted
}

/// Twice the rank of each, the first figures before the second; equal figures share the mean of their ranks.
fn doubled_ranks(first: &[f64], second: &[f64]) -> Vec<u64> {
    let all: Vec<f64> = first.iter().chain(second).copied().collect();
    let mut sorted = all.clone();
    sorted.sort_by(f64::total_cmp);
    let rank = |figure: &f64| {
        let before = sorted.partition_point(|other| other.total_cmp(figure).is_lt());
        let until = sorted.partition_point(|other| other.total_cmp(figure).is_le());
        // Ranks before + 1 to until: twice their mean is the sum of both.
        (before + 1 + until) as u64
    };
    all.iter().map(rank).collect()
}

/// The share of all ways to deal the ranks whose sum is at least so far from the mean.
fn counted(ranks: &[u64], dealt: usize, mean: u64, distance: u64) -> f64 {
    let most: u64 = ranks.iter().sum();
    // ways[k][s]: how many sets of k ranks have the sum s. They fit a float with many digits to spare.
    let mut ways = vec![vec![0.0f64; most as usize + 1]; dealt + 1];
    ways[0][0] = 1.0;
    for &rank in ranks {
        let rank = rank as usize;
        for count in (1..=dealt).rev() {
            let (below, here) = ways.split_at_mut(count);
            for sum in rank..=most as usize {
                here[0][sum] += below[count - 1][sum - rank];
            }
        }
    }
    let all: f64 = ways[dealt].iter().sum();
    let far = ways[dealt].iter().enumerate();
    let far: f64 = far
        .filter(|(sum, _)| (*sum as u64).abs_diff(mean) >= distance)
        .map(|(_, ways)| ways)
        .sum();
    (far / all).min(1.0)
}

/// The same from a sample of the ways.
fn drawn(mut ranks: Vec<u64>, dealt: usize, mean: u64, distance: u64) -> f64 {
    let mut numbers = SplitMix64::seed_from_u64(SEED);
    let mut far = 0;
    for _ in 0..DEALS {
        for index in 0..dealt {
            let other = index + below(&mut numbers, ranks.len() - index);
            ranks.swap(index, other);
        }
        let sum: u64 = ranks[..dealt].iter().sum();
        far += usize::from(sum.abs_diff(mean) >= distance);
    }
    // What was measured is one way more.
    (far + 1) as f64 / (DEALS + 1) as f64
}

fn below(numbers: &mut SplitMix64, bound: usize) -> usize {
    // The bound is so small that the remainder's preference is beyond all digits.
    (numbers.next_u64() % bound as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of a normal distribution, by the sum of twelve uniform ones.
    fn normal(numbers: &mut SplitMix64, count: usize) -> Vec<f64> {
        let mut uniform = || numbers.next_u64() as f64 / u64::MAX as f64;
        (0..count)
            .map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0)
            .collect()
    }

    #[test]
    fn intervals_hold_the_true_median_about_as_often_as_they_say() {
        let mut numbers = SplitMix64::seed_from_u64(1);
        let mut share = |count| {
            let held = (0..200).filter(|_| of_median(&normal(&mut numbers, count)).unwrap().contains(0.0));
            held.count() as f64 / 200.0
        };
        assert!((0.90..=1.0).contains(&share(15)));
        // Of three runs it is no more than their range.
        assert!((0.65..=0.85).contains(&share(3)));
        assert_eq!(most_coverage(3), 0.75);
        assert!(most_coverage(5) < CONFIDENCE && most_coverage(6) > CONFIDENCE);
    }

    #[test]
    fn an_interval_is_the_same_each_time_and_needs_two_figures() {
        let figures = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0];
        assert_eq!(of_median(&figures), of_median(&figures));
        let interval = of_median(&figures).unwrap();
        assert!(interval.low >= 1.0 && interval.high <= 9.0 && interval.contains(3.5));
        assert_eq!((of_median(&[1.0]), of_median(&[])), (None, None));
        let same = of_median(&[7.0; 4]).unwrap();
        assert_eq!((same.low, same.high), (7.0, 7.0));
    }

    #[test]
    fn ratios_have_intervals_of_their_own() {
        let ratio = of_ratio(&[20.0, 22.0, 21.0, 19.0], &[10.0, 11.0, 9.0, 10.5]).unwrap();
        assert!(
            ratio.contains(2.0) && ratio.low > 1.6 && ratio.high < 2.5,
            "{ratio:?}"
        );
        assert_eq!(of_ratio(&[1.0, 2.0], &[1.0]), None);
        assert_eq!(of_ratio(&[1.0, 2.0], &[0.0, 0.0]), None);
    }

    #[test]
    fn the_test_counts_as_tables_do() {
        let low = [1.0, 2.0, 3.0, 4.0];
        let high = [5.0, 6.0, 7.0, 8.0];
        let found = difference(&low, &high).unwrap();
        assert!((found.p - 2.0 / 70.0).abs() < 1e-12, "{found:?}");
        assert_eq!(found.delta, 1.0);
        assert_eq!(difference(&high, &low).unwrap().delta, -1.0);
        assert!((least_p(4, 4) - found.p).abs() < 1e-12);
        assert_eq!((least_p(3, 3), least_p(1, 1)), (0.1, 1.0));
        // U = 2 of 5 and 5: the exact probability of tables, 0.0317.
        let found = difference(&[1.0, 2.0, 3.0, 5.0, 6.0], &[4.0, 7.0, 8.0, 9.0, 10.0]).unwrap();
        assert!((found.p - 8.0 / 252.0).abs() < 1e-12, "{found:?}");
        // All alike.
        let found = difference(&[1.0; 5], &[1.0; 4]).unwrap();
        assert_eq!((found.p, found.delta), (1.0, 0.0));
    }

    #[test]
    fn where_nothing_differs_few_tests_say_so_also_with_ties_and_with_many_runs() {
        let mut numbers = SplitMix64::seed_from_u64(2);
        let mut alarms = |count: usize| {
            let mut rounded = || -> Vec<f64> {
                let figures = normal(&mut numbers, count);
                figures.iter().map(|figure| (figure * 4.0).round()).collect()
            };
            let found = (0..100).filter(|_| difference(&rounded(), &rounded()).unwrap().p < 0.05);
            found.count()
        };
        assert!(alarms(8) <= 12);
        assert!(alarms(31) <= 12, "drawn");
        let many: Vec<f64> = (0..40).map(f64::from).collect();
        let more: Vec<f64> = many.iter().map(|figure| figure + 30.0).collect();
        assert!(difference(&many, &more).unwrap().p < 0.001);
    }

    #[test]
    fn many_tests_are_adjusted_for() {
        let found = adjusted(&[0.01, 0.04, 0.03, 0.005]);
        let expected = [0.02, 0.04, 0.04, 0.02];
        assert!(
            found
                .iter()
                .zip(expected)
                .all(|(one, other)| (one - other).abs() < 1e-12),
            "{found:?}"
        );
        assert!(adjusted(&[]).is_empty());
        assert_eq!(adjusted(&[0.9, 1.0]), [1.0, 1.0]);
    }
}
