//! Which encoding finishes soonest.
//!
//! A batch of pages costs processor time at the source and time on the link, and both go on at once: the next batch is
//! encoded while the last one drains from the socket. So with a codec that makes `ratio` bytes of one and takes `cost`
//! seconds of a processor for it, memory crosses at
//!
//! ```text
//! min(processors / (cost * stretch), link / ratio)   bytes a second
//! ```
//!
//! and the codec with the highest rate finishes soonest. All of it is measured along the way:
//!
//! * `ratio` and `cost` on the batches sent with the codec. Of the others a few pages are encoded from time to time, only
//!   to be measured ([`Plan::sample`]).
//! * `stretch`: how much longer than its processor time encoding takes by the clock. More than 1 where somebody else has
//!   the processors: other guests, a quota.
//! * `link`: the rate at which streams get rid of bytes, whenever they wait for it. It is kept for each codec, because
//!   what makes them wait may as well be the destination, which decodes. A codec whose stream never waits has not found
//!   the link's limit. Then raw pages are tried after a while: they find it.

use std::time::Duration;

use super::{Codec, Encoding};

/// What `auto` chooses from, cheapest first.
const CANDIDATES: [Codec; 4] = [Codec::Raw, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(5)];
/// How often a decision is made at most.
const WINDOW: Duration = Duration::from_millis(100);
/// And on how many batches of each stream at least.
const WINDOW_BATCHES: u32 = 2;
/// How often pages are encoded only to be measured,
const SAMPLE_EVERY: Duration = Duration::from_millis(100);
/// and how many times as long as that took it is left alone afterwards.
const SAMPLE_REST: u32 = 100;
/// How long a measurement of the link counts.
const LINK_FRESH: Duration = Duration::from_secs(10);
/// After a change of codec so much is under way still in the old one, in the buffers of both sockets.
const UNDER_WAY_BYTES: u64 = 4 << 20;
/// Streams that wait for this share of their time have found the link's limit,
const WAITING_SHARE: f64 = 0.2;
/// and have it still while they wait for this one.
const STILL_WAITING_SHARE: f64 = 0.1;
/// A codec that takes more processor time has to be so much better to be taken,
const BETTER_TO_TAKE: f64 = 1.08;
/// and so much better to be kept.
const BETTER_TO_KEEP: f64 = 1.02;
/// Links seen by two codecs that differ by less are the same link.
const SAME_LINK: f64 = 1.25;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.3;
/// Processor time that says something about the clock's.
const TELLING_CPU: Duration = Duration::from_micros(50);

/// How to send a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The encoding of pages that are not uniform.
    pub codec: Codec,
    /// Whether pages of which the version sent before is known cross as the difference to it, if that is shorter.
    pub delta: bool,
    /// Encode some of its pages with this as well and say what it took ([`Chooser::sampled`]).
    pub sample: Option<Codec>,
}

/// What encoding pages took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Bytes of the pages.
    pub page_bytes: u64,
    /// Bytes they became.
    pub bytes: u64,
    /// Processor time.
    pub cpu: Duration,
}

/// What a batch took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SentWith {
    /// The codec of the plan.
    pub codec: Codec,
    /// The stream.
    pub stream: usize,
    /// Pages that went through the codec, those that did not shrink included; uniform ones not.
    pub plain: Encoded,
    /// Pages that crossed as differences; none where the plan did not allow it.
    pub delta: Option<Encoded>,
    /// How long both took by the clock.
    pub encode_wall: Duration,
    /// Bytes on the wire, headers included.
    pub wire_bytes: u64,
    /// Processor time of writing them.
    pub write_cpu: Duration,
    /// How long writing took by the clock, waiting for a limit of the bandwidth included.
    pub write_wall: Duration,
}

/// See the module.
#[derive(Debug)]
pub struct Chooser {
    asked: Encoding,
    processors: f64,
    candidates: [Candidate; CANDIDATES.len()],
    /// Index of the candidate in use.
    current: usize,
    /// The link as seen last, by whichever codec found its limit.
    link: Option<Seen>,
    /// Differences, as they were lately.
    delta: Costs,
    /// Share of the pages that crossed as differences.
    delta_share: f64,
    /// The link makes streams wait.
    waits: bool,
    stretch: f64,
    /// Processor seconds of writing a byte.
    write_cost: f64,
    window: Window,
    /// Bytes sent since the codec changed.
    since_change_bytes: u64,
    next_sample: Duration,
    sampled_last: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    costs: Costs,
    link: Option<Seen>,
}

/// Bytes made of one, and processor seconds it takes; unknown before the first measurement.
#[derive(Clone, Copy, Debug, Default)]
struct Costs {
    ratio: Option<f64>,
    cost: Option<f64>,
}

/// A rate at which the link took bytes, and when.
#[derive(Clone, Copy, Debug)]
struct Seen {
    bytes_per_s: f64,
    at: Duration,
}

/// What was sent since the last decision.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since: Duration,
    batches: u32,
    wire_bytes: u64,
    busy_s: f64,
    waiting_s: f64,
    /// One bit a stream.
    streams: u64,
}

impl Chooser {
    /// At the start of a migration; `processors` are those of this host.
    pub fn new(asked: Encoding, processors: usize) -> Self {
        Self {
            asked,
            processors: processors.max(1) as f64,
            candidates: Default::default(),
            current: 0,
            link: None,
            delta: Costs::default(),
            delta_share: 0.0,
            waits: false,
            stretch: 1.0,
            write_cost: 0.0,
            window: Window::default(),
            // Nothing is under way at the start.
            since_change_bytes: UNDER_WAY_BYTES,
            next_sample: Duration::ZERO,
            sampled_last: 0,
        }
    }

    /// How to send the next batch.
    pub fn plan(&mut self, now: Duration) -> Plan {
        match self.asked {
            Encoding::Fixed { codec, delta } => Plan {
                codec,
                delta,
                sample: None,
            },
            Encoding::Auto => {
                let codec = CANDIDATES[self.current];
                Plan {
                    codec,
                    // Raw pages are sent straight from memory, which is cheap; but what crossed is not known then, so
                    // that no difference to it can be made. While the link makes streams wait a copy costs nothing.
                    delta: codec != Codec::Raw || self.waits,
                    sample: self.next_sample(now),
                }
            }
        }
    }

    /// A batch was sent.
    pub fn sent(&mut self, now: Duration, batch: &SentWith) {
        let Some(index) = CANDIDATES.iter().position(|&codec| codec == batch.codec) else {
            return;
        };
        self.candidates[index].costs.measured(&batch.plain);
        if let Some(delta) = &batch.delta {
            self.delta.measured(delta);
            let page_bytes = batch.plain.page_bytes + delta.page_bytes;
            let share = delta.page_bytes as f64 / page_bytes.max(1) as f64;
            self.delta_share += NEWEST * (share - self.delta_share);
        }
        let delta_cpu = batch.delta.map_or(Duration::ZERO, |delta| delta.cpu);
        self.stretched(batch.plain.cpu + delta_cpu, batch.encode_wall);
        if batch.wire_bytes > 0 {
            let cost = batch.write_cpu.as_secs_f64() / batch.wire_bytes as f64;
            self.write_cost += NEWEST * (cost - self.write_cost);
        }
        if index != self.current {
            // Begun before the change.
            return;
        }
        self.since_change_bytes += batch.wire_bytes;
        if self.since_change_bytes < UNDER_WAY_BYTES {
            self.window = Window::starting(now);
            return;
        }
        self.window.add(batch, self.stretch);
        if self.window.is_full(now) {
            let window = std::mem::replace(&mut self.window, Window::starting(now));
            self.decide(now, &window);
        }
    }

    /// Pages were encoded to be measured, as [`Plan::sample`] asked for; `wall` is how long it took by the clock.
    pub fn sampled(&mut self, codec: Codec, sample: &Encoded, wall: Duration) {
        if let Some(index) = CANDIDATES.iter().position(|&candidate| candidate == codec) {
            self.candidates[index].costs.measured(sample);
            self.stretched(sample.cpu, wall);
            self.next_sample += wall * SAMPLE_REST;
        }
    }

    /// What nobody measured yet, else one after the other from time to time.
    fn next_sample(&mut self, now: Duration) -> Option<Codec> {
        let others = || (0..CANDIDATES.len()).filter(|&index| index != 0 && index != self.current);
        let unknown = others().find(|&index| self.candidates[index].costs.ratio.is_none());
        if unknown.is_none() && now < self.next_sample {
            return None;
        }
        let next = unknown
            .or_else(|| others().find(|&index| index > self.sampled_last))
            .or_else(|| others().next())?;
        self.next_sample = now + SAMPLE_EVERY;
        self.sampled_last = next;
        Some(CANDIDATES[next])
    }

    fn stretched(&mut self, cpu: Duration, wall: Duration) {
        if cpu >= TELLING_CPU {
            let stretch = (wall.as_secs_f64() / cpu.as_secs_f64()).max(1.0);
            self.stretch += NEWEST * (stretch - self.stretch);
        }
    }

    fn decide(&mut self, now: Duration, window: &Window) {
        let enough = if self.waits {
            STILL_WAITING_SHARE
        } else {
            WAITING_SHARE
        };
        self.waits = window.waiting_s >= enough * window.busy_s;
        if self.waits {
            let seen = Some(Seen {
                bytes_per_s: window.bytes_per_s(),
                at: now,
            });
            self.candidates[self.current].link = seen;
            self.link = seen;
        } else {
            // Its limit lies higher than that, wherever it was before.
            let reached = window.bytes_per_s();
            for link in [&mut self.link, &mut self.candidates[self.current].link] {
                *link = link.filter(|seen| seen.bytes_per_s > reached);
            }
        }
        let processors = f64::from(window.streams.count_ones()).min(self.processors);
        let mut best: Option<(usize, f64)> = None;
        for index in 0..CANDIDATES.len() {
            let Some(rate) = self.rate(now, index, processors) else {
                continue;
            };
            let better = match index <= self.current {
                true => BETTER_TO_KEEP,
                false => BETTER_TO_TAKE,
            };
            if best.is_none_or(|(_, of_best)| rate > better * of_best) {
                best = Some((index, rate));
            }
        }
        if let Some((index, _)) = best
            && index != self.current
        {
            self.current = index;
            self.since_change_bytes = 0;
        }
    }

    /// Bytes of memory a second that cross with this candidate; none where too little is known.
    fn rate(&self, now: Duration, index: usize, processors: f64) -> Option<f64> {
        let costs = &self.candidates[index].costs;
        let raw = CANDIDATES[index] == Codec::Raw;
        let (mut ratio, mut cost) = match raw {
            true => (1.0, costs.cost.unwrap_or(0.0)),
            false => (costs.ratio?, costs.cost?),
        };
        if let (Some(delta_ratio), Some(delta_cost)) = (self.delta.ratio, self.delta.cost)
            && (self.waits || !raw)
        {
            ratio += self.delta_share * (delta_ratio - ratio);
            cost += self.delta_share * (delta_cost - cost);
        }
        let busy = (cost + self.write_cost * ratio) * self.stretch;
        let fresh = |seen: &Seen| now.saturating_sub(seen.at) < LINK_FRESH;
        let link = match (self.candidates[index].link.filter(fresh), self.link.filter(fresh)) {
            (Some(own), Some(last)) if own.differs(&last) => Some(own),
            (own, last) => last.or(own),
        };
        let by_processors = processors / busy.max(f64::MIN_POSITIVE);
        let by_link = link.map_or(f64::INFINITY, |link| link.bytes_per_s / ratio.max(1e-6));
        Some(by_processors.min(by_link))
    }
}

impl Seen {
    fn differs(&self, other: &Self) -> bool {
        let ratio = self.bytes_per_s / other.bytes_per_s.max(f64::MIN_POSITIVE);
        !(1.0 / SAME_LINK..=SAME_LINK).contains(&ratio)
    }
}

impl Costs {
    fn measured(&mut self, encoded: &Encoded) {
        if encoded.page_bytes == 0 {
            return;
        }
        let newest = |old: &mut Option<f64>, new: f64| {
            *old = Some(old.map_or(new, |old| old + NEWEST * (new - old)));
        };
        let page_bytes = encoded.page_bytes as f64;
        newest(&mut self.ratio, encoded.bytes as f64 / page_bytes);
        newest(&mut self.cost, encoded.cpu.as_secs_f64() / page_bytes);
    }
}

impl Window {
    fn starting(now: Duration) -> Self {
        Self {
            since: now,
            ..Self::default()
        }
    }

    fn add(&mut self, batch: &SentWith, stretch: f64) {
        let write_s = batch.write_wall.as_secs_f64();
        self.batches += 1;
        self.wire_bytes += batch.wire_bytes;
        self.busy_s += write_s + batch.encode_wall.as_secs_f64();
        // Off the processor, but not because somebody else had it.
        self.waiting_s += (write_s - batch.write_cpu.as_secs_f64() * stretch).max(0.0);
        self.streams |= 1 << (batch.stream % 64);
    }

    fn is_full(&self, now: Duration) -> bool {
        now.saturating_sub(self.since) >= WINDOW && self.batches >= WINDOW_BATCHES * self.streams.count_ones()
    }

    /// What all streams together get rid of while they are busy.
    fn bytes_per_s(&self) -> f64 {
        self.wire_bytes as f64 / self.busy_s.max(1e-9) * f64::from(self.streams.count_ones())
    }
}
