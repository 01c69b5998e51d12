//! A token bucket: how much of something may be used when. Time comes in; what counts (bytes of a link,
//! nanoseconds of a CPU) is the caller's.

use std::time::Duration;

/// Tokens are counted in billionths, so that a rate a second fills the bucket exactly at each nanosecond.
const FRACTION: i128 = 1_000_000_000;

/// Fills at a rate up to a depth, the *burst*. Who takes before using stays, over any window of `t` seconds, within
/// `rate * t + burst`, as long as nobody takes more at once than the burst. Who cannot wait uses first and *owes*:
/// the others wait for it.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    rate_per_s: u64,
    burst: u64,
    /// Tokens in it, in billionths; below zero what is owed.
    level: i128,
    /// When it was filled last.
    filled_at: Duration,
}

impl TokenBucket {
    /// A full bucket. A rate or burst of 0 counts as 1.
    pub fn new(rate_per_s: u64, burst: u64, now: Duration) -> Self {
        let burst = burst.max(1);
        Self {
            rate_per_s: rate_per_s.max(1),
            burst,
            level: fine(burst),
            filled_at: now,
        }
    }

    /// Changes rate and burst from now on; what is owed stays owed.
    pub fn change(&mut self, rate_per_s: u64, burst: u64, now: Duration) {
        self.fill(now);
        self.rate_per_s = rate_per_s.max(1);
        self.burst = burst.max(1);
        self.level = self.level.min(fine(self.burst));
    }

    /// Takes `amount`, or says when to ask again. More than the burst is taken from a full bucket and leaves it in
    /// debt.
    ///
    /// # Errors
    /// The time at which there is enough, if nobody else takes of it.
    pub fn take(&mut self, now: Duration, amount: u64) -> Result<(), Duration> {
        self.fill(now);
        let missing = fine(amount.min(self.burst)) - self.level;
        if missing > 0 {
            return Err(now + self.time_for(missing));
        }
        self.level -= fine(amount);
        Ok(())
    }

    /// Uses `amount` without waiting.
    pub fn owe(&mut self, amount: u64) {
        self.level -= fine(amount);
    }

    /// Puts back what was taken and not used.
    pub fn give_back(&mut self, amount: u64) {
        self.level = (self.level + fine(amount)).min(fine(self.burst));
    }

    /// When nothing is owed any more: now, or later.
    pub fn even_at(&mut self, now: Duration) -> Duration {
        self.fill(now);
        now + self.time_for((-self.level).max(0))
    }

    fn fill(&mut self, now: Duration) {
        // A caller that read the clock earlier and came later: the time has been counted.
        let passed_ns = now.saturating_sub(self.filled_at).as_nanos() as i128;
        self.filled_at = self.filled_at.max(now);
        self.level = (self.level + passed_ns * i128::from(self.rate_per_s)).min(fine(self.burst));
    }

    fn time_for(&self, level: i128) -> Duration {
        let ns = (level + i128::from(self.rate_per_s) - 1) / i128::from(self.rate_per_s);
        Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
    }
}

fn fine(amount: u64) -> i128 {
    i128::from(amount) * FRACTION
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_full_bucket_gives_its_burst_and_then_its_rate() {
        let mut bucket = TokenBucket::new(1000, 50, Duration::ZERO);
        assert_eq!(bucket.take(Duration::ZERO, 50), Ok(()));
        assert_eq!(bucket.take(Duration::ZERO, 10), Err(10 * MS));
        assert_eq!(bucket.take(10 * MS, 10), Ok(()));
        assert_eq!(bucket.take(10 * MS, 1), Err(11 * MS));
        // However long it stood: no more than the burst.
        assert_eq!(bucket.take(1000 * MS, 50), Ok(()));
        assert_eq!(bucket.take(1000 * MS, 1), Err(1001 * MS));
    }

    #[test]
    fn what_is_owed_is_waited_for_and_what_is_given_back_is_not() {
        let mut bucket = TokenBucket::new(1000, 50, Duration::ZERO);
        bucket.owe(150);
        assert_eq!(bucket.even_at(Duration::ZERO), 100 * MS);
        assert_eq!(bucket.take(Duration::ZERO, 20), Err(120 * MS));
        bucket.give_back(120);
        assert_eq!(bucket.take(Duration::ZERO, 20), Ok(()));
        bucket.give_back(1000);
        assert_eq!(bucket.take(Duration::ZERO, 50), Ok(()), "no more than the burst");
        assert_eq!(bucket.take(Duration::ZERO, 1), Err(MS));
    }

    #[test]
    fn more_than_the_burst_waits_for_a_full_bucket_and_leaves_a_debt() {
        let mut bucket = TokenBucket::new(1000, 50, Duration::ZERO);
        assert_eq!(bucket.take(Duration::ZERO, 80), Ok(()));
        assert_eq!(bucket.take(Duration::ZERO, 80), Err(80 * MS));
    }

    #[test]
    fn a_new_rate_counts_from_now_on() {
        let mut bucket = TokenBucket::new(1000, 50, Duration::ZERO);
        bucket.owe(150);
        bucket.change(10_000, 500, 50 * MS);
        assert_eq!(bucket.even_at(50 * MS), 55 * MS);
    }

    proptest! {
        /// Users that come at any time, wait as told, give part of it back, and now and then cannot wait: no window has
        /// more than the rate allows, the burst, and what was used by those who cannot wait.
        #[test]
        fn no_window_has_more_than_rate_and_burst(
            rate in 1u64..2_000_000,
            burst in 1u64..100_000,
            steps in prop::collection::vec((0u64..40_000, 1u64..100_000, 0u64..100, 0u8..10), 1..60),
        ) {
            let mut bucket = TokenBucket::new(rate, burst, Duration::ZERO);
            let mut now = Duration::ZERO;
            let mut used: Vec<(Duration, u64, u64)> = Vec::new();
            for (pause_us, amount, percent_back, kind) in steps {
                now += Duration::from_micros(pause_us);
                let amount = amount.min(burst);
                if kind == 0 {
                    bucket.owe(amount);
                    used.push((now, 0, amount));
                    continue;
                }
                if let Err(at) = bucket.take(now, amount) {
                    prop_assert!(at > now);
                    // Asking a nanosecond too early is refused, asking then is not.
                    prop_assert!(bucket.take(at - Duration::from_nanos(1), amount).is_err());
                    now = at;
                    prop_assert_eq!(bucket.take(now, amount), Ok(()));
                }
                let back = amount * percent_back / 100;
                bucket.give_back(back);
                used.push((now, amount - back, 0));
            }
            for from in 0..used.len() {
                let (mut taken, mut owed) = (0u128, 0u128);
                for &(at, waited, urgent) in &used[from..] {
                    taken += u128::from(waited);
                    owed += u128::from(urgent);
                    let allowed = (at - used[from].0).as_nanos() * u128::from(rate) / 1_000_000_000;
                    prop_assert!(
                        taken <= allowed + u128::from(burst) + 1,
                        "{taken} in {:?}, {allowed} and a burst of {burst} are allowed, {owed} were owed",
                        at - used[from].0
                    );
                }
            }
        }

        /// Somebody who always wants more gets all of the rate.
        #[test]
        fn nothing_of_the_rate_is_lost(rate in 1000u64..1_000_000_000, amount in 1u64..10_000) {
            let mut bucket = TokenBucket::new(rate, amount, Duration::ZERO);
            let (mut now, mut taken) = (Duration::ZERO, 0u64);
            for _ in 0..200 {
                if let Err(at) = bucket.take(now, amount) {
                    now = at;
                    bucket.take(now, amount).unwrap();
                }
                taken += amount;
            }
            let allowed = now.as_secs_f64() * rate as f64 + amount as f64;
            // Each wait is rounded up to a nanosecond, and no more.
            prop_assert!(allowed - taken as f64 <= 200.0 * (1.0 + rate as f64 / 1e9));
        }
    }
}
