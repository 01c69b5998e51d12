//! Resuming a checkpoint: which pages are in place before the guest starts, and how the others follow.
//!
//! Source: data-context paper (VMresume), sections III.A and III.C. To load everything first takes longer the more memory
//! there is; to start at once and load on fault makes the guest crawl while it faults its memory in. VMresume starts with what
//! the guest is likely to use: what it wrote and read in the last interval before the checkpoint, by temporal locality.
//!
//! | mode | before the start | after it |
//! |---|---|---|
//! | `eager` | every page | nothing |
//! | `lazy` | the device state | what the guest asks for, page by page |
//! | `predictive` | pages written or accessed in the last interval | what it asks for and what lies around that, then the rest |
//!
//! A store keeps many pages in one piece, and a piece is read as a whole: [`Placement`] says which pages lie together, and
//! what is handed out to be read is a piece with the pages of it that are put in place ([`Work`]). [`Resume`] is the machine
//! that says when to load, start, pause and finish; what a driver measured of it is a [`ResumeReport`].

mod eager;
mod lazy;
mod machine;
mod placement;
mod predictive;
mod report;
mod work;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use eager::Eager;
pub use lazy::Lazy;
pub use machine::{Command, Event, Left, Resume, ResumeError, Setup};
pub use placement::Placement;
pub use predictive::Predictive;
pub use report::{ResumeFaults, ResumePages, ResumePhase, ResumeProgress, ResumeReport};
pub use work::{Cause, Fetch, Next, Placed, Work};

use crate::bitmap::PageBitmap;

/// A way to resume, by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResumeMode {
    /// Everything, then the start.
    Eager,
    /// The start, then what the guest asks for.
    Lazy,
    /// What it is likely to ask for, the start, then the rest.
    #[default]
    Predictive,
}

/// A mode nobody knows.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown way to resume {0:?}; known are eager, lazy, predictive")]
pub struct UnknownMode(String);

impl ResumeMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Eager, Self::Lazy, Self::Predictive];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::Predictive => "predictive",
        }
    }

    /// The policy that carries it out. `drain_after`: see [`Lazy`].
    pub fn policy(self, drain_after: Option<Duration>) -> Box<dyn ResumePolicy> {
        match self {
            Self::Eager => Box::new(Eager),
            Self::Lazy => Box::new(Lazy::new(drain_after)),
            Self::Predictive => Box::new(Predictive::default()),
        }
    }
}

impl FromStr for ResumeMode {
    type Err = UnknownMode;

    fn from_str(name: &str) -> Result<Self, UnknownMode> {
        Self::ALL
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(|| UnknownMode(name.to_owned()))
    }
}

impl fmt::Display for ResumeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A service of a guest, whose first answer can be waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its address, `HOST:PORT`.
    pub address: String,
    /// What to send it; then the first byte it says is its answer. Where absent, that it accepts a connection is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<String>,
}

/// What the checkpoint tells of the guest's last interval before it.
#[derive(Clone, Debug)]
pub struct Interval {
    /// Pages written in it.
    pub written: PageBitmap,
    /// Pages accessed in it, read or written, as far as that was found out.
    pub accessed: PageBitmap,
}

/// What a policy sees when it is asked.
pub struct View<'a> {
    /// Time since the request.
    pub now: Duration,
    /// Which pages lie together.
    pub placement: &'a Placement,
    /// Pages that nobody reads yet.
    pub left: &'a PageBitmap,
}

/// What to read in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// What is left of this group; something is.
    Group(u32),
    /// Nothing now; ask again at this time or after the next fault.
    Wait(Option<Duration>),
}

/// A way to resume. Pages that hold no data need none of it: they read as zero.
pub trait ResumePolicy: Send {
    /// Pages that have to be in place before the guest starts. Those of them that hold no data do not count.
    fn before_start(&self, placement: &Placement, interval: &Interval) -> PageBitmap;

    /// Whether what lies in a demanded page's group is put in place together with it.
    fn takes_neighbours(&self) -> bool;

    /// The guest waits for `page`.
    fn faulted(&mut self, now: Duration, page: u64);

    /// What to read next while the guest asks for nothing; `view.left` is not empty.
    fn pick(&mut self, view: &View<'_>) -> Pick;
}
