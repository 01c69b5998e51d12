//! What devices take, learned from migrations that were made: the phases of their reports.

use vmferry_core::report::Report;

use crate::path::PathModel;

impl PathModel {
    /// Takes the times of preparing, saving, loading, resuming and of the journal from these reports, where they have them:
    /// the median of each. Answers how many reports there were to go by: those of migrations that moved nothing but memory.
    pub fn learn_from(&mut self, reports: &[Report]) -> usize {
        let reports: Vec<&Report> = reports.iter().filter(|report| of_memory_alone(report)).collect();
        let phase = |report: &Report, name: &str| {
            let phases = report.phases.iter().filter(|phase| phase.name == name);
            phases
                .map(|phase| phase.end_ms - phase.start_ms)
                .reduce(|sum, ms| sum + ms)
        };
        let median_of =
            |name: &str| median(reports.iter().filter_map(|report| phase(report, name)).collect());
        let set = |figure: &mut f64, learned: Option<f64>, beside: f64| {
            if let Some(learned) = learned {
                *figure = (learned - beside).max(0.0);
            }
        };
        let rtt_ms = self.rtt_ms;
        set(&mut self.journal_ms, median_of("hand over"), 0.0);
        // A commit goes there, is written to the journal and obeyed, and the answer comes back.
        set(&mut self.resume_ms, median_of("commit"), rtt_ms + self.journal_ms);
        set(&mut self.load_ms, median_of("load device state"), rtt_ms);
        // Dialling, greeting and the offer take five round trips.
        set(
            &mut self.prepare_ms,
            median_of("prepare destination"),
            5.0 * rtt_ms,
        );
        // Where no page crosses during the stop and none is looked for that is free, it is all of devices.
        let bare = reports
            .iter()
            .filter(|report| report.pages.sent > 0 && report.pages.free == 0 && leaves_pages(report));
        let stops = bare.filter_map(|report| phase(report, "stop-and-copy")).collect();
        set(&mut self.save_ms, median(stops), self.flush_ms + self.stop_ms);
        let sizes: Vec<f64> = reports
            .iter()
            .map(|report| report.device_state_bytes as f64)
            .collect();
        set(&mut self.device_state_bytes, median(sizes), 0.0);
        reports.len()
    }
}

/// Whether no phase has anything else in it: disks are made while the destination is prepared, settle during the stop and are let
/// go of with the commit; a store is looked through first; pages are compared before the load.
fn of_memory_alone(report: &Report) -> bool {
    report.disks.is_none() && report.reuse.is_none() && report.verified.is_none()
}

/// Whether pages followed after the resume.
fn leaves_pages(report: &Report) -> bool {
    report.total_ms > report.execution_transfer_ms * 1.001 && report.faults.count > 0
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use vmferry_core::disks::DisksReport;
    use vmferry_core::report::{ReuseReport, Verified};

    use super::*;

    /// The report of a migration whose destination took `ms` to be prepared.
    fn report(ms: f64) -> Report {
        serde_json::from_value(serde_json::json!({
            "vm": "web", "strategy": "pre-copy", "backend": "qemu", "outcome": "completed",
            "total_ms": 1000.0, "execution_transfer_ms": 990.0, "downtime_ms": 20.0, "micro_stops_ms": 0.0,
            "ram_bytes": 1 << 20, "data_bytes": 1 << 20, "bytes_on_wire": 1 << 20, "device_state_bytes": 1000,
            "pages": {"sent": 256, "resent": 0, "raw": 256, "uniform": 0, "hole": 0, "free": 0, "filtered": 0, "compressed": 0,
                "delta": 0, "deduplicated": 0},
            "rounds": [],
            "faults": {"count": 0, "network": 0, "local": 0, "p50_us": 0.0, "p99_us": 0.0, "max_us": 0.0},
            "phases": [{"name": "prepare destination", "start_ms": 0.0, "end_ms": ms}],
            "cpu_seconds": {"source": 0.1, "destination": 0.1}, "memory_bytes": {"source": 0, "destination": 0},
        }))
        .unwrap()
    }

    #[test]
    fn finding_free_pages_is_not_taken_for_what_devices_take() {
        let left_pages = |free: u64, stop_ms: f64| {
            let mut report = report(101.0);
            report.execution_transfer_ms = 100.0;
            report.faults.count = 1;
            report.pages.free = free;
            report.phases[0].name = "stop-and-copy".into();
            report.phases[0].end_ms = stop_ms;
            report
        };
        let mut path = PathModel::typical(125e6, 0.2);
        path.learn_from(&[left_pages(0, 20.0), left_pages(900, 80.0), left_pages(900, 80.0)]);
        let learned = path.save_ms + path.flush_ms + path.stop_ms;
        assert!((learned - 20.0).abs() < 1e-9, "{learned}");
    }

    #[test]
    fn what_disks_reuse_and_comparing_take_is_not_taken_for_what_devices_take() {
        let mut reports = vec![report(101.0); 3];
        reports.extend(vec![
            Report {
                disks: Some(DisksReport::default()),
                ..report(60_001.0)
            };
            2
        ]);
        reports.extend(vec![
            Report {
                reuse: Some(ReuseReport::default()),
                ..report(30_001.0)
            };
            2
        ]);
        reports.push(Report {
            verified: Some(Verified::default()),
            ..report(30_001.0)
        });
        let mut path = PathModel::typical(125e6, 0.2);
        assert_eq!(path.learn_from(&reports), 3);
        assert!((path.prepare_ms - 100.0).abs() < 1e-9, "{}", path.prepare_ms);
        let before = path.clone();
        assert_eq!(path.learn_from(&reports[3..]), 0);
        assert_eq!(path, before);
    }
}
