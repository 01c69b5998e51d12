//! The destination of a migration: a state machine that mirrors [`crate::source`]. Pages go past it, straight
//! into memory; it counts rounds, decides when to load, own, run and finish, and what to say when the
//! connection is gone.

mod event;

use thiserror::Error;

pub use event::{Command, Event};

use crate::handover::{Claim, Epoch};
use crate::report::Outcome;

/// What a destination has to know beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Page streams.
    pub streams: usize,
    /// Compare every page at the end.
    pub verify: bool,
    /// The epoch under which this host will own the guest.
    pub epoch: Epoch,
}

/// An event that does not belong: the peer broke the protocol, or the driver did.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("got {found} while {phase}, expected {expected}")]
pub struct DestinationError {
    /// What came.
    found: String,
    /// What the destination was doing.
    phase: &'static str,
    /// What could have come.
    expected: &'static str,
}

/// Where a migration stands, seen from the destination. Who may run the guest stands beside each state.
///
/// ```text
/// Receiving -> Loading -> (Comparing) -> Prepared -> TakingOver -> Starting -> Running -> Ended
///     |           |            |             |  (commit)  journal      |
///     +-----------+------------+--- Declining (until the commit) -> Ended
/// ```
#[derive(Debug)]
enum State {
    /// Pages and device state arrive. *Source.*
    Receiving {
        /// The round whose end is awaited, and which streams reported it.
        round: u32,
        marked: Vec<bool>,
        /// The device state is complete.
        state_arrived: bool,
    },
    /// The device state is being loaded. *Source.*
    Loading,
    /// Pages are compared before the commit. *Source.*
    Comparing,
    /// `Ready` was sent. *Source, or this host as soon as a commit comes.*
    Prepared,
    /// *Owner* is being written. Nothing but the journal's answer counts. *Nobody yet.*
    TakingOver,
    /// The guest is being resumed. *This host.*
    Starting {
        /// That went wrong: it is tried again when the source asks.
        failed: bool,
    },
    /// The guest runs here. *This host.*
    Running,
    /// The last comparison, of pages that came after the resume. *This host.*
    ComparingArrived,
    /// *Declined* is being written. *Source.*
    Declining {
        reason: String,
        /// *Owner* may be on the disk, so that nothing but *declined* after it makes the guest the source's.
        undo_owner: bool,
        /// The journal did not take it: it is tried again when somebody asks.
        failed: bool,
    },
    /// It is over.
    Ended { outcome: Outcome, error: Option<String> },
}

/// The destination's side of one migration.
pub struct Destination {
    setup: Setup,
    state: State,
    /// Pages were announced for after the resume and are not all here.
    pages_outstanding: bool,
    /// Pages follow after the resume.
    post_copy: bool,
    /// The source said, on this connection, that it sent everything it has.
    all_pushed: bool,
    /// The source asked whose the guest is while that was being written.
    asked: bool,
}

impl Destination {
    /// A migration whose offer was accepted.
    pub fn new(setup: Setup) -> Self {
        let state = State::Receiving {
            round: 1,
            marked: vec![false; setup.streams],
            state_arrived: false,
        };
        Self {
            setup,
            state,
            post_copy: false,
            pages_outstanding: false,
            all_pushed: false,
            asked: false,
        }
    }

    /// A migration whose daemon was restarted after it took the guest over. `outstanding`: whether pages are;
    /// where the last one came just before the restart, nobody will say so again.
    pub fn recovered(setup: Setup, outstanding: bool) -> Self {
        let state = State::Running;
        Self {
            setup,
            state,
            post_copy: true,
            pages_outstanding: outstanding,
            all_pushed: false,
            asked: false,
        }
    }

    /// Takes in what happened and says what to do.
    ///
    /// # Errors
    /// When the event does not belong to the state. The driver then fails the session.
    pub fn handle(&mut self, event: Event) -> Result<Vec<Command>, DestinationError> {
        match event {
            // For a journal that failed nobody can act: it is over, or nothing of it is left to undo.
            _ if matches!(
                self.state,
                State::Ended {
                    outcome: Outcome::Failed,
                    ..
                }
            ) && !matches!(event, Event::Asked(_)) =>
            {
                Ok(Vec::new())
            }
            Event::Abort(reason) | Event::Failed(reason) => Ok(self.fail(reason)),
            Event::JournalFailed(reason) => Ok(self.journal_failed(reason)),
            Event::Broken(reason) => Ok(self.broken(reason)),
            Event::Asked(epoch) => self.asked(epoch),
            Event::RoundEnd { .. } | Event::Switch | Event::StateArrived | Event::Prepare(_) => {
                self.receiving(event)
            }
            Event::Loaded | Event::Compared { .. } => self.loading(event),
            Event::Commit(_) | Event::Journaled | Event::Started => self.taking_over(event),
            Event::AllArrived | Event::AllPushed => self.arriving(event),
        }
    }

    /// How it ended and why, once it has.
    pub fn ended(&self) -> Option<(Outcome, Option<&str>)> {
        match &self.state {
            State::Ended { outcome, error } => Some((*outcome, error.as_deref())),
            _ => None,
        }
    }

    /// Whether this host owns the guest.
    pub fn owns(&self) -> bool {
        matches!(
            self.state,
            State::Starting { .. }
                | State::Running
                | State::ComparingArrived
                | State::Ended {
                    outcome: Outcome::Completed,
                    ..
                }
        )
    }

    /// Whether pages follow after the resume.
    pub fn pages_follow(&self) -> bool {
        self.post_copy
    }

    /// In words, for progress and errors.
    pub fn phase(&self) -> &'static str {
        match &self.state {
            State::Receiving { .. } => "receiving pages",
            State::Loading => "loading device state",
            State::Comparing | State::ComparingArrived => "comparing pages",
            State::Prepared => "waiting for the commit",
            State::TakingOver => "taking over",
            State::Starting { .. } => "starting the guest",
            State::Running => "running, pages arrive",
            State::Declining { .. } => "declining",
            State::Ended { .. } => "ended",
        }
    }

    fn receiving(&mut self, event: Event) -> Result<Vec<Command>, DestinationError> {
        match (&mut self.state, event) {
            (State::Receiving { round, marked, .. }, Event::RoundEnd { stream, round: ended })
                if ended == *round && marked.get(stream) == Some(&false) =>
            {
                marked[stream] = true;
                if marked.iter().any(|marked| !marked) {
                    return Ok(Vec::new());
                }
                marked.fill(false);
                *round += 1;
                Ok(vec![Command::SendRoundReceived { round: ended }])
            }
            (State::Receiving { .. }, Event::Switch) if !self.post_copy => {
                self.post_copy = true;
                self.pages_outstanding = true;
                Ok(vec![Command::ExpectPages])
            }
            (
                State::Receiving {
                    state_arrived: arrived @ false,
                    ..
                },
                Event::StateArrived,
            ) => {
                *arrived = true;
                Ok(Vec::new())
            }
            (
                State::Receiving {
                    state_arrived: true, ..
                },
                Event::Prepare(epoch),
            ) if epoch == self.setup.epoch => {
                self.state = State::Loading;
                Ok(vec![Command::Load])
            }
            (State::Ended { .. } | State::Declining { .. }, _) => Ok(Vec::new()),
            (State::Receiving { .. }, Event::RoundEnd { stream, round }) => {
                let found = format!("the end of round {round} on stream {stream}");
                Err(self.unexpected(found, "the end of the current round, once a stream"))
            }
            (State::Receiving { .. }, Event::Prepare(epoch)) => Err(self.unexpected(
                format!("`Prepare` for epoch {epoch}"),
                "it after the device state, for the offered epoch",
            )),
            (_, event) => Err(self.unexpected(event.name(), "it before loading, and once")),
        }
    }

    fn loading(&mut self, event: Event) -> Result<Vec<Command>, DestinationError> {
        match (&self.state, event) {
            (State::Loading, Event::Loaded) => {
                if self.setup.verify && !self.post_copy {
                    self.state = State::Comparing;
                    return Ok(vec![Command::Compare]);
                }
                self.state = State::Prepared;
                Ok(vec![Command::SendReady(self.setup.epoch)])
            }
            (State::Comparing, Event::Compared { mismatches: 0 }) => {
                self.state = State::Prepared;
                Ok(vec![Command::SendReady(self.setup.epoch)])
            }
            (State::Comparing, Event::Compared { mismatches }) => Ok(self.fail(format!(
                "{mismatches} pages differ between source and destination; the guest was not handed over"
            ))),
            // After the resume nothing can be undone: the report says what was found.
            (State::ComparingArrived, Event::Compared { .. }) => Ok(self.complete()),
            (State::Ended { .. } | State::Declining { .. }, _) => Ok(Vec::new()),
            (_, event) => Err(self.unexpected(event.name(), "it after loading began")),
        }
    }

    fn taking_over(&mut self, event: Event) -> Result<Vec<Command>, DestinationError> {
        match (&self.state, event) {
            (State::Prepared, Event::Commit(epoch)) if epoch == self.setup.epoch => {
                self.state = State::TakingOver;
                Ok(vec![Command::JournalOwner(epoch)])
            }
            (State::TakingOver, Event::Journaled) => {
                self.state = State::Starting { failed: false };
                Ok(vec![Command::Run])
            }
            (State::Starting { .. }, Event::Started) => {
                self.state = State::Running;
                let mut commands = vec![Command::SendRunning(self.setup.epoch), Command::Announce];
                if std::mem::take(&mut self.asked) {
                    let epoch = self.setup.epoch;
                    commands.push(Command::SendClaim {
                        epoch,
                        claim: Claim::Owner,
                    });
                }
                commands.extend(self.finish_if_all_arrived());
                Ok(commands)
            }
            (State::Running | State::ComparingArrived, Event::Started) => Ok(Vec::new()),
            (State::Declining { .. }, Event::Journaled) => Ok(self.declined()),
            // The source did not hear that the guest runs and commits again.
            (State::Starting { .. } | State::TakingOver, Event::Commit(epoch))
                if epoch == self.setup.epoch =>
            {
                Ok(Vec::new())
            }
            (State::Running | State::ComparingArrived, Event::Commit(epoch)) if epoch == self.setup.epoch => {
                Ok(vec![Command::SendRunning(epoch)])
            }
            (State::Ended { .. }, _) => Ok(Vec::new()),
            (_, event) => Err(self.unexpected(event.name(), "a commit of the offered epoch after `Ready`")),
        }
    }

    fn arriving(&mut self, event: Event) -> Result<Vec<Command>, DestinationError> {
        match (&mut self.state, event) {
            // Possibly before the resume: the loading of the device state may demand the last one.
            (_, Event::AllArrived) => self.pages_outstanding = false,
            // While the guest is being resumed, in answer to a claim.
            (State::Starting { .. } | State::Running, Event::AllPushed) => self.all_pushed = true,
            // The source did not hear of the end.
            (
                State::Ended {
                    outcome: Outcome::Completed,
                    ..
                },
                Event::AllPushed,
            ) => {
                return Ok(vec![Command::SendComplete]);
            }
            (State::Ended { .. } | State::ComparingArrived, _) => return Ok(Vec::new()),
            (_, event) => return Err(self.unexpected(event.name(), "it after the resume")),
        }
        Ok(self.finish_if_all_arrived())
    }

    fn finish_if_all_arrived(&mut self) -> Vec<Command> {
        if self.pages_outstanding || !self.all_pushed || !matches!(self.state, State::Running) {
            return Vec::new();
        }
        // What crossed before the resume was compared before the commit.
        if self.setup.verify && self.post_copy {
            self.state = State::ComparingArrived;
            return vec![Command::ReleaseFaults, Command::CompareArrived];
        }
        let mut commands = vec![Command::ReleaseFaults];
        commands.extend(self.complete());
        commands
    }

    fn complete(&mut self) -> Vec<Command> {
        self.state = State::Ended {
            outcome: Outcome::Completed,
            error: None,
        };
        vec![Command::SendComplete]
    }

    /// Gives the guest up, if it is not ours yet. The journal says so first: a commit that is still under way
    /// must find a destination that will never obey it.
    fn fail(&mut self, reason: String) -> Vec<Command> {
        match &mut self.state {
            State::Ended { .. } => Vec::new(),
            State::Declining { failed: true, .. } => {
                let mut commands = self.decline(reason, true);
                commands.push(Command::AwaitReconnect);
                commands
            }
            State::Declining { .. } => Vec::new(),
            // The guest is ours, or about to be: an error of the session is an error of the connection.
            State::TakingOver | State::Starting { .. } | State::Running | State::ComparingArrived => {
                self.asked = false;
                if let State::Starting { failed } = &mut self.state {
                    *failed = true;
                }
                vec![Command::AwaitReconnect]
            }
            State::Receiving { .. } | State::Loading | State::Comparing | State::Prepared => {
                self.decline(reason, false)
            }
        }
    }

    fn decline(&mut self, reason: String, undo_owner: bool) -> Vec<Command> {
        self.state = State::Declining {
            reason,
            undo_owner,
            failed: false,
        };
        vec![Command::JournalDeclined(self.setup.epoch)]
    }

    fn journal_failed(&mut self, failure: String) -> Vec<Command> {
        match &mut self.state {
            // The guest did not run: *declined* after it, and the source goes on with it.
            State::TakingOver => self.decline(failure, true),
            // *Owner* may be on the disk and count after a restart: the guest is kept until *declined* is there.
            State::Declining {
                undo_owner: true,
                failed,
                ..
            } => {
                *failed = true;
                vec![Command::AwaitReconnect]
            }
            // No commit was accepted: without the guest none ever will be.
            State::Declining { .. } => self.declined(),
            _ => self.fail(failure),
        }
    }

    fn declined(&mut self) -> Vec<Command> {
        let State::Declining { reason, .. } = &self.state else {
            return Vec::new();
        };
        let reason = reason.clone();
        self.state = State::Ended {
            outcome: Outcome::Failed,
            error: Some(reason.clone()),
        };
        vec![Command::Discard, Command::SendFailed(reason)]
    }

    fn broken(&mut self, reason: String) -> Vec<Command> {
        match &self.state {
            // A commit may be on its way: keep the guest until the source says, or the driver gives up
            // waiting and fails the session.
            State::Prepared | State::Declining { failed: true, .. } => vec![Command::AwaitReconnect],
            _ => self.fail(reason),
        }
    }

    /// The source is back and asks whose the guest is.
    fn asked(&mut self, epoch: Epoch) -> Result<Vec<Command>, DestinationError> {
        if epoch != self.setup.epoch {
            return Err(self.unexpected(
                format!("a question about epoch {epoch}"),
                "one about the offered epoch",
            ));
        }
        // What it said before the connection broke does not count any more: it may have to send again.
        self.all_pushed = false;
        let owns = self.owns();
        let claim = match &mut self.state {
            State::Prepared => Claim::Prepared,
            // Answered when the journal is written and the guest runs, or when it is declined.
            State::TakingOver => {
                self.asked = true;
                return Ok(Vec::new());
            }
            State::Starting { failed } => {
                let again = std::mem::take(failed);
                self.asked = true;
                return Ok(again.then_some(Command::Run).into_iter().collect());
            }
            State::Declining {
                failed: true, reason, ..
            } => {
                let reason = reason.clone();
                return Ok(self.decline(reason, true));
            }
            State::Declining { .. } => return Ok(Vec::new()),
            State::Ended {
                outcome: Outcome::Failed,
                ..
            } => Claim::Declined,
            _ if owns => Claim::Owner,
            _ => {
                return Err(self.unexpected("a question about the owner", "it when no step is under way"));
            }
        };
        Ok(vec![Command::SendClaim { epoch, claim }])
    }

    fn unexpected(&self, found: impl Into<String>, expected: &'static str) -> DestinationError {
        DestinationError {
            found: found.into(),
            phase: self.phase(),
            expected,
        }
    }
}
