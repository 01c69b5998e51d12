//! What a scenario compares.

use serde::{Deserialize, Serialize};
use vmferry_core::Strategy;

use super::experiment::Experiment;
use super::options::Options;
use crate::peer::{self, Peer, PeerRequest};

/// Stands for every strategy or peer there is.
const ALL: &str = "all";

/// One of the things that are compared: a strategy of vmferry, a peer, or an experiment.
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
    /// What is done in place of a migration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experiment: Option<Experiment>,
    /// The guest moves there and back again, and it is the way back that is measured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub there_and_back: bool,
    /// Before it goes there, a checkpoint of it is left behind, in the store of the host that it comes back to.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leaves_checkpoint: bool,
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
        match (&self.strategy, &self.peer, &self.experiment) {
            (Some(_), None, None) | (None, Some(_), None) => {}
            (None, None, Some(_)) if self.name.is_none() => {
                return Err("a variant that is an experiment has no name".to_owned());
            }
            (None, None, Some(experiment)) => experiment
                .check()
                .map_err(|why| format!("variant {name:?}: {why}"))?,
            (None, None, None) => {
                return Err(format!(
                    "variant {name:?} has neither strategy nor peer nor experiment"
                ));
            }
            _ => {
                return Err(format!(
                    "variant {name:?} has more than one of a strategy, a peer and an experiment: one of them stays"
                ));
            }
        }
        if self.there_and_back && self.strategy.is_none() {
            return Err(format!(
                "variant {name:?} goes there and back, and has no strategy to go by"
            ));
        }
        if self.leaves_checkpoint && !self.there_and_back {
            return Err(format!(
                "variant {name:?} leaves a checkpoint behind, and does not come back to it"
            ));
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
