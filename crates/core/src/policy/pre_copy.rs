//! `pre-copy`. Source: Clark et al., "Live Migration of Virtual Machines" (NSDI 2005), section 3.2: iterative
//! push rounds and a short stop; the rule for the stop (expected downtime within a goal) is QEMU's, the limits
//! of rounds and data are Xen's.

use super::{Faults, LiveStep, Needs, Policy, RoundPages, RoundPlan, StopPlan, View};
use crate::strategy::{AtLimit, Limits};

/// Rounds of what was dirtied in the round before, until the rest fits into the downtime goal.
pub struct PreCopy {
    limits: Limits,
    /// The limit that was reached, once one was: from then on only [`Limits::at_limit`] counts.
    reached: Option<String>,
}

impl PreCopy {
    /// Pre-copy within these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            reached: None,
        }
    }

    fn fits_goal(&self, view: &View<'_>) -> bool {
        view.time_to_send_pending()
            .is_some_and(|time| time <= self.limits.downtime)
    }

    fn limit_reached(&self, view: &View<'_>, rounds_so_far: u32) -> Option<String> {
        let Limits {
            rounds, time, bytes, ..
        } = self.limits;
        if rounds_so_far >= rounds {
            return Some(format!("{rounds} rounds"));
        }
        if let Some(time) = time.filter(|&time| view.now >= time) {
            return Some(format!("{} ms", time.as_millis()));
        }
        bytes
            .filter(|&bytes| view.bytes_sent >= bytes)
            .map(|bytes| format!("{bytes} bytes"))
    }

    /// What comes instead of another round after `rounds` of them, if none does.
    pub(super) fn before_round(&mut self, view: &View<'_>, rounds: u32) -> Option<LiveStep> {
        if self.fits_goal(view) {
            return Some(LiveStep::SwitchOver);
        }
        self.reached = self.limit_reached(view, rounds);
        let limit = self.reached.as_ref()?;
        Some(match self.limits.at_limit {
            AtLimit::Stop | AtLimit::PostCopy => LiveStep::SwitchOver,
            AtLimit::Abort => LiveStep::Abort(format!(
                "the guest dirties memory too fast: after {limit} the rest would still take {} ms, the goal is {} ms",
                view.time_to_send_pending().map_or(0, |time| time.as_millis()),
                self.limits.downtime.as_millis(),
            )),
        })
    }
}

impl Policy for PreCopy {
    fn needs(&self) -> Needs {
        let faults = match self.limits.at_limit {
            AtLimit::PostCopy => Faults::MissingAndStale,
            AtLimit::Stop | AtLimit::Abort => Faults::None,
        };
        Needs {
            tracking: true,
            faults,
        }
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        let round = LiveStep::Round(RoundPlan {
            pages: RoundPages::Pending,
            sample_every: None,
        });
        self.before_round(view, view.rounds).unwrap_or(round)
    }

    fn stop(&mut self, view: &View<'_>) -> StopPlan {
        match (&self.reached, self.limits.at_limit) {
            // Between the last scan and the stop the guest may have dirtied more than fits: go on.
            (None, _) if !self.fits_goal(view) => StopPlan::Retract,
            (Some(_), AtLimit::PostCopy) => StopPlan::LeavePending { free: None },
            _ => StopPlan::SendPending,
        }
    }
}
