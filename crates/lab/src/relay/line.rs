//! Frames under way, in their order.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The most bytes under way: half a second of 1 Gbit/s. What comes on top of them is lost, as in a switch.
const MOST_BYTES: usize = 64 << 20;

/// One way of a link: what goes in comes out after the delay.
pub(super) struct Line {
    delay: Duration,
    frames: VecDeque<(Instant, Box<[u8]>)>,
    bytes: usize,
}

impl Line {
    pub(super) fn new(delay: Duration) -> Self {
        Self {
            delay,
            frames: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Takes a frame in that came `now`. Answers whether there was room for it.
    pub(super) fn push(&mut self, now: Instant, frame: &[u8]) -> bool {
        if self.bytes + frame.len() > MOST_BYTES {
            return false;
        }
        self.bytes += frame.len();
        self.frames.push_back((now + self.delay, frame.into()));
        true
    }

    /// When the next frame is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.frames.front().map(|(due, _)| *due)
    }

    /// The next frame and when it was due, if it is by `now`.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<(Instant, Box<[u8]>)> {
        self.next_due().filter(|due| *due <= now)?;
        let next = self.frames.pop_front()?;
        self.bytes -= next.1.len();
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELAY: Duration = Duration::from_millis(10);

    #[test]
    fn frames_come_out_in_order_and_not_before_their_time() {
        let began = Instant::now();
        let at = |us: u64| began + Duration::from_micros(us);
        let mut line = Line::new(DELAY);
        assert_eq!(line.next_due(), None);
        assert!(line.push(at(0), b"first") && line.push(at(500), b"second"));
        assert_eq!(line.next_due(), Some(at(10_000)));
        assert_eq!(line.pop_due(at(9_999)), None);
        assert_eq!(line.pop_due(at(10_400)), Some((at(10_000), b"first"[..].into())));
        assert_eq!(line.pop_due(at(10_400)), None);
        assert_eq!(line.pop_due(at(10_500)), Some((at(10_500), b"second"[..].into())));
        assert_eq!(line.bytes, 0);
    }

    #[test]
    fn what_comes_on_top_of_a_full_line_is_lost() {
        let now = Instant::now();
        let mut line = Line::new(DELAY);
        let frame = vec![0; 1 << 20];
        let taken = (0..100).filter(|_| line.push(now, &frame)).count();
        assert_eq!(taken, MOST_BYTES >> 20);
        assert!(line.pop_due(now + DELAY).is_some() && line.push(now, &frame));
        assert!(!line.push(now, &[0]));
    }
}
