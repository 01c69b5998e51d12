//! The choice of an encoding, in virtual time: a stream, its socket and a link, with content and processors that change.

use std::time::Duration;

use vmferry_core::encoding::{Chooser, Codec, Encoded, Encoding, SentWith};

const BATCH: f64 = (1 << 20) as f64;
/// What a socket holds.
const SOCKET: f64 = 1e6;
/// Processor seconds of writing a byte.
const WRITE: f64 = 0.4e-9;

/// How pages compress: ratio and nanoseconds a byte of lz4, zstd, zstd:5.
type Content = [(f64, f64); 3];
const TEXT: Content = [(0.55, 1.2), (0.38, 2.2), (0.33, 9.0)];
const NOISE: Content = [(1.0, 0.6), (1.0, 0.9), (1.0, 6.0)];

struct World {
    chooser: Chooser,
    now: f64,
    /// Bytes a second.
    link: f64,
    /// Seconds by the clock for one of a processor.
    stretch: f64,
    content: Content,
    /// Bytes of memory a second that the destination takes in, where it decodes.
    decodes: f64,
    streams: usize,
    /// Share by which the link is now faster, now slower.
    noise: f64,
    /// Bytes in sockets.
    under_way: f64,
    /// Bytes of memory and when, by codec.
    sent: Vec<(Codec, f64)>,
}

impl World {
    fn new(link_mbit: f64) -> Self {
        Self {
            chooser: Chooser::new(Encoding::Auto, 8),
            now: 0.0,
            link: link_mbit * 1e6 / 8.0,
            stretch: 1.0,
            content: TEXT,
            decodes: f64::INFINITY,
            streams: 1,
            noise: 0.0,
            under_way: 0.0,
            sent: Vec::new(),
        }
    }

    fn costs(&self, codec: Codec) -> (f64, f64) {
        let (ratio, ns) = match codec {
            Codec::Raw => (1.0, 0.0),
            Codec::Lz4 => self.content[0],
            Codec::Zstd(1) => self.content[1],
            Codec::Zstd(_) => self.content[2],
        };
        (ratio, ns * 1e-9)
    }

    /// What a link of this kind gets rid of a second, with this codec.
    fn drain(&self, codec: Codec) -> f64 {
        match codec {
            Codec::Raw => self.link,
            _ => self.link.min(self.decodes * self.costs(codec).0),
        }
    }

    /// Bytes of memory a second where only this codec is used.
    fn rate_with(&self, codec: Codec) -> f64 {
        let (ratio, cost) = self.costs(codec);
        let busy = (cost + WRITE * ratio) * self.stretch / self.streams as f64;
        (1.0 / busy).min(self.drain(codec) / ratio)
    }

    fn best_rate(&self) -> f64 {
        [Codec::Raw, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(5)]
            .map(|codec| self.rate_with(codec))
            .into_iter()
            .fold(0.0, f64::max)
    }

    /// One batch of each stream, at the same time.
    fn batches(&mut self) {
        let now = Duration::from_secs_f64(self.now);
        let plans: Vec<_> = (0..self.streams).map(|_| self.chooser.plan(now)).collect();
        let codec = plans[0].codec;
        let (ratio, cost) = self.costs(codec);
        let (encode, write) = (cost * BATCH, WRITE * BATCH * ratio);
        let mut sample_wall: f64 = 0.0;
        for plan in &plans {
            if let Some(sample) = plan.sample {
                let (ratio, cost) = self.costs(sample);
                let piece = BATCH / 8.0;
                let wall = cost * piece * self.stretch;
                self.chooser
                    .sampled(sample, &encoded(piece, ratio, cost * piece), seconds(wall));
                sample_wall = sample_wall.max(wall);
            }
        }
        let wave = (self.now * 9.0).sin() + (self.now * 23.0).cos();
        let drain = self.drain(codec) * (1.0 + self.noise * wave / 2.0);
        let running = (encode + write) * self.stretch + sample_wall;
        self.under_way = (self.under_way - drain * running).max(0.0) + BATCH * ratio * self.streams as f64;
        let room = SOCKET * self.streams as f64;
        let waiting = ((self.under_way - room) / drain).max(0.0);
        self.under_way = self.under_way.min(room);
        self.now += running + waiting;
        for (stream, plan) in plans.iter().enumerate() {
            let sent = SentWith {
                codec: plan.codec,
                stream,
                plain: encoded(BATCH, ratio, encode),
                delta: None,
                encode_wall: seconds(encode * self.stretch),
                wire_bytes: (BATCH * ratio) as u64,
                write_cpu: seconds(write),
                write_wall: seconds(write * self.stretch + waiting),
            };
            self.chooser.sent(seconds(self.now), &sent);
            self.sent.push((plan.codec, BATCH));
        }
    }

    /// Goes on for a time; answers the share of the best possible rate that was reached, and the codec used most.
    fn run(&mut self, time: f64) -> (f64, Codec) {
        let (from, until) = (self.now, self.now + time);
        self.sent.clear();
        while self.now < until {
            self.batches();
        }
        let bytes: f64 = self.sent.iter().map(|(_, bytes)| bytes).sum();
        let most = [Codec::Raw, Codec::Lz4, Codec::Zstd(1), Codec::Zstd(5)]
            .into_iter()
            .max_by_key(|codec| self.sent.iter().filter(|(with, _)| with == codec).count())
            .unwrap();
        (bytes / (self.now - from) / self.best_rate(), most)
    }

    fn settles_on(&mut self, codec: Codec, within: f64) {
        self.run(within);
        let (share, most) = self.run(5.0);
        assert_eq!(most, codec, "{self:?}");
        assert!(share > 0.85, "{share:.2} of the best rate, with {most}: {self:?}");
    }
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "link {:.0} MB/s, stretch {}, {} streams, {:?}",
            self.link / 1e6,
            self.stretch,
            self.streams,
            self.chooser
        )
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn encoded(page_bytes: f64, ratio: f64, cpu: f64) -> Encoded {
    Encoded {
        page_bytes: page_bytes as u64,
        bytes: (page_bytes * ratio) as u64,
        cpu: seconds(cpu),
    }
}

#[test]
fn a_slow_link_gets_the_shortest_encoding_and_a_fast_one_raw_pages() {
    World::new(100.0).settles_on(Codec::Zstd(5), 2.0);
    World::new(1000.0).settles_on(Codec::Zstd(1), 2.0);
    World::new(25_000.0).settles_on(Codec::Raw, 2.0);
    let mut streams = World::new(10_000.0);
    streams.streams = 4;
    // Four processors do 2.8 GB/s of lz4 and 1.7 of zstd.
    streams.settles_on(Codec::Lz4, 2.0);
}

#[test]
fn a_link_between_gets_what_its_processors_can_do() {
    // 375 MB/s: lz4 does 680, zstd 420 by its processor.
    let mut world = World::new(3000.0);
    let (share, _) = {
        world.run(2.0);
        world.run(5.0)
    };
    assert!(share > 0.85, "{share:.2} of the best rate: {world:?}");
}

#[test]
fn what_does_not_compress_goes_raw_on_any_link() {
    for mbit in [50.0, 1000.0, 10_000.0, 40_000.0] {
        let mut world = World::new(mbit);
        world.content = NOISE;
        world.settles_on(Codec::Raw, 3.0);
    }
}

#[test]
fn it_follows_the_link() {
    let mut world = World::new(40_000.0);
    world.settles_on(Codec::Raw, 2.0);
    world.link = 100e6 / 8.0;
    world.settles_on(Codec::Zstd(5), 2.0);
    // The encoding does not find the new limit by itself: raw pages have to be tried.
    world.link = 40e9 / 8.0;
    world.settles_on(Codec::Raw, 12.0);
}

#[test]
fn a_link_of_changing_rate_does_not_make_it_waver() {
    let mut world = World::new(300.0);
    // Close to each other.
    world.content = [(0.43, 1.2), (0.4, 2.2), (0.37, 4.0)];
    world.noise = 0.2;
    world.run(2.0);
    world.run(20.0);
    let changes = world.sent.windows(2).filter(|pair| pair[0].0 != pair[1].0);
    let changes = changes.count();
    assert!(changes <= 2, "{changes} changes in 20 s: {world:?}");
}

#[test]
fn it_follows_the_content() {
    let mut world = World::new(1000.0);
    world.settles_on(Codec::Zstd(1), 2.0);
    world.content = NOISE;
    world.settles_on(Codec::Raw, 2.0);
    world.content = TEXT;
    world.settles_on(Codec::Zstd(1), 2.0);
}

#[test]
fn it_gives_way_when_the_processors_are_taken() {
    let mut world = World::new(1000.0);
    world.settles_on(Codec::Zstd(1), 2.0);
    world.stretch = 12.0;
    world.settles_on(Codec::Raw, 12.0);
    world.stretch = 1.0;
    world.settles_on(Codec::Zstd(1), 3.0);
}

#[test]
fn a_destination_that_decodes_too_slowly_is_found_out() {
    let mut world = World::new(2000.0);
    world.decodes = 100e6;
    world.run(2.0);
    let (share, most) = world.run(20.0);
    assert_eq!(most, Codec::Raw);
    assert!(share > 0.8, "{share:.2} of the best rate: {world:?}");
}

/// Memory that does not compress, of which a tenth of each page changes.
#[test]
fn differences_are_tried_where_the_link_makes_streams_wait() {
    for (link, expected) in [(50e6, true), (50e9, false)] {
        let mut chooser = Chooser::new(Encoding::Auto, 4);
        let mut now = Duration::ZERO;
        let mut last = None;
        for _ in 0..400 {
            let plan = chooser.plan(now);
            if let Some(sample) = plan.sample {
                chooser.sampled(sample, &encoded(1e5, 1.0, 1e-4), Duration::from_micros(100));
            }
            let (plain, delta) = match plan.delta {
                true => (
                    encoded(BATCH * 0.1, 1.0, 1e-5),
                    Some(encoded(BATCH * 0.9, 0.05, 4e-4)),
                ),
                false => (encoded(BATCH, 1.0, 0.0), None),
            };
            let wire_bytes = plain.bytes + delta.map_or(0, |delta| delta.bytes);
            let write_cpu = seconds(WRITE * wire_bytes as f64);
            let encode_wall = plain.cpu + delta.map_or(Duration::ZERO, |delta| delta.cpu);
            let write_wall = write_cpu + seconds(wire_bytes as f64 / link).saturating_sub(encode_wall);
            now += write_wall + encode_wall;
            let sent = SentWith {
                codec: plan.codec,
                stream: 0,
                plain,
                delta,
                encode_wall,
                wire_bytes,
                write_cpu,
                write_wall,
            };
            chooser.sent(now, &sent);
            last = Some((plan.codec, plan.delta));
        }
        assert_eq!(last, Some((Codec::Raw, expected)), "{chooser:?}");
    }
}

#[test]
fn what_the_operator_asks_for_is_what_is_done() {
    for (text, codec, delta) in [
        ("raw", Codec::Raw, false),
        ("lz4+delta", Codec::Lz4, true),
        ("zstd:7", Codec::Zstd(7), false),
        ("delta", Codec::Raw, true),
    ] {
        let mut chooser = Chooser::new(text.parse().unwrap(), 1);
        for step in 0..100 {
            let plan = chooser.plan(Duration::from_millis(50 * step));
            assert_eq!((plan.codec, plan.delta, plan.sample), (codec, delta, None));
            let sent = SentWith {
                codec,
                stream: 0,
                plain: encoded(BATCH, 1.0, 1.0),
                delta: None,
                encode_wall: Duration::from_secs(1),
                wire_bytes: 1,
                write_cpu: Duration::ZERO,
                write_wall: Duration::ZERO,
            };
            chooser.sent(Duration::from_millis(50 * step + 20), &sent);
        }
    }
}
