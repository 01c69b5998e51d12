//! What the driver of a destination tells its state machine, and what the machine asks of the driver.

use crate::handover::{Claim, Epoch};

/// Something happened. Every [`Command`] that names an event here is answered by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A page stream delivered everything of a round.
    RoundEnd {
        /// Which stream.
        stream: usize,
        /// Which round.
        round: u32,
    },
    /// The source announced the pages that follow after the resume.
    Switch,
    /// The device state is complete.
    StateArrived,
    /// The source asks to load.
    Prepare(Epoch),
    /// The device state is loaded.
    Loaded,
    /// Pages were compared; so many differ.
    Compared {
        /// Pages that differ.
        mismatches: u64,
    },
    /// The source hands over.
    Commit(Epoch),
    /// The journal holds what was asked for.
    Journaled,
    /// The journal did not take what was asked for, or could not say that it did.
    JournalFailed(String),
    /// The guest runs.
    Started,
    /// No page is outstanding any more.
    AllArrived,
    /// The source sent everything.
    AllPushed,
    /// The source is back and asks whose the guest is.
    Asked(Epoch),
    /// The source gives up.
    Abort(String),
    /// Something failed here.
    Failed(String),
    /// The connection broke, or what came over it made no sense.
    Broken(String),
}

impl Event {
    /// Its name in errors.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::RoundEnd { .. } => "the end of a round",
            Self::Switch => "the switch to post-copy",
            Self::StateArrived => "device state",
            Self::Prepare(_) => "`Prepare`",
            Self::Loaded => "the news that device state is loaded",
            Self::Compared { .. } => "the result of a comparison",
            Self::Commit(_) => "`Commit`",
            Self::JournalFailed(_) => "the failure of a journal entry",
            Self::Journaled => "the news of a journal entry",
            Self::Started => "the news that the guest runs",
            Self::AllArrived => "the last page",
            Self::AllPushed => "`AllPushed`",
            Self::Asked(_) => "a question about the owner",
            Self::Abort(_) => "`Abort`",
            Self::Failed(_) => "a failure",
            Self::Broken(_) => "the loss of the connection",
        }
    }
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Tell the source that the round is complete.
    SendRoundReceived {
        /// Which.
        round: u32,
    },
    /// Note which pages are outstanding; from now on pages go through the fault mechanism.
    ExpectPages,
    /// Load the device state; answer [`Event::Loaded`].
    Load,
    /// Say what came of comparing all pages with the source's hashes, which is done as these come: before the load; answer
    /// [`Event::Compared`].
    Compare,
    /// Compare what arrived, page by page, with the source's hashes; answer [`Event::Compared`].
    CompareArrived,
    /// Say that a commit may come.
    SendReady(Epoch),
    /// Write *owner* to the journal and force it to disk; answer [`Event::Journaled`].
    JournalOwner(Epoch),
    /// Write *declined* to the journal and force it to disk; answer [`Event::Journaled`].
    JournalDeclined(Epoch),
    /// Resume the guest; answer [`Event::Started`].
    Run,
    /// Say that it runs.
    SendRunning(Epoch),
    /// Tell the network where the guest is.
    Announce,
    /// No page faults any more.
    ReleaseFaults,
    /// Say that everything is here.
    SendComplete,
    /// Say why it failed. May fail itself: the connection may be gone.
    SendFailed(String),
    /// Destroy the guest that was prepared.
    Discard,
    /// Wait for the source to come back.
    AwaitReconnect,
    /// Say whose the guest is, and unless that is declined also which pages it lacks.
    SendClaim {
        /// The epoch asked about.
        epoch: Epoch,
        /// What the journal says.
        claim: Claim,
    },
}
