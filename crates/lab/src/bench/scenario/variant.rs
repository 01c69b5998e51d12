//! What a scenario compares.

use serde::{Deserialize, Serialize};
use vmferry_core::Strategy;

use super::options::Options;

/// Stands for every strategy there is.
const ALL: &str = "all";

/// One of the things that are compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// Its name in results and claims; the strategy's where absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Strategy, or `all` for each there is.
    pub strategy: String,
    /// Further options of `vmferry migrate`, without their dashes.
    #[serde(default)]
    pub options: Options,
}

impl Variant {
    /// Its name in results and claims.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.strategy)
    }

    /// A variant of strategy `all` becomes one for each strategy.
    pub(super) fn expand(self) -> Vec<Self> {
        if self.strategy != ALL {
            return vec![self];
        }
        let of = |strategy: Strategy| Self {
            name: self.name.as_ref().map(|name| format!("{strategy} {name}")),
            strategy: strategy.to_string(),
            options: self.options.clone(),
        };
        Strategy::ALL.into_iter().map(of).collect()
    }
}
