//! What somebody asks for who wants a guest moved.

use serde::{Deserialize, Serialize};

use crate::disks::DiskRequest;
use crate::encoding::{Encoding, default_delta_cache_bytes};
use crate::forecast::{Forecast, Goal};
use crate::policy::Policy;
use crate::policy::auto::Auto;
use crate::sampling::Ready;
use crate::strategy::{Limits, Strategy};
use crate::tuning::Tuning;
use crate::workload::Workload;

/// A migration to make. `To` names the destination: a text where it still has to be understood, an endpoint after that.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationRequest<To> {
    /// The daemon at the destination.
    #[serde(alias = "destination")]
    pub to: To,
    /// The algorithm.
    pub strategy: Strategy,
    /// Goal and limits.
    #[serde(default)]
    pub limits: Limits,
    /// How the algorithms that learn do so.
    #[serde(default)]
    pub tuning: Tuning,
    /// Page streams; chosen from the cores of the source where absent.
    #[serde(default)]
    pub streams: Option<u16>,
    /// Compare every page at the end.
    #[serde(default)]
    pub verify: bool,
    /// How pages are encoded.
    #[serde(default)]
    pub encoding: Encoding,
    /// Memory for the versions last sent, from which differences are made, bytes; none are made where it is 0. Chosen by the
    /// guest's size where absent ([`default_delta_cache_bytes`]).
    #[serde(default)]
    pub delta_cache_bytes: Option<u64>,
    /// What the migration is to be good at, where a forecast is asked for. Whoever asks makes it, before the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// The strategy is the forecast's choice, and left when reality leaves the forecast ([`crate::policy::auto`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub auto: bool,
    /// What is expected, where somebody made a forecast; it is kept with the report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forecast: Option<Box<Forecast>>,
    /// Pages that the destination has in a store of its own cross as their hashes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub reuse: bool,
    /// What the guest does, where somebody knows: what the migration teaches is kept under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// How the guest's disks move with it; they stay where they are, reachable from both hosts, where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disks: Option<DiskRequest>,
}

impl<To> MigrationRequest<To> {
    /// To this destination by this algorithm; everything else is left at its default.
    pub fn new(to: impl Into<To>, strategy: Strategy) -> Self {
        Self {
            to: to.into(),
            strategy,
            limits: Limits::default(),
            tuning: Tuning::default(),
            streams: None,
            verify: false,
            encoding: Encoding::default(),
            delta_cache_bytes: None,
            goal: None,
            auto: false,
            forecast: None,
            reuse: false,
            workload: None,
            disks: None,
        }
    }

    /// The same to a destination that is named in another way.
    pub fn directed_to<Other>(self, to: Other) -> MigrationRequest<Other> {
        MigrationRequest {
            to,
            strategy: self.strategy,
            limits: self.limits,
            tuning: self.tuning,
            streams: self.streams,
            verify: self.verify,
            encoding: self.encoding,
            delta_cache_bytes: self.delta_cache_bytes,
            goal: self.goal,
            auto: self.auto,
            forecast: self.forecast,
            reuse: self.reuse,
            workload: self.workload,
            disks: self.disks,
        }
    }

    /// The policy of its algorithm, for a guest of `pages` pages of which `ready` is known beforehand. Where a forecast chose
    /// it, what that says of it is held to.
    pub fn policy(&self, pages: u64, ready: Option<Ready>) -> Box<dyn Policy> {
        let policy = match ready {
            Some(ready) => self
                .strategy
                .policy_knowing(&self.limits, &self.tuning, pages, ready),
            None => self.strategy.policy(&self.limits, &self.tuning, pages),
        };
        let expected = self
            .forecast
            .as_ref()
            .and_then(|forecast| forecast.of(self.strategy));
        match (self.auto, expected) {
            (true, Some(expected)) => Box::new(Auto::new(policy, expected.clone())),
            _ => policy,
        }
    }

    /// How much memory the versions last sent may take for a guest of `ram_bytes`.
    pub fn delta_cache_bytes(&self, ram_bytes: u64) -> u64 {
        self.delta_cache_bytes
            .unwrap_or_else(|| default_delta_cache_bytes(ram_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_left_at_its_default_and_nothing_is_lost_on_the_way() {
        let asked: MigrationRequest<String> =
            serde_json::from_str(r#"{"to": "b", "strategy": "hybrid", "verify": true, "streams": 3}"#)
                .unwrap();
        let expected = MigrationRequest {
            verify: true,
            streams: Some(3),
            ..MigrationRequest::new("b", Strategy::Hybrid)
        };
        assert_eq!(asked, expected);
        let there = asked.clone().directed_to(7_u16);
        assert_eq!((there.to, there.directed_to("b".to_owned())), (7, asked));
    }
}
