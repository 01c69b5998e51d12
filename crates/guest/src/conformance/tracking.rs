//! Dirty tracking.

use vmferry_core::{PageBitmap, PageRun};

use super::snapshot::{Snapshot, some_of};
use super::{Check, Held, Outcome, Subject, demand, demand_intact};
use crate::guest::DirtyTracker;

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "scans together find every page that was written",
            check: scans_are_complete,
        },
        Check {
            name: "a scan forgets what it reported",
            check: scans_forget,
        },
        Check {
            name: "tracking can be ended and begun again",
            check: arm_again,
        },
        Check {
            name: "tracking can begin while the guest runs",
            check: arm_running,
        },
        Check {
            name: "some pages can be tracked without the others",
            check: arm_some,
        },
    ]
}

/// Several rounds on one tracker: what is written in one round must be found again in the next one.
fn scans_are_complete(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    subject.let_run(&*guest);
    guest.pause()?;
    let mut tracker = guest.dirty_tracker()?;
    tracker.arm()?;
    let mut before = Snapshot::of(guest.ram())?;
    for round in 1..=4 {
        let mut reported = PageBitmap::new(guest.ram().layout().pages());
        guest.resume()?;
        for _ in 0..3 {
            subject.let_run(&*guest);
            tracker.scan(&mut reported)?;
        }
        guest.pause()?;
        tracker.scan(&mut reported)?;
        let after = Snapshot::of(guest.ram())?;
        let changed = after.changed(&before);
        let mut missed = changed.clone();
        missed.subtract(&reported);
        demand(missed.is_empty(), || {
            format!(
                "round {round}: {} changed and were not reported",
                some_of(&missed)
            )
        })?;
        demand(!changed.is_empty() || !subject.is_busy(), || {
            format!("round {round}: the guest wrote nothing")
        })?;
        before = after;
    }
    drop(tracker);
    demand_intact(subject, &*guest)
}

fn scans_forget(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    subject.let_run(&*guest);
    guest.pause()?;
    let mut tracker = guest.dirty_tracker()?;
    tracker.arm()?;
    demand_clean(&mut *tracker, &guest, "right after it was armed")?;
    guest.resume()?;
    subject.let_run(&*guest);
    guest.pause()?;
    let mut dirty = PageBitmap::new(guest.ram().layout().pages());
    // What was found before must stay in the set.
    dirty.insert(0);
    tracker.scan(&mut dirty)?;
    demand(dirty.contains(0), || {
        "a scan took a page out of the caller's set".into()
    })?;
    demand(dirty.count() > 1 || !subject.is_busy(), || {
        "nothing was reported".into()
    })?;
    demand_clean(&mut *tracker, &guest, "after a scan, with the guest paused")
}

fn arm_again(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    for _ in 0..2 {
        let mut tracker = guest.dirty_tracker()?;
        for _ in 0..2 {
            guest.pause()?;
            tracker.arm()?;
            guest.resume()?;
            subject.let_run(&*guest);
            let mut dirty = PageBitmap::new(guest.ram().layout().pages());
            tracker.scan(&mut dirty)?;
            demand(!dirty.is_empty() || !subject.is_busy(), || {
                "nothing was reported".into()
            })?;
            tracker.disarm()?;
            subject.let_run(&*guest);
        }
        // Dropped armed: the next tracker must find the guest free.
        guest.pause()?;
        tracker.arm()?;
        guest.resume()?;
    }
    subject.let_run(&*guest);
    guest.pause()?;
    demand_intact(subject, &*guest)
}

/// As a sampler does: nothing is paused for it, and the tracker that a migration makes afterwards finds the guest free.
fn arm_running(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    let mut tracker = guest.dirty_tracker()?;
    tracker.arm_running()?;
    for _ in 0..2 {
        subject.let_run(&*guest);
        let mut dirty = PageBitmap::new(guest.ram().layout().pages());
        tracker.scan(&mut dirty)?;
        demand(!dirty.is_empty() || !subject.is_busy(), || {
            "nothing was reported".into()
        })?;
    }
    drop(tracker);
    guest.pause()?;
    let mut tracker = guest.dirty_tracker()?;
    tracker.arm()?;
    demand_clean(&mut *tracker, &guest, "right after it was armed again")?;
    demand_intact(subject, &*guest)
}

/// As a recorder does: every second chunk is looked at, and what is written there is found.
fn arm_some(subject: &dyn Subject) -> Outcome {
    const CHUNK: u64 = 64;
    let guest = Held::source(subject);
    let pages = guest.ram().layout().pages();
    let chunks = (0..pages).step_by(2 * CHUNK as usize);
    let runs: Vec<PageRun> = chunks
        .map(|first| PageRun::new(first, CHUNK.min(pages - first)))
        .collect();
    let mut looked_at = PageBitmap::new(pages);
    runs.iter().for_each(|run| looked_at.insert_run(*run));
    let mut tracker = guest.dirty_tracker()?;
    guest.pause()?;
    tracker.arm_running_only(&runs)?;
    let before = Snapshot::of(guest.ram())?;
    guest.resume()?;
    let mut reported = PageBitmap::new(pages);
    for _ in 0..3 {
        subject.let_run(&*guest);
        tracker.scan(&mut reported)?;
    }
    guest.pause()?;
    tracker.scan(&mut reported)?;
    let mut missed = Snapshot::of(guest.ram())?.changed(&before);
    missed.intersect_with(&looked_at);
    let changed = missed.count();
    missed.subtract(&reported);
    demand(missed.is_empty(), || {
        format!("{} changed and were not reported", some_of(&missed))
    })?;
    demand(changed > 0 || !subject.is_busy(), || {
        "the guest wrote to none of the pages looked at".into()
    })?;
    tracker.disarm()?;
    tracker.arm()?;
    demand_clean(&mut *tracker, &guest, "right after all pages were armed again")
}

fn demand_clean(tracker: &mut dyn DirtyTracker, guest: &Held, when: &str) -> Outcome {
    let mut dirty = PageBitmap::new(guest.ram().layout().pages());
    tracker.scan(&mut dirty)?;
    demand(dirty.is_empty(), || {
        format!("{} are reported {when}", some_of(&dirty))
    })
}
