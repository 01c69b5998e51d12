//! Which limits make sense.

use std::time::Duration;

use thiserror::Error;

use crate::strategy::Limits;

/// The least bandwidth a migration may be held to: 1 Mbit/s, at which a page takes 33 ms.
pub const MIN_BANDWIDTH_BYTES_PER_S: u64 = 125_000;
/// The most: 10 Tbit/s, beyond which somebody mistook a unit.
pub const MAX_BANDWIDTH_BYTES_PER_S: u64 = 1_250_000_000_000;
/// The most CPU that can be asked for: 64 cores, one for each stream there can be.
pub const MAX_CPU_PERCENT: u32 = 6400;

/// Limits under which no migration can end well.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum BadLimits {
    /// No round at all.
    #[error("at least one round is needed")]
    Rounds,
    /// A bandwidth nobody can mean.
    #[error(
        "a bandwidth of {0} bytes a second is not possible; choose {MIN_BANDWIDTH_BYTES_PER_S} (1 Mbit/s) to \
         {MAX_BANDWIDTH_BYTES_PER_S} (10 Tbit/s), or none"
    )]
    Bandwidth(u64),
    /// A share of CPU nobody can mean.
    #[error(
        "{0}% of a core is not possible; choose 1% to {MAX_CPU_PERCENT}%, where 100% is one core, or none"
    )]
    Cpu(u32),
    /// No time at all.
    #[error("a time limit of {} ms is over before anything can begin; choose at least 1 ms, or none", .0.as_millis())]
    Timeout(Duration),
}

impl Limits {
    /// Checks them.
    ///
    /// # Errors
    /// What makes no sense, and what would.
    pub fn check(&self) -> Result<(), BadLimits> {
        if self.rounds == 0 {
            return Err(BadLimits::Rounds);
        }
        if let Some(timeout) = self.timeout.filter(|&time| time < Duration::from_millis(1)) {
            return Err(BadLimits::Timeout(timeout));
        }
        check_bandwidth(self.bandwidth_bytes_per_s)?;
        check_cpu(self.cpu_percent)?;
        check_cpu(self.cpu_destination_percent)
    }
}

/// Checks a bandwidth cap; none is no cap.
///
/// # Errors
/// [`BadLimits::Bandwidth`].
pub fn check_bandwidth(bytes_per_s: Option<u64>) -> Result<(), BadLimits> {
    match bytes_per_s {
        Some(rate) if !(MIN_BANDWIDTH_BYTES_PER_S..=MAX_BANDWIDTH_BYTES_PER_S).contains(&rate) => {
            Err(BadLimits::Bandwidth(rate))
        }
        _ => Ok(()),
    }
}

/// Checks a CPU cap; none is no cap.
///
/// # Errors
/// [`BadLimits::Cpu`].
pub fn check_cpu(percent: Option<u32>) -> Result<(), BadLimits> {
    match percent {
        Some(percent) if !(1..=MAX_CPU_PERCENT).contains(&percent) => Err(BadLimits::Cpu(percent)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_refused_and_says_how_to_mend_it() {
        Limits::default().check().unwrap();
        let refused = |limits: Limits| limits.check().unwrap_err().to_string();
        for rate in [0, 124_999, u64::MAX] {
            let why = refused(Limits {
                bandwidth_bytes_per_s: Some(rate),
                ..Limits::default()
            });
            assert!(
                why.contains(&rate.to_string()) && why.contains("1 Mbit/s"),
                "{why}"
            );
        }
        for percent in [0, 6401] {
            let why = refused(Limits {
                cpu_percent: Some(percent),
                ..Limits::default()
            });
            assert!(why.contains("100% is one core"), "{why}");
        }
        let why = refused(Limits {
            timeout: Some(Duration::ZERO),
            ..Limits::default()
        });
        assert!(why.contains("at least 1 ms"), "{why}");
        assert_eq!(
            Limits {
                rounds: 0,
                ..Limits::default()
            }
            .check(),
            Err(BadLimits::Rounds)
        );
        Limits {
            bandwidth_bytes_per_s: Some(MIN_BANDWIDTH_BYTES_PER_S),
            cpu_percent: Some(1),
            timeout: Some(Duration::from_secs(60)),
            ..Limits::default()
        }
        .check()
        .unwrap();
    }
}
