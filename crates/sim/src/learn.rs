//! What devices take, learned from migrations that were made: the phases of their reports.

use vmferry_core::report::Report;

use crate::path::PathModel;

impl PathModel {
    /// Takes the times of preparing, saving, loading, resuming and of the journal from these reports, where they have them:
    /// the median of each. Answers how many reports there were to go by.
    pub fn learn_from(&mut self, reports: &[Report]) -> usize {
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
        // Where no page crosses during the stop, it is all of devices.
        let bare = reports
            .iter()
            .filter(|report| report.pages.sent > 0 && leaves_pages(report));
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

/// Whether pages followed after the resume.
fn leaves_pages(report: &Report) -> bool {
    report.total_ms > report.execution_transfer_ms * 1.001 && report.faults.count > 0
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
