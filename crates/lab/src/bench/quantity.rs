//! What the figures of [`metric`](super::metric) are called, what they are measured in, and which of two is the better one.

/// A kind of figure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quantity {
    /// In words, as a heading.
    pub label: String,
    /// What its numbers count.
    pub unit: Unit,
    /// Which of two is the better one; absent where neither is by itself.
    pub better: Option<Better>,
}

/// What numbers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Milliseconds.
    Milliseconds,
    /// Microseconds.
    Microseconds,
    /// Seconds.
    Seconds,
    /// Things a second.
    PerSecond,
    /// A part of a whole, 0 to 1.
    Share,
    /// Things.
    Count,
}

/// Which of two figures is the better one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    /// The smaller.
    Lower,
    /// The larger.
    Higher,
}

impl Quantity {
    /// Of the metric of this name. Of names that are not known the unit is told from their end (`_ms`, `_bytes`, `_per_s`).
    pub fn of(name: &str) -> Self {
        let known = known(name);
        let (label, better) = match known {
            Some((label, better)) => (label.to_owned(), Some(better)),
            None if name.starts_with("latency_") => {
                let words = name.trim_end_matches("_ms").replace('_', " ");
                (words, Some(Better::Lower))
            }
            None if name == "filter.states_seen" => ("states that occurred".to_owned(), None),
            None if name == "filter.frequent_share" => {
                ("samples in the ten most frequent states".to_owned(), None)
            }
            None if name == "filter.transitions_seen" => ("different transitions".to_owned(), None),
            None if name.starts_with("filter.") => {
                let words = name["filter.".len()..].replace(['_', '.'], " ");
                (words.trim_end_matches(" ms").to_owned(), None)
            }
            None if name == "operations_before_per_s" => ("operations a second before".to_owned(), None),
            None => {
                let words = name.replace(['_', '.'], " ");
                let without = ["ms", "us", "bytes", "per s", "seconds"];
                let label = without
                    .iter()
                    .find_map(|unit| words.strip_suffix(&format!(" {unit}")));
                (label.unwrap_or(&words).to_owned(), None)
            }
        };
        Self {
            label,
            unit: Unit::of(name),
            better,
        }
    }
}

/// What metrics are called whose names do not say it well, and which of two is better.
fn known(name: &str) -> Option<(&'static str, Better)> {
    use Better::{Higher, Lower};
    match name {
        "data_bytes" => Some(("data sent", Lower)),
        "link_bytes" => Some(("bytes on the link", Lower)),
        "pages_sent" | "pages.sent" => Some(("pages sent", Lower)),
        "total_ms" => Some(("total time", Lower)),
        "execution_transfer_ms" => Some(("execution transfer time", Lower)),
        "downtime_ms" => Some(("downtime", Lower)),
        "perceived_downtime_ms" => Some(("perceived downtime", Lower)),
        "fetched_share" => Some(("fetched on demand, of the data", Lower)),
        "operations_during_per_s" => Some(("operations a second while it moves", Higher)),
        "operations_after_per_s" => Some(("operations a second afterwards", Higher)),
        "neighbour_during_per_s" => Some(("operations a second of its neighbour, while it moves", Higher)),
        "neighbour_10s_per_s" => Some((
            "operations a second of its neighbour, 10 s from the request",
            Higher,
        )),
        "aggregate_during_per_s" => Some(("operations a second of both, while it moves", Higher)),
        "aggregate_10s_per_s" => Some(("operations a second of both, 10 s from the request", Higher)),
        "operations_kept" => Some(("throughput kept while it moves", Higher)),
        "cpu_seconds.source" => Some(("CPU time of the source", Lower)),
        "cpu_seconds.destination" => Some(("CPU time of the destination", Lower)),
        "memory_bytes.source" => Some(("own memory of the source", Lower)),
        "memory_bytes.destination" => Some(("own memory of the destination", Lower)),
        "faults.network" => Some(("faults over the network", Lower)),
        "faults.p50_us" => Some(("fault service time, median", Lower)),
        "faults.p99_us" => Some(("fault service time, 99th percentile", Lower)),
        "faults.max_us" => Some(("fault service time, longest", Lower)),
        "start_ms" => Some(("time until the guest runs", Lower)),
        "first_answer_ms" => Some(("time until it answers", Lower)),
        "all_in_place_ms" => Some(("time until all is in place", Lower)),
        "faults_10s" => Some(("pages waited for in the first 10 s", Lower)),
        "store_bytes" => Some(("read from the store", Lower)),
        "pause_ms" => Some(("pause, median", Lower)),
        "pause_max_ms" => Some(("pause, longest", Lower)),
        "first_pause_ms" => Some(("pause of the first, which saves everything", Lower)),
        "stored_bytes" => Some(("added to the store", Lower)),
        "disks.bytes_on_wire" => Some(("bytes of the disk on the link", Lower)),
        "disks.copy_ms" => Some(("time until the disk had crossed once", Lower)),
        "disks.settle_ms" => Some(("time from the stop until both disks were equal", Lower)),
        "answer_ms" => Some(("time until the agent has answered", Lower)),
        "filter.cost.sample_ms" => Some(("time to take a sample in and decide upon it", Lower)),
        "filter.cost.decide_ms" => Some(("time to learn, forecast and filter, all samples", Lower)),
        "filter.memory_bytes" => Some(("memory of the model", Lower)),
        "pages.resent" => Some(("pages sent again", Lower)),
        _ => None,
    }
}

impl Unit {
    fn of(name: &str) -> Self {
        let first = name.split('.').next().unwrap_or_default();
        match name {
            _ if name.ends_with("_ms") || name == "ms" => Self::Milliseconds,
            _ if name.ends_with("_us") => Self::Microseconds,
            _ if name.ends_with("_per_s") => Self::PerSecond,
            _ if name.ends_with("_share") || name == "operations_kept" => Self::Share,
            "filter_precision" | "filter_recall" => Self::Share,
            _ if first.ends_with("bytes") || name.ends_with("bytes") || name == "bytes_saved" => Self::Bytes,
            _ if first.ends_with("seconds") => Self::Seconds,
            _ => Self::Count,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::summary::METRICS;

    #[test]
    fn every_figure_of_a_summary_has_words() {
        for name in METRICS {
            assert!(!Quantity::of(name).label.contains('_'), "{name}");
        }
        let wait = Quantity::of("encoding.wait_ms");
        assert_eq!(
            (wait.label.as_str(), wait.unit),
            ("encoding wait", Unit::Milliseconds)
        );
        assert_eq!(wait.better, None);
        for (name, unit) in [
            ("memory_bytes.source", Unit::Bytes),
            ("cpu_seconds.source", Unit::Seconds),
            ("faults.p99_us", Unit::Microseconds),
            ("operations_kept", Unit::Share),
            ("pages.filtered", Unit::Count),
        ] {
            assert_eq!(Quantity::of(name).unit, unit, "{name}");
        }
    }
}
