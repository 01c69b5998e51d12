//! Names of the strategies and what the operator can ask of them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::policy::{self, Policy};
use crate::sampling::Ready;
use crate::tuning::Tuning;

/// A migration algorithm by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Everything crosses while the guest is stopped.
    StopAndCopy,
    /// Rounds while the guest runs, the rest at the stop.
    PreCopy,
    /// The same without the pages that a data filter expects to be dirtied again.
    PreCopyFilter,
    /// Device state at the stop, pages on demand.
    PostCopy,
    /// The same with pages pushed around the faults.
    PostCopyPush,
    /// One round while the guest runs, what it dirtied after the resume.
    Hybrid,
    /// The same without the learned working set in the round; the set goes first after the resume.
    HybridLearning,
    /// Device state and free list at the stop, pages by class as the guest's agent has it.
    Enlightened,
}

/// A strategy nobody knows.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("unknown strategy {0:?}; known are {known}", known = Strategy::known())]
pub struct UnknownStrategy(String);

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::StopAndCopy,
        Self::PreCopy,
        Self::PreCopyFilter,
        Self::PostCopy,
        Self::PostCopyPush,
        Self::Hybrid,
        Self::HybridLearning,
        Self::Enlightened,
    ];

    /// Its name on the command line and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::StopAndCopy => "stop-and-copy",
            Self::PreCopy => "pre-copy",
            Self::PreCopyFilter => "pre-copy-filter",
            Self::PostCopy => "post-copy",
            Self::PostCopyPush => "post-copy-push",
            Self::Hybrid => "hybrid",
            Self::HybridLearning => "hybrid-learning",
            Self::Enlightened => "enlightened",
        }
    }

    /// The policy that carries it out on a guest of `pages` pages. `tuning` was checked for them
    /// ([`Tuning::check`]).
    pub fn policy(self, limits: &Limits, tuning: &Tuning, pages: u64) -> Box<dyn Policy> {
        match self {
            Self::StopAndCopy => Box::new(policy::stop_and_copy::StopAndCopy),
            Self::PreCopy => Box::new(policy::pre_copy::PreCopy::new(limits.clone())),
            Self::PreCopyFilter => Box::new(policy::pre_copy_filter::PreCopyFilter::new(
                limits.clone(),
                tuning,
                pages,
            )),
            Self::PostCopy => Box::new(policy::post_copy::PostCopy::new(limits.drain_after)),
            Self::PostCopyPush => Box::new(policy::post_copy_push::PostCopyPush::default()),
            Self::Hybrid => Box::new(policy::hybrid::Hybrid::default()),
            Self::HybridLearning => Box::new(policy::hybrid_learning::HybridLearning::new(tuning, pages)),
            Self::Enlightened => Box::new(policy::enlightened::Enlightened::new(tuning.agent_timeout)),
        }
    }

    /// The same with what the host's sampler learned of the guest, for the strategies that have a use for it.
    pub fn policy_knowing(
        self,
        limits: &Limits,
        tuning: &Tuning,
        pages: u64,
        ready: Ready,
    ) -> Box<dyn Policy> {
        match self {
            Self::PreCopyFilter => Box::new(policy::pre_copy_filter::PreCopyFilter::knowing(
                limits.clone(),
                tuning,
                pages,
                ready,
            )),
            Self::HybridLearning => Box::new(policy::hybrid_learning::HybridLearning::knowing(
                tuning, pages, ready,
            )),
            _ => self.policy(limits, tuning, pages),
        }
    }

    fn known() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(name: &str) -> Result<Self, UnknownStrategy> {
        Self::ALL
            .into_iter()
            .find(|known| known.name() == name)
            .ok_or_else(|| UnknownStrategy(name.to_owned()))
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to do when a limit is reached before the downtime goal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AtLimit {
    /// Stop the guest and send the rest, however long that takes.
    Stop,
    /// Let the guest go on at the destination and send the rest after it.
    PostCopy,
    /// Give up; the guest stays where it is.
    Abort,
}

/// The operator's goal and limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// The guest is stopped once the rest is expected to cross within this time.
    pub downtime: Duration,
    /// Most rounds before [`Limits::at_limit`].
    pub rounds: u32,
    /// Longest time in rounds before [`Limits::at_limit`].
    pub time: Option<Duration>,
    /// Most bytes of pages in rounds before [`Limits::at_limit`].
    pub bytes: Option<u64>,
    /// What happens then.
    pub at_limit: AtLimit,
    /// `post-copy` fetches only what the guest asks for; after this time without a fault the rest is
    /// pushed, so that the migration ends and the source becomes free.
    pub drain_after: Duration,
    /// The guest has to be handed over within this time; if not, the migration is given up and the guest goes on at the
    /// source. Once it is handed over, a migration can only be completed.
    pub timeout: Option<Duration>,
    /// Most bytes a second on the wire, all page streams together. Holds while the guest runs, during the stop and after
    /// the resume; pages that the guest demands, and its device state, count but never wait.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Most CPU time that the page streams of the source use, in percent of one core.
    pub cpu_percent: Option<u32>,
    /// The same for the page streams of the destination.
    pub cpu_destination_percent: Option<u32>,
}

impl Default for Limits {
    /// 300 ms of downtime (QEMU's default), 30 rounds (Xen's), then stop.
    fn default() -> Self {
        Self {
            downtime: Duration::from_millis(300),
            rounds: 30,
            time: None,
            bytes: None,
            at_limit: AtLimit::Stop,
            drain_after: Duration::from_secs(1),
            timeout: None,
            bandwidth_bytes_per_s: None,
            cpu_percent: None,
            cpu_destination_percent: None,
        }
    }
}
