//! `hybrid-learning`. Source: hybrid-learning paper (Gangadhar et al. 2018), sections IV.A and IV.B: `hybrid` with a
//! learning phase before the push, which keeps the writable working set (algorithm 1: [`crate::wws`]) out of it. A
//! page of the set would be dirtied while it is pushed and cross twice; so it crosses once, after the resume. Where the
//! host's sampler learned the set before ([`crate::sampling`]) and the guest still does what it did, the learning phase is
//! left out.

use super::hybrid::NEEDS;
use super::near_faults::NearFaults;
use super::{LiveStep, Needs, Pick, Policy, RoundPages, RoundPlan, StopPlan, View, in_address_order};
use crate::bitmap::PageBitmap;
use crate::sampling::Ready;
use crate::tuning::Tuning;
use crate::wws::{Heat, HotFirst};

/// Learns the working set, pushes once without it, and sends it first after the resume.
pub struct HybridLearning {
    tuning: Tuning,
    heat: Heat,
    /// Nothing has to be learned first: where that is known from.
    known_from: Option<String>,
    /// The first sample begins now: what `last_scan` shows is from before.
    begun: bool,
    /// The guest is stopped or gone over: from here on the hottest pages go first.
    stopped: bool,
    order: HotFirst,
    near: NearFaults,
    notes: Vec<String>,
}

impl HybridLearning {
    /// For a guest of `pages` pages; `tuning` was checked.
    pub fn new(tuning: &Tuning, pages: u64) -> Self {
        Self {
            heat: Heat::new(pages, tuning.alpha),
            tuning: tuning.clone(),
            known_from: None,
            begun: false,
            stopped: false,
            order: HotFirst::default(),
            near: NearFaults::default(),
            notes: Vec::new(),
        }
    }

    /// The same, with what was learned of the guest before.
    pub fn knowing(tuning: &Tuning, pages: u64, ready: Ready) -> Self {
        let mut policy = Self::new(tuning, pages);
        let from = ready.from.clone();
        match ready.heat(tuning, pages) {
            Ok(heat) => {
                policy.heat = heat;
                policy.known_from = Some(from);
            }
            Err(why) => policy
                .notes
                .push(format!("learns the writable working set, not from {from}: {why}")),
        }
        policy
    }

    /// All of memory but the working set. Pages that the tracker will hand out again at the stop whatever happens
    /// (those that a live scan saw, in the presence of pinned I/O) need not cross twice either.
    fn push(&mut self, view: &View<'_>) -> LiveStep {
        let mut held_back = self.heat.working_set();
        let from = match &self.known_from {
            Some(from) => format!("by {from}"),
            None => format!(
                "from {} samples {} ms apart",
                self.heat.samples(),
                self.tuning.interval.as_secs_f64() * 1e3
            ),
        };
        self.notes.push(format!(
            "learned a writable working set of {} pages {from}, alpha {}, mean heat {:.4}",
            held_back.count(),
            self.tuning.alpha,
            self.heat.mean(),
        ));
        held_back.union_with(view.unsettled);
        LiveStep::Round(RoundPlan {
            pages: RoundPages::PendingExcept(held_back),
            sample_every: None,
        })
    }
}

impl Policy for HybridLearning {
    fn needs(&self) -> Needs {
        NEEDS
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        if view.rounds > 0 {
            return LiveStep::SwitchOver;
        }
        if self.known_from.is_some() {
            return self.push(view);
        }
        if self.begun {
            self.heat.sample(view.last_scan);
        }
        self.begun = true;
        match self.heat.samples() < self.tuning.samples {
            true => LiveStep::Wait(self.tuning.interval),
            false => self.push(view),
        }
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        self.stopped = true;
        StopPlan::LeavePending { free: None }
    }

    fn pick(&mut self, _view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        if let Some(run) = self.near.next(left, max_pages) {
            return Pick::Run(run);
        }
        let hottest = match self.stopped {
            true => self.order.next(&self.heat, left, max_pages),
            false => None,
        };
        match hottest {
            Some(run) => Pick::Run(run),
            None => in_address_order(left, max_pages),
        }
    }

    fn faulted(&mut self, _view: &View<'_>, page: u64) {
        self.near.faulted(page);
    }

    fn notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }
}
