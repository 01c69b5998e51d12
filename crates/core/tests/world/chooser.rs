//! Where chance comes from: a seed, or a list of choices that proptest can shrink.

use std::collections::VecDeque;

/// Makes every choice of a run. After its *chaos* is used up nothing fails any more, and chance is fair, so that
/// every run comes to an end.
pub(crate) struct Chooser {
    listed: VecDeque<u16>,
    chaos: u32,
    /// How much more often than usual something fails.
    density: u64,
    random: u64,
}

impl Chooser {
    /// Choices from a seed: a third of the worlds are without failures, some see many.
    pub(crate) fn seeded(seed: u64) -> Self {
        let chaos = match seed % 3 {
            0 => 0,
            _ => 400 << (seed % 4),
        };
        Self {
            listed: VecDeque::new(),
            chaos,
            density: 1 + 5 * (seed % 5 % 2),
            random: seed,
        }
    }

    /// These choices, then a fixed seed without failures.
    pub(crate) fn listed(choices: Vec<u16>) -> Self {
        Self {
            listed: choices.into(),
            chaos: 0,
            density: 3,
            random: 1,
        }
    }

    /// Whether failures may still happen.
    pub(crate) fn chaotic(&self) -> bool {
        self.chaos > 0 || !self.listed.is_empty()
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.chaos = self.chaos.saturating_sub(1);
        if let Some(choice) = self.listed.pop_front() {
            return u64::from(choice) % bound;
        }
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    /// True once in `times`, on average.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == times - 1
    }

    /// A failure that comes once in `times`, while there is chaos.
    pub(crate) fn fails(&mut self, times: u64) -> bool {
        self.chaotic() && self.once_in((times / self.density).max(2))
    }
}
