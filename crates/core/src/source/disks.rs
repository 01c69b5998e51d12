//! Disks that move with the guest: they are copied first, the stop waits for them, and they settle during it. See
//! [`crate::disks`].

use std::time::Duration;

use super::event::{Command, Event};
use super::state::State;
use super::{Source, SourceError};
use crate::disks::{Convergence, StopVerdict};

/// What a source knows of the mirrors of its guest's disks.
#[derive(Debug, Default)]
pub(super) struct Disks {
    convergence: Convergence,
    /// When the copy began, when everything had crossed once, when it began to settle, when it had settled.
    began: Duration,
    in_sync: Option<Duration>,
    settling: Option<Duration>,
    settled: Option<Duration>,
    /// The goal for the stop.
    goal: Duration,
    /// That the guest writes too fast was said.
    overdue: bool,
}

impl Source {
    /// The guest's disks move with it.
    pub fn with_disks(mut self, downtime_goal: Duration) -> Self {
        self.disks = Some(Disks {
            goal: downtime_goal,
            ..Disks::default()
        });
        self
    }

    /// The destination accepted: disks come first.
    pub(super) fn copy_disks(&mut self, now: Duration) -> Option<Vec<Command>> {
        let disks = self.disks.as_mut()?;
        disks.began = now;
        self.state = State::CopyingDisks;
        Some(vec![Command::CopyDisks])
    }

    /// Until when the guest goes on although all else is ready, because of its disks.
    pub(super) fn awaits_disks(&mut self, now: Duration) -> Option<Duration> {
        let disks = self.disks.as_mut()?;
        match disks.convergence.may_stop(now, disks.goal) {
            StopVerdict::Stop => None,
            StopVerdict::PutOff(time) => Some(now + time),
            StopVerdict::Overdue { remaining_bytes } => {
                if !std::mem::replace(&mut disks.overdue, true) {
                    self.recorder.note(format!(
                        "the guest writes to its disks faster than they are copied: {remaining_bytes} bytes were left for \
                         the stop; blocking writes would hold it back"
                    ));
                }
                None
            }
        }
    }

    /// What has to be done right after the stop, before the device state may be saved: none without disks.
    pub(super) fn settle_disks(&mut self, now: Duration) -> Option<Command> {
        let disks = self.disks.as_mut()?;
        disks.settling = Some(now);
        Some(Command::SettleDisks)
    }

    pub(super) fn disks_event(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        let Some(disks) = &mut self.disks else {
            return Err(self.unexpected("news of disks", "none: they do not move"));
        };
        match (&mut self.state, event) {
            (State::Ended { .. }, _) => Ok(Vec::new()),
            (state, Event::DisksProgress(progress)) => {
                disks.convergence.look(now, progress);
                if !(progress.in_sync && matches!(state, State::CopyingDisks)) {
                    return Ok(Vec::new());
                }
                disks.in_sync = Some(now);
                // Times of the policies begin here.
                self.memory_began = now;
                Ok(self.accepted(now))
            }
            (State::StopCopy(_), Event::DisksSettled) if disks.settled.is_none() => {
                disks.settled = Some(now);
                Ok(vec![Command::SendState])
            }
            _ => Err(self.unexpected("the news that the disks have settled", "the stop first")),
        }
    }

    /// How long the copy took until everything had crossed once, and how long it took to settle at the stop.
    pub fn disk_times(&self) -> Option<(Duration, Duration)> {
        let disks = self.disks.as_ref()?;
        let between = |from: Option<Duration>, to: Option<Duration>| match (from, to) {
            (Some(from), Some(to)) => to.saturating_sub(from),
            _ => Duration::ZERO,
        };
        Some((
            between(Some(disks.began), disks.in_sync),
            between(disks.settling, disks.settled),
        ))
    }

    /// What crosses now, bytes a second.
    pub(super) fn rate_now(&self, now: Duration) -> f64 {
        match (&self.state, self.disk_convergence()) {
            (State::CopyingDisks, Some(disks)) => disks.bytes_per_s(),
            _ => self.recorder.recent_rate(now),
        }
    }

    pub(super) fn disk_convergence(&self) -> Option<&Convergence> {
        self.disks.as_ref().map(|disks| &disks.convergence)
    }

    /// The bandwidth cap in force, bytes a second.
    pub fn bandwidth_limit(&self) -> Option<u64> {
        self.pace.bytes_per_s()
    }

    /// Asks to send `bytes` of disks at once, which the bandwidth cap of the migration covers like pages.
    ///
    /// # Errors
    /// The time at which to ask again.
    pub fn admit_disk_bytes(&mut self, now: Duration, bytes: u64) -> Result<(), Duration> {
        self.pace.admit_bytes(now, bytes)
    }
}
