//! The end of a migration: the report.

use std::time::Duration;

use vmferry_core::PAGE_SIZE;
use vmferry_core::filter::FilterReport;
use vmferry_core::report::{CpuSeconds, LimitsReport, Outcome, Report, SidesBytes};

use super::driver::Driver;

impl Driver {
    pub(super) fn make_report(&self) -> Report {
        let source = self.shared.source();
        let measured = source.measured();
        let (outcome, error) = source.ended().unwrap_or((Outcome::Unresolved, None));
        let error = error.map(str::to_owned);
        let mut notes = measured.notes;
        let compared = measured.summary.verified.is_some() || outcome != Outcome::Completed;
        if self.shared.request.verify && !compared {
            notes.push(
                "pages were not compared: a daemon was restarted, and what it knew of them is gone".into(),
            );
        }
        let limits = &self.shared.request.limits;
        notes.extend(self.shared.encodings.fall_back());
        if limits.cpu_destination_percent.is_some() && self.shared.destination_cpu_percent().is_none() {
            notes.push("the destination is of an earlier version and keeps to no CPU cap".into());
        }
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        drop(source);
        let disks = self.disks_report(outcome);
        Report {
            vm: self.vm.spec().name.clone(),
            strategy: self.shared.request.strategy.name().into(),
            backend: self.vm.spec().backend.clone(),
            outcome,
            error,
            total_ms: ms(measured.total),
            execution_transfer_ms: measured.execution_transfer.map_or(0.0, ms),
            downtime_ms: measured.downtime.map_or(0.0, ms),
            perceived_downtime_ms: None,
            micro_stops_ms: ms(measured.micro_stops),
            ram_bytes: self.vm.ram().layout().bytes(),
            data_bytes: measured.data_pages * PAGE_SIZE,
            bytes_on_wire: measured.page_bytes + self.control_bytes + self.disk_bytes,
            device_state_bytes: measured.device_state_bytes,
            pages: measured.counts,
            reuse: self.shared.reuse.report(),
            encoding: self.shared.encodings.report(),
            rounds: measured.rounds,
            faults: measured.summary.faults,
            phases: measured.phases,
            cpu_seconds: CpuSeconds {
                source: self.shared.usage.cpu_seconds(),
                destination: measured.summary.cpu_seconds,
            },
            memory_bytes: SidesBytes {
                source: self.shared.usage.peak_bytes(),
                destination: measured.summary.memory_bytes,
            },
            limits: LimitsReport {
                downtime_ms: ms(limits.downtime),
                timeout_ms: limits.timeout.map(ms),
                bandwidth_bytes_per_s: measured.bandwidth_bytes_per_s,
                bandwidth_waited_ms: ms(measured.bandwidth_waited),
                cpu_percent: self.shared.cpu_cap.percent(),
                cpu_waited_ms: ms(self.shared.cpu_cap.waited()),
                cpu_destination_percent: self.shared.destination_cpu_percent(),
                cpu_by: self.shared.cpu_cap.by(),
            },
            filter: measured.filter.map(|filter| FilterReport {
                cost: self.sample_cost,
                ..filter
            }),
            disks,
            verified: measured.summary.verified,
            forecast: self.shared.request.forecast.as_deref().cloned(),
            notes,
        }
    }
}
