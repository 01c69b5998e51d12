//! What the host's sampler learned before spares a migration its learning, and misleads none.

use std::time::Duration;

use vmferry_core::sampling::{Background, Budget, Ready};
use vmferry_core::{Limits, PageBitmap, PageRun, Strategy, Tuning};

use crate::replay::{Replayed, Setting, replay, replay_policy};
use crate::traces::Trace;

/// 1024 MiB at 500 Mbit/s.
const PAGES: u64 = 1 << 18;
const PAGES_PER_S: u64 = 15_259;
/// How long the sampler watched.
const WATCHED: Duration = Duration::from_secs(90);

/// What is known of a guest that does as `trace` says.
fn watched(trace: Trace) -> Ready {
    let tuning = Tuning::default();
    let mut background = Background::new(PAGES, &tuning, Budget::default(), None, Duration::ZERO);
    let mut seen_ms = 0;
    while background.next_scan() < WATCHED {
        let now = background.next_scan();
        let until_ms = now.as_millis() as u64;
        let mut dirty = PageBitmap::new(PAGES);
        // What was written in a long pause is thrown away: it need not be known.
        for ms in seen_ms.max(until_ms.saturating_sub(60))..until_ms {
            let runs = trace.writes(ms, PAGES);
            runs.into_iter().for_each(|run| dirty.insert_run(run));
        }
        seen_ms = until_ms;
        background.scanned(now, Duration::from_micros(500), &dirty);
    }
    background.ready(WATCHED).expect("there was a burst")
}

fn migrated(strategy: Strategy, trace: Trace, known: Option<Ready>) -> Replayed {
    let setting = Setting {
        pages: PAGES,
        pages_per_s: PAGES_PER_S,
        trace,
    };
    let (limits, tuning) = (Limits::default(), Tuning::default());
    match known {
        None => replay(setting, strategy, &limits, &tuning),
        Some(ready) => replay_policy(setting, strategy.policy_knowing(&limits, &tuning, PAGES, ready)),
    }
}

const LOOP: Trace = Trace::Loop {
    region: PageRun::new(30_000, 256 * 256),
    pages_per_ms: 256,
};
const ELSEWHERE: Trace = Trace::Loop {
    region: PageRun::new(150_000, 256 * 256),
    pages_per_ms: 256,
};

/// When the filter went on, by the notes.
fn on_after_ms(replayed: &Replayed) -> u64 {
    let notes = replayed.measured.notes.join("\n");
    let after = notes.split("data filter on after ").nth(1).expect("it went on");
    after
        .split(' ')
        .next()
        .and_then(|ms| ms.parse().ok())
        .expect("a number")
}

#[test]
fn a_kept_model_filters_almost_from_the_start() {
    let without = migrated(Strategy::PreCopyFilter, LOOP, None);
    let with = migrated(Strategy::PreCopyFilter, LOOP, Some(watched(LOOP)));
    println!("{:?}\n{:?}", with.measured.notes, without.measured.notes);
    let from = &with.measured.notes[0];
    assert!(
        from.contains("tries the model of the host's sampler") && from.contains("samples of 50 ms in"),
        "{from}"
    );
    let (soon, late) = (on_after_ms(&with), on_after_ms(&without));
    assert!(
        soon <= 350 && late > 2_000,
        "on after {soon} ms, without after {late} ms"
    );
    assert!(with.sent() <= without.sent());
}

#[test]
fn a_model_of_something_else_is_dropped_and_costs_nothing() {
    let without = migrated(Strategy::PreCopyFilter, ELSEWHERE, None);
    let with = migrated(Strategy::PreCopyFilter, ELSEWHERE, Some(watched(LOOP)));
    let notes = with.measured.notes.join("\n");
    assert!(notes.contains("learns anew after 3"), "{notes}");
    assert!(on_after_ms(&with) > 2_000, "learned as if nothing had been known");
    let (sent, plain) = (with.sent(), without.sent());
    assert!(sent * 100 <= plain * 105, "{sent} pages, {plain} without");
}

#[test]
fn a_known_working_set_spares_hybrid_learning_its_learning_phase() {
    let hybrid = migrated(Strategy::Hybrid, LOOP, None);
    let without = migrated(Strategy::HybridLearning, LOOP, None);
    let with = migrated(Strategy::HybridLearning, LOOP, Some(watched(LOOP)));
    let note = with.measured.notes.join("\n");
    assert!(note.contains("by the host's sampler"), "{note}");
    let gone_over = |replayed: &Replayed| replayed.measured.execution_transfer.expect("it completed");
    let (early, late) = (gone_over(&with), gone_over(&without));
    assert!(
        early + Duration::from_millis(900) < late,
        "execution transfer {early:?}, {late:?} with a learning phase"
    );
    assert!(with.sent() < hybrid.sent());
    assert!(with.most_crossings <= 2 && with.sent_at_stop == 0);
}

#[test]
fn a_working_set_of_something_else_makes_no_page_cross_more_often() {
    let hybrid = migrated(Strategy::Hybrid, ELSEWHERE, None);
    let with = migrated(Strategy::HybridLearning, ELSEWHERE, Some(watched(LOOP)));
    assert!(with.sent() <= hybrid.sent() && with.most_crossings <= 2);
}

#[test]
fn where_nothing_fits_the_guest_it_is_learned_as_ever() {
    let trace = Trace::Uniform { writes_per_ms: 40 };
    let ready = watched(trace);
    let with = migrated(Strategy::HybridLearning, trace, Some(ready));
    let notes = with.measured.notes.join("\n");
    assert!(
        notes.contains("does not fit the guest yet") && notes.contains("from 20 samples"),
        "{notes}"
    );
}
