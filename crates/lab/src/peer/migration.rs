//! One migration by QEMU, from the request to its end, and what it measured.

use std::time::{Duration, Instant, SystemTime};

use vmferry_core::report::{Outcome, Progress};
use vmferry_guest_qemu::qmp::commands::{Migrate, MigrateCancel};
use vmferry_guest_qemu::qmp::{Cursor, Event, QmpError};

use super::figures::Figures;
use super::monitor::{QueryFigures, QueryParameters, StartPostcopy};
use super::qemu::Qemu;
use super::report::{Moment, PeerReport, Side};
use super::request::PeerRequest;
use crate::error::{LabError, Result};
use crate::guards::Interrupt;

/// How often a migration is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// QEMU's figures are complete so long after its end.
const SETTLE: Duration = Duration::from_millis(100);
/// How long the destination may take to resume the guest after the source said that it is done.
const RESUME_LIMIT: Duration = Duration::from_secs(60);
/// The events that tell how it went.
const TOLD: [&str; 4] = ["STOP", "RESUME", "MIGRATION", "MIGRATION_PASS"];

/// Both ends of a migration.
pub(super) struct Ends<'a> {
    pub(super) source: &'a Qemu,
    pub(super) destination: &'a Qemu,
    pub(super) interrupt: &'a Interrupt,
}

/// When it was asked for, and where the events of both ends begin.
struct Request {
    at: Instant,
    since_epoch: Duration,
    source: Cursor,
    destination: Cursor,
}

impl Ends<'_> {
    pub(super) fn migrate(
        &self,
        wanted: &PeerRequest,
        uri: &str,
        limit: Duration,
        mut watch: impl FnMut(&Progress),
    ) -> Result<PeerReport> {
        let request = Request {
            source: self.source.qmp.events().now(),
            destination: self.destination.qmp.events().now(),
            since_epoch: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default(),
            at: Instant::now(),
        };
        self.source.run(&Migrate { uri: uri.to_owned() })?;
        let mut postcopy_after = wanted.start_postcopy_after_s.map(Duration::from_secs_f64);
        let status = loop {
            self.interrupt.check()?;
            if postcopy_after.is_some_and(|after| request.at.elapsed() >= after) {
                postcopy_after = None;
                self.source.run(&StartPostcopy {})?;
            }
            let until_postcopy = postcopy_after.map(|after| after.saturating_sub(request.at.elapsed()));
            let look = until_postcopy.map_or(LOOK, |left| left.min(LOOK));
            if let Some(event) = wait(self.source, request.source, look, is_end)? {
                break status(&event).to_owned();
            }
            let answer = self.source.run(&QueryFigures {})?;
            let figures = Figures(&answer);
            watch(&figures.progress(request.at.elapsed().as_secs_f64() * 1e3));
            if request.at.elapsed() > limit {
                // After the guest has left that is refused, and nothing else can be done.
                let _ = self.source.run(&MigrateCancel {});
                let standing = figures.standing();
                return Err(LabError::NotConverged { limit, standing });
            }
        };
        if status != "completed" {
            return Err(self.failure(&status));
        }
        self.wait_for_resume(&request)?;
        self.interrupt.sleep(SETTLE)?;
        self.report(wanted, &request)
    }

    fn wait_for_resume(&self, request: &Request) -> Result<()> {
        let end = Instant::now() + RESUME_LIMIT;
        let resumed = |event: &Event| event.name == "RESUME";
        while wait(self.destination, request.destination, LOOK, resumed)?.is_none() {
            self.interrupt.check()?;
            if Instant::now() > end {
                let what = "the guest to be resumed at the destination".to_owned();
                return Err(LabError::TimedOut {
                    what,
                    limit: RESUME_LIMIT,
                });
            }
        }
        Ok(())
    }

    /// Why a migration did not complete, as both ends tell it.
    fn failure(&self, status: &str) -> LabError {
        let answer = self.source.run(&QueryFigures {}).unwrap_or_default();
        let told = Figures(&answer).text("/error-desc").to_owned();
        let words = [&self.source, &self.destination].map(|qemu| qemu.last_words());
        LabError::NotMoved {
            outcome: Outcome::Failed,
            why: format!("QEMU says {status}: {told}{}{}", words[0], words[1]),
        }
    }

    fn report(&self, wanted: &PeerRequest, request: &Request) -> Result<PeerReport> {
        let ends = [
            (Side::Source, self.source, request.source),
            (Side::Destination, self.destination, request.destination),
        ];
        let told = ends.map(|(side, qemu, cursor)| {
            let events = qemu.qmp.events().since(cursor);
            let told = events.iter().filter_map(|event| request.moment(side, event));
            told.collect::<Vec<_>>()
        });
        let mut events = told.concat();
        events.sort_by(|one, other| one.at_ms.total_cmp(&other.at_ms));
        let find = |side: Side, name: &'static str| {
            let found = events
                .iter()
                .find(|moment| moment.side == side && moment.event == name);
            let told = found.map(|moment| moment.at_ms);
            told.ok_or_else(|| {
                LabError::Guest(format!(
                    "was moved, but the {}'s QEMU did not say when ({name})",
                    side.name()
                ))
            })
        };
        let stopped_ms = find(Side::Source, "STOP")?;
        let resumed_ms = find(Side::Destination, "RESUME")?;
        let completed_ms = find(Side::Source, "MIGRATION completed")?;
        Ok(PeerReport {
            peer: wanted.peer,
            total_ms: completed_ms.max(resumed_ms),
            execution_transfer_ms: resumed_ms,
            downtime_ms: resumed_ms - stopped_ms,
            perceived_downtime_ms: None,
            destination_start_ms: 0.0,
            figures: self.source.run(&QueryFigures {})?,
            destination_figures: self.destination.run(&QueryFigures {})?,
            parameters: self.source.run(&QueryParameters {})?,
            command_lines: [self.source, self.destination].map(|qemu| qemu.line.clone()),
            events,
        })
    }
}

impl Request {
    /// An event as a moment of this migration, if it tells something about it.
    fn moment(&self, side: Side, event: &Event) -> Option<Moment> {
        if !TOLD.contains(&event.name.as_str()) {
            return None;
        }
        let at = event.timestamp?.since_epoch()?;
        let what = match event.name.as_str() {
            "MIGRATION" => format!("MIGRATION {}", status(event)),
            "MIGRATION_PASS" => format!("MIGRATION_PASS {}", event.data["pass"]),
            name => name.to_owned(),
        };
        Some(Moment {
            side,
            event: what,
            at_ms: (at.as_secs_f64() - self.since_epoch.as_secs_f64()) * 1e3,
        })
    }
}

/// The status that a MIGRATION event tells.
fn status(event: &Event) -> &str {
    event.data["status"].as_str().unwrap_or_default()
}

/// Whether the migration goes no further. One that waits for a new connection does not: nobody will make one.
fn is_end(event: &Event) -> bool {
    let ends = ["completed", "failed", "cancelled", "postcopy-paused"];
    event.name == "MIGRATION" && ends.contains(&status(event))
}

/// Waits for an event for a moment; nothing where it did not come.
fn wait(
    qemu: &Qemu,
    cursor: Cursor,
    timeout: Duration,
    wanted: impl Fn(&Event) -> bool,
) -> Result<Option<Event>> {
    match qemu.qmp.events().wait(cursor, timeout, "an event", wanted) {
        Ok(event) => Ok(Some(event)),
        Err(QmpError::TimedOut { .. }) => Ok(None),
        Err(_) => Err(qemu.ended()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(name: &str, data: &serde_json::Value) -> Event {
        let timestamp = json!({"seconds": 100, "microseconds": 250_000});
        serde_json::from_value(json!({"event": name, "data": data, "timestamp": timestamp})).unwrap()
    }

    #[test]
    fn moments_are_counted_from_the_request() {
        let qmp_cursor = || -> Cursor { vmferry_guest_qemu::qmp::EventLog::default().now() };
        let request = Request {
            at: Instant::now(),
            since_epoch: Duration::from_millis(99_000),
            source: qmp_cursor(),
            destination: qmp_cursor(),
        };
        let moment = |event: &Event| request.moment(Side::Source, event);
        let postcopy = moment(&event("MIGRATION", &json!({"status": "postcopy-active"}))).unwrap();
        assert_eq!(postcopy.event, "MIGRATION postcopy-active");
        assert!((postcopy.at_ms - 1250.0).abs() < 1e-3, "{postcopy:?}");
        assert_eq!(
            moment(&event("MIGRATION_PASS", &json!({"pass": 2})))
                .unwrap()
                .event,
            "MIGRATION_PASS 2"
        );
        assert_eq!(moment(&event("RTC_CHANGE", &json!({}))), None);
        assert!(is_end(&event("MIGRATION", &json!({"status": "postcopy-paused"}))));
        assert!(!is_end(&event("MIGRATION", &json!({"status": "active"}))));
    }
}
