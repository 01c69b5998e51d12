//! Where numbers lie on an axis, and which of them are written beside it.

/// A scale from 0 to 1.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// Equal steps.
    Linear {
        /// The number at 0.
        low: f64,
        /// The number at 1.
        high: f64,
    },
    /// Equal factors.
    Log {
        /// The number at 0, a power of ten.
        low: f64,
        /// The number at 1.
        high: f64,
    },
}

impl Scale {
    /// From zero to at least `most`, with a little room.
    pub(super) fn from_zero(most: f64) -> Self {
        let most = if most > 0.0 { most } else { 1.0 };
        Self::Linear {
            low: 0.0,
            high: most * 1.03,
        }
    }

    /// Over these numbers; those that are not above zero have no place on a logarithmic one.
    pub(super) fn over(least: f64, most: f64, log: bool) -> Self {
        match log && most > 0.0 {
            false => Self::from_zero(most),
            true => {
                let least = if least > 0.0 { least } else { most / 1e3 };
                let low = 10f64.powf((least * 0.9).log10().floor());
                Self::Log {
                    low,
                    high: (most * 1.1).max(low * 10.0),
                }
            }
        }
    }

    /// The place of a number, 0 to 1.
    pub(super) fn at(&self, number: f64) -> f64 {
        let share = match *self {
            Self::Linear { low, high } => (number - low) / (high - low),
            Self::Log { low, high } => (number.max(low) / low).ln() / (high / low).ln(),
        };
        share.clamp(0.0, 1.0)
    }

    /// Numbers to write, when an axis is divided by `factor`: about `count`.
    pub(super) fn ticks(&self, factor: f64, count: usize) -> Vec<f64> {
        match *self {
            Self::Linear { low, high } => {
                let (low, high) = (low / factor, high / factor);
                let step = nice((high - low) / count.max(1) as f64);
                let first = (low / step).ceil() as i64;
                let last = (high / step + 1e-9).floor() as i64;
                (first..=last).map(|index| index as f64 * step * factor).collect()
            }
            Self::Log { low, high } => {
                let decades = (high / low).log10().floor() as i32;
                // All of them do not fit where there are many.
                let every = (decades / count.max(1) as i32 + 1).max(1) as usize;
                (0..=decades)
                    .step_by(every)
                    .map(|power| low * 10f64.powi(power))
                    .collect()
            }
        }
    }
}

/// A step of 1, 2 or 5 times a power of ten that is not much below this.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let fitting = steps.into_iter().find(|of| of * power >= step * 0.9);
    fitting.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_numbers_within_the_scale() {
        assert_eq!(
            Scale::from_zero(9.8).ticks(1.0, 5),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert_eq!(Scale::from_zero(0.0).ticks(1.0, 2), [0.0, 0.5, 1.0]);
        let mib = 1024.0 * 1024.0;
        assert_eq!(Scale::from_zero(400.0 * mib).ticks(mib, 2)[1], 200.0 * mib);
        let log = Scale::over(30.0, 20_000.0, true);
        assert_eq!(log.ticks(1.0, 5), [10.0, 100.0, 1000.0, 10_000.0]);
        assert_eq!((log.at(10.0), log.at(0.0)), (0.0, 0.0));
        assert!((log.at(1000.0) - 2.0 / 3.342).abs() < 1e-3);
    }
}
