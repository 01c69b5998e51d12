//! `hybrid` and `hybrid-learning`: how often a page crosses, and what learning saves.

use std::time::Duration;

use proptest::prelude::*;
use vmferry_core::{Limits, PageRun, Strategy, Tuning};

use crate::replay::{Replayed, Setting, replay};
use crate::traces::Trace;

/// 64 MiB.
const PAGES: u64 = 1 << 14;
/// 500 Mbit/s.
const PAGES_PER_S: u64 = 15_259;

fn both(trace: Trace, tuning: &Tuning) -> [Replayed; 2] {
    let setting = Setting {
        pages: PAGES,
        pages_per_s: PAGES_PER_S,
        trace,
    };
    [Strategy::Hybrid, Strategy::HybridLearning].map(|strategy| {
        let replayed = replay(setting, strategy, &Limits::default(), tuning);
        assert!(replayed.most_crossings <= 2, "{strategy}: a page crossed thrice");
        assert_eq!(
            replayed.sent_at_stop, 0,
            "{strategy}: pages crossed during the stop"
        );
        assert_eq!(replayed.downtime(), Duration::ZERO, "{strategy}");
        replayed
    })
}

const HOT: PageRun = PageRun::new(5_000, 3_000);

#[test]
fn learning_sends_less_on_every_trace_with_a_hot_set() {
    for trace in [
        Trace::Loop {
            region: HOT,
            pages_per_ms: 20,
        },
        Trace::Loop {
            region: PageRun::new(0, 8_192),
            pages_per_ms: 200,
        },
        Trace::Hot {
            region: HOT,
            hot_percent: 90,
            writes_per_ms: 10,
        },
        Trace::Hot {
            region: PageRun::new(16_000, 100),
            hot_percent: 99,
            writes_per_ms: 3,
        },
        Trace::Phases {
            regions: [
                PageRun::new(100, 500),
                PageRun::new(8_000, 700),
                PageRun::new(16_000, 300),
            ],
            stay_ms: 90,
            pages_per_ms: 20,
        },
    ] {
        let [hybrid, learning] = both(trace, &Tuning::default());
        let (sent, with) = (hybrid.sent(), learning.sent());
        println!("{trace:?}: hybrid {sent} pages, hybrid-learning {with}");
        assert!(with < sent, "{trace:?}: {with} pages, hybrid sent {sent}");
        let again = |replayed: &Replayed| replayed.measured.counts.resent;
        assert!(
            again(&learning) * 5 < again(&hybrid) * 3,
            "{trace:?}: learning saves a good part of what crossed twice"
        );
    }
}

#[test]
fn learning_costs_nothing_where_there_is_nothing_to_learn() {
    for trace in [
        Trace::Idle,
        Trace::Uniform { writes_per_ms: 1 },
        Trace::Uniform { writes_per_ms: 50 },
    ] {
        let [hybrid, learning] = both(trace, &Tuning::default());
        let (sent, with) = (hybrid.sent(), learning.sent());
        println!("{trace:?}: hybrid {sent} pages, hybrid-learning {with}");
        assert!(
            with * 100 <= sent * 102,
            "{trace:?}: {with} pages, hybrid sent {sent}"
        );
    }
}

#[test]
fn a_guest_that_does_something_else_after_learning_loses_nothing() {
    let trace = Trace::Turns {
        region: HOT,
        pages_per_ms: 20,
        at_ms: 1_100,
        writes_per_ms: 5,
    };
    // Pages that are held back in vain still cross only once.
    let [hybrid, learning] = both(trace, &Tuning::default());
    assert!(learning.sent() <= hybrid.sent());
}

#[test]
fn the_report_says_what_was_learned_and_how_good_it_was() {
    let trace = Trace::Loop {
        region: HOT,
        pages_per_ms: 60,
    };
    let [_, learning] = both(trace, &Tuning::default());
    let measured = &learning.measured;
    assert!(
        measured.notes[0].contains("working set of 3000 pages from 20 samples 50 ms apart"),
        "{:?}",
        measured.notes
    );
    assert_eq!(measured.counts.filtered, HOT.count);
    assert_eq!(measured.rounds.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Guests that go on as they were: wherever the hot set lies and whatever the parameters are.
    #[test]
    fn learning_never_sends_over_two_percent_more(
        first in 0u64..16_000,
        count in 1u64..10_000,
        hot_percent in 0u64..=100,
        writes_per_ms in 0u64..40,
        alpha in 0.0f64..=1.0,
        samples in 1u32..30,
    ) {
        let region = PageRun::new(first, count.min(PAGES - first));
        let trace = Trace::Hot { region, hot_percent, writes_per_ms };
        let tuning = Tuning { alpha, samples, ..Tuning::default() };
        let [hybrid, learning] = both(trace, &tuning);
        prop_assert!(
            learning.sent() * 100 <= hybrid.sent() * 102,
            "{} pages, hybrid sent {}", learning.sent(), hybrid.sent()
        );
    }
}
