//! What a demo ends with: the migrations' reports and what the client saw, as a table and as JSON.

use comfy_table::Table;
use serde::Serialize;
use vmferry_core::report::{Outcome, Report};

use crate::{table, units};

/// What a demo has shown. As JSON it is `{"migrations": [...], "client": {...}}`.
#[derive(Debug, Serialize)]
pub(super) struct DemoResult {
    /// The migrations in order, `perceived_downtime_ms` filled in.
    pub(super) migrations: Vec<Report>,
    /// What the guest's client saw, over all of the time.
    pub(super) client: ClientResult,
}

/// What the guest's client saw.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ClientResult {
    /// Operations that ended well.
    pub(super) operations: u64,
    /// Operations that failed, and values that were not what was stored.
    pub(super) errors: u64,
    /// Longest time between the ends of two operations, milliseconds.
    pub(super) longest_gap_ms: f64,
    /// What went wrong, in words.
    #[serde(skip)]
    pub(super) descriptions: Vec<String>,
    /// Operations a second: before the first migration, during each, and after it.
    #[serde(skip)]
    pub(super) rates: Vec<(String, f64)>,
}

impl DemoResult {
    /// What must not happen, in words; empty when all is well.
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for report in &self.migrations {
            let strategy = &report.strategy;
            if report.outcome != Outcome::Completed {
                let why = report.error.as_deref().unwrap_or("no reason was given");
                problems.push(format!("{strategy} did not complete: {why}"));
                continue;
            }
            match report.verified {
                None => problems.push(format!("{strategy} was not verified")),
                Some(verified) if verified.mismatches > 0 => {
                    problems.push(format!("{strategy}: {} pages differ", verified.mismatches));
                }
                Some(_) => {}
            }
        }
        if self.client.errors > 0 {
            problems.push(format!("the client saw {} errors", self.client.errors));
            problems.extend(
                self.client
                    .descriptions
                    .iter()
                    .map(|description| format!("the client: {description}")),
            );
        }
        problems
    }

    /// Everything on a page.
    pub(super) fn render(&self) -> String {
        let mut text = table::render(self.table());
        text.push_str(&format!(
            "\nclient: {} operations, {} errors, longest gap {}\n",
            units::count(self.client.operations),
            self.client.errors,
            units::millis(self.client.longest_gap_ms)
        ));
        if !self.client.rates.is_empty() {
            let rates = self
                .client
                .rates
                .iter()
                .map(|(when, rate)| format!("{} {when}", units::count(*rate as u64)));
            text.push_str(&format!(
                "operations a second: {}\n",
                rates.collect::<Vec<_>>().join(", ")
            ));
        }
        for report in &self.migrations {
            for note in &report.notes {
                text.push_str(&format!("{}: {note}\n", report.strategy));
            }
        }
        text
    }

    fn table(&self) -> Table {
        let mut heading = vec![""];
        heading.extend(self.migrations.iter().map(|report| report.strategy.as_str()));
        let mut table = table::plain();
        table.set_header(heading);
        for (label, value) in ROWS {
            let cells: Vec<_> = self.migrations.iter().map(value).collect();
            if cells.iter().any(|cell| cell != "-") {
                table.add_row([vec![(*label).to_owned()], cells].concat());
            }
        }
        table::align_right(&mut table, &(1..=self.migrations.len()).collect::<Vec<_>>());
        table
    }
}

/// A line of the table: what it says about a report, `-` for nothing.
type Row = (&'static str, fn(&Report) -> String);

const ROWS: &[Row] = &[
    ("outcome", |report| format!("{:?}", report.outcome).to_lowercase()),
    ("downtime", |report| units::millis(report.downtime_ms)),
    ("perceived downtime", |report| {
        report.perceived_downtime_ms.map_or("-".into(), units::millis)
    }),
    ("execution transfer time", |report| {
        units::millis(report.execution_transfer_ms)
    }),
    ("total time", |report| units::millis(report.total_ms)),
    ("memory", |report| units::size(report.ram_bytes)),
    ("  that holds data", |report| units::size(report.data_bytes)),
    ("sent over the network", |report| {
        units::size(report.bytes_on_wire)
    }),
    ("  device state", |report| units::size(report.device_state_bytes)),
    ("pages sent", |report| units::count(report.pages.sent)),
    ("  more than once", |report| units::count(report.pages.resent)),
    ("  as one byte (uniform)", |report| {
        units::count(report.pages.uniform)
    }),
    ("rounds", |report| {
        if report.rounds.len() > 1 {
            report.rounds.len().to_string()
        } else {
            "-".into()
        }
    }),
    ("faults over the network", |report| {
        some_count(report.faults.network)
    }),
    ("  fault service time p50", |report| {
        fault_time(report, report.faults.p50_us)
    }),
    ("  fault service time p99", |report| {
        fault_time(report, report.faults.p99_us)
    }),
    ("pages verified", |report| {
        report
            .verified
            .map_or("-".into(), |verified| units::count(verified.pages))
    }),
    ("  mismatches", |report| {
        report
            .verified
            .map_or("-".into(), |verified| units::count(verified.mismatches))
    }),
];

fn some_count(number: u64) -> String {
    if number == 0 {
        "-".into()
    } else {
        units::count(number)
    }
}

fn fault_time(report: &Report, us: f64) -> String {
    if report.faults.network == 0 {
        "-".into()
    } else {
        units::millis(us / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use vmferry_core::report::{CpuSeconds, FaultReport, PageCounts, SidesBytes, Verified};

    use super::*;

    fn report(strategy: &str) -> Report {
        Report {
            vm: "guest".into(),
            strategy: strategy.into(),
            backend: "qemu".into(),
            outcome: Outcome::Completed,
            error: None,
            total_ms: 1500.0,
            execution_transfer_ms: 40.0,
            downtime_ms: 9.5,
            perceived_downtime_ms: Some(31.0),
            micro_stops_ms: 0.0,
            ram_bytes: 512 << 20,
            data_bytes: 150 << 20,
            bytes_on_wire: 151 << 20,
            device_state_bytes: 300 << 10,
            reuse: None,
            encoding: Default::default(),
            pages: PageCounts {
                sent: 38_400,
                uniform: 100,
                ..PageCounts::default()
            },
            rounds: Vec::new(),
            faults: FaultReport::default(),
            phases: Vec::new(),
            cpu_seconds: CpuSeconds::default(),
            memory_bytes: SidesBytes::default(),
            limits: Default::default(),
            filter: None,
            disks: None,
            verified: Some(Verified {
                pages: 131_072,
                mismatches: 0,
            }),
            forecast: None,
            notes: Vec::new(),
        }
    }

    fn result(migrations: Vec<Report>) -> DemoResult {
        let client = ClientResult {
            operations: 12_345,
            errors: 0,
            longest_gap_ms: 31.0,
            descriptions: Vec::new(),
            rates: vec![("before".into(), 1999.6)],
        };
        DemoResult { migrations, client }
    }

    #[test]
    fn the_json_has_these_members_and_no_others() {
        let json = serde_json::to_value(result(vec![report("post-copy-push")])).unwrap();
        let names =
            |value: &serde_json::Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&json), ["client", "migrations"]);
        assert_eq!(names(&json["client"]), ["errors", "longest_gap_ms", "operations"]);
        assert_eq!(json["migrations"][0]["perceived_downtime_ms"], 31.0);
    }

    #[test]
    fn a_demo_is_well_only_when_everything_is() {
        assert_eq!(result(vec![report("pre-copy")]).problems(), Vec::<String>::new());
        type Spoil = fn(&mut DemoResult);
        let spoilt: &[(Spoil, &str)] = &[
            (
                |demo| demo.migrations[0].outcome = Outcome::Failed,
                "did not complete",
            ),
            (|demo| demo.migrations[0].verified = None, "was not verified"),
            (
                |demo| {
                    demo.migrations[0].verified = Some(Verified {
                        pages: 5,
                        mismatches: 2,
                    });
                },
                "2 pages differ",
            ),
            (|demo| demo.client.errors = 3, "3 errors"),
        ];
        for (spoil, problem) in spoilt {
            let mut demo = result(vec![report("pre-copy")]);
            spoil(&mut demo);
            let problems = demo.problems().join("\n");
            assert!(problems.contains(problem), "{problems}");
        }
    }

    #[test]
    fn the_table_shows_migrations_side_by_side() {
        let text = result(vec![report("post-copy-push"), report("pre-copy")]).render();
        let line = |start: &str| {
            text.lines()
                .find(|line| line.trim_start().starts_with(start))
                .unwrap()
        };
        assert_eq!(
            line("downtime").split_whitespace().collect::<Vec<_>>(),
            ["downtime", "9.5", "ms", "9.5", "ms"]
        );
        assert!(line("mismatches").ends_with('0'));
        assert!(
            text.contains("12,345 operations, 0 errors, longest gap 31 ms"),
            "{text}"
        );
        assert!(!text.contains("faults"), "there were none: {text}");
    }
}
