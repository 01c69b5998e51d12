//! The link and the streams over it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::path::PathModel;

/// One direction of the link: what is put on it leaves in order.
#[derive(Debug)]
pub(crate) struct Link {
    bytes_per_s: f64,
    half_trip: Duration,
    /// What a small message waits at most behind pages: theirs wait mostly in their own sockets.
    queue: Duration,
    free_at: Duration,
    /// Everything that went over it.
    pub(crate) bytes: f64,
}

impl Link {
    pub(crate) fn new(path: &PathModel) -> Self {
        Self {
            bytes_per_s: path.link_bytes_per_s,
            half_trip: ms(path.rtt_ms / 2.0),
            queue: ms(path.queue_ms),
            free_at: Duration::ZERO,
            bytes: 0.0,
        }
    }

    /// Pages of a stream, put on it at `now`: when the last byte is at the other end.
    pub(crate) fn pages(&mut self, now: Duration, bytes: f64) -> Duration {
        self.bytes += bytes;
        self.free_at = self.free_at.max(now) + self.time_for(bytes);
        self.free_at + self.half_trip
    }

    /// A message on a stream of its own: when it is there.
    pub(crate) fn message(&mut self, now: Duration, bytes: f64) -> Duration {
        self.bytes += bytes;
        let waits = self.free_at.saturating_sub(now).min(self.queue);
        let takes = self.time_for(bytes);
        // What is under way beside it takes that much longer.
        self.free_at = self.free_at.max(now) + takes;
        now + waits + takes + self.half_trip
    }

    fn time_for(&self, bytes: f64) -> Duration {
        Duration::from_secs_f64(bytes / self.bytes_per_s)
    }
}

/// A page stream: a thread at either side, and buffers between them.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Nothing to do: it asks when it is woken.
    pub(crate) idle: bool,
    /// When it asks again by itself.
    pub(crate) timer: Option<Duration>,
    /// Batches under way: when the destination is through with them, and their bytes.
    under_way: VecDeque<(Duration, f64)>,
    /// When the destination's thread is through with all of them.
    pub(crate) taken_in: Duration,
}

impl Stream {
    /// A stream that waits to be woken.
    pub(crate) fn new() -> Self {
        Self {
            idle: true,
            ..Self::default()
        }
    }

    /// A batch of `bytes` arrives at `arrives` and takes the destination `takes`: when it is through with it.
    pub(crate) fn sends(&mut self, arrives: Duration, takes: Duration, bytes: f64) -> Duration {
        self.taken_in = self.taken_in.max(arrives) + takes;
        self.under_way.push_back((self.taken_in, bytes));
        self.taken_in
    }

    /// When the writer at the source is done, who began at `now`: once no more than the buffers hold is under way.
    pub(crate) fn written(&mut self, now: Duration, buffer_bytes: f64) -> Duration {
        while self.under_way.front().is_some_and(|(at, _)| *at <= now) {
            self.under_way.pop_front();
        }
        let mut held: f64 = self.under_way.iter().map(|(_, bytes)| bytes).sum();
        let mut done = now;
        // The last batch itself is always in there: it is written to its end while the one before drains.
        let before_last = self.under_way.len().saturating_sub(1);
        for (at, bytes) in self.under_way.iter().take(before_last) {
            if held <= buffer_bytes {
                break;
            }
            held -= bytes;
            done = *at;
        }
        if held > buffer_bytes
            && let Some((at, bytes)) = self.under_way.back()
        {
            // A part of the last batch has to leave before its end fits.
            let rest = (held - buffer_bytes) / bytes;
            done = done + at.saturating_sub(done).mul_f64(rest.min(1.0));
        }
        done
    }
}

/// A time in milliseconds.
pub(crate) fn ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms.max(0.0) / 1e3)
}

/// A time in nanoseconds, of so many things.
pub(crate) fn ns(each: f64, count: f64) -> Duration {
    Duration::from_secs_f64((each * count).max(0.0) / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_leave_in_order_and_messages_wait_a_little() {
        let mut link = Link::new(&PathModel {
            queue_ms: 5.0,
            ..PathModel::typical(1e6, 2.0)
        });
        assert_eq!(link.pages(ms(0.0), 1e5), ms(101.0));
        assert_eq!(link.pages(ms(10.0), 1e5), ms(201.0));
        // 5 ms behind pages, 1 ms for itself, 1 ms to the other end.
        assert_eq!(link.message(ms(20.0), 1e3), ms(27.0));
        assert_eq!(link.pages(ms(20.0), 1e5), ms(302.0));
        assert_eq!(link.message(ms(400.0), 1e3), ms(402.0));
    }

    #[test]
    fn a_writer_waits_once_the_buffers_are_full() {
        let mut stream = Stream::default();
        for batch in 1..=3 {
            stream.sends(ms(100.0 * f64::from(batch)), Duration::ZERO, 1000.0);
        }
        assert_eq!(stream.written(ms(1.0), 4000.0), ms(1.0));
        assert_eq!(stream.written(ms(1.0), 2000.0), ms(100.0));
        let mut alone = Stream::default();
        alone.sends(ms(100.0), Duration::ZERO, 1000.0);
        assert_eq!(alone.written(Duration::ZERO, 250.0), ms(75.0));
    }
}
