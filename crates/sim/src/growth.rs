//! How many pages a guest dirties in a part of a sample.
//!
//! A guest that writes the same few pages all the time has dirtied them all again a millisecond after a scan; one that
//! sweeps over memory dirties half as many in half of the time. A trace tells by short samples: [`Growth`] is the share of
//! a whole sample's pages that are dirty after a part of its time.

use vmferry_trace::{Sample, Trace};

/// Points of the curve that are kept apart.
const POINTS: usize = 32;

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Growth {
    /// Parts of a sample's time and the shares dirty by then, ascending; from (0, 0) to (1, 1).
    points: Vec<(f64, f64)>,
}

impl Growth {
    /// What the short samples of a trace tell; in proportion to time where there are none.
    pub(crate) fn of(trace: &Trace) -> Self {
        let usual_us = trace.header.interval_us as f64;
        // By part of the time: sums of pages found and of pages of whole samples.
        let mut sums = [(0.0, 0.0, 0.0); POINTS];
        for burst in trace.bursts() {
            let is_short = |sample: &&Sample| ((sample.end_us - sample.start_us) as f64) < 0.7 * usual_us;
            let usual = || burst.iter().filter(|sample| !is_short(sample));
            let whole = usual().map(|sample| sample.dirty.count() as f64).sum::<f64>()
                / usual().count().max(1) as f64;
            for sample in burst.iter().filter(is_short) {
                let part = (sample.end_us - sample.start_us) as f64 / usual_us;
                let sum = &mut sums[((part * POINTS as f64) as usize).min(POINTS - 1)];
                *sum = (
                    sum.0 + sample.dirty.count() as f64,
                    sum.1 + whole,
                    sum.2 + part * whole,
                );
            }
        }
        let mut points = vec![(0.0, 0.0)];
        for (found, whole, weighted_part) in sums.into_iter().filter(|sum| sum.1 > 0.0) {
            let (part, before) = (weighted_part / whole, points[points.len() - 1].1);
            // It grows, and never slower than time.
            let share = (found / whole).max(part).max(before).min(1.0);
            points.push((part, share));
        }
        points.push((1.0, 1.0));
        Self { points }
    }

    /// The share of a sample's pages that are dirty after `part` of its time, both 0 to 1.
    pub(crate) fn share(&self, part: f64) -> f64 {
        let part = part.clamp(0.0, 1.0);
        let after = self.points.partition_point(|&(at, _)| at < part).max(1);
        let (from, to) = (self.points[after - 1], self.points[after]);
        let along = (part - from.0) / (to.0 - from.0).max(1e-9);
        from.1 + (to.1 - from.1) * along
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_points_it_is_a_line() {
        let growth = Growth {
            points: vec![(0.0, 0.0), (0.1, 0.8), (1.0, 1.0)],
        };
        for (part, share) in [
            (0.0, 0.0),
            (0.05, 0.4),
            (0.1, 0.8),
            (0.55, 0.9),
            (1.0, 1.0),
            (7.0, 1.0),
        ] {
            assert!((growth.share(part) - share).abs() < 1e-9, "{part}");
        }
    }
}
