//! Every policy by itself: what it picks, when it stops, and how it keeps its limits.

use std::time::Duration;

use proptest::prelude::*;
use vmferry_core::ledger::Ledger;
use vmferry_core::policy::post_copy_push::PostCopyPush;
use vmferry_core::policy::{Faults, LiveStep, Pick, Policy, RoundPages, StopPlan, View};
use vmferry_core::rates::Rates;
use vmferry_core::{AtLimit, Limits, PageBitmap, PageRun, Strategy, Tuning};

const PAGES: u64 = 4096;

/// What a policy is shown.
struct Shown {
    now: Duration,
    ledger: Ledger,
    last_scan: PageBitmap,
    unsettled: PageBitmap,
    rounds: u32,
    bytes_sent: u64,
    rates: Rates,
}

impl Shown {
    /// With `pending` pages, of which the link carries 100 in a millisecond.
    fn pending(pending: u64) -> Self {
        let mut data = PageBitmap::new(PAGES);
        if pending > 0 {
            data.insert_run(PageRun::new(0, pending));
        }
        let mut rates = Rates::default();
        rates.round_received(1000, 1000 * 4136, Duration::from_millis(10));
        Self {
            now: Duration::ZERO,
            ledger: Ledger::new(data),
            last_scan: PageBitmap::new(PAGES),
            unsettled: PageBitmap::new(PAGES),
            rounds: 1,
            bytes_sent: 0,
            rates,
        }
    }

    fn view(&self) -> View<'_> {
        View {
            now: self.now,
            ledger: &self.ledger,
            last_scan: &self.last_scan,
            unsettled: &self.unsettled,
            rounds: self.rounds,
            bytes_sent: self.bytes_sent,
            rates: &self.rates,
        }
    }
}

fn milliseconds(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn limits() -> Limits {
    Limits {
        downtime: milliseconds(1),
        rounds: 4,
        ..Limits::default()
    }
}

fn policy_within(strategy: Strategy, limits: &Limits) -> Box<dyn Policy> {
    strategy.policy(limits, &Tuning::default(), PAGES)
}

fn step(policy: &mut dyn Policy, shown: &Shown) -> &'static str {
    match policy.live(&shown.view()) {
        LiveStep::Round(plan) => {
            assert!(matches!(plan.pages, RoundPages::Pending));
            "round"
        }
        LiveStep::Wait(_) => "wait",
        LiveStep::SwitchOver => "switch over",
        LiveStep::Abort(_) => "abort",
    }
}

fn plan(policy: &mut dyn Policy, shown: &Shown) -> &'static str {
    match policy.stop(&shown.view()) {
        StopPlan::SendPending => "send",
        StopPlan::LeavePending { free } => {
            assert!(free.is_none());
            "leave"
        }
        StopPlan::Retract => "retract",
    }
}

fn picked(policy: &mut dyn Policy, left: &mut PageBitmap, max_pages: u64) -> PageRun {
    let shown = Shown::pending(0);
    match policy.pick(&shown.view(), left, max_pages) {
        Pick::Run(run) => {
            assert!(
                run.count > 0 && run.count <= max_pages,
                "{run:?}, at most {max_pages}"
            );
            assert_eq!(left.count_in(run), run.count, "{run:?} is not left");
            left.remove_run(run);
            run
        }
        Pick::Wait(at) => panic!("waits until {at:?}"),
    }
}

#[test]
fn names_lead_to_strategies_and_back() {
    for strategy in Strategy::ALL {
        assert_eq!(strategy.to_string().parse(), Ok(strategy));
    }
    let unknown = "hyperdrive".parse::<Strategy>().unwrap_err().to_string();
    assert!(
        unknown.contains("hyperdrive") && unknown.contains("post-copy-push"),
        "{unknown}"
    );
}

#[test]
fn baselines_stop_at_once() {
    for (strategy, then, tracking, faults) in [
        (Strategy::StopAndCopy, "send", false, Faults::None),
        (Strategy::PostCopy, "leave", false, Faults::Missing),
        (Strategy::PostCopyPush, "leave", false, Faults::Missing),
    ] {
        let mut policy = strategy.policy(&limits(), &Tuning::default(), PAGES);
        assert_eq!(
            (policy.needs().tracking, policy.needs().faults),
            (tracking, faults)
        );
        let mut shown = Shown::pending(PAGES);
        shown.rounds = 0;
        shown.rates = Rates::default();
        assert_eq!(step(&mut *policy, &shown), "switch over", "{strategy}");
        assert_eq!(plan(&mut *policy, &shown), then, "{strategy}");
    }
}

#[test]
fn pre_copy_stops_where_the_rest_fits_its_goal() {
    let mut policy = Strategy::PreCopy.policy(&limits(), &Tuning::default(), PAGES);
    let mut first = Shown::pending(50);
    first.rounds = 0;
    first.rates = Rates::default();
    assert_eq!(
        step(&mut *policy, &first),
        "round",
        "nothing is known of the link yet"
    );
    assert_eq!(step(&mut *policy, &Shown::pending(101)), "round");
    assert_eq!(step(&mut *policy, &Shown::pending(100)), "switch over");
    assert_eq!(plan(&mut *policy, &Shown::pending(100)), "send");
    // The guest dirtied more before it stood still.
    assert_eq!(step(&mut *policy, &Shown::pending(100)), "switch over");
    assert_eq!(plan(&mut *policy, &Shown::pending(101)), "retract");
    assert_eq!(step(&mut *policy, &Shown::pending(0)), "switch over");
}

#[test]
fn pre_copy_keeps_each_limit_in_each_way() {
    let far = Shown::pending(2000);
    let reached: [(&str, Limits, Shown); 3] = [
        (
            "4 rounds",
            limits(),
            Shown {
                rounds: 4,
                ..Shown::pending(2000)
            },
        ),
        (
            "70 ms",
            Limits {
                time: Some(milliseconds(70)),
                ..limits()
            },
            Shown {
                now: milliseconds(70),
                ..Shown::pending(2000)
            },
        ),
        (
            "9000 bytes",
            Limits {
                bytes: Some(9000),
                ..limits()
            },
            Shown {
                bytes_sent: 9000,
                ..Shown::pending(2000)
            },
        ),
    ];
    for (limit, limits, shown) in reached {
        for (at_limit, live, then, faults) in [
            (AtLimit::Stop, "switch over", "send", Faults::None),
            (AtLimit::PostCopy, "switch over", "leave", Faults::MissingAndStale),
            (AtLimit::Abort, "abort", "", Faults::None),
        ] {
            let mut policy = policy_within(
                Strategy::PreCopy,
                &Limits {
                    at_limit,
                    ..limits.clone()
                },
            );
            assert_eq!((policy.needs().tracking, policy.needs().faults), (true, faults));
            assert_eq!(step(&mut *policy, &far), "round", "before {limit}");
            if at_limit == AtLimit::Abort {
                let LiveStep::Abort(reason) = policy.live(&shown.view()) else {
                    panic!("goes on after {limit}")
                };
                assert!(reason.contains(limit) && reason.contains("20 ms"), "{reason}");
                continue;
            }
            assert_eq!(step(&mut *policy, &shown), live, "at {limit}");
            assert_eq!(plan(&mut *policy, &shown), then, "at {limit}");
        }
    }
}

#[test]
fn post_copy_waits_for_demands_and_drains_in_the_end() {
    let mut policy = policy_within(
        Strategy::PostCopy,
        &Limits {
            drain_after: milliseconds(100),
            ..limits()
        },
    );
    let at = |ms| Shown {
        now: milliseconds(ms),
        ..Shown::pending(10)
    };
    let left = PageBitmap::full(10);
    let pick = |policy: &mut dyn Policy, ms| policy.pick(&at(ms).view(), &left, 4);
    assert_eq!(pick(&mut *policy, 5), Pick::Wait(Some(milliseconds(105))));
    policy.faulted(&at(60).view(), 3);
    assert_eq!(pick(&mut *policy, 105), Pick::Wait(Some(milliseconds(160))));
    assert_eq!(pick(&mut *policy, 160), Pick::Run(PageRun::new(0, 4)));
    // Once it drains it goes on, faults or not.
    policy.faulted(&at(161).view(), 7);
    assert_eq!(pick(&mut *policy, 162), Pick::Run(PageRun::new(0, 4)));
}

#[test]
fn post_copy_push_bubbles_around_a_fault_in_both_directions() {
    let mut policy = PostCopyPush::default();
    let mut left = PageBitmap::full(PAGES);
    assert_eq!(
        picked(&mut policy, &mut left, 8),
        PageRun::new(0, 8),
        "in address order before any fault"
    );
    left.remove(1000);
    policy.faulted(&Shown::pending(0).view(), 1000);
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(1001, 8));
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(992, 8));
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(1009, 8));
    // Inside of what was pushed: on its way, no pivot of its own.
    policy.faulted(&Shown::pending(0).view(), 1003);
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(984, 8));
    // The newest pivot comes first, then they take turns.
    left.remove(3000);
    policy.faulted(&Shown::pending(0).view(), 3000);
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(3001, 8));
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(1017, 8));
    assert_eq!(picked(&mut policy, &mut left, 8), PageRun::new(2992, 8));
}

#[test]
fn post_copy_push_keeps_seven_pivots_and_none_too_greedy() {
    let mut policy = PostCopyPush::default();
    let mut left = PageBitmap::full(PAGES);
    for pivot in 1..=9 {
        left.remove(pivot * 400);
        policy.faulted(&Shown::pending(0).view(), pivot * 400);
    }
    let turns: Vec<_> = (0..8).map(|_| picked(&mut policy, &mut left, u64::MAX)).collect();
    let expected: Vec<_> = (3..=9)
        .rev()
        .map(|pivot| PageRun::new(pivot * 400 + 1, 128))
        .collect();
    assert_eq!(turns[..7], expected, "the newest first, the two oldest forgotten");
    assert_eq!(
        turns[7],
        PageRun::new(9 * 400 - 128, 128),
        "then the newest again, downwards"
    );
}

proptest! {
    /// Whatever is left, demanded and asked for: a policy names pages that are left until none is.
    #[test]
    fn every_policy_sends_all_that_is_left(
        strategy in prop::sample::select(Strategy::ALL.to_vec()),
        pages in prop::collection::btree_set(0u64..600, 1..300),
        demands in prop::collection::vec((0u64..600, 0usize..40), 0..60),
        max_pages in 1u64..300,
    ) {
        let mut policy = policy_within(strategy, &Limits { drain_after: Duration::ZERO, ..limits() });
        let mut left = PageBitmap::new(600);
        pages.iter().for_each(|&page| { left.insert(page); });
        let mut demands = demands.into_iter();
        let mut next = demands.next();
        let mut picks = 0;
        while !left.is_empty() {
            while let Some((page, _)) = next.filter(|&(_, after)| after <= picks) {
                left.remove(page);
                policy.faulted(&Shown::pending(0).view(), page);
                next = demands.next();
            }
            if left.is_empty() {
                break;
            }
            picked(&mut *policy, &mut left, max_pages);
            picks += 1;
            prop_assert!(picks <= pages.len());
        }
    }
}
