//! QEMU's own migration, to be compared with: two plain QEMUs, one at each end of the lab's link, driven by QMP.
//!
//! A [`Peer`] is a way in which QEMU moves a guest, a [`PeerRequest`] one with its parameters. What the installed QEMU lacks it
//! says itself when it is asked; nothing here knows a version.

mod figures;
mod migration;
mod monitor;
mod qemu;
mod qemus;
mod report;
mod request;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use qemus::Qemus;
pub use report::{Moment, PeerReport, Side};
pub use request::PeerRequest;
pub(crate) use request::concerns;

/// A way in which QEMU moves a guest by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Peer {
    /// Passes over memory while the guest runs, until the rest fits into the downtime.
    #[serde(rename = "qemu-pre-copy")]
    PreCopy,
    /// The same over several connections.
    #[serde(rename = "qemu-multifd")]
    Multifd,
    /// The same, and what crosses is compressed by zstd.
    #[serde(rename = "qemu-multifd-zstd")]
    MultifdZstd,
    /// Pre-copy in which pages that cross again do so as differences to a cache.
    #[serde(rename = "qemu-xbzrle")]
    Xbzrle,
    /// Pre-copy that slows the guest's processors down until it converges.
    #[serde(rename = "qemu-auto-converge")]
    AutoConverge,
    /// The guest is resumed at the destination before its memory is there.
    #[serde(rename = "qemu-post-copy")]
    PostCopy,
    /// The same, and pages that it waits for have a connection of their own.
    #[serde(rename = "qemu-post-copy-preempt")]
    PostCopyPreempt,
}

/// A name that is none of a peer.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("there is no peer {name:?}; there are {}, or all", Peer::ALL.map(Peer::name).join(", "))]
pub struct UnknownPeer {
    name: String,
}

impl Peer {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::PreCopy,
        Self::Multifd,
        Self::MultifdZstd,
        Self::Xbzrle,
        Self::AutoConverge,
        Self::PostCopy,
        Self::PostCopyPreempt,
    ];

    /// Its name in scenarios and results.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreCopy => "qemu-pre-copy",
            Self::Multifd => "qemu-multifd",
            Self::MultifdZstd => "qemu-multifd-zstd",
            Self::Xbzrle => "qemu-xbzrle",
            Self::AutoConverge => "qemu-auto-converge",
            Self::PostCopy => "qemu-post-copy",
            Self::PostCopyPreempt => "qemu-post-copy-preempt",
        }
    }

    /// The migration capabilities that make it, under QEMU's names; to be switched on at both ends.
    pub const fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::PreCopy => &[],
            Self::Multifd | Self::MultifdZstd => &["multifd"],
            Self::Xbzrle => &["xbzrle"],
            Self::AutoConverge => &["auto-converge"],
            Self::PostCopy => &["postcopy-ram"],
            Self::PostCopyPreempt => &["postcopy-ram", "postcopy-preempt"],
        }
    }

    /// Whether pages follow after the guest was resumed.
    pub const fn is_post_copy(self) -> bool {
        matches!(self, Self::PostCopy | Self::PostCopyPreempt)
    }

    const fn is_multifd(self) -> bool {
        matches!(self, Self::Multifd | Self::MultifdZstd)
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Peer {
    type Err = UnknownPeer;

    fn from_str(name: &str) -> Result<Self, UnknownPeer> {
        let found = Self::ALL.into_iter().find(|peer| peer.name() == name);
        found.ok_or_else(|| UnknownPeer {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_same_everywhere() {
        for peer in Peer::ALL {
            assert_eq!(peer.name().parse(), Ok(peer));
            assert_eq!(serde_json::to_value(peer).unwrap(), peer.name());
        }
        let error = "qemu-rdma".parse::<Peer>().unwrap_err().to_string();
        assert!(
            error.contains("qemu-rdma") && error.contains("qemu-xbzrle"),
            "{error}"
        );
    }
}
