//! What a scenario compares.

use serde::{Deserialize, Serialize};
use vmferry_core::Strategy;

use super::options::Options;
use crate::peer::{self, Peer, PeerRequest};

/// Stands for every strategy or peer there is.
const ALL: &str = "all";

/// One of the things that are compared: a strategy of vmferry, or a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name in results and claims; that of the strategy or peer where absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Strategy, or `all` for each there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strategy: Option<String>,
    /// Peer ([`Peer`]), or `all` for each there is. Synthetic guests are not moved by peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Of a strategy, further options of `vmferry migrate` without their dashes; of a peer, those of [`PeerRequest`].
    #[serde(default)]
    pub options: Options,
    /// A run of it that takes longer failed, seconds; the scenario's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_s: Option<f64>,
}

impl Variant {
    /// Its name in results and claims.
    pub fn name(&self) -> &str {
        let own = [&self.name, &self.strategy, &self.peer];
        own.into_iter().find_map(Option::as_deref).unwrap_or_default()
    }

    /// What its peer is asked for, if it is a peer.
    pub(crate) fn peer_request(&self) -> Option<std::result::Result<PeerRequest, String>> {
        let name = self.peer.as_ref()?;
        let peer = name.parse::<Peer>().map_err(|error| error.to_string());
        Some(peer.and_then(|peer| PeerRequest::new(peer, &self.options)))
    }

    /// A variant of strategy or peer `all` becomes one for each.
    pub(super) fn expand(self) -> Vec<Self> {
        let name = |of: &str| self.name.as_ref().map(|name| format!("{of} {name}"));
        match (self.strategy.as_deref(), self.peer.as_deref()) {
            (Some(ALL), None) => {
                let of = |strategy: Strategy| Self {
                    name: name(&strategy.to_string()),
                    strategy: Some(strategy.to_string()),
                    ..self.clone()
                };
                Strategy::ALL.into_iter().map(of).collect()
            }
            (None, Some(ALL)) => {
                let of = |peer: Peer| {
                    let mut options = self.options.clone();
                    options.retain(|option, _| peer::concerns(option, peer));
                    Self {
                        name: name(peer.name()),
                        peer: Some(peer.to_string()),
                        options,
                        ..self.clone()
                    }
                };
                Peer::ALL.into_iter().map(of).collect()
            }
            _ => vec![self],
        }
    }

    pub(super) fn check(&self) -> std::result::Result<(), String> {
        let name = self.name();
        match (&self.strategy, &self.peer) {
            (Some(_), None) | (None, Some(_)) => {}
            (None, None) => return Err(format!("variant {name:?} has neither strategy nor peer")),
            (Some(_), Some(_)) => {
                return Err(format!(
                    "variant {name:?} has a strategy and a peer: one of them goes"
                ));
            }
        }
        if let Some(limit_s) = self.limit_s
            && !(0.0..=86_400.0).contains(&limit_s)
        {
            return Err(format!(
                "limit_s of variant {name:?} is {limit_s}, expected 0 to 86400"
            ));
        }
        match self.peer_request() {
            Some(Err(why)) => Err(format!("variant {name:?}: {why}")),
            _ => Ok(()),
        }
    }
}
