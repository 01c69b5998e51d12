//! `enlightened`: its order of pages, and what its machine makes of a guest that answers, is late, or says nothing.

use std::time::Duration;

use proptest::prelude::*;
use vmferry_core::handover::Epoch;
use vmferry_core::hints::{Class, Hints};
use vmferry_core::ledger::Ledger;
use vmferry_core::policy::enlightened::Enlightened;
use vmferry_core::policy::{Pick, Policy, StopPlan, View};
use vmferry_core::rates::Rates;
use vmferry_core::source::{Command, Enlightenment, Event, Setup, Source};
use vmferry_core::{PageBitmap, PageRun};

const PAGES: u64 = 1000;
const TIMEOUT: Duration = Duration::from_secs(2);

fn set(runs: &[(u64, u64)]) -> PageBitmap {
    let mut set = PageBitmap::new(PAGES);
    runs.iter()
        .for_each(|&(first, count)| set.insert_run(PageRun::new(first, count)));
    set
}

fn hints(classes: &[(u64, u64, Class)]) -> Hints {
    let mut hints = Hints::new(PAGES);
    classes
        .iter()
        .for_each(|&(first, count, class)| hints.set(PageRun::new(first, count), class));
    hints
}

/// Shows a policy an empty book.
fn shown<T>(look: impl FnOnce(&View<'_>) -> T) -> T {
    let (ledger, none, rates) = (Ledger::new(set(&[])), set(&[]), Rates::default());
    look(&View {
        now: Duration::ZERO,
        ledger: &ledger,
        last_scan: &none,
        unsettled: &none,
        rounds: 0,
        bytes_sent: 0,
        rates: &rates,
    })
}

fn picked(policy: &mut Enlightened, left: &mut PageBitmap, max_pages: u64) -> PageRun {
    let Pick::Run(run) = shown(|view| policy.pick(view, left, max_pages)) else {
        panic!("it waits")
    };
    assert!(run.count > 0 && run.count <= max_pages && left.count_in(run) == run.count);
    left.remove_run(run);
    run
}

/// Those of `left` in the order of the policy, as runs that end where the order jumps.
fn order(policy: &mut Enlightened, mut left: PageBitmap) -> Vec<(u64, u64)> {
    let mut order: Vec<(u64, u64)> = Vec::new();
    while !left.is_empty() {
        let run = picked(policy, &mut left, 64);
        match order.last_mut() {
            Some((first, count)) if *first + *count == run.first => *count += run.count,
            _ => order.push((run.first, run.count)),
        }
    }
    order
}

#[test]
fn classes_follow_each_other_and_near_faults_come_first() {
    let mut policy = Enlightened::new(TIMEOUT);
    policy.enlightened(Ok(hints(&[
        (0, 100, Class::FileInactive),
        (100, 100, Class::UserData),
        (200, 50, Class::KernelCode),
        (300, 50, Class::UserData),
        (350, 50, Class::Free),
    ])));
    let mut left = set(&[(0, 340), (360, 10), (900, 100)]);
    assert_eq!(picked(&mut policy, &mut left, 10), PageRun::new(200, 10));
    left.remove(700);
    shown(|view| policy.faulted(view, 950));
    assert_eq!(picked(&mut policy, &mut left, 64), PageRun::new(950, 33));
    assert_eq!(picked(&mut policy, &mut left, 64), PageRun::new(918, 32));
    assert_eq!(
        order(&mut policy, left),
        [
            (210, 40),
            (100, 100),
            (300, 40),
            (0, 100),
            (250, 50),
            (900, 18),
            (983, 17),
            (360, 10)
        ]
    );
    assert!(policy.notes()[0].contains("kernel code 5.0 %"));
}

#[test]
fn a_guest_that_says_nothing_is_pushed_around_its_faults() {
    let mut policy = Enlightened::new(TIMEOUT);
    policy.enlightened(Err("no port".into()));
    let note = policy.notes().remove(0);
    assert!(
        note.contains("post-copy-push") && note.contains("no port"),
        "{note}"
    );
    let mut left = PageBitmap::full(PAGES);
    left.remove(500);
    shown(|view| policy.faulted(view, 500));
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(501, 8));
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(492, 8));
    let plan = shown(|view| policy.stop(view));
    assert!(matches!(plan, StopPlan::LeavePending { free: None }));
}

proptest! {
    /// Whatever the guest says: all that is left is sent, and what comes back after a broken connection too.
    #[test]
    fn any_hints_cost_only_time(
        runs in prop::collection::vec((0u64..PAGES, 1u64..200, 0u8..10), 0..40),
        left in prop::collection::vec((0u64..PAGES, 1u64..100), 1..10),
        demands in prop::collection::vec((0u64..PAGES + 50, 0usize..40), 0..20),
        max_pages in 1u64..300,
    ) {
        let cut = |first: u64, count: u64| PageRun::new(first, count.min(PAGES - first));
        let mut said = Hints::new(PAGES);
        for (first, count, class) in runs {
            said.set(cut(first, count), Class::of_number(class).unwrap());
        }
        let mut policy = Enlightened::new(TIMEOUT);
        policy.enlightened(Ok(said));
        for _ in 0..2 {
            let mut left = set(&left.iter().map(|&(first, count)| (first, count.min(PAGES - first))).collect::<Vec<_>>());
            let mut picks = 0;
            while !left.is_empty() {
                for (page, _) in demands.iter().filter(|(_, at)| *at == picks) {
                    shown(|view| policy.faulted(view, *page));
                }
                picked(&mut policy, &mut left, max_pages);
                picks += 1;
                prop_assert!(picks as u64 <= PAGES);
            }
        }
    }
}

// The machine.

fn source(verify: bool) -> Source {
    let setup = Setup {
        pages: PAGES,
        streams: 1,
        pinned_io: false,
        verify,
        epoch: Epoch(2),
    };
    Source::new(setup, Box::new(Enlightened::new(TIMEOUT)))
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn accepted() -> Event {
    Event::Accepted { streams: 1 }
}

fn told(exact: bool) -> Event {
    Event::Enlightened(Enlightenment::Told {
        hints: hints(&[(100, 100, Class::Free)]),
        exact,
    })
}

fn stopped(pages: PageBitmap, free: Option<PageBitmap>) -> Event {
    Event::Stopped {
        paused_at: at(50),
        pages,
        discarded: None,
        free,
    }
}

/// The pages that follow after the resume.
fn announced(commands: &[Command]) -> &PageBitmap {
    match commands {
        [Command::SendSwitch { pending }, Command::SendState] => pending,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pages_free_at_the_stop_are_dropped_whenever_the_answer_came() {
    for early in [true, false] {
        let mut source = source(true);
        assert_eq!(source.wants_hints(), Some(TIMEOUT));
        let mut events = [told(true), accepted()];
        if !early {
            events.reverse();
        }
        let [first, second] = events;
        assert_eq!(source.handle(at(10), first).unwrap(), []);
        let stop = Command::Stop {
            scan: false,
            free: true,
        };
        assert_eq!(source.handle(at(20), second).unwrap(), [stop]);
        let commands = source
            .handle(
                at(60),
                stopped(set(&[(0, 500)]), Some(set(&[(150, 10), (900, 5)]))),
            )
            .unwrap();
        assert_eq!(announced(&commands), &set(&[(0, 150), (160, 340)]));
        assert_eq!(source.dropped(), Some(&set(&[(150, 10)])));
        assert_eq!(source.measured().counts.free, 10, "a hole is no dropped page");
    }
}

#[test]
fn where_free_pages_cannot_be_told_a_list_read_under_tracking_serves() {
    let mut source = source(false);
    let why = || "lockdown".into();
    source.handle(at(0), accepted()).unwrap();
    let inexact = Event::Enlightened(Enlightenment::Inexact { why: why() });
    assert_eq!(source.handle(at(10), inexact).unwrap(), [Command::Arm]);
    let armed = Event::Armed {
        data: PageBitmap::full(PAGES),
        paused: at(1),
    };
    assert_eq!(source.handle(at(20), armed).unwrap(), [Command::Enlighten]);
    assert_eq!(source.deadline(), Some(at(2020)), "it has its time again");
    let stop = Command::Stop {
        scan: true,
        free: false,
    };
    assert_eq!(source.handle(at(30), told(false)).unwrap(), [stop]);
    let commands = source.handle(at(60), stopped(set(&[(150, 100)]), None)).unwrap();
    assert_eq!(
        announced(&commands),
        &set(&[(0, 100), (150, 850)]),
        "without what was written since"
    );
    assert!(
        source
            .measured()
            .notes
            .iter()
            .any(|note| note.contains("lockdown"))
    );
}

#[test]
fn an_answer_that_does_not_come_is_not_waited_for() {
    let mut source = source(false);
    assert_eq!(source.handle(at(100), accepted()).unwrap(), []);
    assert_eq!(source.deadline(), Some(TIMEOUT));
    assert_eq!(source.handle(at(1999), Event::Tick).unwrap(), []);
    let stop = Command::Stop {
        scan: false,
        free: false,
    };
    assert_eq!(source.handle(at(2000), Event::Tick).unwrap(), [stop]);
    assert_eq!(source.handle(at(2001), told(true)).unwrap(), [], "too late");
    let commands = source
        .handle(at(2002), stopped(PageBitmap::full(PAGES), None))
        .unwrap();
    assert_eq!(announced(&commands), &PageBitmap::full(PAGES));
    let notes = source.measured().notes;
    assert!(
        notes.iter().any(|note| note.contains("no answer within 2000 ms")),
        "{notes:?}"
    );
}

#[test]
fn a_list_read_without_tracking_drops_nothing_and_neither_does_a_guest_reset_since() {
    for (exact, free) in [(false, None), (true, None)] {
        let mut source = source(false);
        source.handle(at(0), accepted()).unwrap();
        source.handle(at(1), told(exact)).unwrap();
        let commands = source
            .handle(at(2), stopped(PageBitmap::full(PAGES), free))
            .unwrap();
        assert_eq!(announced(&commands), &PageBitmap::full(PAGES));
        assert_eq!(source.dropped().map(PageBitmap::count).unwrap_or_default(), 0);
    }
}
