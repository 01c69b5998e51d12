//! Sketches of algorithms to come, to prove that [`Policy`] carries them as it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmferry_core::policy::{
    Faults, LiveStep, Needs, Pick, Policy, RoundChange, RoundPages, RoundPlan, StopPlan, View,
    in_address_order,
};
use vmferry_core::{Limits, PageBitmap};

const TRACKED_HYBRID: Needs = Needs {
    tracking: true,
    faults: Faults::MissingAndStale,
};

fn round(pages: RoundPages) -> LiveStep {
    LiveStep::Round(RoundPlan {
        pages,
        sample_every: None,
    })
}

/// `hybrid`: one round, then the guest goes over and what it dirtied follows.
#[derive(Default)]
pub(crate) struct Hybrid {
    near: Option<u64>,
}

impl Policy for Hybrid {
    fn needs(&self) -> Needs {
        TRACKED_HYBRID
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        match view.rounds {
            0 if !view.ledger.pending().is_empty() => round(RoundPages::Pending),
            _ => LiveStep::SwitchOver,
        }
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::LeavePending { free: None }
    }

    fn pick(&mut self, _view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        let near = self.near.and_then(|page| left.next_run(page, max_pages.min(16)));
        near.map_or_else(|| in_address_order(left, max_pages), Pick::Run)
    }

    fn faulted(&mut self, _view: &View<'_>, page: u64) {
        self.near = Some(page);
    }
}

/// `hybrid-learning`: learns the writable working set from samples, one round without it, the set first
/// afterwards.
pub(crate) struct HybridLearning {
    heat: Vec<f64>,
    samples: u32,
    working_set: PageBitmap,
}

impl HybridLearning {
    const SAMPLES: u32 = 4;

    pub(crate) fn new(pages: u64) -> Self {
        Self {
            heat: vec![0.0; pages as usize],
            samples: 0,
            working_set: PageBitmap::new(pages),
        }
    }

    fn learn(&mut self, scan: &PageBitmap) {
        for (page, heat) in self.heat.iter_mut().enumerate() {
            *heat = 0.5 * f64::from(u8::from(scan.contains(page as u64))) + 0.5 * *heat;
        }
    }
}

impl Policy for HybridLearning {
    fn needs(&self) -> Needs {
        TRACKED_HYBRID
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        if self.samples > 0 && self.samples <= Self::SAMPLES {
            self.learn(view.last_scan);
        }
        self.samples += 1;
        if self.samples <= Self::SAMPLES {
            return LiveStep::Wait(Duration::from_millis(1));
        }
        if self.samples > Self::SAMPLES + 1 {
            return LiveStep::SwitchOver;
        }
        let mean = self.heat.iter().sum::<f64>() / self.heat.len() as f64;
        for (page, heat) in self.heat.iter().enumerate() {
            if *heat > 0.0 && *heat >= mean {
                self.working_set.insert(page as u64);
            }
        }
        round(RoundPages::PendingExcept(self.working_set.clone()))
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::LeavePending { free: None }
    }

    fn pick(&mut self, _view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        let mut first = left.clone();
        first.intersect_with(&self.working_set);
        match first.is_empty() {
            true => in_address_order(left, max_pages),
            false => in_address_order(&first, max_pages),
        }
    }
}

/// `pre-copy-filter`: holds back what was just dirtied, takes back what has been quiet since.
pub(crate) struct Filter {
    limits: Limits,
    hot: PageBitmap,
}

impl Filter {
    pub(crate) fn new(limits: Limits, pages: u64) -> Self {
        Self {
            limits,
            hot: PageBitmap::new(pages),
        }
    }
}

impl Policy for Filter {
    fn needs(&self) -> Needs {
        Needs {
            tracking: true,
            faults: Faults::None,
        }
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        if view.rounds >= self.limits.rounds || view.ledger.pending().is_empty() {
            return LiveStep::SwitchOver;
        }
        LiveStep::Round(RoundPlan {
            pages: RoundPages::PendingExcept(self.hot.clone()),
            sample_every: Some(Duration::from_micros(500)),
        })
    }

    fn sampled(&mut self, view: &View<'_>) -> RoundChange {
        let mut quiet = self.hot.clone();
        quiet.subtract(view.last_scan);
        self.hot = view.last_scan.clone();
        RoundChange {
            hold_back: Some(self.hot.clone()),
            take_back: Some(quiet),
        }
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        StopPlan::SendPending
    }
}

/// `enlightened`: the guest's free pages are dropped at the stop.
pub(crate) struct Enlightened {
    /// What the agent says now.
    hints: Arc<Mutex<PageBitmap>>,
    /// What it said, without whatever was written since.
    free: Option<PageBitmap>,
}

impl Enlightened {
    pub(crate) fn new(hints: Arc<Mutex<PageBitmap>>) -> Self {
        Self { hints, free: None }
    }
}

impl Policy for Enlightened {
    fn needs(&self) -> Needs {
        TRACKED_HYBRID
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        match &mut self.free {
            None => {
                self.free = Some(self.hints.lock().unwrap().clone());
                LiveStep::Wait(Duration::from_millis(1))
            }
            Some(free) => {
                free.subtract(view.last_scan);
                LiveStep::SwitchOver
            }
        }
    }

    fn stop(&mut self, view: &View<'_>) -> StopPlan {
        if let Some(free) = &mut self.free {
            free.subtract(view.last_scan);
        }
        StopPlan::LeavePending {
            free: self.free.clone(),
        }
    }
}
