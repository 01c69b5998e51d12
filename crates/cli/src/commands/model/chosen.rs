//! Which migrations a model learns from.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use vmferry_forecast::history::{Kind, Record, observations};
use vmferry_forecast::model::{Axis, Curve, Form, Model, ModelError, Observation, fit_about, fit_form};
use vmferry_lab::bench::{Results, records};

use super::{Chosen, FormName};
use crate::cli::Common;

/// What a kind of migrations teaches.
pub(super) struct Lesson {
    pub(super) kind: Kind,
    pub(super) observations: Vec<Observation>,
    pub(super) model: Result<Model, ModelError>,
    /// How much data its guests had.
    pub(super) data: DataSizes,
}

/// How much data guests had, bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataSizes {
    pub(super) least: u64,
    pub(super) median: u64,
    pub(super) most: u64,
}

impl Chosen {
    /// All records that were chosen.
    pub(super) fn records(&self, common: &Common) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        let mut place = Vec::new();
        for file in &self.from {
            all.append(&mut records(&Results::read(file)?.0));
            place.push(file.display().to_string());
        }
        if self.from.is_empty() {
            all = common.history()?;
            place.push("the history of this host".into());
        }
        let place = place.join(", ");
        if all.is_empty() {
            bail!(
                "{place} has no migrations yet: move guests (with --workload, --cpu), or measure a grid with `vmferry bench profile \
                 FILE` and name it with --from FILE"
            );
        }
        let known = kinds(&all);
        all.retain(|record| self.takes(record));
        if all.is_empty() {
            bail!("{place} has no such migrations, but only: {}", known.join("; "));
        }
        Ok(all)
    }

    fn takes(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, found: &str| wanted.as_ref().is_none_or(|it| it == found);
        self.workload
            .is_none_or(|workload| record.workload == Some(workload))
            && self
                .strategy
                .is_none_or(|strategy| record.strategy == strategy.name())
            && is(&self.backend, &record.backend)
            && is(&self.encoding, &record.encoding)
    }

    /// A model of each kind, for a question that names the axes `about`.
    pub(super) fn lessons(&self, records: &[Record], about: &[Axis]) -> Vec<Lesson> {
        let lesson = |(kind, observations): (Kind, Vec<Observation>)| Lesson {
            model: self.model(&observations, about),
            data: DataSizes::of(records.iter().filter(|record| record.kind() == kind)),
            kind,
            observations,
        };
        observations(records).into_iter().map(lesson).collect()
    }

    /// The model of the only kind there is.
    pub(super) fn lesson(&self, records: &[Record], about: &[Axis]) -> Result<Lesson> {
        let mut lessons = self.lessons(records, about);
        let Some(lesson) = lessons.pop() else {
            bail!(
                "none of these migrations completed, went on alone and moved memory alone (no disks, no --reuse, no --verify): they \
                 teach nothing about time"
            );
        };
        if !lessons.is_empty() {
            lessons.push(lesson);
            let kinds: Vec<_> = lessons.iter().map(|lesson| lesson.kind.to_string()).collect();
            bail!(
                "there are several kinds of migrations, choose one with --workload, --strategy, --backend and --encoding: {}",
                kinds.join("; ")
            );
        }
        Ok(lesson)
    }

    fn model(&self, observations: &[Observation], about: &[Axis]) -> Result<Model, ModelError> {
        match self.form {
            None => fit_about(observations, about),
            Some(name) => fit_form(observations, &form(name, observations)),
        }
    }
}

impl Lesson {
    pub(super) fn model(&self) -> Result<&Model> {
        let model = self.model.as_ref().map_err(Clone::clone);
        model.with_context(|| format!("there is no model of {}", self.kind))
    }
}

/// A form by name, of the axes that vary.
fn form(name: FormName, observations: &[Observation]) -> Form {
    let varies = |axis: &Axis| {
        let values = observations
            .iter()
            .filter_map(|observation| observation.setting.get(*axis));
        values
            .map(f64::to_bits)
            .collect::<std::collections::BTreeSet<_>>()
            .len()
            > 2
    };
    let axes = || Axis::ALL.into_iter().filter(varies);
    let (curve, knee) = match name {
        FormName::Flat => return Form::flat(),
        FormName::Power => (Curve::Power, false),
        FormName::Inverse => (Curve::Inverse, false),
        FormName::PowerKnee => (Curve::Power, true),
        FormName::InverseKnee => (Curve::Inverse, true),
    };
    Form::of(curve, axes(), knee)
}

fn kinds(records: &[Record]) -> Vec<String> {
    let mut counts: BTreeMap<Kind, usize> = BTreeMap::new();
    for record in records {
        *counts.entry(record.kind()).or_default() += 1;
    }
    counts
        .into_iter()
        .map(|(kind, count)| format!("{count} of {kind}"))
        .collect()
}

impl DataSizes {
    fn of<'a>(records: impl Iterator<Item = &'a Record>) -> Self {
        let teaches = |record: &&Record| record.together <= 1 && record.ms_per_mib().is_some();
        let mut sizes: Vec<u64> = records.filter(teaches).map(|record| record.data_bytes).collect();
        sizes.sort_unstable();
        let at = |index: usize| sizes.get(index).copied().unwrap_or_default();
        Self {
            least: at(0),
            median: at(sizes.len() / 2),
            most: at(sizes.len().saturating_sub(1)),
        }
    }
}
