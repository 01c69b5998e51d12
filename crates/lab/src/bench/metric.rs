//! The figures of a run, by name.
//!
//! | name | what |
//! |---|---|
//! | `data_bytes` | bytes that the source wrote to its sockets, by its own account |
//! | `link_bytes` | bytes that the source put on its link meanwhile |
//! | `total_ms`, `execution_transfer_ms`, `downtime_ms`, `perceived_downtime_ms` | as in the report, vmferry's or a peer's |
//! | `pages_sent` | pages that crossed, every crossing counted |
//! | `fetched_share` | bytes of pages fetched on demand, as a share of `data_bytes` |
//! | `operations_before_per_s`, `operations_during_per_s`, `operations_after_per_s` | what the guest's client got done |
//! | `operations_kept` | the second as a share of the first |
//! | `neighbour_before_per_s` and the like | what the clients of the guest beside it got done |
//! | `aggregate_before_per_s` and the like | what the clients of both got done together |
//! | `aggregate_10s_per_s` | the same in the ten seconds after the request, however long the migration took |
//! | `latency_p99_during_ms` and the like | what the client waited for answers: `p50`, `p90`, `p99`, `max`; `before`, `during`, `after` |
//! | `latency_p90_all_ms` and the like | the same of the whole run: `p0`, `p10`, ... `p100`, `p95`, `p99`, `p99.9` |
//!
//! Any other name is a path into the report: `faults.p99_us`, `pages.filtered`; of a peer: `figures.ram.dirty-sync-count`; of an
//! experiment one of its figures: `answer_ms`. A report
//! of the other kind does not have it.

use super::measure::Measured;
use super::operations::Operations;

/// The figure of this name; none where the run does not have it.
pub fn of(measured: &Measured, name: &str) -> Option<f64> {
    let account = &measured.account;
    let client = |rate: fn(&Operations) -> f64| measured.operations.as_ref().map(rate);
    match name {
        "data_bytes" => account.bytes_sent().map(|bytes| bytes as f64),
        "link_bytes" => measured.link_bytes.map(|bytes| bytes as f64),
        "pages_sent" => account.pages_sent().map(|pages| pages as f64),
        "fetched_share" => share(account.bytes_fetched()? as f64, account.bytes_sent()? as f64),
        "operations_before_per_s" => client(|seen| seen.before_per_s),
        "operations_during_per_s" => client(|seen| seen.during_per_s),
        "operations_after_per_s" => client(|seen| seen.after_per_s),
        "operations_kept" => {
            let seen = measured.operations.as_ref()?;
            share(seen.during_per_s, seen.before_per_s)
        }
        name if name.starts_with("neighbour_") || name.starts_with("aggregate_") => {
            contention(measured, name)
        }
        name if name.starts_with("latency_") => latency_of(measured.operations.as_ref()?, name),
        path => account.figure(&format!("/{}", path.replace('.', "/"))),
    }
}

/// `neighbour_PHASE_per_s` and `aggregate_PHASE_per_s`.
fn contention(measured: &Measured, name: &str) -> Option<f64> {
    let neighbour = measured.neighbour.as_ref()?;
    let (whose, phase) = name.strip_suffix("_per_s")?.split_once('_')?;
    let rate = |seen: &Operations| match phase {
        "before" => Some(seen.before_per_s),
        "during" => Some(seen.during_per_s),
        "after" => Some(seen.after_per_s),
        "10s" => rate_from_request(seen, 10.0),
        _ => None,
    };
    match whose {
        "neighbour" => rate(neighbour),
        _ => Some(rate(neighbour)? + rate(measured.operations.as_ref()?)?),
    }
}

/// Operations a second from the request on, where so many seconds were seen.
fn rate_from_request(seen: &Operations, seconds: f64) -> Option<f64> {
    let window_ms = seen.window_ms as f64;
    let first = (-seen.windows_start_ms / window_ms).round() as usize;
    let count = (seconds * 1e3 / window_ms).round() as usize;
    let windows = seen.windows.get(first..first + count)?;
    Some(windows.iter().sum::<f64>() / seconds)
}

/// `latency_FIGURE_PHASE_ms`.
fn latency_of(seen: &Operations, name: &str) -> Option<f64> {
    let name = name.strip_prefix("latency_")?.strip_suffix("_ms")?;
    let (figure, phase) = name.split_once('_')?;
    let latencies = seen.latency.as_ref()?;
    if phase == "all" {
        let percent: f64 = figure.strip_prefix('p')?.parse().ok()?;
        return latencies.quantile_ms(percent / 100.0);
    }
    let latency = match phase {
        "before" => latencies.before,
        "during" => latencies.during,
        "after" => latencies.after,
        _ => None,
    }?;
    match figure {
        "p50" => Some(latency.p50_ms),
        "p90" => Some(latency.p90_ms),
        "p99" => Some(latency.p99_ms),
        "max" => Some(latency.max_ms),
        _ => None,
    }
}

fn share(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then_some(part / whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Latency;
    use crate::bench::operations::Latencies;

    #[test]
    fn latencies_have_names() {
        let latency = |p99_ms| Latency {
            count: 9,
            p50_ms: 1.0,
            p90_ms: 2.0,
            p99_ms,
            max_ms: 90.0,
        };
        let seen = Operations {
            latency: Some(Latencies {
                before: Some(latency(3.0)),
                during: Some(latency(50.0)),
                after: None,
                deciles_ms: (0..=10).map(f64::from).collect(),
                tail_ms: vec![9.2, 9.4, 9.6],
                windows: Vec::new(),
            }),
            ..serde_json::from_value(serde_json::json!({
                "count": 0, "errors": 0, "longest_gap_ms": 0, "before_per_s": 0, "during_per_s": 0, "after_per_s": 0,
                "windows_start_ms": 0, "window_ms": 100, "windows": []
            }))
            .unwrap()
        };
        for (name, figure) in [
            ("latency_p50_before_ms", Some(1.0)),
            ("latency_p99_before_ms", Some(3.0)),
            ("latency_p90_during_ms", Some(2.0)),
            ("latency_p99_during_ms", Some(50.0)),
            ("latency_max_during_ms", Some(90.0)),
            ("latency_p99_after_ms", None),
            ("latency_p98_during_ms", None),
            ("latency_p50_all_ms", Some(5.0)),
            ("latency_p99.9_all_ms", Some(9.6)),
            ("latency_p98_all_ms", None),
            ("latency_p99_ms", None),
        ] {
            assert_eq!(latency_of(&seen, name), figure, "{name}");
        }
    }
}
