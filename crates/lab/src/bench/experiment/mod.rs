//! Experiments with a guest that is not moved, or not only moved: what is done, and what was found.

mod agent;
mod checkpoint;
mod parallel;
mod resume;

pub(super) use checkpoint::take;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmferry_guest::GuestSpec;

use super::scenario::Experiment;
use crate::error::{LabError, Result};
use crate::guards::Interrupt;
use crate::hosts::Host;
use crate::load::Load;
use crate::namespace::Namespace;
use crate::workload::Workload;

/// What an experiment found.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ExperimentReport {
    /// Its kind.
    pub experiment: String,
    /// How long it took: what clients saw *during* it is of this time, milliseconds.
    pub total_ms: f64,
    /// Longest time between two answers from its begin on, milliseconds, where there was a client.
    pub perceived_downtime_ms: Option<f64>,
    /// When what counts began, where that was not at once.
    #[serde(skip)]
    pub(super) began: Option<Instant>,
    /// What it found, by name.
    pub figures: BTreeMap<String, f64>,
    /// What the daemons said, as they said it.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub said: Value,
}

/// The hosts of an experiment, with the guest at the first of them.
pub(super) struct Bed<'a> {
    pub(super) hosts: &'a [Host; 2],
    pub(super) interrupt: &'a Interrupt,
    /// Of the run.
    pub(super) folder: &'a Path,
    /// The guest as it was started, where it is synthetic: more like it can be.
    pub(super) spec: Option<&'a GuestSpec>,
    /// How long one step may take.
    pub(super) limit: Duration,
    /// Where clients of the guest are, and what they ask; absent where it has none.
    pub(super) client: Option<(&'a Namespace, &'a Workload)>,
    /// The guest's address.
    pub(super) address: Ipv4Addr,
    /// The clients.
    pub(super) load: Option<&'a Load>,
}

impl Bed<'_> {
    /// Where checkpoints are put: both hosts reach it.
    fn store(&self) -> String {
        self.folder.join("store").display().to_string()
    }

    /// Carries an experiment out.
    ///
    /// # Errors
    /// When a daemon refuses something, or the guest does not do what it has to; or interrupted.
    pub(super) fn carry_out(&self, experiment: &Experiment) -> Result<ExperimentReport> {
        let report = match experiment {
            Experiment::Agent { agent, for_s } => self.agent(*agent, *for_s)?,
            Experiment::Checkpoint { every_s, for_s } => self.checkpoints(*every_s, *for_s)?,
            Experiment::Resume {
                mode,
                interval_s,
                for_s,
            } => self.resume(*mode, *interval_s, *for_s)?,
            Experiment::Parallel { guests, .. } => match experiment.migration() {
                Some(request) => self.parallel(*guests, &request)?,
                None => return Err(LabError::Missing("nothing to be moved".into())),
            },
        };
        Ok(ExperimentReport {
            experiment: experiment.name().to_owned(),
            ..report
        })
    }
}
