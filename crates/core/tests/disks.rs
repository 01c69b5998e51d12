//! A source whose guest's disks move with it: disks first, memory then, and the device state only when the disks have settled.

use std::time::Duration;

use vmferry_core::disks::DiskProgress;
use vmferry_core::report::Outcome;
use vmferry_core::source::{Batch, Command, Event, SentBatch, Setup, Source};
use vmferry_core::{Epoch, Limits, PageBitmap, Strategy, Tuning};

const PAGES: u64 = 64;
const MS: Duration = Duration::from_millis(1);

fn source(strategy: Strategy, limits: &Limits) -> Source {
    let setup = Setup {
        pages: PAGES,
        streams: 1,
        pinned_io: false,
        verify: false,
        epoch: Epoch(1),
    };
    let policy = strategy.policy(limits, &Tuning::default(), PAGES);
    Source::new(setup, policy)
        .within(limits)
        .with_disks(limits.downtime)
}

fn progress(done_bytes: u64, total_bytes: u64, in_sync: bool) -> Event {
    Event::DisksProgress(DiskProgress {
        total_bytes,
        done_bytes,
        in_sync,
    })
}

fn accepted() -> Event {
    Event::Accepted { streams: 1 }
}

fn stopped(paused_at: Duration) -> Event {
    Event::Stopped {
        paused_at,
        pages: PageBitmap::full(PAGES),
        discarded: None,
        free: None,
    }
}

/// Sends everything of the round under way.
fn send_round(source: &mut Source, now: Duration) -> u32 {
    loop {
        match source.next_batch(now, 0) {
            Batch::Pages { runs, .. } => source.sent(SentBatch {
                raw: runs.iter().map(|run| run.count).sum(),
                bytes: runs.iter().map(|run| run.bytes()).sum(),
                ..SentBatch::default()
            }),
            Batch::RoundEnd(round) => return round,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn disks_come_first_and_settle_before_the_device_state_is_saved() {
    let mut source = source(Strategy::StopAndCopy, &Limits::default());
    let mut take = |ms: u64, event: Event| source.handle(Duration::from_millis(ms), event).unwrap();
    assert_eq!(take(1, accepted()), [Command::CopyDisks]);
    assert_eq!(take(100, progress(10, 1000, false)), []);
    assert_eq!(take(200, progress(900, 1000, false)), []);
    let stop = Command::Stop {
        scan: false,
        free: false,
    };
    assert_eq!(take(300, progress(1000, 1000, true)), [stop]);
    assert_eq!(
        take(301, stopped(300 * MS)),
        [Command::WakeStreams, Command::SettleDisks]
    );
    // All pages are there, the disks are not: nothing is prepared yet.
    let round = send_round(&mut source, 302 * MS);
    let mut take = |ms: u64, event: Event| source.handle(Duration::from_millis(ms), event).unwrap();
    assert_eq!(take(303, Event::RoundReceived { round }), []);
    assert_eq!(take(310, Event::DisksSettled), [Command::SendState]);
    let prepare = [Command::SendPrepare(Epoch(1)), Command::ConfirmState];
    assert_eq!(take(311, Event::StateSent { bytes: 1 }), prepare);
    assert_eq!(source.disk_times(), Some((299 * MS, 9 * MS)));
    let phases: Vec<_> = source
        .measured()
        .phases
        .into_iter()
        .map(|phase| phase.name)
        .collect();
    assert_eq!(
        phases[..3],
        ["prepare destination", "copy disks", "stop-and-copy"]
    );
}

#[test]
fn post_copy_waits_for_the_disks_as_well() {
    let mut source = source(Strategy::PostCopyPush, &Limits::default());
    let mut take = |ms: u64, event: Event| source.handle(Duration::from_millis(ms), event).unwrap();
    take(1, accepted());
    take(2, progress(0, 0, true));
    let commands = take(3, stopped(3 * MS));
    assert!(matches!(
        commands[..],
        [Command::SendSwitch { .. }, Command::SettleDisks]
    ));
    assert_eq!(take(4, Event::DisksSettled), [Command::SendState]);
    assert!(source.handle(5 * MS, Event::DisksSettled).is_err(), "once");
}

#[test]
fn the_stop_is_put_off_while_the_disks_lag_behind() {
    let mut source = source(Strategy::StopAndCopy, &Limits::default());
    let mut take = |ms: u64, event: Event| source.handle(Duration::from_millis(ms), event).unwrap();
    take(1, accepted());
    take(100, progress(0, 10 << 20, false));
    // 10 MiB/s, and as much is left.
    assert_eq!(take(1100, progress(10 << 20, 20 << 20, true)), []);
    assert_eq!(source.deadline(), Some(1200 * MS));
    assert_eq!(source.progress(1100 * MS).phase, "catch up with the disks");
    let mut take = |ms: u64, event: Event| source.handle(Duration::from_millis(ms), event).unwrap();
    assert_eq!(take(1200, Event::Tick), []);
    assert_eq!(take(1250, progress(20 << 20, 20 << 20, true)), []);
    assert!(matches!(take(1300, Event::Tick)[..], [Command::Stop { .. }]));
}

#[test]
fn limits_of_time_count_from_when_the_disks_are_there() {
    let limits = Limits {
        downtime: Duration::from_nanos(1),
        time: Some(Duration::from_secs(10)),
        ..Limits::default()
    };
    let mut source = source(Strategy::PreCopy, &limits);
    let hour = 3_600_000;
    let mut take = |ms: u64, event: Event| source.handle(Duration::from_millis(ms), event).unwrap();
    take(1, accepted());
    assert_eq!(take(hour, progress(0, 0, true)), [Command::Arm]);
    let armed = Event::Armed {
        data: PageBitmap::full(PAGES),
        paused: MS,
    };
    assert_eq!(
        take(hour + 1, armed),
        [Command::WakeStreams],
        "a round, not the limit"
    );
}

#[test]
fn a_copy_that_fails_or_is_cancelled_leaves_the_guest_where_it_is() {
    for (event, outcome) in [
        (Event::Failed("no room".into()), Outcome::Failed),
        (Event::Cancel, Outcome::Cancelled),
        (Event::Disconnected("gone".into()), Outcome::Failed),
    ] {
        let mut source = source(Strategy::PreCopy, &Limits::default());
        source.handle(MS, accepted()).unwrap();
        let commands = source.handle(2 * MS, event).unwrap();
        assert!(commands.contains(&Command::Rollback), "{commands:?}");
        assert_eq!(source.ended().unwrap().0, outcome);
        // What the mirrors still say does not count.
        assert_eq!(source.handle(3 * MS, progress(1, 2, true)).unwrap(), []);
        assert_eq!(source.handle(3 * MS, Event::DisksSettled).unwrap(), []);
    }
}

/// Under a cap neither disks nor pages starve.
#[test]
fn disks_and_pages_share_the_cap() {
    let limits = Limits {
        bandwidth_bytes_per_s: Some(10_000_000),
        ..Limits::default()
    };
    let mut source = source(Strategy::StopAndCopy, &limits);
    source.handle(MS, accepted()).unwrap();
    source.handle(2 * MS, progress(0, 0, true)).unwrap();
    source.handle(3 * MS, stopped(3 * MS)).unwrap();
    let (mut pages, mut disks) = (0, 0);
    for us in 0..200_000 {
        let now = 3 * MS + Duration::from_micros(us);
        // Disks ask first, and for less at once.
        if source.admit_disk_bytes(now, 16_000).is_ok() {
            disks += 16_000;
        }
        if let Batch::Pages { runs, .. } = source.next_batch(now, 0) {
            let count: u64 = runs.iter().map(|run| run.count).sum();
            pages += count * 4096;
            source.sent(SentBatch {
                raw: count,
                bytes: count * 4128,
                ..SentBatch::default()
            });
        }
        if pages == PAGES * 4096 {
            break;
        }
    }
    assert_eq!(pages, PAGES * 4096, "pages do not starve");
    assert!(
        disks * 4 > pages && disks < pages * 3,
        "{disks} bytes of disks beside {pages} of pages"
    );
}
