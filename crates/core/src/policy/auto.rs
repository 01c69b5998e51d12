//! `auto`. Source: ours; that post-copy bounds what pre-copy cannot is Hines 2009, and QEMU switches so on demand (`migrate-start-postcopy`).
//!
//! The strategy that the forecast picked for the operator's goal, for as long as reality keeps to the forecast.
//!
//! Pre-copy is where that matters: it takes as long as the guest writes, and a guest may begin to write more after the forecast
//! was made. Once the guest should long have been handed over, or more was sent than was expected, or in more rounds, the
//! forecast is void. Then the rest follows the guest (post-copy), which bounds the time and what crosses: each page left
//! crosses once more. That is looked at between rounds, so that a round that is slow is sent to its end. The switch waits for a *local minimum of the dirty set*: rounds go on while they shrink it, and it is
//! made when one does not any more, or hardly; so few pages are left that the guest has to wait for.
//!
//! Algorithms that bound their time themselves are followed to the end.

use std::time::Duration;

use super::near_faults::NearFaults;
use super::{
    Faults, LiveStep, Needs, Pick, Policy, RoundChange, RoundPages, RoundPlan, StopPlan, View,
    in_address_order,
};
use crate::bitmap::PageBitmap;
use crate::forecast::StrategyForecast;
use crate::hints::Hints;
use crate::strategy::Strategy;

/// Rounds after the forecast became void at most: the dirty set may go on shrinking a little for ever.
const MOST_ROUNDS: u32 = 5;
/// A round that leaves more than this share of what the one before left hardly shrinks it.
const HARDLY: f64 = 0.9;

/// The strategy that was picked, watched.
pub struct Auto {
    delegate: Box<dyn Policy>,
    /// Whether it can leave for post-copy: its algorithm pushes in rounds.
    may_leave: bool,
    expected: StrategyForecast,
    state: State,
    near: NearFaults,
    notes: Vec<String>,
}

/// Where it stands with the forecast.
#[derive(Debug, PartialEq)]
enum State {
    /// Reality keeps to it.
    Within,
    /// It does not any more: a local minimum of the dirty set is awaited.
    Leaving {
        /// Round in which it became void.
        since: u32,
        /// Pages that were pending when it was looked at last.
        pending: u64,
    },
    /// The rest follows the guest.
    PostCopy,
}

impl Auto {
    /// `delegate`, which carries out the algorithm of `expected`, for as long as that holds.
    pub fn new(delegate: Box<dyn Policy>, expected: StrategyForecast) -> Self {
        Self {
            delegate,
            may_leave: matches!(expected.strategy, Strategy::PreCopy | Strategy::PreCopyFilter),
            expected,
            state: State::Within,
            near: NearFaults::default(),
            notes: Vec::new(),
        }
    }

    /// In what reality left the forecast, if it did.
    fn left(&self, view: &View<'_>) -> Option<String> {
        let Expected {
            time_ms,
            bytes,
            rounds,
        } = Expected::of(&self.expected);
        let now_ms = view.now.as_secs_f64() * 1e3;
        if now_ms > time_ms {
            return Some(format!("the guest was to be handed over within {time_ms:.0} ms"));
        }
        if view.bytes_sent as f64 > bytes {
            return Some(format!(
                "no more than {:.0} MiB were to be sent",
                bytes / f64::from(1 << 20)
            ));
        }
        (f64::from(view.rounds) > rounds).then(|| format!("no more than {rounds:.0} rounds were to be made"))
    }

    /// What comes instead of what the delegate would do, once the forecast is void.
    fn leave(&mut self, view: &View<'_>) -> Option<LiveStep> {
        let now = view.ledger.pending().count();
        match self.state {
            State::Within => {
                let why = self.left(view)?;
                self.notes.push(format!(
                    "reality left the forecast after {} rounds ({why}): the rest follows the guest once its dirty set is small",
                    view.rounds
                ));
                self.state = State::Leaving {
                    since: view.rounds,
                    pending: now,
                };
            }
            State::Leaving { since, pending } => {
                let shrinks = (now as f64) < HARDLY * pending as f64;
                // It grew: the minimum lies behind, and the next one is awaited.
                let grew = now > pending;
                if (!shrinks && !grew) || view.rounds >= since + MOST_ROUNDS {
                    self.state = State::PostCopy;
                    self.notes.push(format!(
                        "switched to post-copy after round {} with {now} pages left",
                        view.rounds
                    ));
                    return Some(LiveStep::SwitchOver);
                }
                self.state = State::Leaving { since, pending: now };
            }
            State::PostCopy => return Some(LiveStep::SwitchOver),
        }
        Some(LiveStep::Round(RoundPlan {
            pages: RoundPages::Pending,
            sample_every: None,
        }))
    }
}

/// The upper ends of what is expected while the guest runs at the source.
struct Expected {
    time_ms: f64,
    bytes: f64,
    rounds: f64,
}

impl Expected {
    fn of(forecast: &StrategyForecast) -> Self {
        Self {
            time_ms: forecast.execution_transfer_ms.high,
            bytes: forecast.bytes_on_wire.high,
            rounds: forecast.rounds.high,
        }
    }
}

impl Policy for Auto {
    fn needs(&self) -> Needs {
        let needs = self.delegate.needs();
        match self.may_leave {
            true => Needs {
                tracking: true,
                faults: Faults::MissingAndStale,
            },
            false => needs,
        }
    }

    fn wants_hints(&self) -> Option<Duration> {
        self.delegate.wants_hints()
    }

    fn enlightened(&mut self, answer: Result<Hints, String>) {
        self.delegate.enlightened(answer);
    }

    fn live(&mut self, view: &View<'_>) -> LiveStep {
        if !self.may_leave {
            return self.delegate.live(view);
        }
        if self.state == State::PostCopy {
            return LiveStep::SwitchOver;
        }
        match self.delegate.live(view) {
            LiveStep::Round(plan) => self.leave(view).unwrap_or(LiveStep::Round(plan)),
            // What fits its goal is done, however long it took; and the operator's limits hold.
            step => step,
        }
    }

    fn sampled(&mut self, view: &View<'_>) -> RoundChange {
        match self.state {
            State::Within => self.delegate.sampled(view),
            State::Leaving { .. } | State::PostCopy => RoundChange::default(),
        }
    }

    fn found_free(&mut self, free: PageBitmap) {
        self.delegate.found_free(free);
    }

    fn stop(&mut self, view: &View<'_>) -> StopPlan {
        match self.state {
            State::PostCopy => StopPlan::LeavePending { free: None },
            State::Within | State::Leaving { .. } => self.delegate.stop(view),
        }
    }

    fn pick(&mut self, view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        if self.state != State::PostCopy {
            return self.delegate.pick(view, left, max_pages);
        }
        match self.near.next(left, max_pages) {
            Some(run) => Pick::Run(run),
            None => in_address_order(left, max_pages),
        }
    }

    fn faulted(&mut self, view: &View<'_>, page: u64) {
        self.near.faulted(page);
        self.delegate.faulted(view, page);
    }

    fn sends_ahead(&self) -> bool {
        self.delegate.sends_ahead()
    }

    fn notes(&mut self) -> Vec<String> {
        let mut notes = self.delegate.notes();
        notes.append(&mut self.notes);
        notes
    }
}
