//! Writes that are held up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmferry_core::{PageBitmap, PageRun};

use super::snapshot::{Snapshot, chunks, some_of};
use super::{Check, Held, Outcome, Problem, Subject, demand, demand_intact};
use crate::guest::GuestState;
use crate::ram::GuestRam;
use crate::write_holds::{HeldEvent, WriteHolds};

pub(super) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "a protected page stays as it was until it is released",
            check: pages_stay,
        },
        Check {
            name: "writes to pages that were protected while the guest ran are held up too",
            check: protect_running,
        },
        Check {
            name: "writers go on when nobody holds them any more",
            check: dropped,
        },
        Check {
            name: "a guest can be ended while a write of it is held up",
            check: destroy_while_held,
        },
        Check {
            name: "pages that were touched are told apart",
            check: touches,
        },
        Check {
            name: "writes can be held up between two trackings",
            check: beside_tracking,
        },
    ]
}

/// Looks at each page that the guest wants to write, and releases it.
struct Server<'a> {
    ram: &'a GuestRam,
    /// What each page held when it was protected; only compared where nothing was written meanwhile.
    before: Option<&'a Snapshot>,
    /// The pages the guest wanted to write.
    asked: PageBitmap,
}

impl Server<'_> {
    fn serve_until(&mut self, holds: &dyn WriteHolds, done: &AtomicBool) -> Outcome {
        let mut events = Vec::new();
        while !done.load(Ordering::Acquire) {
            holds.wait(Duration::from_millis(5), &mut events)?;
            for event in events.drain(..) {
                let HeldEvent::Write(page) = event else { continue };
                demand(page < self.asked.len(), || {
                    format!("a write to page {page}, which is outside of RAM")
                })?;
                // The second report of a write comes after its release.
                if self.asked.insert(page)
                    && let Some(before) = self.before
                {
                    demand(before.holds(self.ram, page), || {
                        format!("page {page} was written before it was released")
                    })?;
                }
                holds.release(PageRun::single(page))?;
            }
        }
        Ok(())
    }
}

/// Runs `guest_side` while `server` releases what the guest wants to write.
fn while_serving(
    server: &mut Server<'_>,
    holds: &dyn WriteHolds,
    guest_side: impl FnOnce() -> Outcome,
) -> Outcome {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let serving = scope.spawn(|| {
            let served = server.serve_until(holds, &done).map_err(|Problem(found)| found);
            if served.is_err() {
                // Nobody serves any more, and the other side waits for the guest.
                let _ = holds.end();
            }
            served
        });
        let outcome = guest_side();
        done.store(true, Ordering::Release);
        let served = serving
            .join()
            .map_err(|_| Problem("releasing pages panicked".into()))?;
        outcome.and(served.map_err(Problem))
    })
}

fn server<'a>(guest: &'a Held, before: Option<&'a Snapshot>) -> Server<'a> {
    Server {
        ram: guest.ram(),
        before,
        asked: PageBitmap::new(guest.ram().layout().pages()),
    }
}

fn whole(guest: &Held) -> PageRun {
    PageRun::new(0, guest.ram().layout().pages())
}

fn pages_stay(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    subject.let_run(&*guest);
    let holds = guest.hold_writes()?;
    for _ in 0..2 {
        guest.pause()?;
        let before = Snapshot::of(guest.ram())?;
        holds.protect(whole(&guest))?;
        let mut server = server(&guest, Some(&before));
        while_serving(&mut server, &*holds, || {
            guest.resume()?;
            subject.let_run(&*guest);
            Ok(guest.pause()?)
        })?;
        let changed = Snapshot::of(guest.ram())?.changed(&before);
        let mut unasked = changed.clone();
        unasked.subtract(&server.asked);
        demand(unasked.is_empty(), || {
            format!("{} were protected and changed unasked", some_of(&unasked))
        })?;
        demand(!changed.is_empty() || !subject.is_busy(), || {
            "the guest wrote nothing".into()
        })?;
        // Released pages are written without asking; the others still ask.
        let mut again = self::server(&guest, None);
        while_serving(&mut again, &*holds, || {
            guest.resume()?;
            subject.let_run(&*guest);
            Ok(guest.pause()?)
        })?;
        again.asked.intersect_with(&server.asked);
        demand(again.asked.is_empty(), || {
            format!("{} were released and held up again", some_of(&again.asked))
        })?;
    }
    holds.end()?;
    guest.resume()?;
    subject.let_run(&*guest);
    guest.pause()?;
    demand_intact(subject, &*guest)
}

/// First while it runs, then what was released meanwhile during a stop: as a checkpoint does, so that the stop is short.
fn protect_running(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    let holds = guest.hold_writes()?;
    let mut live = server(&guest, None);
    while_serving(&mut live, &*holds, || {
        for run in chunks(&guest.ram().data_pages()?) {
            holds.protect(run)?;
        }
        subject.let_run(&*guest);
        Ok(guest.pause()?)
    })?;
    for run in chunks(&live.asked) {
        holds.protect(run)?;
    }
    let before = Snapshot::of(guest.ram())?;
    let data = guest.ram().data_pages()?;
    let mut server = server(&guest, Some(&before));
    while_serving(&mut server, &*holds, || {
        guest.resume()?;
        subject.let_run(&*guest);
        Ok(guest.pause()?)
    })?;
    let mut unasked = Snapshot::of(guest.ram())?.changed(&before);
    unasked.subtract(&server.asked);
    // What was a hole at the stop was not protected.
    unasked.intersect_with(&data);
    demand(unasked.is_empty(), || {
        format!("{} were protected and changed unasked", some_of(&unasked))
    })?;
    drop(holds);
    demand_intact(subject, &*guest)
}

fn dropped(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    guest.pause()?;
    let before = Snapshot::of(guest.ram())?;
    let holds = guest.hold_writes()?;
    holds.protect(whole(&guest))?;
    guest.resume()?;
    let mut events = Vec::new();
    for _ in 0..20 {
        holds.wait(Duration::from_millis(5), &mut events)?;
    }
    demand(!events.is_empty() || !subject.is_busy(), || {
        "no write was held up".into()
    })?;
    demand(Arc::strong_count(&holds) == 1, || {
        "somebody else holds the writes".into()
    })?;
    drop(holds);
    subject.let_run(&*guest);
    guest.pause()?;
    let changed = Snapshot::of(guest.ram())?.changed(&before);
    demand(!changed.is_empty() || !subject.is_busy(), || {
        "the guest does not go on".into()
    })?;
    demand_intact(subject, &*guest)
}

fn destroy_while_held(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    let holds = guest.hold_writes()?;
    holds.protect(whole(&guest))?;
    std::thread::sleep(Duration::from_millis(30));
    guest.destroy();
    demand(guest.state() == GuestState::Gone, || {
        "the guest is not gone".into()
    })?;
    let mut events = Vec::new();
    let mut waits = || holds.wait(Duration::from_millis(5), &mut events);
    demand((0..100).any(|_| waits().is_err()), || {
        "who serves does not hear that the guest is gone".into()
    })
}

fn touches(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    let holds = guest.hold_writes()?;
    guest.pause()?;
    holds.protect(whole(&guest))?;
    let mut touched = PageBitmap::new(guest.ram().layout().pages());
    for _ in 0..2 {
        guest.pause()?;
        holds.forget_touches()?;
        touched.clear();
        holds.touched(&mut touched)?;
        demand(touched.is_empty(), || {
            format!("{} are touched of a guest that does not run", some_of(&touched))
        })?;
        let before = Snapshot::of(guest.ram())?;
        let mut server = server(&guest, None);
        while_serving(&mut server, &*holds, || {
            guest.resume()?;
            subject.let_run(&*guest);
            Ok(guest.pause()?)
        })?;
        holds.touched(&mut touched)?;
        let mut missed = Snapshot::of(guest.ram())?.changed(&before);
        missed.union_with(&server.asked);
        missed.subtract(&touched);
        demand(missed.is_empty(), || {
            format!("{} were written and do not count as touched", some_of(&missed))
        })?;
        demand(!touched.is_empty() || !subject.is_busy(), || {
            "nothing was touched".into()
        })?;
    }
    drop(holds);
    demand_intact(subject, &*guest)
}

fn beside_tracking(subject: &dyn Subject) -> Outcome {
    let guest = Held::source(subject);
    for _ in 0..2 {
        guest.pause()?;
        let mut tracker = guest.dirty_tracker()?;
        tracker.arm()?;
        guest.resume()?;
        subject.let_run(&*guest);
        drop(tracker);
        let holds = guest.hold_writes()?;
        let mut server = server(&guest, None);
        while_serving(&mut server, &*holds, || {
            holds.protect(whole(&guest))?;
            subject.let_run(&*guest);
            Ok(())
        })?;
        demand(!server.asked.is_empty() || !subject.is_busy(), || {
            "no write was held up".into()
        })?;
        drop(holds);
    }
    subject.let_run(&*guest);
    guest.pause()?;
    demand_intact(subject, &*guest)
}
