//! Handover: who owns the guest, by epochs and journals (DESIGN section 5).
//!
//! Both hosts keep a journal a guest. The *commit point* is the moment at which the source's journal holds
//! [`Record::HandedOver`]: before it, any failure leaves the guest with the source; after it, the source runs
//! the guest again only if the destination's journal proves that it never took it and never will
//! ([`Record::Declined`]), or if the operator says so.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Counts the owners of a guest. Every handover, and every taking back, makes the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A line of a journal. The last one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "record")]
pub enum Record {
    /// This host may run the guest.
    Owner {
        /// As owner number.
        epoch: Epoch,
    },
    /// This host gave the guest away and will not run it by itself.
    HandedOver {
        /// The epoch of the new owner.
        epoch: Epoch,
        /// Where it went.
        to: String,
        /// The session in which it went (hexadecimal).
        session: String,
    },
    /// This host was offered the guest and will never take it in this epoch.
    Declined {
        /// The epoch that was offered.
        epoch: Epoch,
    },
    /// The new owner has everything; nothing of the guest is left here.
    Released {
        /// The epoch of the new owner.
        epoch: Epoch,
    },
}

impl Record {
    /// The epoch it speaks of.
    pub const fn epoch(&self) -> Epoch {
        match self {
            Self::Owner { epoch }
            | Self::HandedOver { epoch, .. }
            | Self::Declined { epoch }
            | Self::Released { epoch } => *epoch,
        }
    }
}

/// What the destination says about an epoch when the source asks after a reconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Claim {
    /// Device state is loaded, no commit came: it waits, and runs on a commit.
    Prepared,
    /// Its journal says owner of this epoch.
    Owner,
    /// Its journal says that it never takes this epoch.
    Declined,
}

/// What the source does after a reconnect past the commit point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The destination runs the guest: serve it what it lacks.
    Serve,
    /// The commit was lost on the way: send it again.
    CommitAgain,
    /// The destination proved that it will not run the guest: take it back as owner of the next epoch.
    TakeBack(Epoch),
}

/// An answer that contradicts the source's journal.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "the destination speaks of epoch {theirs}, this host handed over epoch {ours}: resolve by hand with `vmferry resolve`"
)]
pub struct EpochMismatch {
    /// The epoch of the source's journal.
    pub ours: Epoch,
    /// The epoch of the answer.
    pub theirs: Epoch,
}

/// Compares the source's journal (it handed `ours` over) with the destination's claim.
///
/// # Errors
/// When the epochs differ: then neither side may act by itself.
pub fn reconcile(ours: Epoch, theirs: Epoch, claim: Claim) -> Result<Resolution, EpochMismatch> {
    if ours != theirs {
        return Err(EpochMismatch { ours, theirs });
    }
    Ok(match claim {
        Claim::Owner => Resolution::Serve,
        Claim::Prepared => Resolution::CommitAgain,
        Claim::Declined => Resolution::TakeBack(ours.next()),
    })
}
