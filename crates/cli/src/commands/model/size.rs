//! The size of a guest that a model of times for each MiB is asked about.

use anyhow::{Result, bail};
use vmferry_forecast::model::Prediction;

use super::chosen::{DataSizes, Lesson};
use crate::units;

/// How much data the guest has that is asked about.
pub(super) struct Size {
    /// Bytes.
    pub(super) asked: u64,
    /// Of the guests that the model learned from, bytes.
    known: DataSizes,
}

impl Size {
    pub(super) fn new(lesson: &Lesson, asked: Option<u64>) -> Result<Self> {
        match asked.unwrap_or(lesson.data.median) {
            0 => bail!("the size of the guest's data has to be more than 0"),
            asked => Ok(Self {
                asked,
                known: lesson.data,
            }),
        }
    }

    pub(super) fn mib(&self) -> f64 {
        mib(self.asked)
    }

    /// The size nearest to it that the model knows.
    fn nearest_mib(&self) -> f64 {
        mib(self.asked.clamp(self.known.least, self.known.most))
    }

    /// Of time that is the same whatever the size a model of times for each MiB knows nothing: there may be as much of it as all.
    pub(super) fn least_mib(&self) -> f64 {
        self.mib().min(self.nearest_mib())
    }

    pub(super) fn most_mib(&self) -> f64 {
        self.mib().max(self.nearest_mib())
    }

    /// Of times for each MiB.
    pub(super) fn scaled(&self, said: Prediction) -> Prediction {
        Prediction {
            value: said.value * self.mib(),
            low: said.low * self.least_mib(),
            high: said.high * self.most_mib(),
            ..said
        }
    }

    /// In words, where it is beyond what the model knows. (What a guest holds changes a little all the time.)
    pub(super) fn beyond(&self) -> Option<String> {
        let near = (self.mib() / self.nearest_mib()).ln().abs() < 0.1;
        let between = match self.known.least == self.known.most {
            true => format!("all had {}", units::size(self.known.least)),
            false => format!(
                "had between {} and {}",
                units::size(self.known.least),
                units::size(self.known.most)
            ),
        };
        (!near).then(|| {
            format!(
                "data of {} is beyond that of the guests that this model learned from, which {between}: the interval is widened",
                units::size(self.asked)
            )
        })
    }
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
