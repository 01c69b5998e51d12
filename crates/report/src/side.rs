//! Whose migration a variant is: ours, or that of QEMU itself.

use vmferry_lab::bench::Results;
use vmferry_lab::bench::scenario::Scenario;

/// Who migrates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// vmferry.
    Ours,
    /// QEMU, by itself.
    Peer,
}

impl Side {
    /// Of a variant by its name.
    pub(crate) fn of(scenario: &Scenario, name: &str) -> Self {
        let variant = scenario.variants.iter().find(|variant| variant.name() == name);
        let variant = variant.and_then(|variant| serde_json::to_value(variant).ok());
        match variant.and_then(|variant| variant.get("peer").cloned()) {
            None | Some(serde_json::Value::Null | serde_json::Value::Bool(false)) => Self::Ours,
            Some(_) => Self::Peer,
        }
    }

    /// Whether results have runs of both.
    pub(crate) fn both_in(results: &Results) -> bool {
        let has = |side| {
            let mut runs = results.runs.iter();
            runs.any(|run| Self::of(&results.content, &run.key.variant) == side)
        };
        has(Self::Ours) && has(Self::Peer)
    }
}
