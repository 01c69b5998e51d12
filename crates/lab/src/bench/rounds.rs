//! The rounds of a run, number by number.

use super::measure::Measured;

/// One figure of each round of a run, in order; none where it has no rounds or no such figure. Names are those of the report:
/// `pages_sent`, `pages_dirtied`, `pages_filtered`, `filter_precision`.
pub fn of(measured: &Measured, name: &str) -> Vec<Option<f64>> {
    let figure = |round| {
        let round = serde_json::to_value(round).ok()?;
        round.get(name)?.as_f64()
    };
    measured.account.rounds().iter().map(figure).collect()
}
