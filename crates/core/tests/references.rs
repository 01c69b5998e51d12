//! Pages that cross as references to what the destination has, and that it turns out not to have, seen from the source machine.

use std::time::Duration;

use vmferry_core::source::{Batch, Command, Demand, Event, SentBatch, Setup, Source};
use vmferry_core::{Epoch, Limits, PageBitmap, PageRun, Strategy, Tuning};

const PAGES: u64 = 64;
const NOW: Duration = Duration::ZERO;
const EPOCH: Epoch = Epoch(1);

/// A guest that stopped with all its pages to be sent.
fn stopped(strategy: Strategy) -> Source {
    let setup = Setup {
        pages: PAGES,
        streams: 1,
        pinned_io: false,
        verify: false,
        epoch: EPOCH,
    };
    let policy = strategy.policy(&Limits::default(), &Tuning::default(), PAGES);
    let mut source = Source::new(setup, policy);
    source.handle(NOW, Event::Accepted { streams: 1 }).unwrap();
    let event = Event::Stopped {
        paused_at: NOW,
        pages: PageBitmap::full(PAGES),
        discarded: None,
        free: None,
    };
    source.handle(NOW, event).unwrap();
    source
}

/// Sends all that is to be sent, as references; answers which pages, and the round whose end was marked.
fn send_all(source: &mut Source) -> (PageBitmap, Option<u32>) {
    let mut sent = PageBitmap::new(PAGES);
    loop {
        match source.next_batch(NOW, 0) {
            Batch::Pages { runs, .. } => {
                let mut batch = SentBatch::default();
                for run in runs {
                    source.refers(run);
                    sent.insert_run(run);
                    batch.deduplicated += run.count;
                    batch.bytes += 32 * run.count;
                }
                source.sent(batch);
            }
            Batch::RoundEnd(round) => return (sent, Some(round)),
            _ => return (sent, None),
        }
    }
}

fn set(pages: &[u64]) -> PageBitmap {
    let mut set = PageBitmap::new(PAGES);
    pages.iter().for_each(|&page| {
        set.insert(page);
    });
    set
}

#[test]
fn what_was_missed_crosses_before_the_guest_is_handed_over() {
    let mut source = stopped(Strategy::StopAndCopy);
    source.handle(NOW, Event::StateSent { bytes: 1 }).unwrap();
    assert_eq!(send_all(&mut source), (PageBitmap::full(PAGES), Some(1)));
    source.handle(NOW, Event::Missed(set(&[3, 5]))).unwrap();
    source.handle(NOW, Event::Missed(set(&[60]))).unwrap();
    let next = source.handle(NOW, Event::RoundReceived { round: 1 }).unwrap();
    assert_eq!(next, [Command::WakeStreams]);
    assert_eq!(send_all(&mut source), (set(&[3, 5, 60]), Some(2)));
    let next = source.handle(NOW, Event::RoundReceived { round: 2 }).unwrap();
    assert_eq!(next[0], Command::SendPrepare(EPOCH));
    let counts = source.measured().counts;
    assert_eq!((counts.deduplicated, counts.sent), (PAGES + 3, PAGES + 3));
}

#[test]
fn only_what_crossed_as_a_reference_can_be_missed() {
    let mut source = stopped(Strategy::StopAndCopy);
    let Batch::Pages { runs, .. } = source.next_batch(NOW, 0) else {
        panic!("no pages to send");
    };
    source.refers(PageRun::single(runs[0].first));
    let error = source
        .handle(NOW, Event::Missed(set(&[runs[0].first, 40])))
        .unwrap_err();
    assert!(error.to_string().contains("1 missed pages"), "{error}");
}

#[test]
fn a_demand_for_what_crossed_as_a_reference_is_answered_at_once() {
    let mut source = stopped(Strategy::PostCopyPush);
    for event in [
        Event::StateSent { bytes: 1 },
        Event::StateConfirmed,
        Event::Ready(EPOCH),
        Event::Journaled,
        Event::Running(EPOCH),
    ] {
        source.handle(NOW, event).unwrap();
    }
    let (sent, _) = send_all(&mut source);
    assert_eq!(sent, PageBitmap::full(PAGES));
    assert!(source.check_all_pushed().contains(&Command::SendAllPushed));
    assert_eq!(source.demanded(NOW, 7), Demand::Send);
    // It is on its way whole now.
    assert_eq!(source.demanded(NOW, 7), Demand::UnderWay);
    assert_eq!(source.demanded(NOW, 8), Demand::Send);
}
