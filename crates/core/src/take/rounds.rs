//! How often pages are protected while the guest runs, before it is paused to protect the rest.

use std::time::Duration;

use crate::pages::PageRun;

/// What a request costs, in pages.
const REQUEST_PAGES: u64 = 24;
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

/// What protecting `runs` costs, in pages: a request costs the kernel as much as two dozen pages of it.
pub fn work_of(runs: &[PageRun]) -> u64 {
    runs.iter().map(|run| REQUEST_PAGES + run.count).sum()
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
    work: u64,
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

    /// Now so much work ([`work_of`]) would protect the rest.
    pub fn next(&self, work: u64) -> Live {
        if work == 0 || self.rounds >= MOST_ROUNDS {
            return Live::Pause;
        }
        let Some(last) = self.last else {
            return Live::Protect;
        };
        let expected = last.took.as_secs_f64() / last.work.max(1) as f64 * work as f64;
        // A round takes some time whatever it does: less than half of the last one's is progress.
        let is_less = work * 2 < last.work;
        match expected <= self.goal.as_secs_f64() || !is_less {
            true => Live::Pause,
            false => Live::Protect,
        }
    }

    /// How many rounds there were.
    pub fn count(&self) -> u32 {
        self.rounds
    }

    /// A round of so much work took so long.
    pub fn protected(&mut self, work: u64, took: Duration) {
        self.rounds += 1;
        self.last = Some(Round { work, took });
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
