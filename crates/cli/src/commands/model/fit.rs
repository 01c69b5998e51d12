//! `vmferry model fit` and `show`.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};
use vmferry_forecast::model::trial::Trial;
use vmferry_forecast::model::{Axis, Form, Model, Setting};

use super::Chosen;
use super::chosen::Lesson;
use crate::cli::Common;
use crate::commands::output;
use crate::table;

/// All models, a line each.
pub(super) fn fit(common: &Common, chosen: &Chosen) -> Result<()> {
    let records = chosen.records(common)?;
    let lessons = chosen.lessons(&records, &[]);
    if common.json {
        return output::json(
            &lessons
                .iter()
                .map(|lesson| in_json(lesson, None))
                .collect::<Vec<_>>(),
        );
    }
    let mut table = table::list(&["migrations", "of", "form", "R2", "error", "ms per MiB"]);
    let mut words = String::new();
    for lesson in &lessons {
        let kind = lesson.kind.to_string();
        match &lesson.model {
            Ok(model) => {
                let chosen = &model.chosen;
                table.add_row([
                    model.points.to_string(),
                    kind.clone(),
                    chosen.form.to_string(),
                    format!("{:.3}", chosen.r2),
                    percent(error_of(model)),
                    chosen.formula(),
                ]);
                for finding in model.findings() {
                    words += &format!("{kind}: {finding}\n");
                }
            }
            Err(error) => words += &format!("{kind}: no model: {error}\n"),
        }
    }
    table::align_right(&mut table, &[0, 3, 4]);
    let units = "s, d: CPU shares at source and destination in percent of one core; w: bandwidth in bytes a second.\nerror: on \
                 what was left out (cross-validation).\n";
    output::text(&format!("{}\n{units}{words}", table::render(table)))
}

/// Models with what they learned from.
pub(super) fn show(common: &Common, chosen: &Chosen) -> Result<()> {
    let records = chosen.records(common)?;
    let lessons = chosen.lessons(&records, &[]);
    let trials = lessons.iter().map(|lesson| {
        let axis = lesson.model.as_ref().ok()?.axes.first()?.axis;
        let paper = Trial::run(&lesson.observations, axis, Some(&Form::power(axis))).ok();
        Trial::run(&lesson.observations, axis, None)
            .ok()
            .map(|trial| (trial, paper))
    });
    let trials: Vec<_> = trials.collect();
    if common.json {
        let all = lessons.iter().zip(&trials);
        let all: Vec<_> = all
            .map(|(lesson, trials)| in_json(lesson, trials.as_ref()))
            .collect();
        return output::json(&all);
    }
    let mut text = String::new();
    for (lesson, trials) in lessons.iter().zip(&trials) {
        text += &described(lesson, trials.as_ref());
    }
    output::text(&text)
}

fn described(lesson: &Lesson, trials: Option<&(Trial, Option<Trial>)>) -> String {
    let mut text = format!("{}\n", lesson.kind);
    let model = match &lesson.model {
        Ok(model) => model,
        Err(error) => return text + &format!("  no model: {error}\n\n"),
    };
    text += &format!(
        "  {} = {} ms per MiB, R2 {:.3}\n",
        model.chosen.form,
        model.chosen.formula(),
        model.chosen.r2
    );
    for finding in model.findings() {
        text += &format!("  {finding}\n");
    }
    let mut forms = table::list(&["form", "R2", "error"]);
    for candidate in &model.candidates {
        forms.add_row([
            candidate.form.to_string(),
            format!("{:.3}", candidate.r2),
            percent(candidate.error),
        ]);
    }
    table::align_right(&mut forms, &[1, 2]);
    text += &format!("\n{}", table::render(forms));
    let mut points = table::list(&["at", "migrations", "measured", "expected", "90 % between"]);
    for (setting, values) in by_setting(lesson) {
        let Ok(said) = model.predict(&setting) else {
            continue;
        };
        // What was left out is not said to be expected.
        if !model.assumed(&setting).is_empty() {
            continue;
        }
        points.add_row([
            named(&setting),
            values.len().to_string(),
            format!("{:.3}", median(&values)),
            format!("{:.3}", said.value),
            format!("{:.3} and {:.3}", said.low, said.high),
        ]);
    }
    table::align_right(&mut points, &[1, 2, 3]);
    text += &format!("\n{}", table::render(points));
    if let Some((trial, paper)) = trials {
        text += "\n";
        text += &trial_line("five points, form chosen", trial);
        text += &paper
            .as_ref()
            .map_or(String::new(), |trial| trial_line("five points, power law", trial));
    }
    text + "\n"
}

fn trial_line(name: &str, trial: &Trial) -> String {
    let errors = trial
        .tests
        .iter()
        .map(|test| format!("{:.0}% at {:.0}", test.error() * 1e2, test.at));
    format!(
        "{name}: {}, R2 {} on the others, median error {}; errors: {}\n",
        trial.model.chosen.form,
        trial.test_r2.map_or("-".into(), |r2| format!("{r2:.3}")),
        percent(trial.median_error().unwrap_or(f64::NAN)),
        errors.collect::<Vec<_>>().join(", ")
    )
}

fn in_json(lesson: &Lesson, trials: Option<&(Trial, Option<Trial>)>) -> Value {
    let mut value = match &lesson.model {
        Ok(model) => json!({
            "kind": lesson.kind, "model": model, "formula": model.chosen.formula(), "findings": model.findings(),
            "data_bytes": lesson.data.median, "observations": lesson.observations,
        }),
        Err(error) => json!({
            "kind": lesson.kind, "error": error.to_string(), "observations": lesson.observations,
        }),
    };
    if let Some((trial, paper)) = trials {
        value["trial"] = json!(trial);
        value["trial_of_power_law"] = json!(paper);
    }
    value
}

fn by_setting(lesson: &Lesson) -> Vec<(Setting, Vec<f64>)> {
    let mut settings: BTreeMap<[u64; 3], (Setting, Vec<f64>)> = BTreeMap::new();
    for observation in &lesson.observations {
        let key = Axis::ALL.map(|axis| observation.setting.get(axis).unwrap_or_default().to_bits());
        let (_, values) = settings.entry(key).or_insert((observation.setting, Vec::new()));
        values.push(observation.value);
    }
    settings.into_values().collect()
}

/// A setting in words.
pub(super) fn named(setting: &Setting) -> String {
    let parts: Vec<_> = Axis::ALL
        .into_iter()
        .filter_map(|axis| Some(placed(axis, setting.get(axis)?)))
        .collect();
    match parts.is_empty() {
        true => "no cap".into(),
        false => parts.join(", "),
    }
}

/// A value, and what it is of.
pub(super) fn placed(axis: Axis, value: f64) -> String {
    let value = axis.show(value);
    match axis {
        Axis::SourceCpu => format!("{value} at the source"),
        Axis::DestinationCpu => format!("{value} at the destination"),
        Axis::Bandwidth => value,
    }
}

fn error_of(model: &Model) -> f64 {
    let chosen = model
        .candidates
        .iter()
        .find(|candidate| candidate.form == model.chosen.form);
    chosen.map_or(f64::NAN, |candidate| candidate.error)
}

/// A share; what is not known is a dash.
fn percent(share: f64) -> String {
    match share.is_finite() {
        true => format!("{:.1}%", share * 1e2),
        false => "-".into(),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
