//! What the driver of a source tells its state machine, and what the machine asks of the driver.

use std::time::Duration;

use crate::bitmap::PageBitmap;
use crate::disks::DiskProgress;
use crate::handover::{Claim, Epoch};
use crate::hints::Hints;
use crate::pages::PageRun;
use crate::report::{FaultReport, Verified};
use crate::tracking::ScanPoint;

/// Something happened. Every [`Command`] that names an event here is answered by it.
#[derive(Debug)]
pub enum Event {
    /// The destination accepted the offer and created the guest.
    Accepted {
        /// Page streams it takes.
        streams: usize,
    },
    /// What came of asking the guest about its pages. The driver asks by itself at the beginning where the policy wants
    /// to know ([`Source::wants_hints`](super::Source::wants_hints)), as if told [`Command::Enlighten`].
    Enlightened(Enlightenment),
    /// Tracking is armed; `data` are the pages that hold anything. The guest was paused for `paused`.
    Armed {
        /// Pages that hold data.
        data: PageBitmap,
        /// How long the guest stood still for it.
        paused: Duration,
    },
    /// A live scan.
    Scanned(PageBitmap),
    /// The guest is stopped and drained; `paused_at` is the time just before.
    Stopped {
        /// When the stop was asked for.
        paused_at: Duration,
        /// With tracking: the pages written since the last scan. Without: the pages that hold data.
        pages: PageBitmap,
        /// Pages that became holes behind the tracker's back: they read as zero now.
        discarded: Option<PageBitmap>,
        /// Where that was asked for and could be told: the pages that the guest does not use now.
        free: Option<PageBitmap>,
    },
    /// A retracted stop: the guest runs at the source again.
    Resumed,
    /// The destination has noted which pages follow ([`Command::SendSwitch`]): it takes them from now on.
    SwitchTaken,
    /// A look at the mirrors of the disks.
    DisksProgress(DiskProgress),
    /// The mirrors have settled and ended: the disks of both hosts are equal as of the stop.
    DisksSettled,
    /// The device state was saved and is on its way; its size.
    StateSent {
        /// Bytes of device state.
        bytes: u64,
    },
    /// The device state was saved whole.
    StateConfirmed,
    /// The destination has everything of this round.
    RoundReceived {
        /// Which round.
        round: u32,
    },
    /// Pages that crossed as references, and that the destination turned out not to have; before the end of their round.
    Missed(PageBitmap),
    /// The destination loaded everything and waits for the commit.
    Ready(Epoch),
    /// The journal holds what was asked for.
    Journaled,
    /// The journal could not be written or forced to disk.
    JournalFailed(String),
    /// The guest runs at the destination.
    Running(Epoch),
    /// The destination has every page.
    Complete(Summary),
    /// The connection broke.
    Disconnected(String),
    /// It is back; the destination's journal says this, and unless it declined, which pages it lacks.
    Reconnected {
        /// The epoch the destination speaks of.
        epoch: Epoch,
        /// What it says about it.
        claim: Claim,
        /// Pages it lacks, unless it declined: a source that was restarted does not know them.
        lacking: Option<PageBitmap>,
    },
    /// The operator wants to cancel.
    Cancel,
    /// The operator knows where the guest has to run, after the commit point with the peer unreachable.
    Resolve(Side),
    /// The operator caps the bandwidth at so many bytes a second, or lifts the cap.
    LimitBandwidth(Option<u64>),
    /// Something at the source failed, or the destination refused or failed.
    Failed(String),
    /// The time named by [`Source::deadline`](super::Source::deadline) has come.
    Tick,
}

/// What came of asking the guest about its pages.
#[derive(Debug)]
pub enum Enlightenment {
    /// It said what they are used for.
    Told {
        /// By its own account.
        hints: Hints,
        /// Which pages are free can be told exactly while it stands still ([`Command::Stop`]). Else only those of
        /// [`Hints::free`] that were not written since tracking was armed are free.
        exact: bool,
    },
    /// It answers, but which pages are free cannot be told exactly: it has to be asked while writes are tracked.
    Inexact {
        /// Why not.
        why: String,
    },
    /// It said nothing of use.
    Nothing {
        /// Why.
        why: String,
    },
}

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the guest came from.
    Source,
    /// Where it goes.
    Destination,
}

/// What the destination measured.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Faults of the guest.
    pub faults: FaultReport,
    /// CPU seconds of the migration there.
    pub cpu_seconds: f64,
    /// Private memory of the migration there.
    pub memory_bytes: u64,
    /// What it compared.
    pub verified: Option<Verified>,
}

/// Something to do, in the order given.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Begin to copy the disks; [`Event::DisksProgress`] follows again and again until they have settled.
    CopyDisks,
    /// The guest is stopped: let the mirrors settle and end them; answer [`Event::DisksSettled`]. Pages may cross meanwhile.
    SettleDisks,
    /// Ask the guest what its pages are used for, while writes are tracked; answer [`Event::Enlightened`]. The guest and
    /// everything else go on meanwhile.
    Enlighten,
    /// Pause, arm tracking, look which pages hold data, resume; answer [`Event::Armed`].
    Arm,
    /// Scan; answer [`Event::Scanned`].
    Scan,
    /// Flush disks, pause, and with `scan` scan, without it look which pages hold data; answer
    /// [`Event::Stopped`].
    Stop {
        /// Whether tracking is armed.
        scan: bool,
        /// Whether to look which pages the guest does not use.
        free: bool,
    },
    /// Let the stopped guest go on here; answer [`Event::Resumed`].
    Retract,
    /// Tell the destination that these pages follow after the resume; it answers [`Event::SwitchTaken`].
    SendSwitch {
        /// The pages still to come.
        pending: PageBitmap,
    },
    /// Save the device state and send it; answer [`Event::StateSent`].
    SendState,
    /// Make sure that the device state was saved whole; answer [`Event::StateConfirmed`]. The destination loads meanwhile.
    ConfirmState,
    /// Send the hash of every page of the stopped guest; pages that were [dropped](super::Source::dropped) count as
    /// zero.
    SendHashes,
    /// Ask the destination to load; it answers [`Event::Ready`].
    SendPrepare(Epoch),
    /// Write *handed over* to the journal and force it to disk; answer [`Event::Journaled`].
    JournalHandedOver(Epoch),
    /// Write *owner* to the journal and force it to disk; answer [`Event::Journaled`].
    JournalOwner(Epoch),
    /// Tell the destination to run the guest.
    SendCommit(Epoch),
    /// Let streams look for batches ([`Source::next_batch`](super::Source::next_batch)) again.
    WakeStreams,
    /// Tell the destination that every page was sent.
    SendAllPushed,
    /// Tell the destination that the migration is off. May fail: the connection may be gone.
    SendAbort(String),
    /// Stop tracking and let the guest go on here, if it is paused.
    Rollback,
    /// Keep trying to reach the destination; answer [`Event::Reconnected`].
    Reconnect,
    /// The destination has everything: write *released* and free the guest here.
    Release(Epoch),
}

/// What a page stream does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Batch {
    /// Send these runs, then report them by [`Source::sent`](super::Source::sent).
    Pages {
        /// Disjoint runs.
        runs: Vec<PageRun>,
        /// The round they belong to.
        round: u32,
        /// Where the guest is: pages of a stopped guest carry checksums.
        point: ScanPoint,
    },
    /// Send the mark of the round's end.
    RoundEnd(u32),
    /// Nothing now; ask again at this time, or when woken.
    Idle(Option<Duration>),
    /// The migration is over.
    Finished,
}

/// How a demanded page is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// Send it on the fault stream.
    Send,
    /// It is on its way, pushed.
    UnderWay,
}

/// What went over a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentBatch {
    /// Pages that crossed in full.
    pub raw: u64,
    /// Pages that crossed as one byte.
    pub uniform: u64,
    /// Pages that crossed compressed.
    pub compressed: u64,
    /// Pages that crossed as the difference to the version sent before.
    pub delta: u64,
    /// Pages that crossed as references to content the destination has.
    pub deduplicated: u64,
    /// Bytes, headers included.
    pub bytes: u64,
}

impl SentBatch {
    /// Pages that crossed.
    pub const fn pages(&self) -> u64 {
        self.raw + self.uniform + self.compressed + self.delta + self.deduplicated
    }
}
