//! Migrations in parallel. Source: performance-model paper, section 5: models of single migrations bound those of parallel ones
//! from below, since migrations that go on together do not help each other: none of them is faster than it were alone, and
//! together they take at least the sum of what each takes. What each takes is the lower end of its interval here: a bound that every
//! second migration is below is none.

use serde::Serialize;

use super::{Axis, Beyond, Model, ModelError, Setting};

/// What k migrations that go on together take at least, in 19 of 20 cases.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Time until the last of them is over, ms: none is over sooner than it were alone.
    pub alone_ms: f64,
    /// The same if they share what one of them has: `None` where the models do not depend on it, or where all have more of it than
    /// there are data about.
    pub shared_ms: Option<f64>,
    /// Where a model was asked beyond its data. There the bound is the lower for that.
    pub beyond: Vec<Beyond>,
}

/// A lower bound for migrations that go on together, all sharing `total` of `axis`.
///
/// # Errors
/// As [`Model::predict`].
pub fn bound(migrations: &[(&Model, Setting)], axis: Axis, total: f64) -> Result<Bound, ModelError> {
    let groups = grouped(migrations);
    let mut alone_ms: f64 = 0.0;
    let mut beyond: Vec<Beyond> = Vec::new();
    for Group { model, setting, .. } in &groups {
        // Below the data it takes no less than at their low end; above them it may take less than at their high end.
        let setting = match model.axes.iter().find(|data| data.axis == axis) {
            Some(data) => setting.with(axis, total.max(data.low)),
            None => *setting,
        };
        let said = model.predict(&setting)?;
        alone_ms = alone_ms.max(said.low);
        for place in said.beyond {
            if !beyond.contains(&place) {
                beyond.push(place);
            }
        }
    }
    Ok(Bound {
        alone_ms,
        shared_ms: shared_ms(&groups, axis, total, alone_ms)?,
        beyond,
    })
}

/// The least of `axis` that migrations need together so that each is over within `target_ms`: the sum of what each needs. With less they are
/// not, in 19 of 20 cases.
///
/// # Errors
/// As [`Model::invert`].
pub fn demand(migrations: &[(&Model, Setting)], axis: Axis, target_ms: f64) -> Result<f64, ModelError> {
    needed(&grouped(migrations), axis, target_ms)
}

/// Migrations of which a model says the same.
struct Group<'a> {
    model: &'a Model,
    setting: Setting,
    count: f64,
}

fn grouped<'a>(migrations: &[(&'a Model, Setting)]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    for &(model, setting) in migrations {
        let same = |group: &&mut Group<'a>| std::ptr::eq(group.model, model) && group.setting == setting;
        match groups.iter_mut().find(same) {
            Some(group) => group.count += 1.0,
            None => groups.push(Group {
                model,
                setting,
                count: 1.0,
            }),
        }
    }
    groups
}

fn needed(groups: &[Group<'_>], axis: Axis, target_ms: f64) -> Result<f64, ModelError> {
    let needs = groups
        .iter()
        .map(|group| Ok(group.count * group.model.need_at_least(axis, target_ms, &group.setting)?));
    needs.sum()
}

/// The shortest time within which `total` of `axis` is enough for all.
fn shared_ms(groups: &[Group<'_>], axis: Axis, total: f64, alone_ms: f64) -> Result<Option<f64>, ModelError> {
    let mut most: f64 = 0.0;
    // With the least share that there are data about, none is slower; with the most, none is faster.
    let (mut slowest_ms, mut fastest_ms) = (alone_ms, 0.0_f64);
    for Group { model, setting, .. } in groups {
        let data = model.axes.iter().find(|data| data.axis == axis);
        let Some(data) = data.filter(|_| model.depends_on(axis)) else {
            return Ok(None);
        };
        most = most.max(data.high);
        slowest_ms = slowest_ms.max(model.predict(&setting.with(axis, data.low))?.low);
        fastest_ms = fastest_ms.max(model.predict(&setting.with(axis, data.high))?.low);
    }
    let enough = |target: f64| match needed(groups, axis, target) {
        Ok(needed) => Ok(needed <= total),
        Err(ModelError::Unreachable { .. }) => Ok(false),
        Err(error) => Err(error),
    };
    let (mut low, mut high) = (alone_ms.max(slowest_ms * 1e-6), slowest_ms * 1.001);
    // Where all have more than the data reach to, how fast that makes them is not known.
    if !enough(high)? || (total > most && enough(fastest_ms * (1.0 + 1e-9))?) {
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
