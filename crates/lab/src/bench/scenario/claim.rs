//! What a scenario expects.

use serde::{Deserialize, Serialize};

use super::guest::{Guest, GuestKind};
use super::variant::Variant;

/// Stands for the peer with the best median of the metric, among those that have one.
pub const BEST_PEER: &str = "best peer";

/// What is expected of a variant: of a metric, or of its ratio to that of another variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// In words.
    pub text: String,
    /// Which figure.
    pub metric: String,
    /// Whose.
    pub variant: String,
    /// The variant it is divided by; or [`BEST_PEER`].
    #[serde(default)]
    pub relative_to: Option<String>,
    /// The guest, with the same variant over the same link, whose metric it is divided by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_to_guest: Option<String>,
    /// Only for these guests, by name; for all where empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guests: Vec<String>,
    /// Largest value for which it holds.
    #[serde(default)]
    pub at_most: Option<f64>,
    /// Smallest value for which it holds.
    #[serde(default)]
    pub at_least: Option<f64>,
    /// Only for guests of this kind.
    #[serde(default)]
    pub guest: Option<GuestKind>,
    /// The figure that it belongs to, where those that show its metric do not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub figure: Option<String>,
}

impl Claim {
    /// Whether it is about variants that there are.
    pub(super) fn check(&self, variants: &[Variant], guests: &[Guest]) -> std::result::Result<(), String> {
        let text = &self.text;
        if let Some(unknown) = self
            .guests
            .iter()
            .chain(&self.relative_to_guest)
            .find(|name| !guests.iter().any(|guest| guest.name == **name))
        {
            return Err(format!(
                "the claim {text:?} is about guest {unknown:?}, and there is none of that name"
            ));
        }
        if self.relative_to.is_some() && self.relative_to_guest.is_some() {
            return Err(format!(
                "the claim {text:?} is relative to a variant and to a guest: one of them goes"
            ));
        }
        for name in std::iter::once(&self.variant).chain(&self.relative_to) {
            let is_best_peer = name == BEST_PEER && self.relative_to.as_ref() == Some(name);
            if is_best_peer && variants.iter().any(|variant| variant.peer.is_some()) {
                continue;
            }
            if !variants.iter().any(|variant| variant.name() == name) {
                let known: Vec<_> = variants.iter().map(Variant::name).collect();
                return Err(format!(
                    "the claim {text:?} is about variant {name:?}, and there are only {}",
                    known.join(", ")
                ));
            }
        }
        match (self.at_most, self.at_least) {
            (None, None) => Err(format!("the claim {text:?} has neither at_most nor at_least")),
            _ => Ok(()),
        }
    }
}
