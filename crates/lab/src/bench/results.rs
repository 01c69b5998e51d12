//! The file of a scenario's results: every run as it was measured, and what they say together. It is written after every
//! run, so that a bench that was ended goes on where it was.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::fit::{self, Dropped};
use super::machine::Machine;
use super::measure::Measured;
use super::plan::{Request, RunKey};
use super::scenario::Scenario;
use super::summary::{self, Line, Verdict};
use crate::error::{LabError, Result};

/// Shape of the file; another one is not read.
pub(super) const FORMAT: u32 = 2;

/// Everything about a scenario that was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// Shape of the file.
    pub format: u32,
    /// Name of the scenario.
    pub scenario: String,
    /// What it is about.
    pub title: String,
    /// Where its question comes from.
    pub source: Option<String>,
    /// Tells its content: runs of another one do not stand beside these.
    pub hash: String,
    /// Whether sizes and repetitions were scaled down (`--quick`).
    pub quick: bool,
    /// The scenario as it was measured.
    pub content: Scenario,
    /// Machines and programs that made the runs.
    pub machines: Vec<Machine>,
    /// Medians and spreads.
    #[serde(default)]
    pub summary: Vec<Line>,
    /// What became of the claims.
    #[serde(default)]
    pub verdicts: Vec<Verdict>,
    /// The runs in the order in which they were made.
    pub runs: Vec<Run>,
}

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Which one.
    pub key: RunKey,
    /// Decided the content of its guest.
    pub seed: u64,
    /// Tells under which conditions it was made: guest, link, variant, times, seed. It stands beside runs of a scenario that
    /// asks for the same, whatever else that asks for.
    pub conditions: String,
    /// The words of `vmferry migrate`; of a peer, what its monitors were told.
    pub command: Vec<String>,
    /// What they mean.
    pub request: Request,
    /// Index of its machine.
    pub machine: usize,
    /// When it began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// How long it took with everything around the migration, seconds.
    pub took_s: f64,
    /// How busy the machine was when it began: the load average of the last minute.
    pub load_average: Option<f64>,
    /// How it ended.
    pub outcome: Outcome,
}

/// How a run ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// With figures.
    Measured(Box<Measured>),
    /// Without.
    Failed {
        /// The cause.
        why: String,
    },
}

impl Outcome {
    /// The figures, if it has any.
    pub fn measured(&self) -> Option<&Measured> {
        match self {
            Self::Measured(measured) => Some(measured),
            Self::Failed { .. } => None,
        }
    }
}

impl Results {
    /// None yet.
    pub fn new(name: &str, scenario: &Scenario, quick: bool) -> Self {
        Self {
            format: FORMAT,
            scenario: name.to_owned(),
            title: scenario.title.clone(),
            source: scenario.source.clone(),
            hash: scenario.hash(),
            quick,
            content: scenario.clone(),
            machines: Vec::new(),
            summary: Vec::new(),
            verdicts: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Takes up what `file` has of the same scenario: its runs with figures that were made under the conditions of the scenario at
    /// hand. Others are made again. Returns also what is dropped.
    ///
    /// # Errors
    /// When it holds anything else.
    pub fn resume(mut self, file: &Path) -> Result<(Self, Vec<Dropped>)> {
        let text = match std::fs::read(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((self, Vec::new())),
            other => other.map_err(LabError::system(format!("read {}", file.display())))?,
        };
        let other = |why: &str| LabError::NotTheseResults {
            path: file.to_owned(),
            why: why.to_owned(),
        };
        let value: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|_| other("holds something else than results of a bench"))?;
        // Before the rest, which may have another shape then.
        let told = |name: &str| {
            value
                .get(name)
                .and_then(serde_json::Value::as_str)
                .unwrap_or_default()
        };
        if value.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(FORMAT)) {
            return Err(other("holds something else than results of this version's bench"));
        }
        if told("scenario") != self.scenario {
            return Err(other(&format!("holds results of {:?}", told("scenario"))));
        }
        // Hours of work are not dropped because somebody had a quick look.
        match (self.quick, value["quick"].as_bool() == Some(true)) {
            (true, false) => return Err(other("holds results that were measured without --quick")),
            (false, true) => return Err(other("holds results that were measured with --quick")),
            (true, true) | (false, false) => {}
        }
        let old: Self =
            serde_json::from_value(value).map_err(|error| other(&format!("is damaged ({error})")))?;
        self.machines = old.machines;
        let (kept, dropped) = fit::part(&self.content, old.runs);
        self.runs = kept;
        Ok((self, dropped))
    }

    /// Whether this run has figures already.
    pub fn has(&self, key: &RunKey) -> bool {
        self.runs.iter().any(|run| run.key == *key)
    }

    /// The index of a machine, which is added where it is new.
    pub fn machine(&mut self, machine: &Machine) -> usize {
        let known = self.machines.iter().position(|known| known == machine);
        known.unwrap_or_else(|| {
            self.machines.push(machine.clone());
            self.machines.len() - 1
        })
    }

    /// Says anew what the runs say together.
    pub fn summarise(&mut self) {
        self.summary = summary::lines(&self.content, self);
        self.verdicts = summary::verdicts(&self.content, self);
    }

    /// Writes the file by a rename: whoever reads it sees all of it.
    ///
    /// # Errors
    /// When the system does not permit it.
    pub fn store(&self, file: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("results become JSON");
        text.push('\n');
        let mut staged = file.as_os_str().to_owned();
        staged.push(".new");
        std::fs::write(&staged, text)
            .and_then(|()| std::fs::rename(&staged, file))
            .map_err(LabError::system(format!("write {}", file.display())))
    }
}
