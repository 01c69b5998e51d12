//! `vmferry model predict` and `invert`.

use anyhow::{Result, anyhow};
use serde_json::json;
use vmferry_forecast::history::Record;
use vmferry_forecast::model::{
    self, Assumed, Axis, Inversion, Model, ModelError, Observation, Setting, parallel,
};

use super::chosen::Lesson;
use super::fit::{named, placed};
use super::size::Size;
use super::{InvertArgs, PredictArgs};
use crate::cli::Common;
use crate::commands::output;
use crate::units;

pub(super) fn predict(common: &Common, args: &PredictArgs) -> Result<()> {
    let records = args.chosen.records(common)?;
    let setting = args.may_use.setting();
    let lesson = args.chosen.lesson(&records, &named_axes(&setting))?;
    let (model, size) = (lesson.model()?, Size::new(&lesson, args.data)?);
    let assumed = model.assumed(&setting);
    let said = size.scaled(model.predict(&setting)?);
    let together = args
        .parallel
        .map(|count| together(model, &setting, &records, &lesson, count, &size));
    let together = together.transpose()?;
    if common.json {
        return output::json(&json!({
            "kind": lesson.kind, "setting": setting, "assumed": assumed,
            "data_bytes": size.asked, "beyond_data_sizes": size.beyond(), "total_ms": said, "findings": model.findings(),
            "together": together.map(|(bound, measured)| json!({"bound": bound, "measured": measured})),
        }));
    }
    let mut text = format!(
        "{}, {} of data, {}: {}, and between {} and {} in nine of ten cases\n",
        lesson.kind,
        units::size(size.asked),
        with_assumed(&setting, &assumed),
        units::millis(said.value),
        units::millis(said.low),
        units::millis(said.high)
    );
    let of_bound = together.iter().flat_map(|(bound, _)| &bound.beyond);
    for beyond in said
        .beyond
        .iter()
        .chain(of_bound.filter(|it| !said.beyond.contains(it)))
    {
        text += &format!("{}\n", beyond.line());
    }
    text += &size.beyond().map_or_else(String::new, |line| line + "\n");
    for finding in model.findings() {
        text += &format!("{finding}\n");
    }
    if let (Some((bound, measured)), Some(count)) = (together, args.parallel) {
        let shared = bound.shared_ms.map_or_else(String::new, |ms| {
            format!(", and {} if they share that CPU", units::millis(ms))
        });
        text += &format!(
            "{count} at once take {} at least{shared} (bounds from single migrations, which hold in 19 of 20 cases)\n",
            units::millis(bound.alone_ms)
        );
        text += &match measured.iter().find(|measured| measured.together == count) {
            Some(found) => format!(
                "measured: {} migrations {count} at once took {:.2} times what one alone does with the same share\n",
                found.measured, found.slower
            ),
            None => format!("measured: none of these migrations went on {count} at once yet\n"),
        };
    }
    output::text(&text)
}

/// A setting in words, with what was taken for given.
fn with_assumed(setting: &Setting, assumed: &[Assumed]) -> String {
    let given = assumed.iter().map(|it| {
        let why = match it.common {
            true => "all of them had that",
            false => "the most in the data",
        };
        format!("{} ({why})", placed(it.axis, it.value))
    });
    let asked = (*setting != Setting::default() || assumed.is_empty()).then(|| named(setting));
    asked.into_iter().chain(given).collect::<Vec<_>>().join(", ")
}

fn named_axes(setting: &Setting) -> Vec<Axis> {
    let named = |axis: &Axis| setting.get(*axis).is_some();
    Axis::ALL.into_iter().filter(named).collect()
}

type Together = (parallel::Bound, Vec<parallel::Interference>);

fn together(
    model: &Model,
    setting: &Setting,
    records: &[Record],
    lesson: &Lesson,
    count: u32,
    size: &Size,
) -> Result<Together> {
    let migrations: Vec<_> = (0..count).map(|_| (model, *setting)).collect();
    let total = setting.source_percent.or_else(|| {
        let data = model.axes.iter().find(|data| data.axis == Axis::SourceCpu);
        data.map(|data| data.high)
    });
    let bound = parallel::bound(&migrations, Axis::SourceCpu, total.unwrap_or(100.0))?;
    let crowded = records
        .iter()
        .filter(|record| record.together > 1 && record.kind() == lesson.kind);
    let crowded: Vec<_> = crowded
        .filter_map(|record| Some((record.together, record.setting, record.ms_per_mib()?)))
        .collect();
    let bound = parallel::Bound {
        alone_ms: bound.alone_ms * size.least_mib(),
        shared_ms: bound.shared_ms.map(|ms| ms * size.least_mib()),
        beyond: bound.beyond,
    };
    Ok((bound, parallel::measured(model, &crowded)))
}

pub(super) fn invert(common: &Common, args: &InvertArgs) -> Result<()> {
    let records = args.chosen.records(common)?;
    let (axis, setting) = (Axis::from(args.of), args.may_use.setting());
    let about = [named_axes(&setting), vec![axis]].concat();
    let lesson = args.chosen.lesson(&records, &about)?;
    let (model, size) = (lesson.model()?, Size::new(&lesson, args.data)?);
    let mib = size.mib();
    let target_ms = args.within.as_secs_f64() * 1e3;
    let found = model.invert(axis, target_ms / mib, &setting);
    let found = found.map_err(|error| match error {
        // The model counts for each MiB, which nobody asked about.
        ModelError::Unreachable {
            axis, value, limit, ..
        } => anyhow!(
            "a total time of {} cannot be met by the {axis} alone: {}",
            units::millis(target_ms),
            limit.words(axis, &units::millis(value * mib))
        ),
        error => error.into(),
    })?;
    // Sure is what is enough also for the longest that such a size may take.
    let sure = match size.beyond() {
        None => found.sure,
        Some(_) => model
            .invert(axis, target_ms / size.most_mib(), &setting)
            .map_or(None, |found| found.sure),
    };
    let bandwidth = bandwidth(&records, &lesson, &found, &setting, mib);
    let together = |count: u32| {
        let migrations: Vec<_> = (0..count).map(|_| (model, setting)).collect();
        parallel::demand(&migrations, axis, target_ms / size.least_mib())
    };
    let all = args.parallel.map(together).transpose()?;
    if common.json {
        let prediction = size.scaled(found.prediction.clone());
        return output::json(&json!({
            "kind": lesson.kind, "within_ms": target_ms, "axis": axis, "likely": found.likely, "sure": sure,
            "or_less": found.or_less, "beyond_data_sizes": size.beyond(), "total_ms": prediction, "bandwidth_bytes_per_s": bandwidth, "together": all,
        }));
    }
    let said = size.scaled(found.prediction.clone());
    let mut text = format!(
        "{}: a {axis} of {}{} brings the total time to {} (between {} and {} in nine of ten cases)\n",
        lesson.kind,
        axis.show(found.likely),
        if found.or_less { " or less" } else { "" },
        units::millis(said.value),
        units::millis(said.low),
        units::millis(said.high)
    );
    text += &match sure {
        Some(sure) => format!(
            "to be sure of {} in 19 of 20 cases: {}\n",
            units::millis(target_ms),
            axis.show(sure)
        ),
        None => format!(
            "no {axis} within the data makes {} sure in 19 of 20 cases\n",
            units::millis(target_ms)
        ),
    };
    if let Some(rate) = bandwidth {
        text += &format!(
            "at that share the migration sends {} on average: a bandwidth cap of that does the same\n",
            units::bandwidth(rate as u64)
        );
    }
    if let (Some(all), Some(count)) = (all, args.parallel) {
        text += &format!(
            "{count} at once need {} together at least (a bound that holds in 19 of 20 cases)\n",
            axis.show(all)
        );
    }
    text += &size.beyond().map_or_else(String::new, |line| line + "\n");
    output::text(&text)
}

/// The bandwidth that goes with a share (paper, section 5: the network rate is steady at a share, so either cap gives the same
/// migration): the bytes of such migrations, over their time.
fn bandwidth(
    records: &[Record],
    lesson: &Lesson,
    found: &Inversion,
    setting: &Setting,
    mib: f64,
) -> Option<f64> {
    if found.axis == Axis::Bandwidth {
        return None;
    }
    let bytes = records
        .iter()
        .filter(|record| record.kind() == lesson.kind && record.together <= 1);
    let bytes: Vec<_> = bytes
        .filter(|record| record.ms_per_mib().is_some() && record.bytes_on_wire > 0)
        .map(|record| Observation {
            setting: record.setting,
            value: record.bytes_on_wire as f64 * f64::from(1 << 20) / record.data_bytes as f64,
        })
        .collect();
    let at = setting.with(found.axis, found.likely);
    let model = model::fit_about(&bytes, &named_axes(&at)).ok()?;
    let bytes = model.predict(&at).ok()?.value * mib;
    Some(bytes / (found.prediction.value * mib / 1e3))
}
