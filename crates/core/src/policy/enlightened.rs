//! `enlightened`: post-copy in the order of what the guest says about its pages. Source: Abe, Geambasu, Joshi and
//! Satyanarayanan, "Urgent virtual machine eviction with enlightened post-copy" (CMU-CS-15-137, 2015), sections 3 and 4,
//! Table 1.
//!
//! The guest is asked what its pages are used for, stopped at once, and goes on at the destination after its device
//! state and the list of its free pages. Its other pages follow in rounds, one a class, the most urgent first; what lies
//! around a page that it demands goes before them. Pages that are free do not cross.
//!
//! Unlike the paper's, the guest needs no change: an agent in it reads what the kernel shows, and which pages are free is
//! found out while the guest stands still (see [`Policy::found_free`]). A guest that says nothing moves as by
//! `post-copy-push`.

use std::time::Duration;

use super::near_faults::NearFaults;
use super::post_copy_push::PostCopyPush;
use super::{Faults, LiveStep, Needs, Pick, Policy, StopPlan, View, in_address_order};
use crate::bitmap::PageBitmap;
use crate::hints::{Class, Hints};
use crate::pages::PageRun;

/// Asks the guest, then pushes in its order.
pub struct Enlightened {
    /// How long the guest may take to answer.
    timeout: Duration,
    order: Order,
    free: Option<PageBitmap>,
    notes: Vec<String>,
}

/// Which page goes next.
enum Order {
    /// Nothing is known: around the faults.
    AroundFaults(PostCopyPush),
    /// By class.
    ByClass {
        /// Pages of each class that have not had their turn, the most urgent class first.
        classes: Vec<PageBitmap>,
        near: NearFaults,
    },
}

impl Enlightened {
    /// The algorithm, for a guest that may take `timeout` to answer.
    pub fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            order: Order::AroundFaults(PostCopyPush::default()),
            free: None,
            notes: Vec::new(),
        }
    }
}

impl Policy for Enlightened {
    fn needs(&self) -> Needs {
        Needs {
            tracking: false,
            faults: Faults::Missing,
        }
    }

    fn wants_hints(&self) -> Option<Duration> {
        Some(self.timeout)
    }

    fn enlightened(&mut self, answer: Result<Hints, String>) {
        match answer {
            Ok(hints) => {
                self.notes.push(format!("the guest's pages: {}", summary(&hints)));
                self.order = Order::ByClass {
                    classes: hints.by_class(),
                    near: NearFaults::default(),
                };
            }
            Err(why) => self.notes.push(format!(
                "the guest said nothing about its pages, so it moved as by post-copy-push: {why}"
            )),
        }
    }

    fn live(&mut self, _view: &View<'_>) -> LiveStep {
        LiveStep::SwitchOver
    }

    fn found_free(&mut self, free: PageBitmap) {
        self.free = Some(free);
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::LeavePending {
            free: self.free.take(),
        }
    }

    fn pick(&mut self, view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        match &mut self.order {
            Order::AroundFaults(push) => push.pick(view, left, max_pages),
            Order::ByClass { classes, near } => near
                .next(left, max_pages)
                .or_else(|| {
                    classes
                        .iter_mut()
                        .find_map(|class| next_of(class, left, max_pages))
                })
                // Those that came back after a broken connection.
                .map_or_else(|| in_address_order(left, max_pages), Pick::Run),
        }
    }

    fn faulted(&mut self, view: &View<'_>, page: u64) {
        match &mut self.order {
            Order::AroundFaults(push) => push.faulted(view, page),
            Order::ByClass { near, .. } => near.faulted(page),
        }
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}

/// The first pages of a class that are left. They, and those before them that crossed in another way, have had their
/// turn.
fn next_of(class: &mut PageBitmap, left: &PageBitmap, max_pages: u64) -> Option<PageRun> {
    while let Some(run) = class.next_run(0, u64::MAX) {
        let found = left
            .next_run(run.first, max_pages)
            .filter(|found| found.first < run.end());
        let Some(found) = found else {
            class.remove_run(run);
            continue;
        };
        let end = found.end().min(run.end());
        class.remove_run(PageRun::new(run.first, end - run.first));
        return Some(PageRun::new(found.first, end - found.first));
    }
    None
}

/// How much of the guest's memory each class has: as shares, which are the same whatever stands for a page in a simulation.
fn summary(hints: &Hints) -> String {
    let share = |pages: u64| 100.0 * pages as f64 / hints.pages().max(1) as f64;
    let counts = Class::ALL.into_iter().zip(hints.counts());
    let parts: Vec<String> = counts
        .filter(|&(_, pages)| pages > 0)
        .map(|(class, pages)| format!("{class} {:.1} %", share(pages)))
        .collect();
    parts.join(", ")
}
