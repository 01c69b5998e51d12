//! Limits and streams, seen from the source machine in virtual time: the bandwidth cap, the time limit, and streams of
//! different speed.

use std::time::Duration;

use vmferry_core::report::Outcome;
use vmferry_core::source::{Batch, Command, Demand, Event, SentBatch, Setup, Source, Summary};
use vmferry_core::{Epoch, Limits, PAGE_SIZE, PageBitmap, Strategy, Tuning};

const PAGES: u64 = 16_384;
const EPOCH: Epoch = Epoch(1);
const MS: Duration = Duration::from_millis(1);
const HEADER_BYTES: u64 = 32;

/// A source whose page streams write at rates of their own.
struct Rig {
    source: Source,
    streams: Vec<Stream>,
    /// What crossed when.
    crossed: Vec<(Duration, u64)>,
}

struct Stream {
    bytes_per_s: u64,
    free_at: Duration,
    writing: Option<SentBatch>,
    /// It sent its mark of the round's end.
    marked_at: Option<Duration>,
    pages: u64,
}

impl Rig {
    fn new(strategy: Strategy, limits: &Limits, rates: &[u64]) -> Self {
        let setup = Setup {
            pages: PAGES,
            streams: rates.len(),
            pinned_io: false,
            verify: false,
            epoch: EPOCH,
        };
        let policy = strategy.policy(limits, &Tuning::default(), PAGES);
        let streams = rates.iter().map(|&bytes_per_s| Stream {
            bytes_per_s,
            free_at: Duration::ZERO,
            writing: None,
            marked_at: None,
            pages: 0,
        });
        Self {
            source: Source::new(setup, policy).within(limits),
            streams: streams.collect(),
            crossed: Vec::new(),
        }
    }

    fn feed(&mut self, now: Duration, event: Event) -> Vec<Command> {
        self.source.handle(now, event).unwrap()
    }

    /// As far as the stop of a strategy that does not track, with all pages to be sent.
    fn stopped(mut self) -> Self {
        let streams = self.streams.len();
        self.feed(Duration::ZERO, Event::Accepted { streams });
        self.feed(
            Duration::ZERO,
            Event::Stopped {
                paused_at: Duration::ZERO,
                pages: PageBitmap::full(PAGES),
                discarded: None,
                free: None,
            },
        );
        self
    }

    /// As far as a guest that runs at the destination.
    fn resumed(self) -> Self {
        let mut rig = self.stopped();
        for event in [
            Event::StateSent { bytes: 0 },
            Event::StateConfirmed,
            Event::Ready(EPOCH),
            Event::Journaled,
            Event::Running(EPOCH),
        ] {
            rig.feed(Duration::ZERO, event);
        }
        rig
    }

    /// Lets the streams go on until `until`, or until nobody has anything to do. Answers when the last one was busy.
    fn run_until(&mut self, until: Duration) -> Duration {
        let mut busy = Duration::ZERO;
        loop {
            let times = self.streams.iter().map(|stream| stream.free_at);
            let (index, now) = times.enumerate().min_by_key(|&(_, at)| at).unwrap();
            if now > until || now == Duration::MAX {
                return busy;
            }
            let stream = &mut self.streams[index];
            if let Some(sent) = stream.writing.take() {
                self.source.sent(sent);
                busy = now;
            }
            match self.source.next_batch(now, index) {
                Batch::Pages { runs, .. } => {
                    let pages: u64 = runs.iter().map(|run| run.count).sum();
                    // Every fourth page takes a header only.
                    let bytes = pages * HEADER_BYTES + (pages - pages / 4) * PAGE_SIZE;
                    stream.pages += pages;
                    stream.writing = Some(SentBatch {
                        raw: pages - pages / 4,
                        uniform: pages / 4,
                        bytes,
                        ..SentBatch::default()
                    });
                    stream.free_at = now + Duration::from_secs_f64(bytes as f64 / stream.bytes_per_s as f64);
                    self.crossed.push((now, bytes));
                }
                Batch::RoundEnd(_) => stream.marked_at = Some(now),
                Batch::Idle(at) => {
                    assert!(at.is_none_or(|at| at > now), "it would spin");
                    stream.free_at = at.unwrap_or(Duration::MAX);
                }
                Batch::Finished => stream.free_at = Duration::MAX,
            }
        }
    }

    fn bytes_between(&self, from: Duration, to: Duration) -> u64 {
        let within = self.crossed.iter().filter(|(at, _)| (from..to).contains(at));
        within.map(|(_, bytes)| bytes).sum()
    }
}

fn capped(bytes_per_s: u64) -> Limits {
    Limits {
        bandwidth_bytes_per_s: Some(bytes_per_s),
        ..Limits::default()
    }
}

#[test]
fn all_streams_together_stay_within_the_cap_in_every_window() {
    for cap in [125_000, 25_000_000, 400_000_000] {
        let mut rig = Rig::new(Strategy::StopAndCopy, &capped(cap), &[1_000_000_000; 4]).stopped();
        let took = rig.run_until(Duration::MAX);
        let burst = (cap / 50).max(PAGE_SIZE + HEADER_BYTES);
        for from in 0..rig.crossed.len() {
            let mut bytes = 0;
            // All windows at low rates would be millions.
            for &(at, more) in rig.crossed[from..].iter().take(200) {
                bytes += more;
                let allowed = (at - rig.crossed[from].0).as_secs_f64() * cap as f64 + burst as f64 + 1.0;
                assert!(bytes as f64 <= allowed, "{bytes} bytes, {allowed} allowed");
            }
        }
        let all = rig.bytes_between(Duration::ZERO, Duration::MAX);
        // The first burst needs no time.
        let ideal = all.saturating_sub(burst) as f64 / cap as f64;
        assert!(
            (0.999..1.05).contains(&(took.as_secs_f64() / ideal)),
            "{took:?} for {all} bytes at {cap}"
        );
        let waited = rig.source.measured().bandwidth_waited;
        assert!(
            waited > took / 2 && waited <= took,
            "waited {waited:?} of {took:?}"
        );
    }
}

#[test]
fn a_cap_above_the_link_costs_nothing() {
    let rate = 100_000_000;
    let time = |limits: &Limits| {
        let mut rig = Rig::new(Strategy::StopAndCopy, limits, &[rate; 2]).stopped();
        let took = rig.run_until(Duration::MAX);
        (took, rig.source.measured().bandwidth_waited)
    };
    let (free, _) = time(&Limits::default());
    let (held, waited) = time(&capped(4 * rate));
    assert!(held <= free + MS, "{held:?} against {free:?}");
    assert_eq!(waited, Duration::ZERO);
}

#[test]
fn the_cap_changes_under_way() {
    let mut rig = Rig::new(Strategy::StopAndCopy, &capped(5_000_000), &[1_000_000_000; 2]).stopped();
    rig.run_until(1000 * MS);
    for (cap, from) in [(10_000_000, 1000), (2_500_000, 2000)] {
        let commands = rig.feed(from * MS, Event::LimitBandwidth(Some(cap)));
        assert_eq!(commands, [Command::WakeStreams]);
        // As woken streams do.
        rig.streams
            .iter_mut()
            .for_each(|stream| stream.free_at = stream.free_at.min(from * MS));
        assert_eq!(
            rig.source.progress(from * MS).bandwidth_limit_bytes_per_s,
            Some(cap)
        );
        rig.run_until((from + 1000) * MS);
    }
    for (second, cap) in [(0, 5_000_000.0), (1, 10_000_000.0), (2, 2_500_000.0)] {
        let bytes = rig.bytes_between(second * 1000 * MS, (second + 1) * 1000 * MS) as f64;
        assert!(
            (0.9..1.1).contains(&(bytes / cap)),
            "{bytes} bytes in second {second}"
        );
    }
    rig.feed(3000 * MS, Event::LimitBandwidth(None));
    rig.streams
        .iter_mut()
        .for_each(|stream| stream.free_at = 3000 * MS);
    let end = rig.run_until(Duration::MAX);
    assert!(end < 3100 * MS, "{end:?}: the rest crosses at the link's rate");
    let notes = rig.source.measured().notes;
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(notes[2].contains("lifted"), "{notes:?}");
}

const fn seconds(count: u32) -> Duration {
    Duration::from_secs(count as u64)
}

#[test]
fn a_demanded_page_never_waits_and_the_push_pays_for_it() {
    let cap = 2_000_000;
    let mut rig = Rig::new(Strategy::PostCopyPush, &capped(cap), &[1_000_000_000; 2]).resumed();
    rig.run_until(200 * MS);
    // The bucket is empty, and a page is demanded every millisecond: twice what the cap allows.
    for (index, page) in (PAGES - 1000..PAGES).enumerate() {
        let now = 200 * MS + index as u32 * MS;
        assert_eq!(rig.source.demanded(now, page), Demand::Send);
        let bytes = PAGE_SIZE + HEADER_BYTES;
        rig.source.sent(SentBatch {
            raw: 1,
            bytes,
            ..SentBatch::default()
        });
        rig.run_until(now);
    }
    let pushed = rig.bytes_between(220 * MS, seconds(1));
    assert_eq!(pushed, 0, "demanded pages come first");
    // They are paid back, then the push goes on.
    rig.run_until(seconds(4));
    let pushed = rig.bytes_between(seconds(1), seconds(4)) as f64;
    let left = (3.8 - 2.064) * cap as f64;
    assert!(
        (0.8..1.2).contains(&(pushed / left)),
        "{pushed} bytes pushed, {left} were left"
    );
}

#[test]
fn the_end_of_a_round_does_not_wait_for_the_cap() {
    let mut rig = Rig::new(Strategy::StopAndCopy, &capped(1_000_000), &[1_000_000_000; 3]).stopped();
    let end = rig.run_until(Duration::MAX);
    for stream in &rig.streams {
        let marked_at = stream.marked_at.expect("every stream marks the end");
        assert!(
            marked_at <= end + MS,
            "marked at {marked_at:?}, all was sent at {end:?}"
        );
    }
}

#[test]
fn a_slow_stream_neither_idles_nor_holds_the_others_up() {
    for (slow, strategy) in [
        (5_000_000, Strategy::StopAndCopy),
        (1_000_000, Strategy::StopAndCopy),
        (1_000_000, Strategy::PostCopyPush),
    ] {
        let rates = [100_000_000, 100_000_000, slow];
        let rig = Rig::new(strategy, &Limits::default(), &rates);
        let mut rig = match strategy {
            Strategy::PostCopyPush => rig.resumed(),
            _ => rig.stopped(),
        };
        let end = rig.run_until(Duration::MAX);
        let all = rig.bytes_between(Duration::ZERO, Duration::MAX) as f64;
        let ideal = all / rates.iter().sum::<u64>() as f64;
        // A batch of a fixed MiB would hold the end up by 210 ms and 1 s.
        assert!(
            end.as_secs_f64() < ideal * 1.05 + 0.07,
            "{strategy}, slow stream {slow}: {end:?}, ideal {ideal} s"
        );
        assert!(rig.streams[2].pages > 0, "the slow one does its part");
        let (first, second) = (rig.streams[0].pages as f64, rig.streams[1].pages as f64);
        assert!(
            (0.9..1.1).contains(&(first / second)),
            "equal streams do equal parts"
        );
    }
}

#[test]
fn a_round_with_fewer_pages_than_streams_ends() {
    let mut rig = Rig::new(Strategy::StopAndCopy, &Limits::default(), &[1_000_000; 5]);
    rig.feed(Duration::ZERO, Event::Accepted { streams: 5 });
    let mut one = PageBitmap::new(PAGES);
    one.insert(7);
    rig.feed(
        Duration::ZERO,
        Event::Stopped {
            paused_at: Duration::ZERO,
            pages: one,
            discarded: None,
            free: None,
        },
    );
    rig.run_until(Duration::MAX);
    assert!(rig.streams.iter().all(|stream| stream.marked_at.is_some()));
    assert_eq!(rig.streams.iter().map(|stream| stream.pages).sum::<u64>(), 1);
}

fn timed(timeout: Duration) -> Limits {
    Limits {
        timeout: Some(timeout),
        ..Limits::default()
    }
}

#[test]
fn a_migration_that_takes_too_long_is_given_up_before_the_handover() {
    let mut rig = Rig::new(Strategy::StopAndCopy, &timed(500 * MS), &[1_000_000; 2]).stopped();
    rig.run_until(499 * MS);
    assert_eq!(rig.source.deadline(), Some(500 * MS));
    assert_eq!(rig.feed(499 * MS, Event::Tick), []);
    let commands = rig.feed(500 * MS, Event::Tick);
    assert!(
        commands.contains(&Command::Rollback)
            && commands
                .iter()
                .any(|command| matches!(command, Command::SendAbort(_))),
        "{commands:?}"
    );
    let (outcome, why) = rig.source.ended().unwrap();
    assert_eq!(outcome, Outcome::Failed);
    assert!(why.unwrap().contains("the time limit of 500 ms"), "{why:?}");
    assert_eq!(rig.source.deadline(), None);
}

#[test]
fn after_the_handover_a_migration_is_completed_however_long_it_takes() {
    let mut rig = Rig::new(Strategy::PostCopyPush, &timed(500 * MS), &[10_000_000; 2]).resumed();
    assert_eq!(rig.source.deadline(), None);
    let end = rig.run_until(Duration::MAX);
    assert!(end > 500 * MS);
    assert_eq!(rig.feed(end, Event::Tick), []);
    assert!(!rig.source.check_all_pushed().is_empty());
    rig.feed(end, Event::Complete(Summary::default()));
    assert_eq!(rig.source.ended(), Some((Outcome::Completed, None)));
    let notes = rig.source.measured().notes;
    assert!(
        notes.iter().any(|note| note.contains("can only be completed")),
        "{notes:?}"
    );
}
