//! What is done to a guest in place of a migration.
//!
//! ```toml
//! [[variant]]
//! name = "agent asked every second"
//! experiment = { kind = "agent", agent = "asked", for_s = 20 }
//! ```

use serde::{Deserialize, Serialize};

use super::guest::{Guest, GuestKind};

/// What is done to a guest in place of a migration. It begins where a migration would, after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Experiment {
    /// The guest is left alone, without the agent or with it, or its agent is asked every second.
    Agent {
        /// What of it.
        agent: AgentUse,
        /// So long, seconds.
        for_s: f64,
    },
}

/// What the agent in a guest does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AgentUse {
    /// It is not there.
    Absent,
    /// It waits.
    Idle,
    /// It says what pages are used for, as before a migration by `enlightened`, every second.
    Asked,
}

impl Experiment {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Agent { .. } => "agent",
        }
    }

    /// The guest as the experiment needs it; none where it does not suit.
    pub(crate) fn guest(&self, guest: &Guest) -> Option<Guest> {
        match self {
            // A synthetic guest has none.
            Self::Agent { .. } if guest.kind == GuestKind::Synth => None,
            Self::Agent { agent, .. } => Some(Guest {
                agent: *agent != AgentUse::Absent,
                ..guest.clone()
            }),
        }
    }

    /// Whether it makes sense; if not, what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self::Agent { for_s, .. } = self;
        match (0.1..=86_400.0).contains(for_s) {
            true => Ok(()),
            false => Err(format!("for_s is {for_s}, expected 0.1 to 86400")),
        }
    }
}
