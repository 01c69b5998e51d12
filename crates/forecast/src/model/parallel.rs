//! Migrations in parallel. Source: performance-model paper, section 5: models of single migrations bound those of parallel ones
//! from below, since migrations that go on together do not help each other: none of them is faster than it were alone, and
//! together they take at least the sum of what each takes.

use serde::Serialize;

use super::{Axis, Model, ModelError, Setting};

/// What k migrations that go on together take at least.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Time until the last of them is over, ms: none is over sooner than it were alone.
    pub alone_ms: f64,
    /// The same if they share what one of them has: `None` where the models do not depend on it.
    pub shared_ms: Option<f64>,
}

/// A lower bound for migrations that go on together, all sharing `total` of `axis`.
///
/// # Errors
/// As [`Model::predict`].
pub fn bound(migrations: &[(&Model, Setting)], axis: Axis, total: f64) -> Result<Bound, ModelError> {
    let mut alone_ms: f64 = 0.0;
    for (model, setting) in migrations {
        let setting = match model.axes.iter().find(|data| data.axis == axis) {
            Some(data) => setting.with(axis, total.clamp(data.low, data.high)),
            None => *setting,
        };
        alone_ms = alone_ms.max(model.predict(&setting)?.value);
    }
    Ok(Bound {
        alone_ms,
        shared_ms: shared_ms(migrations, axis, total, alone_ms)?,
    })
}

/// The least of `axis` that migrations need together so that each is over within `target_ms`: the sum of what each needs.
///
/// # Errors
/// As [`Model::invert`].
pub fn demand(migrations: &[(&Model, Setting)], axis: Axis, target_ms: f64) -> Result<f64, ModelError> {
    let needs = migrations.iter().map(|(model, setting)| {
        let inversion = model.invert(axis, target_ms, setting)?;
        Ok(inversion.likely)
    });
    needs.sum()
}

/// The shortest time within which `total` of `axis` is enough for all.
fn shared_ms(
    migrations: &[(&Model, Setting)],
    axis: Axis,
    total: f64,
    alone_ms: f64,
) -> Result<Option<f64>, ModelError> {
    if migrations.iter().any(|(model, _)| !model.depends_on(axis)) {
        return Ok(None);
    }
    let enough = |target: f64| match demand(migrations, axis, target) {
        Ok(needed) => Ok(needed <= total),
        Err(ModelError::Unreachable { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    // With the least share that there are data about, none is slower.
    let slowest = migrations.iter().map(|(model, setting)| {
        let data = model.axes.iter().find(|data| data.axis == axis);
        let setting = data.map_or(*setting, |data| setting.with(axis, data.low));
        Ok(model.predict(&setting)?.value)
    });
    let slowest = slowest.collect::<Result<Vec<_>, _>>()?;
    let (mut low, mut high) = (alone_ms, slowest.into_iter().fold(alone_ms, f64::max) * 1.001);
    if !enough(high)? {
        return Ok(None);
    }
    for _ in 0..40 {
        let middle = (low * high).sqrt();
        match enough(middle)? {
            true => high = middle,
            false => low = middle,
        }
    }
    Ok(Some(high))
}

/// How much slower migrations were that others went on beside.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Interference {
    /// How many went on together.
    pub together: u32,
    /// Migrations that were measured so.
    pub measured: usize,
    /// Median of their time in relation to that of one alone at the same setting.
    pub slower: f64,
}

/// Compares migrations that others went on beside (how many together, setting, time) with what the model says of one alone.
///
/// Measurements that the model knows nothing about do not count.
pub fn measured(model: &Model, migrations: &[(u32, Setting, f64)]) -> Vec<Interference> {
    let mut ratios: std::collections::BTreeMap<u32, Vec<f64>> = Default::default();
    for (together, setting, time_ms) in migrations {
        if let Ok(alone) = model.predict(setting)
            && alone.value > 0.0
        {
            ratios.entry(*together).or_default().push(time_ms / alone.value);
        }
    }
    ratios
        .into_iter()
        .map(|(together, mut ratios)| {
            ratios.sort_by(f64::total_cmp);
            let middle = ratios.len() / 2;
            let median = match ratios.len() % 2 {
                1 => ratios[middle],
                _ => 0.5 * (ratios[middle - 1] + ratios[middle]),
            };
            Interference {
                together,
                measured: ratios.len(),
                slower: median,
            }
        })
        .collect()
}
