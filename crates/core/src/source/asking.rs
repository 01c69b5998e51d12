//! Asking the guest about its pages, for policies that want to know.
//!
//! The question goes out with the offer, so that the guest answers while the destination creates its like. Where it says
//! that it can be told exactly which pages are free once it stands still, that is all. Else tracking is armed first and the guest
//! asked again: what it calls free then, without what was written since, is free at the stop.

use std::time::Duration;

use super::event::{Command, Enlightenment, Event};
use super::state::State;
use super::{Source, SourceError};
use crate::bitmap::PageBitmap;

/// What is known of the guest's answer.
#[derive(Debug)]
pub(super) enum Answer {
    /// It was not asked, or its answer was taken in, or is not waited for any more.
    NotAwaited,
    /// It was asked.
    Awaited,
    /// It came before the destination accepted.
    Came(Enlightenment),
}

/// Which pages are free, so far.
#[derive(Debug, Default)]
pub(super) enum Free {
    /// Nobody says.
    #[default]
    Unknown,
    /// It can be told at the stop.
    AtStop,
    /// Only by a list made while writes are tracked, for this reason.
    ToBeListed(String),
    /// These were free when the guest was asked, and were not written since.
    Listed(PageBitmap),
}

impl Source {
    /// Whether the driver has to ask the guest about its pages right at the beginning, and how long the answer is
    /// waited for.
    pub fn wants_hints(&self) -> Option<Duration> {
        self.policy.wants_hints()
    }

    /// Pages that were dropped because the guest does not use them: they count as zero.
    pub fn dropped(&self) -> Option<&PageBitmap> {
        self.dropped.as_ref()
    }

    /// The destination accepted: goes on at once, or after the guest's answer.
    pub(super) fn accepted(&mut self, now: Duration) -> Vec<Command> {
        match (
            std::mem::replace(&mut self.answer, Answer::NotAwaited),
            self.wants_hints(),
        ) {
            (Answer::Came(answer), _) => self.enlightened(now, answer),
            (Answer::Awaited, Some(timeout)) => {
                self.state = State::Asking {
                    until: self.memory_began + timeout,
                    tracked: false,
                };
                Vec::new()
            }
            _ => self.begin(now),
        }
    }

    /// Tracking is armed: asks the guest now, if that is what it was armed for.
    pub(super) fn armed(&mut self, now: Duration) -> Vec<Command> {
        match self.wants_hints() {
            Some(timeout) if !self.needs.tracking => {
                self.state = State::Asking {
                    until: now + timeout,
                    tracked: true,
                };
                vec![Command::Enlighten]
            }
            _ => self.decide(now),
        }
    }

    /// The guest answered, or cannot. A late answer is worth nothing.
    pub(super) fn asking_event(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        let Event::Enlightened(answer) = event else {
            return Ok(Vec::new());
        };
        match self.state {
            State::Offered | State::CopyingDisks if matches!(self.answer, Answer::Awaited) => {
                self.answer = Answer::Came(answer);
                Ok(Vec::new())
            }
            State::Asking { .. } => Ok(self.enlightened(now, answer)),
            _ => Ok(Vec::new()),
        }
    }

    /// The time for the guest's answer is over.
    pub(super) fn asked_in_vain(&mut self, now: Duration) -> Vec<Command> {
        let timeout = self.wants_hints().unwrap_or_default();
        let why = format!("no answer within {} ms", timeout.as_millis());
        self.enlightened(now, Enlightenment::Nothing { why })
    }

    fn enlightened(&mut self, now: Duration, answer: Enlightenment) -> Vec<Command> {
        let tracked = matches!(self.state, State::Asking { tracked: true, .. });
        match answer {
            Enlightenment::Told { hints, exact } => {
                self.free = match std::mem::take(&mut self.free) {
                    _ if exact => Free::AtStop,
                    Free::ToBeListed(why) if tracked => {
                        self.recorder.note(format!(
                            "free pages are those by the guest's own list that were not written since: {why}"
                        ));
                        Free::Listed(hints.free().clone())
                    }
                    _ => Free::Unknown,
                };
                self.policy.enlightened(Ok(hints));
            }
            Enlightenment::Inexact { why } if !tracked => {
                self.free = Free::ToBeListed(why);
                self.state = State::Arming;
                return vec![Command::Arm];
            }
            Enlightenment::Inexact { why } | Enlightenment::Nothing { why } => {
                self.policy.enlightened(Err(why));
            }
        }
        self.begin(now)
    }

    /// Whatever is known of the guest's pages is known.
    fn begin(&mut self, now: Duration) -> Vec<Command> {
        if self.needs.tracking && !self.tracked {
            self.state = State::Arming;
            return vec![Command::Arm];
        }
        self.decide(now)
    }

    /// The guest is stopped: which pages does it not use?
    pub(super) fn found_free(&mut self, at_stop: Option<PageBitmap>) {
        let free = match std::mem::take(&mut self.free) {
            Free::Unknown | Free::ToBeListed(_) => return,
            Free::Listed(free) => Some(free),
            Free::AtStop => at_stop,
        };
        match free {
            Some(free) => self.policy.found_free(free),
            None => self
                .recorder
                .note("free pages were not dropped: at the stop they could not be told any more".into()),
        }
    }
}
