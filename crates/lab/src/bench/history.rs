//! Runs of a bench as migrations that models learn from.

use vmferry_api::MigrateRequest;
use vmferry_core::Workload;
use vmferry_core::report::Report;
use vmferry_core::workload::Class;
use vmferry_forecast::history::Record;

use super::account::Account;
use super::plan::Request;
use super::results::{Results, Run};
use super::scenario::{Guest, GuestKind};
use crate::forecasting::Past;

/// A record of each migration that vmferry made.
pub fn records(results: &Results) -> Vec<Record> {
    results
        .runs
        .iter()
        .flat_map(|run| records_of(results, run))
        .collect()
}

/// The records of a run: one, or one for each guest where several were moved at once.
pub fn records_of(results: &Results, run: &Run) -> Vec<Record> {
    match (&run.request, run.outcome.measured().map(|it| &it.account)) {
        (Request::Experiment(experiment), Some(Account::Experiment(found))) => {
            let reports = found.said.get("reports").cloned().unwrap_or_default();
            // What is no report of a migration is a file's that an older version wrote.
            let reports: Vec<Report> = serde_json::from_value(reports).unwrap_or_default();
            let Some(request) = experiment.migration() else {
                return Vec::new();
            };
            let together = u32::try_from(reports.len()).unwrap_or(u32::MAX);
            let record = |(index, report)| Record {
                id: format!("{}-{index}", id(results, run)),
                ..of_report(results, run, &request, report, together)
            };
            reports.iter().enumerate().map(record).collect()
        }
        _ => record(results, run).into_iter().collect(),
    }
}

/// What the runs so far teach about the next one, as a host that made them all would know it.
pub(super) fn past(results: &Results) -> Past {
    let reports = results
        .runs
        .iter()
        .filter_map(|run| match &run.outcome.measured()?.account {
            Account::Vmferry(report) => Some(Report::clone(report)),
            Account::Qemu(_) | Account::Experiment(_) => None,
        });
    Past {
        records: records(results),
        reports: reports.collect(),
    }
}

/// The record of a run that moved one guest, if vmferry made it and it has figures. The workload is the guest's, where the request does not name one.
pub fn record(results: &Results, run: &Run) -> Option<Record> {
    let (Account::Vmferry(report), Request::Vmferry(request)) =
        (&run.outcome.measured()?.account, &run.request)
    else {
        return None;
    };
    let record = of_report(results, run, request, report, 1);
    Some(Record {
        same: Some(format!("{}, {}", run.key.guest, run.key.link)),
        ..record
    })
}

/// Tells a run from all others.
fn id(results: &Results, run: &Run) -> String {
    let key = &run.key;
    format!(
        "{}-{}-{}-{}-{}",
        results.scenario, key.guest, key.link, key.variant, key.repetition
    )
}

fn of_report(
    results: &Results,
    run: &Run,
    request: &MigrateRequest,
    report: &Report,
    together: u32,
) -> Record {
    let ended_unix_ms = run.started_unix_ms + (run.took_s * 1e3) as u64;
    let guests = &results.content.guests;
    let guest = guests.iter().find(|guest| guest.name == run.key.guest);
    let record = Record::new(id(results, run), request, report, ended_unix_ms, together);
    Record {
        workload: record.workload.or_else(|| guest.and_then(workload_of)),
        ..record
    }
}

/// What a guest does, as models call it: by its name where that is one of a workload (`cpu:40`), else by its load.
pub fn workload_of(guest: &Guest) -> Option<Workload> {
    use crate::workload::Workload as Linux;
    if let Ok(workload) = guest.name.parse() {
        return Some(workload);
    }
    let of = |class, intensity_percent| {
        Some(Workload {
            class,
            intensity_percent,
        })
    };
    match (guest.kind, &guest.workload) {
        (GuestKind::Qemu, Linux::Cpu { percent }) => of(Class::Cpu, u8::try_from(*percent).unwrap_or(100)),
        (GuestKind::Qemu, Linux::Write { mib_per_s: None, .. }) => of(Class::MemoryWrite, 100),
        (GuestKind::Qemu, Linux::Read { .. }) => of(Class::MemoryRead, 100),
        (GuestKind::Qemu, Linux::DiskRead { .. }) => of(Class::DiskRead, 100),
        (GuestKind::Qemu, Linux::NetSend {}) => of(Class::NetSend, 100),
        (GuestKind::Qemu, Linux::NetReceive { mib_per_s: None }) => of(Class::NetReceive, 100),
        (GuestKind::Qemu, Linux::Idle) if guest.load.is_none() => of(Class::Cpu, 0),
        _ => None,
    }
}
