//! The states of a source.

use std::fmt;
use std::time::Duration;

use crate::bitmap::PageBitmap;
use crate::handover::Epoch;
use crate::report::Outcome;

/// Where a migration stands, seen from the source. Who may run the guest stands beside each state.
///
/// ```text
/// Offered -> (Asking) -> Arming -> Round <-> Scanning -> Stopping -> StopCopy -> Preparing -> HandingOver
///               \       ^ Waiting ^            |  ^ Retracting            (commit point) |
///                \______|_________|____________|                                          v
///                                                  Released <- Pushing <-> Severed <- Committing
/// ```
///
/// Where disks move with the guest, *CopyingDisks* follows *Offered*, and *AwaitingDisks* may come before *Stopping*.
#[derive(Debug)]
pub(super) enum State {
    /// The offer was sent. *Source runs the guest.*
    Offered,
    /// The guest is being asked about its pages. *Source.*
    Asking {
        /// How long its answer is waited for.
        until: Duration,
        /// Tracking was armed before it was asked.
        tracked: bool,
    },
    /// The disks are being copied; everything else comes later. *Source.*
    CopyingDisks,
    /// Everything but the disks is ready for the stop, which waits for them. *Source.*
    AwaitingDisks {
        /// When to look again.
        until: Duration,
    },
    /// Tracking is being armed. *Source.*
    Arming,
    /// A live scan is under way, at the end of a round or a wait. *Source.*
    Scanning,
    /// The policy wants another scan later. *Source.*
    Waiting {
        /// When.
        until: Duration,
    },
    /// Pages are pushed from the running guest. *Source.*
    Round(Round),
    /// The guest is being stopped. *Source, paused.*
    Stopping,
    /// The stop came too early; the guest goes on. *Source.*
    Retracting,
    /// Rest and device state cross. *Source, paused.*
    StopCopy(StopCopy),
    /// The destination loads, and the source makes sure that what it saved is whole. *Source, paused.*
    Preparing {
        /// Pages follow after the resume.
        post_copy: bool,
        /// The destination has loaded it.
        ready: bool,
        /// It is whole.
        confirmed: bool,
    },
    /// *Handed over* is being written. *Nobody, until it is known what the journal holds.*
    HandingOver {
        /// Pages follow after the resume.
        post_copy: bool,
        /// The connection holds. Where it broke meanwhile, the journal's answer comes first all the same.
        connected: bool,
    },
    /// The commit was sent; no answer yet. *Destination.*
    Committing {
        /// Pages follow after the resume.
        post_copy: bool,
    },
    /// The guest runs at the destination and gets what it lacks. *Destination.*
    Pushing {
        /// Pages were outstanding when the guest resumed there.
        post_copy: bool,
        /// Everything was sent and this was said.
        all_sent: bool,
    },
    /// Connection lost after the commit point. *Destination, or nobody: only its journal knows.*
    Severed {
        /// Pages follow after the resume.
        post_copy: bool,
    },
    /// The destination proved that it will not run the guest, or was never told to; *owner* is being written,
    /// and nothing but the journal's answer counts. *Source.*
    TakingBack {
        /// Why it came to this.
        reason: String,
    },
    /// It is over.
    Ended {
        /// How.
        outcome: Outcome,
        /// Why, where it did not complete.
        error: Option<String>,
    },
}

/// A round under way.
#[derive(Debug)]
pub(super) struct Round {
    /// Number, from 1.
    pub number: u32,
    /// Pages of the round not claimed yet.
    pub left: PageBitmap,
    /// Pages held back at its start or later.
    pub held_back: Option<PageBitmap>,
    /// Pages held back and then sent after all.
    pub taken_back: u64,
    /// Pages that samples found dirty, in rounds that are sampled.
    pub dirtied: PageBitmap,
    /// Streams that were told of its end.
    pub marked: Vec<bool>,
    /// When it began.
    pub began: Duration,
    /// Pages and bytes sent in it.
    pub pages: u64,
    /// See `pages`.
    pub bytes: u64,
    /// Of the pages, those that crossed as references: they say nothing about how fast pages cross.
    pub referenced: u64,
    /// When to take the next sample, for policies that sample.
    pub next_sample: Option<Duration>,
    /// The interval of samples.
    pub sample_every: Option<Duration>,
    /// A sample's scan is under way.
    pub sampling: bool,
}

impl Round {
    pub(super) fn new(number: u32, left: PageBitmap, streams: usize, began: Duration) -> Self {
        Self {
            number,
            dirtied: PageBitmap::new(left.len()),
            left,
            held_back: None,
            taken_back: 0,
            marked: vec![false; streams],
            began,
            pages: 0,
            bytes: 0,
            referenced: 0,
            next_sample: None,
            sample_every: None,
            sampling: false,
        }
    }
}

/// The stop: which of its parts are still under way.
#[derive(Debug)]
pub(super) struct StopCopy {
    /// The last pages, in plans that send them; gone once the destination has them.
    pub rest: Option<Round>,
    /// The device state is not sent yet.
    pub state_outstanding: bool,
    /// Pages follow after the resume.
    pub post_copy: bool,
}

impl State {
    /// The round or stop under way, whose pages streams ask for.
    pub(super) fn round_mut(&mut self) -> Option<&mut Round> {
        match self {
            Self::Round(round) => Some(round),
            Self::StopCopy(stop) => stop.rest.as_mut(),
            _ => None,
        }
    }

    /// Whether the guest is between its stop and its resume, with pages that follow, and the connection holds.
    pub(super) const fn awaits_resume(&self) -> bool {
        matches!(
            self,
            Self::StopCopy(StopCopy {
                rest: None,
                post_copy: true,
                ..
            }) | Self::Preparing { post_copy: true, .. }
                | Self::HandingOver {
                    post_copy: true,
                    connected: true,
                }
                | Self::Committing { post_copy: true }
        )
    }

    /// Whether the guest is past the commit point.
    pub(super) const fn committed(&self) -> bool {
        matches!(
            self,
            Self::HandingOver { .. } | Self::Committing { .. } | Self::Pushing { .. } | Self::Severed { .. }
        )
    }

    /// Whether the migration can still be given up, with the guest at the source.
    pub(super) const fn may_give_up(&self) -> bool {
        !self.committed() && !matches!(self, Self::TakingBack { .. } | Self::Ended { .. })
    }

    /// In words, for progress, reports and errors.
    pub(super) fn phase(&self) -> &'static str {
        match self {
            Self::Offered => "prepare destination",
            Self::Asking { .. } => "ask the guest",
            Self::CopyingDisks => "copy disks",
            Self::AwaitingDisks { .. } => "catch up with the disks",
            Self::Arming => "arm tracking",
            Self::Scanning => "scan",
            Self::Waiting { .. } => "sample",
            Self::Round(_) => "push",
            Self::Stopping | Self::StopCopy(_) => "stop-and-copy",
            Self::Retracting => "retract stop",
            Self::Preparing { .. } => "load device state",
            Self::HandingOver { .. } => "hand over",
            Self::Committing { .. } => "commit",
            Self::Pushing { .. } => "pull and push",
            Self::Severed { .. } => "reconnect",
            Self::TakingBack { .. } => "take back",
            Self::Ended { .. } => "ended",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.phase())
    }
}

/// Where the handover of a source stands; what a daemon shows and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// The guest is the source's.
    Here,
    /// The commit point is passed; the guest is the destination's as of this epoch.
    HandedOver(Epoch),
}
