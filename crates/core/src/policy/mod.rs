//! Policies: which page crosses when, one file an algorithm.
//!
//! A policy is asked; it never acts. While the guest runs at the source, [`Policy::live`] says what comes next:
//! a round, a pause for another sample, the stop, or giving up. Within a round, and after the guest resumed at
//! the destination, [`Policy::pick`] says which of the pages left goes next, so order and priority are always
//! the policy's. At the stop, [`Policy::stop`] says what crosses before the guest resumes.
//!
//! How the algorithms use that:
//!
//! | algorithm | `live` | `sampled` | `stop` | `pick`, `faulted` |
//! |---|---|---|---|---|
//! | `pre-copy-filter` | a round of [`RoundPages::PendingExcept`] the forecast, with `sample_every` 50 ms | takes pages back, holds others back: [`RoundChange`] | send pending | address order |
//! | `hybrid` | one round of all, then switch over | - | leave pending | dirtied pages (all that is left), near faults first |
//! | `hybrid-learning` | [`LiveStep::Wait`] for each sample, one round except the WWS, switch over | - | leave pending | near faults, then the hottest pages |
//! | `enlightened` | switch over | - | leave pending, [`StopPlan::LeavePending::free`] pages dropped | near faults, then by class of the guest's [`Hints`] |
//! | `auto` | delegates to what the forecast picked; may change its delegate between rounds | delegates | delegates | delegates |

use std::time::Duration;

use crate::bitmap::PageBitmap;
use crate::filter::FilterReport;
use crate::hints::Hints;
use crate::ledger::Ledger;
use crate::pages::PageRun;
use crate::rates::Rates;

pub mod auto;
pub mod enlightened;
pub mod hybrid;
pub mod hybrid_learning;
pub(crate) mod near_faults;
pub mod post_copy;
pub mod post_copy_push;
pub mod pre_copy;
pub mod pre_copy_filter;
pub mod stop_and_copy;

/// What a policy sees when it is asked.
pub struct View<'a> {
    /// Time since the request.
    pub now: Duration,
    /// The book of pages.
    pub ledger: &'a Ledger,
    /// The pages that the last scan reported.
    pub last_scan: &'a PageBitmap,
    /// Pages that cross again after a stop although they crossed: see [`crate::tracking`].
    pub unsettled: &'a PageBitmap,
    /// Rounds finished so far.
    pub rounds: u32,
    /// Bytes of pages put on the wire so far.
    pub bytes_sent: u64,
    /// Rates measured so far.
    pub rates: &'a Rates,
}

impl View<'_> {
    /// Expected time for all pending pages to cross; unknown before the first round.
    pub fn time_to_send_pending(&self) -> Option<Duration> {
        self.rates.time_to_send(self.ledger.pending().count())
    }
}

/// What a policy needs of the hosts; fixed before the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Writes have to be tracked from before the first page is sent.
    pub tracking: bool,
    /// What the destination has to catch after the resume.
    pub faults: Faults,
}

/// Which first accesses the destination has to catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Faults {
    /// None: every page is in place before the guest resumes.
    None,
    /// To pages that never crossed; nothing crosses before the stop.
    Missing,
    /// To those, and to pages that crossed and were dirtied since.
    MissingAndStale,
}

/// What to do next while the guest runs at the source.
#[derive(Debug)]
pub enum LiveStep {
    /// Push a round, scan, and ask again.
    Round(RoundPlan),
    /// Wait, scan, and ask again.
    Wait(Duration),
    /// Stop the guest, scan, and ask [`Policy::stop`].
    SwitchOver,
    /// Give up, for this reason. The guest stays at the source.
    Abort(String),
}

/// A round of pages to push.
#[derive(Debug)]
pub struct RoundPlan {
    /// Which.
    pub pages: RoundPages,
    /// Scan this often during the round and ask [`Policy::sampled`].
    pub sample_every: Option<Duration>,
}

/// The pages of a round.
#[derive(Debug)]
pub enum RoundPages {
    /// All that are pending.
    Pending,
    /// Those without the ones held back, which stay pending.
    PendingExcept(PageBitmap),
}

/// How a round under way changes.
#[derive(Debug, Default)]
pub struct RoundChange {
    /// Pages not to send in this round; they stay pending.
    pub hold_back: Option<PageBitmap>,
    /// Pages held back earlier to send in this round after all, if pending.
    pub take_back: Option<PageBitmap>,
}

/// What crosses while the guest is stopped.
#[derive(Debug)]
pub enum StopPlan {
    /// All pending pages: then the guest resumes with everything (pre-copy).
    SendPending,
    /// None: the guest resumes, the rest follows (post-copy).
    LeavePending {
        /// Pages that the guest does not use: they are dropped and read as zero.
        free: Option<PageBitmap>,
    },
    /// The stop came too early: let the guest go on at the source and ask [`Policy::live`] again.
    Retract,
}

/// Which pages go next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// These; all of them must be among the pages left.
    Run(PageRun),
    /// None now; ask again at this time or after the next fault.
    Wait(Option<Duration>),
}

/// A migration algorithm. See the module for when each method is called.
pub trait Policy: Send {
    /// What the hosts have to provide.
    fn needs(&self) -> Needs;

    /// Whether, and how long at most, to wait for what the guest says about its pages ([`Policy::enlightened`]) before
    /// [`Policy::live`] is asked.
    fn wants_hints(&self) -> Option<Duration> {
        None
    }

    /// What the guest says about its pages, or why it said nothing of use. It may be wrong: an order of pages is all it
    /// is good for.
    fn enlightened(&mut self, _answer: Result<Hints, String>) {}

    /// What next, while the guest runs at the source.
    fn live(&mut self, view: &View<'_>) -> LiveStep;

    /// A scan came during a round (only when the round's plan asked for samples).
    fn sampled(&mut self, _view: &View<'_>) -> RoundChange {
        RoundChange::default()
    }

    /// The guest is stopped and does not use these pages: they may be dropped. Comes right before [`Policy::stop`], where
    /// it is known, for policies that want hints.
    fn found_free(&mut self, _free: PageBitmap) {}

    /// The guest is stopped and the last scan is in the ledger: what crosses now?
    fn stop(&mut self, view: &View<'_>) -> StopPlan;

    /// Which of the pages `left` goes next, at most `max_pages` of them; `left` is not empty. During a round
    /// and at the stop it must name some; after the resume it may wait.
    fn pick(&mut self, _view: &View<'_>, left: &PageBitmap, max_pages: u64) -> Pick {
        in_address_order(left, max_pages)
    }

    /// The guest at the destination demanded `page`.
    fn faulted(&mut self, _view: &View<'_>, _page: u64) {}

    /// Whether pages may cross before the resume that the loading of the device state reads: the plan leaves them for later,
    /// and they would be demanded one by one.
    fn sends_ahead(&self) -> bool {
        true
    }

    /// What its data filter learned, of a policy that has one.
    fn filter_report(&self) -> Option<FilterReport> {
        None
    }

    /// What the operator should know, since this was asked last: what was learned, what was switched off.
    fn notes(&mut self) -> Vec<String> {
        Vec::new()
    }
}

/// The first pages left, in order of address.
pub fn in_address_order(left: &PageBitmap, max_pages: u64) -> Pick {
    left.next_run(0, max_pages).map_or(Pick::Wait(None), Pick::Run)
}
