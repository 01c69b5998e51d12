//! What is done to a guest in place of a migration.
//!
//! ```toml
//! [[variant]]
//! name = "agent asked every second"
//! experiment = { kind = "agent", agent = "asked", for_s = 20 }
//! ```

use serde::{Deserialize, Serialize};
use vmferry_api::MigrateRequest;
use vmferry_core::Strategy;
use vmferry_core::encoding::{Codec, Encoding};
use vmferry_core::resume::ResumeMode;

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
    /// Checkpoints of the guest are taken while it goes on.
    Checkpoint {
        /// From one to the next, seconds; none is taken where absent.
        #[serde(default)]
        every_s: Option<f64>,
        /// So long, seconds.
        for_s: f64,
    },
    /// A checkpoint of the guest is taken, the guest is ended and resumed at the other host. Its clients are held back meanwhile; they
    /// must not write, because it goes on from the moment of the checkpoint.
    Resume {
        /// `eager`, `lazy` or `predictive`.
        mode: ResumeMode,
        /// For so long it is watched before the checkpoint what the guest reads and writes, seconds.
        #[serde(default = "five_seconds")]
        interval_s: f64,
        /// So long it is watched from the request on, seconds.
        for_s: f64,
    },
    /// The guest and others like it are moved to the other host at once, by pre-copy with raw pages over one stream each. Guests are
    /// synthetic ones.
    Parallel {
        /// How many, itself included.
        guests: u32,
        /// How much of a core of the source the page streams of all of them may use together, percent: each gets its part.
        cpu_percent: u32,
    },
}

/// Most guests that are moved at once: what two hosts on one machine bear.
const MOST_GUESTS: u32 = 16;

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
            Self::Checkpoint { .. } => "checkpoint",
            Self::Resume { .. } => "resume",
            Self::Parallel { .. } => "parallel",
        }
    }

    /// The migration of each guest, where guests are moved; the destination is still to be filled in.
    pub fn migration(&self) -> Option<MigrateRequest> {
        let Self::Parallel { guests, cpu_percent } = self else {
            return None;
        };
        let mut request = MigrateRequest::new("the other host", Strategy::PreCopy);
        request.encoding = Encoding::Fixed {
            codec: Codec::Raw,
            delta: false,
        };
        request.streams = Some(1);
        request.limits.cpu_percent = Some(cpu_percent / (*guests).max(1));
        Some(request)
    }

    /// The guest as the experiment needs it; none where it does not suit.
    pub(crate) fn guest(&self, guest: &Guest) -> Option<Guest> {
        match self {
            // A synthetic guest has no agent, and counts for itself: after a resume less than before.
            Self::Agent { .. } | Self::Resume { .. } if guest.kind == GuestKind::Synth => None,
            Self::Parallel { .. } if guest.kind == GuestKind::Qemu => None,
            Self::Agent { agent, .. } => Some(Guest {
                agent: *agent != AgentUse::Absent,
                ..guest.clone()
            }),
            Self::Checkpoint { .. } | Self::Resume { .. } | Self::Parallel { .. } => Some(guest.clone()),
        }
    }

    /// Whether it makes sense; if not, what is wrong.
    pub(super) fn check(&self) -> Result<(), String> {
        let times = match self {
            Self::Agent { for_s, .. } => vec![("for_s", *for_s)],
            Self::Checkpoint { every_s, for_s } => {
                let every = every_s.map(|every_s| ("every_s", every_s));
                every.into_iter().chain([("for_s", *for_s)]).collect()
            }
            Self::Resume {
                interval_s, for_s, ..
            } => vec![("interval_s", *interval_s), ("for_s", *for_s)],
            Self::Parallel { guests, cpu_percent } => {
                if !(1..=MOST_GUESTS).contains(guests) {
                    return Err(format!("guests is {guests}, expected 1 to {MOST_GUESTS}"));
                }
                if *cpu_percent == 0 || cpu_percent % guests != 0 {
                    return Err(format!(
                        "cpu_percent is {cpu_percent}, expected a whole part of it for each of {guests} guests"
                    ));
                }
                Vec::new()
            }
        };
        match times
            .into_iter()
            .find(|(_, seconds)| !(0.1..=86_400.0).contains(seconds))
        {
            None => Ok(()),
            Some((name, seconds)) => Err(format!("{name} is {seconds}, expected 0.1 to 86400")),
        }
    }
}

fn five_seconds() -> f64 {
    5.0
}
