//! Control messages: what the two sides tell each other.
//!
//! A message is the payload of a frame ([`crate::frame`]) in postcard's encoding: the number of the variant,
//! then its fields ([`crate::codec`]). Variants are only ever appended, and the fields of a released variant never change: a
//! message that needs more becomes a new variant of a later protocol version ([`crate::version`]).

use serde::{Deserialize, Serialize};
use vmferry_core::limits::MAX_CPU_PERCENT;
use vmferry_core::report::{FaultReport, Verified};
use vmferry_core::{PageBitmap, RamLayout};

use crate::bounded::{blocks, bytes, fingerprints, hashes, one_line};
use crate::codec::{ControlMessage, Sealed};
use crate::error::{Result, WireError};
use crate::frame::FrameKind;
use crate::page_set::PageSet;

/// The most bytes a guest's specification may have.
pub const MAX_SPEC_BYTES: usize = 256 << 10;
/// The most bytes a strategy's name, or that of a RAM block, may have.
pub const MAX_NAME_BYTES: usize = 256;
/// The most bytes of device state in one message.
pub const MAX_DEVICE_STATE_CHUNK_BYTES: usize = 1 << 20;
/// The most hashes in one message.
pub const MAX_HASHES: usize = 64 << 10;
/// The most bytes the description of disks may have.
pub const MAX_DISKS_BYTES: usize = 256 << 10;
/// The most fingerprints of pages in one message.
pub const MAX_FINGERPRINTS: usize = 128 << 10;
/// The most bytes a reason may have; see [`clip_reason`].
pub const MAX_REASON_BYTES: usize = 4096;

/// What the source tells the destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToDestination {
    /// First message of a session: take this guest. Answered by [`ToSource::Accept`] or [`ToSource::Refuse`].
    Offer(Offer),
    /// A part of the pages still to come that does not fit into [`ToDestination::Switch`], which follows.
    Pending {
        /// The part.
        pages: PageSet,
    },
    /// Post-copy: the guest is paused, and after its device state it will run at the destination with pages
    /// missing. See [`ToDestination::switch`].
    Switch {
        /// The (last part of the) pages still to come; all others are in place, or holes.
        pending: PageSet,
        /// Whether pending pages may have been sent before, in a version now out of date.
        resend: bool,
    },
    /// A piece of the device state, in order.
    DeviceState {
        /// Whether it is the last piece.
        last: bool,
        /// The bytes, at most [`MAX_DEVICE_STATE_CHUNK_BYTES`].
        #[serde(with = "bytes")]
        bytes: Vec<u8>,
    },
    /// Verification: the 128-bit xxh3 hashes of pages as the paused source has them.
    PageHashes {
        /// Page number of the first hash.
        first: u64,
        /// The hashes of consecutive pages, at most [`MAX_HASHES`].
        #[serde(with = "hashes")]
        hashes: Vec<u128>,
    },
    /// Everything needed to run was sent; answered by [`ToSource::Ready`] once it is loaded.
    Prepare {
        /// Epoch of this handover.
        epoch: u64,
    },
    /// The source has given the guest up, in its journal first: the destination owns and runs it.
    /// Answered by [`ToSource::Running`].
    Commit {
        /// Epoch of this handover.
        epoch: u64,
    },
    /// Post-copy: every page was pushed; the destination answers [`ToSource::Complete`] when it has them.
    PushedAll,
    /// The migration ends here, before the commit point; the guest stays with the source.
    Abort {
        /// Why.
        #[serde(deserialize_with = "one_line::deserialize")]
        reason: String,
    },
    /// After a reconnect: what does the destination's journal say? Answered by [`ToSource::Owner`].
    Query {
        /// Epoch of the handover in question.
        epoch: u64,
    },
    /// Are you there? Answered by [`ToSource::Pong`].
    Ping {
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Since version 3: how much CPU time the page streams of the destination may use, all together, in percent of one core;
    /// as much as there is where absent. Holds from now on.
    CpuCap {
        /// At most [`MAX_CPU_PERCENT`], and not 0.
        percent: Option<u32>,
    },
    /// Since version 3, before the offer: the disks that move with the guest. Answered by [`ToSource::DisksPlaced`] before
    /// [`ToSource::Accept`].
    Disks {
        /// The plan (`DiskPlan` of `vmferry-guest`) in JSON, at most [`MAX_DISKS_BYTES`].
        plan_json: String,
    },
    /// Since version 3, right after the offer: which pages does the destination have in a store of its own? Answered by
    /// [`ToSource::Held`], after [`ToSource::Accept`].
    AskHeld,
}

/// What the destination tells the source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToSource {
    /// The guest can come. The source dials page and fault streams now.
    Accept {
        /// Page streams the destination takes, at most as many as were offered.
        streams: u16,
    },
    /// The guest cannot come.
    Refuse {
        /// Why, and how to mend it.
        #[serde(deserialize_with = "one_line::deserialize")]
        reason: String,
    },
    /// Everything sent in a round is in place.
    RoundReceived {
        /// The round.
        round: u32,
        /// Pages received in it.
        pages: u64,
        /// Bytes received in it.
        bytes: u64,
    },
    /// Everything is loaded; the guest could run.
    Ready {
        /// Epoch of this handover.
        epoch: u64,
    },
    /// The destination owns the guest, in its journal first, and it runs.
    Running {
        /// Epoch of this handover.
        epoch: u64,
    },
    /// What the destination's journal says.
    Owner {
        /// Epoch of the handover in question.
        epoch: u64,
        /// Who owns the guest.
        state: OwnerState,
    },
    /// After a reconnect, unless the guest was declined: a part of the pages the destination has. See
    /// [`ToSource::received`].
    Received {
        /// The part.
        pages: PageSet,
        /// Whether it is the last part.
        last: bool,
    },
    /// The destination has every page: the source may free everything.
    Complete {
        /// What the destination measured.
        summary: DestinationSummary,
    },
    /// The destination cannot go on. Before the commit point the guest stays with the source.
    Failed {
        /// Why.
        #[serde(deserialize_with = "one_line::deserialize")]
        reason: String,
    },
    /// Post-copy: how far it is.
    Progress {
        /// Faults so far.
        faults: u64,
        /// Pages in place.
        pages: u64,
    },
    /// The answer to [`ToDestination::Ping`].
    Pong {
        /// As in the question.
        nonce: u64,
    },
    /// Since version 3: where the disks lie at the destination, which waits for their streams once it has accepted the guest.
    DisksPlaced {
        /// The places (a list of `PlacedDisk` of `vmferry-guest`) in JSON, at most [`MAX_DISKS_BYTES`].
        places_json: String,
    },
    /// Since version 3, the answer to [`ToDestination::AskHeld`]: pages that the destination may have. They may cross as
    /// [`HeldPages`](crate::HeldPages) from now on. All together no more than the guest has pages.
    Held {
        /// The first 8 bytes of the BLAKE3 hash of each page, in no order; at most [`MAX_FINGERPRINTS`].
        #[serde(with = "fingerprints")]
        fingerprints: Vec<u64>,
        /// Whether it is the last part.
        last: bool,
    },
    /// Since version 3, before the end of the round in question: pages that crossed as hashes and that the destination does
    /// not have after all. They have to cross once more. (After the switch such pages are demanded.)
    Missed {
        /// The pages.
        pages: PageSet,
    },
}

/// A guest on offer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// The guest's specification (`GuestSpec` of `vmferry-guest`) in JSON, at most [`MAX_SPEC_BYTES`].
    pub spec_json: String,
    /// Its RAM. Bounds the page numbers of everything that follows.
    #[serde(with = "blocks")]
    pub layout: RamLayout,
    /// Name of the strategy.
    pub strategy: String,
    /// Page streams the source wants.
    pub streams: u16,
    /// Which faults the destination has to serve; none where all pages cross before the guest runs.
    pub faults: Option<FaultModeWire>,
    /// Whether hashes of all pages will come for comparison.
    pub verify: bool,
    /// Epoch of the handover, higher than any before for this guest at the source.
    pub epoch: u64,
}

/// Which accesses of the guest turn into faults at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FaultModeWire {
    /// Accesses to pages that never came.
    Missing,
    /// Those, and accesses to pages that came in a version now out of date.
    MissingAndStale,
}

/// What the destination's journal says of a handover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OwnerState {
    /// Nothing: it never got as far as being ready.
    Unknown,
    /// Ready, and waiting for the commit.
    Prepared,
    /// The destination owns the guest.
    Owner,
    /// The destination gave up and will not run it in this epoch.
    Declined,
}

/// What the destination measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DestinationSummary {
    /// Faults of the guest.
    pub faults: FaultSummary,
    /// CPU time of the migration's threads.
    pub cpu_seconds: f64,
    /// Private memory of the migration at its highest.
    pub memory_bytes: u64,
    /// What the comparison of hashes found, where it was asked for.
    pub verified: Option<VerifySummary>,
    /// Pages received, every crossing counted.
    pub pages_received: u64,
}

/// Faults and how long the guest waited for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FaultSummary {
    /// All of them.
    pub count: u64,
    /// Served over the network.
    pub network: u64,
    /// Answered at the destination.
    pub local: u64,
    /// Median fault service time of network faults, microseconds.
    pub p50_us: f64,
    /// 99th percentile, microseconds.
    pub p99_us: f64,
    /// Longest, microseconds.
    pub max_us: f64,
}

/// What the comparison of all pages found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifySummary {
    /// Pages compared.
    pub pages: u64,
    /// Pages that differ.
    pub mismatches: u64,
}

/// `reason` in one line and short enough for a message.
pub fn clip_reason(reason: &str) -> String {
    one_line::of(one_line::cut(reason, MAX_REASON_BYTES))
}

impl ToDestination {
    /// The messages that say which pages are still to come: `Switch`, after as many `Pending` as a large or
    /// fragmented set takes.
    pub fn switch(pending: &PageBitmap, resend: bool) -> Vec<Self> {
        let mut parts = PageSet::parts(pending);
        let last = parts.pop().expect("a set has at least one part");
        let mut messages: Vec<_> = parts.into_iter().map(|pages| Self::Pending { pages }).collect();
        messages.push(Self::Switch {
            pending: last,
            resend,
        });
        messages
    }

    /// The messages that carry `state`, at least one.
    pub fn device_state(state: &[u8]) -> Vec<Self> {
        let pieces = state.len().div_ceil(MAX_DEVICE_STATE_CHUNK_BYTES).max(1);
        (0..pieces)
            .map(|piece| {
                let from = piece * MAX_DEVICE_STATE_CHUNK_BYTES;
                let to = state.len().min(from + MAX_DEVICE_STATE_CHUNK_BYTES);
                Self::DeviceState {
                    last: piece + 1 == pieces,
                    bytes: state[from..to].to_vec(),
                }
            })
            .collect()
    }
}

impl ToSource {
    /// The messages that say which pages the destination has, at least one.
    pub fn received(pages: &PageBitmap) -> Vec<Self> {
        let parts = PageSet::parts(pages);
        let count = parts.len();
        let message = |(index, pages)| Self::Received {
            pages,
            last: index + 1 == count,
        };
        parts.into_iter().enumerate().map(message).collect()
    }

    /// The messages that say which pages were missed.
    pub fn missed(pages: &PageBitmap) -> Vec<Self> {
        let parts = PageSet::parts(pages);
        parts.into_iter().map(|pages| Self::Missed { pages }).collect()
    }

    /// The messages that say which pages the destination may have, at least one.
    pub fn held(fingerprints: &[u64]) -> Vec<Self> {
        let count = fingerprints.len().div_ceil(MAX_FINGERPRINTS).max(1);
        let part = |index: usize| {
            let from = index * MAX_FINGERPRINTS;
            let to = fingerprints.len().min(from + MAX_FINGERPRINTS);
            Self::Held {
                fingerprints: fingerprints[from..to].to_vec(),
                last: index + 1 == count,
            }
        };
        (0..count).map(part).collect()
    }
}

impl ControlMessage for ToDestination {
    const KIND: FrameKind = FrameKind::ToDestination;
    const NAMES: &'static [&'static str] = &[
        "Offer",
        "Pending",
        "Switch",
        "DeviceState",
        "PageHashes",
        "Prepare",
        "Commit",
        "PushedAll",
        "Abort",
        "Query",
        "Ping",
        "CpuCap",
        "Disks",
        "AskHeld",
    ];

    fn check(&self) -> Result<()> {
        match self {
            Self::Offer(offer) => offer.check(),
            Self::DeviceState { bytes, .. } => bound(
                "a piece of device state",
                bytes.len(),
                "bytes",
                MAX_DEVICE_STATE_CHUNK_BYTES,
            ),
            Self::PageHashes { hashes, .. } => {
                bound("a message of page hashes", hashes.len(), "hashes", MAX_HASHES)
            }
            Self::Abort { reason } => bound("the reason to abort", reason.len(), "bytes", MAX_REASON_BYTES),
            Self::Disks { plan_json } => {
                bound("the plan of the disks", plan_json.len(), "bytes", MAX_DISKS_BYTES)
            }
            Self::Pending { pages: set } | Self::Switch { pending: set, .. } => set.check(),
            Self::CpuCap { percent: Some(0) } => Err(WireError::UnknownKind {
                what: "CPU cap",
                came: "0%".into(),
                expected: format!("1% to {MAX_CPU_PERCENT}%"),
            }),
            Self::CpuCap { percent } => bound(
                "a CPU cap",
                percent.unwrap_or_default() as usize,
                "percent of a core",
                MAX_CPU_PERCENT as usize,
            ),
            Self::Prepare { .. }
            | Self::Commit { .. }
            | Self::PushedAll
            | Self::AskHeld
            | Self::Query { .. }
            | Self::Ping { .. } => Ok(()),
        }
    }
}

impl ControlMessage for ToSource {
    const KIND: FrameKind = FrameKind::ToSource;
    const NAMES: &'static [&'static str] = &[
        "Accept",
        "Refuse",
        "RoundReceived",
        "Ready",
        "Running",
        "Owner",
        "Received",
        "Complete",
        "Failed",
        "Progress",
        "Pong",
        "DisksPlaced",
        "Held",
        "Missed",
    ];

    fn check(&self) -> Result<()> {
        match self {
            Self::Refuse { reason } => bound("the reason to refuse", reason.len(), "bytes", MAX_REASON_BYTES),
            Self::Failed { reason } => bound(
                "the reason of the failure",
                reason.len(),
                "bytes",
                MAX_REASON_BYTES,
            ),
            Self::DisksPlaced { places_json } => bound(
                "the places of the disks",
                places_json.len(),
                "bytes",
                MAX_DISKS_BYTES,
            ),
            Self::Received { pages, .. } | Self::Missed { pages } => pages.check(),
            Self::Held { fingerprints, .. } => bound(
                "a message of fingerprints",
                fingerprints.len(),
                "fingerprints",
                MAX_FINGERPRINTS,
            ),
            Self::Accept { .. }
            | Self::RoundReceived { .. }
            | Self::Ready { .. }
            | Self::Running { .. }
            | Self::Owner { .. }
            | Self::Complete { .. }
            | Self::Progress { .. }
            | Self::Pong { .. } => Ok(()),
        }
    }
}

impl Offer {
    fn check(&self) -> Result<()> {
        bound(
            "the guest's specification",
            self.spec_json.len(),
            "bytes",
            MAX_SPEC_BYTES,
        )?;
        bound(
            "the strategy's name",
            self.strategy.len(),
            "bytes",
            MAX_NAME_BYTES,
        )?;
        self.layout.blocks().iter().try_for_each(|block| {
            bound(
                "the name of a RAM block",
                block.name.len(),
                "bytes",
                MAX_NAME_BYTES,
            )
        })
    }
}

impl From<FaultSummary> for FaultReport {
    fn from(summary: FaultSummary) -> Self {
        let FaultSummary {
            count,
            network,
            local,
            p50_us,
            p99_us,
            max_us,
        } = summary;
        Self {
            count,
            network,
            local,
            p50_us,
            p99_us,
            max_us,
        }
    }
}

impl From<VerifySummary> for Verified {
    fn from(VerifySummary { pages, mismatches }: VerifySummary) -> Self {
        Self { pages, mismatches }
    }
}

fn bound(what: &'static str, came: usize, unit: &'static str, limit: usize) -> Result<()> {
    if came > limit {
        return Err(WireError::TooLong {
            what,
            came: came as u64,
            unit,
            limit: limit as u64,
        });
    }
    Ok(())
}

impl Sealed for ToDestination {}
impl Sealed for ToSource {}
