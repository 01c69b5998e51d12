//! Figures of repeated runs.

use std::fmt;

/// Values of one measurement, one a run.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    values: Vec<f64>,
}

impl Figures {
    /// Adds the value of a run.
    pub fn push(&mut self, value: f64) {
        self.values.push(value);
        self.values.sort_by(f64::total_cmp);
    }

    /// The median; not a number where there are no runs.
    pub fn median(&self) -> f64 {
        let n = self.values.len();
        match n {
            0 => f64::NAN,
            _ if n % 2 == 1 => self.values[n / 2],
            _ => f64::midpoint(self.values[n / 2 - 1], self.values[n / 2]),
        }
    }

    /// All values, in ascending order.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The smallest and the largest.
    pub fn range(&self) -> (f64, f64) {
        (
            self.values.first().copied().unwrap_or(f64::NAN),
            self.values.last().copied().unwrap_or(f64::NAN),
        )
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, max) = self.range();
        write!(
            f,
            "{:.2} ({min:.2} to {max:.2}, {} runs)",
            self.median(),
            self.values.len()
        )
    }
}
