//! QEMU's events, kept for whoever waits for one.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::error::QmpError;

/// The most events kept; older ones are forgotten.
const MAX_EVENTS: usize = 512;

/// Something that happened in QEMU.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    /// Name, for example `STOP`.
    #[serde(rename = "event")]
    pub name: String,
    /// What QEMU adds to it.
    #[serde(default)]
    pub data: Value,
    /// When it happened, by QEMU's account.
    #[serde(default)]
    pub timestamp: Option<Timestamp>,
}

/// A moment of the host's wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Timestamp {
    /// Seconds since 1970; -1 where QEMU does not know.
    pub seconds: i64,
    /// And microseconds.
    pub microseconds: i64,
}

impl Timestamp {
    /// Time since 1970; nothing where QEMU does not know.
    pub fn since_epoch(self) -> Option<Duration> {
        let seconds = u64::try_from(self.seconds).ok()?;
        let microseconds = u64::try_from(self.microseconds).ok()?;
        Duration::from_secs(seconds).checked_add(Duration::from_micros(microseconds))
    }
}

/// A point in the sequence of events: see [`EventLog::now`].
#[derive(Clone, Copy, Debug)]
pub struct Cursor {
    /// Events before it.
    events: u64,
    /// Lost connections before it.
    disconnects: u64,
}

/// The latest events. Take a [`Cursor`] before the command that causes an event, then wait from there: the
/// event is found no matter which of command and wait is faster.
#[derive(Default)]
pub struct EventLog {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    events: VecDeque<Event>,
    /// Events that came before the first one in `events`.
    forgotten: u64,
    /// Counts lost connections, so that a waiter notices the one that happens while it waits.
    disconnects: u64,
}

impl EventLog {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// The point after all events so far.
    pub fn now(&self) -> Cursor {
        let state = self.lock();
        Cursor {
            events: state.forgotten + state.events.len() as u64,
            disconnects: state.disconnects,
        }
    }

    /// Waits for the first event after `cursor` that `wanted` accepts, at most `timeout`. `what` names it in
    /// the error.
    ///
    /// # Errors
    /// [`QmpError::TimedOut`], or [`QmpError::Lost`] when the connection ended after `cursor`.
    pub fn wait(
        &self,
        cursor: Cursor,
        timeout: Duration,
        what: &'static str,
        wanted: impl Fn(&Event) -> bool,
    ) -> Result<Event, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        let mut next = cursor.events;
        loop {
            let skip = next.saturating_sub(state.forgotten) as usize;
            if let Some(event) = state.events.iter().skip(skip).find(|event| wanted(event)) {
                return Ok(event.clone());
            }
            next = state.forgotten + state.events.len() as u64;
            if state.disconnects != cursor.disconnects {
                return Err(QmpError::Lost {
                    command: what,
                    why: "the connection ended".into(),
                });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(QmpError::TimedOut {
                    command: what,
                    timeout,
                });
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// The events after `cursor` so far, without those that were forgotten.
    pub fn since(&self, cursor: Cursor) -> Vec<Event> {
        let state = self.lock();
        let skip = cursor.events.saturating_sub(state.forgotten) as usize;
        state.events.iter().skip(skip).cloned().collect()
    }

    /// Whether an event that `wanted` accepts came after `cursor`, or may have: the connection was lost meanwhile, or
    /// events were forgotten.
    pub fn may_have_come(&self, cursor: Cursor, wanted: impl Fn(&Event) -> bool) -> bool {
        let state = self.lock();
        let skip = cursor.events.saturating_sub(state.forgotten) as usize;
        cursor.events < state.forgotten
            || state.disconnects != cursor.disconnects
            || state.events.iter().skip(skip).any(wanted)
    }

    pub(super) fn push(&self, event: Event) {
        let mut state = self.lock();
        if state.events.len() == MAX_EVENTS {
            state.events.pop_front();
            state.forgotten += 1;
        }
        state.events.push_back(event);
        self.changed.notify_all();
    }

    pub(super) fn disconnected(&self) {
        self.lock().disconnects += 1;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str) -> Event {
        Event {
            name: name.into(),
            data: Value::Null,
            timestamp: None,
        }
    }

    #[test]
    fn an_event_says_when_it_happened_if_qemu_knows() {
        let read = |text: &str| serde_json::from_str::<Event>(text).unwrap().timestamp;
        let known = read(r#"{"event": "STOP", "timestamp": {"seconds": 5, "microseconds": 250000}}"#);
        let since = known.and_then(Timestamp::since_epoch);
        assert_eq!(since, Some(Duration::from_millis(5250)));
        let unknown = read(r#"{"event": "STOP", "timestamp": {"seconds": -1, "microseconds": -1}}"#);
        assert_eq!(unknown.and_then(Timestamp::since_epoch), None);
        assert_eq!(read(r#"{"event": "STOP"}"#), None);
    }

    #[test]
    fn only_events_after_the_cursor_count() {
        let log = EventLog::new();
        log.push(event("STOP"));
        let cursor = log.now();
        let missing = log.wait(cursor, Duration::from_millis(1), "STOP", |e| e.name == "STOP");
        assert!(matches!(missing, Err(QmpError::TimedOut { .. })));
        log.push(event("RESUME"));
        log.push(event("STOP"));
        let names: Vec<_> = log.since(cursor).into_iter().map(|event| event.name).collect();
        assert_eq!(names, ["RESUME", "STOP"]);
        assert_eq!(
            log.wait(cursor, Duration::ZERO, "STOP", |e| e.name == "STOP")
                .unwrap()
                .name,
            "STOP"
        );
    }

    #[test]
    fn the_log_is_bounded_and_cursors_survive_that() {
        let log = EventLog::new();
        let cursor = log.now();
        for _ in 0..MAX_EVENTS + 10 {
            log.push(event("NOISE"));
        }
        log.push(event("LAST"));
        assert_eq!(log.lock().events.len(), MAX_EVENTS);
        assert!(log.may_have_come(cursor, |_| false), "some were forgotten");
        let before = log.now();
        log.push(event("RESET"));
        assert!(log.may_have_come(before, |e| e.name == "RESET"));
        assert!(!log.may_have_come(log.now(), |_| true));
        assert!(
            log.wait(cursor, Duration::ZERO, "LAST", |e| e.name == "LAST")
                .is_ok()
        );
    }
}
