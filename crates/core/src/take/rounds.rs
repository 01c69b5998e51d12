//! How often pages are protected while the guest runs, before it is paused to protect the rest.

use std::time::Duration;

/// Rounds beyond which the guest writes as fast as it is protected.
const MOST_ROUNDS: u32 = 6;

/// What is to be done before a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Live {
    /// Protect what is not, once more, while the guest runs.
    Protect,
    /// Pause it: what is left takes no longer than it may, or does not get less.
    Pause,
}

/// Decides, as pre-copy does about its rounds: each round leaves what the guest writes meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct LiveRounds {
    goal: Duration,
    rounds: u32,
    last: Option<Round>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    requests: u64,
    took: Duration,
}

impl LiveRounds {
    /// For a part of the pause of at most `goal`.
    pub fn new(goal: Duration) -> Self {
        Self {
            goal,
            rounds: 0,
            last: None,
        }
    }

    /// Now so many `requests` to the kernel would protect the rest.
    pub fn next(&self, requests: u64) -> Live {
        if requests == 0 || self.rounds >= MOST_ROUNDS {
            return Live::Pause;
        }
        let Some(last) = self.last else {
            return Live::Protect;
        };
        let expected = last.took.as_secs_f64() / last.requests.max(1) as f64 * requests as f64;
        // A round takes some time whatever it does: less than half of the last one's is progress.
        let is_less = requests * 2 < last.requests;
        match expected <= self.goal.as_secs_f64() || !is_less {
            true => Live::Pause,
            false => Live::Protect,
        }
    }

    /// A round of so many requests took so long.
    pub fn protected(&mut self, requests: u64, took: Duration) {
        self.rounds += 1;
        self.last = Some(Round { requests, took });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn goes_on_while_it_helps_and_not_longer() {
        let mut rounds = LiveRounds::new(2 * MS);
        assert_eq!(rounds.next(0), Live::Pause);
        assert_eq!(rounds.next(10), Live::Protect);
        rounds.protected(1000, 20 * MS);
        assert_eq!(rounds.next(400), Live::Protect);
        assert_eq!(rounds.next(90), Live::Pause, "1.8 ms");
        assert_eq!(rounds.next(600), Live::Pause, "no headway");
        for _ in 0..MOST_ROUNDS {
            rounds.protected(1000, 20 * MS);
        }
        assert_eq!(rounds.next(400), Live::Pause, "often enough");
    }
}
