//! The machine of a resume: when to load, start, pause, go on and finish. Pages go past it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::report::Outcome;

/// What a resume has to know beforehand.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Pages may come after the start.
    pub pages_follow: bool,
    /// The guest is left paused when it could run, until [`Event::GoOn`].
    pub paused: bool,
}

/// How an earlier daemon left a resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Left {
    /// The guest could run and was not to.
    Standing,
    /// The guest runs.
    Running,
    /// The guest was paused for want of a page, for this reason.
    Stalled(String),
}

/// Something happened. Every [`Command`] that names an event here is answered by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// What has to be in place before the start is.
    EarlyPlaced,
    /// The device state is loaded.
    Loaded,
    /// The guest runs.
    Started,
    /// Every page is in place.
    AllPlaced,
    /// The store does not give a page, for this reason, and patience is at its end.
    Lacking(String),
    /// The store gives it again.
    Back,
    /// The operator lets a guest go on that was to be left paused.
    GoOn,
    /// The operator gives it up.
    Cancel,
    /// Something failed here, not in the store.
    Failed(String),
}

impl Event {
    fn name(&self) -> &'static str {
        match self {
            Self::EarlyPlaced => "the news that the first pages are in place",
            Self::Loaded => "the news that device state is loaded",
            Self::Started => "the news that the guest runs",
            Self::AllPlaced => "the last page",
            Self::Lacking(_) => "the lack of a page",
            Self::Back => "the end of a lack",
            Self::GoOn => "the wish to go on",
            Self::Cancel => "the wish to cancel",
            Self::Failed(_) => "a failure",
        }
    }
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// From now on pages appear by the fault mechanism, and faults are served.
    ServeFaults,
    /// Load the device state; answer [`Event::Loaded`].
    Load,
    /// Note that the guest is this host's, on disk; then let it run and answer [`Event::Started`].
    Start,
    /// Tell the network where the guest is.
    Announce,
    /// Read the rest.
    BeginBackground,
    /// Pause the guest: it may not be able to stop before its page is there, and that is not waited for.
    Pause,
    /// Let the guest run that was paused.
    Unpause,
    /// No page faults any more.
    ReleaseFaults,
    /// Destroy the guest: it never ran.
    Discard,
}

/// An event at the wrong time.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("got {found} while {phase}, expected {expected}")]
pub struct ResumeError {
    found: &'static str,
    phase: &'static str,
    expected: &'static str,
}

/// Where a resume stands.
///
/// ```text
/// Placing -> Loading -> (Standing) -> Starting -> Running <-> Stalled
///    |          |            |            |          |
///    +----------+------------+------------+----------+--> Ended
/// ```
///
/// Up to *Starting* whatever goes wrong discards the guest, and nothing is left of it: the checkpoint is as it was. From
/// *Running* on the guest is this host's, and what its store does not give only makes it stand still.
#[derive(Debug)]
enum State {
    /// Pages come that have to be in place.
    Placing,
    /// The device state is being loaded.
    Loading,
    /// The guest could run and is not to.
    Standing,
    /// The guest is being started, and meanwhile a page may have turned out to be lacking, for this reason.
    Starting { lacking: Option<String> },
    /// The guest runs, pages may follow.
    Running,
    /// The guest was paused: a page cannot be had.
    Stalled { why: String },
    /// It is over.
    Ended { outcome: Outcome, error: Option<String> },
}

/// One resume. See [`crate::resume`].
#[derive(Debug)]
pub struct Resume {
    setup: Setup,
    state: State,
    all_placed: bool,
}

impl Resume {
    /// A resume whose guest was created, with nothing in its memory.
    pub fn new(setup: Setup) -> Self {
        Self {
            setup,
            state: State::Placing,
            all_placed: false,
        }
    }

    /// A resume that an earlier daemon left after the device state was loaded. `pages_follow`: whether faults are served.
    pub fn recovered(left: Left, pages_follow: bool) -> Self {
        let state = match left {
            Left::Standing => State::Standing,
            Left::Running => State::Running,
            Left::Stalled(why) => State::Stalled { why },
        };
        Self {
            setup: Setup {
                pages_follow,
                paused: false,
            },
            state,
            all_placed: false,
        }
    }

    /// Takes in what happened and says what to do.
    ///
    /// # Errors
    /// When the event does not belong to the state; nothing changes then.
    pub fn handle(&mut self, event: Event) -> Result<Vec<Command>, ResumeError> {
        match event {
            // What was under way when it ended.
            _ if self.ended().is_some() => Ok(Vec::new()),
            Event::Failed(why) => Ok(self.failed(why)),
            Event::Lacking(why) => Ok(self.lacking(why)),
            Event::Cancel => self.cancel(),
            Event::AllPlaced => Ok(self.placed_all()),
            Event::EarlyPlaced => self.placed_early(),
            Event::Loaded => self.loaded(),
            Event::GoOn => self.go_on(),
            Event::Started => self.started(),
            Event::Back => self.back(),
        }
    }

    /// How it ended and why, once it has.
    pub fn ended(&self) -> Option<(Outcome, Option<&str>)> {
        match &self.state {
            State::Ended { outcome, error } => Some((*outcome, error.as_deref())),
            _ => None,
        }
    }

    /// Why the guest stands still, where it does for want of a page.
    pub fn stalled(&self) -> Option<&str> {
        match &self.state {
            State::Stalled { why } => Some(why),
            _ => None,
        }
    }

    /// Whether the guest is this host's and ran.
    pub fn owns(&self) -> bool {
        matches!(self.state, State::Running | State::Stalled { .. })
            || matches!(self.ended(), Some((Outcome::Completed | Outcome::Unresolved, _)))
    }

    /// Whether the guest could run and is left paused.
    pub fn stands(&self) -> bool {
        matches!(self.state, State::Standing)
    }

    /// In words, for progress and errors.
    pub fn phase(&self) -> &'static str {
        match self.state {
            State::Placing => "loading pages",
            State::Loading => "loading device state",
            State::Standing => "paused as asked for",
            State::Starting { .. } => "starting the guest",
            State::Running => "running, pages follow",
            State::Stalled { .. } => "paused for want of a page",
            State::Ended { .. } => "ended",
        }
    }

    fn placed_early(&mut self) -> Result<Vec<Command>, ResumeError> {
        let State::Placing = self.state else {
            return Err(self.unexpected(&Event::EarlyPlaced, "it while pages are loaded"));
        };
        self.state = State::Loading;
        Ok(match self.setup.pages_follow {
            true => vec![Command::ServeFaults, Command::Load],
            false => vec![Command::Load],
        })
    }

    fn loaded(&mut self) -> Result<Vec<Command>, ResumeError> {
        let State::Loading = self.state else {
            return Err(self.unexpected(&Event::Loaded, "it while device state is loaded"));
        };
        if self.setup.paused {
            self.state = State::Standing;
            // Nobody is in a hurry, and the guest has less to wait for later.
            return Ok(vec![Command::BeginBackground]);
        }
        self.state = State::Starting { lacking: None };
        Ok(vec![Command::Start])
    }

    fn go_on(&mut self) -> Result<Vec<Command>, ResumeError> {
        let State::Standing = self.state else {
            return Err(self.unexpected(&Event::GoOn, "it of a guest that was to be left paused"));
        };
        self.state = State::Starting { lacking: None };
        Ok(vec![Command::Start])
    }

    fn started(&mut self) -> Result<Vec<Command>, ResumeError> {
        let State::Starting { lacking } = &mut self.state else {
            return Err(self.unexpected(&Event::Started, "it while the guest is started"));
        };
        let lacking = lacking.take();
        self.state = State::Running;
        let mut commands = vec![Command::Announce, Command::BeginBackground];
        match lacking {
            _ if self.all_placed => commands.extend(self.complete()),
            Some(why) => commands.extend(self.lacking(why)),
            None => {}
        }
        Ok(commands)
    }

    fn placed_all(&mut self) -> Vec<Command> {
        self.all_placed = true;
        match self.state {
            // Where everything had to come first, this is the end of that as well.
            State::Placing => self.placed_early().unwrap_or_default(),
            State::Running => self.complete(),
            State::Stalled { .. } => {
                let mut commands = vec![Command::Unpause];
                commands.extend(self.complete());
                commands
            }
            _ => Vec::new(),
        }
    }

    fn complete(&mut self) -> Vec<Command> {
        self.state = State::Ended {
            outcome: Outcome::Completed,
            error: None,
        };
        match self.setup.pages_follow {
            true => vec![Command::ReleaseFaults],
            false => Vec::new(),
        }
    }

    fn lacking(&mut self, why: String) -> Vec<Command> {
        match &mut self.state {
            State::Running => {
                self.state = State::Stalled { why };
                vec![Command::Pause]
            }
            // Another page of the same store: the first reason stands.
            State::Stalled { .. } => Vec::new(),
            // It may run already: it is paused once that is known.
            State::Starting { lacking } => {
                lacking.get_or_insert(why);
                Vec::new()
            }
            // It stands still anyway, and the store may give the page before it is to go on.
            State::Standing => Vec::new(),
            _ => self.discard(Outcome::Failed, why),
        }
    }

    fn back(&mut self) -> Result<Vec<Command>, ResumeError> {
        match &mut self.state {
            State::Stalled { .. } => {
                self.state = State::Running;
                Ok(vec![Command::Unpause])
            }
            State::Starting { lacking } => {
                *lacking = None;
                Ok(Vec::new())
            }
            State::Standing | State::Running => Ok(Vec::new()),
            _ => Err(self.unexpected(&Event::Back, "it after a page was lacking")),
        }
    }

    fn cancel(&mut self) -> Result<Vec<Command>, ResumeError> {
        match self.state {
            State::Placing | State::Loading | State::Standing => {
                Ok(self.discard(Outcome::Cancelled, "the operator gave it up".into()))
            }
            _ => Err(self.unexpected(&Event::Cancel, "it before the guest was started")),
        }
    }

    /// The mechanism of this host broke.
    fn failed(&mut self, why: String) -> Vec<Command> {
        match self.state {
            State::Running | State::Stalled { .. } => {
                let commands = match self.state {
                    State::Running => vec![Command::Pause],
                    _ => Vec::new(),
                };
                self.state = State::Ended {
                    outcome: Outcome::Unresolved,
                    error: Some(why),
                };
                commands
            }
            _ => self.discard(Outcome::Failed, why),
        }
    }

    fn discard(&mut self, outcome: Outcome, why: String) -> Vec<Command> {
        self.state = State::Ended {
            outcome,
            error: Some(why),
        };
        vec![Command::Discard]
    }

    fn unexpected(&self, event: &Event, expected: &'static str) -> ResumeError {
        ResumeError {
            found: event.name(),
            phase: self.phase(),
            expected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(setup: Setup, events: &[Event]) -> (Resume, Vec<Command>) {
        let mut machine = Resume::new(setup);
        let mut last = Vec::new();
        for event in events {
            last = machine.handle(event.clone()).unwrap();
        }
        (machine, last)
    }

    const FOLLOW: Setup = Setup {
        pages_follow: true,
        paused: false,
    };

    #[test]
    fn pages_that_follow_are_served_from_before_the_load_to_the_last_one() {
        use Command::*;
        let mut machine = Resume::new(FOLLOW);
        let mut all = Vec::new();
        for event in [
            Event::EarlyPlaced,
            Event::Loaded,
            Event::Started,
            Event::AllPlaced,
        ] {
            all.extend(machine.handle(event).unwrap());
        }
        let expected = [ServeFaults, Load, Start, Announce, BeginBackground, ReleaseFaults];
        assert_eq!(all, expected);
        assert_eq!(machine.ended(), Some((Outcome::Completed, None)));
    }

    #[test]
    fn where_nothing_follows_no_fault_is_ever_served() {
        let eager = Setup {
            pages_follow: false,
            paused: false,
        };
        let (mut machine, commands) = after(eager, &[Event::AllPlaced]);
        assert_eq!(commands, [Command::Load]);
        assert_eq!(machine.handle(Event::Loaded).unwrap(), [Command::Start]);
        machine.handle(Event::Started).unwrap();
        assert_eq!(machine.ended(), Some((Outcome::Completed, None)));
    }

    #[test]
    fn a_lack_before_the_start_discards_and_after_it_only_pauses() {
        let lacking = || Event::Lacking("chunk 7 is damaged".into());
        let early: [&[Event]; 2] = [&[], &[Event::EarlyPlaced]];
        for events in early {
            let (mut machine, _) = after(FOLLOW, events);
            assert_eq!(machine.handle(lacking()).unwrap(), [Command::Discard]);
            assert_eq!(
                machine.ended(),
                Some((Outcome::Failed, Some("chunk 7 is damaged")))
            );
        }
        let (mut machine, _) = after(FOLLOW, &[Event::EarlyPlaced, Event::Loaded, Event::Started]);
        assert_eq!(machine.handle(lacking()).unwrap(), [Command::Pause]);
        assert_eq!(machine.stalled(), Some("chunk 7 is damaged"));
        assert_eq!(machine.handle(lacking()).unwrap(), []);
        assert!(machine.handle(Event::Cancel).is_err());
        assert_eq!(machine.handle(Event::Back).unwrap(), [Command::Unpause]);
        assert_eq!(
            machine.handle(Event::AllPlaced).unwrap(),
            [Command::ReleaseFaults]
        );
    }

    #[test]
    fn a_guest_that_shall_stand_waits_for_the_operator() {
        let paused = Setup {
            paused: true,
            ..FOLLOW
        };
        let (mut machine, commands) = after(paused, &[Event::EarlyPlaced, Event::Loaded]);
        assert_eq!(commands, [Command::BeginBackground]);
        assert_eq!(machine.handle(Event::AllPlaced).unwrap(), []);
        assert!(machine.stands());
        assert_eq!(machine.handle(Event::GoOn).unwrap(), [Command::Start]);
        let last = machine.handle(Event::Started).unwrap().pop();
        assert_eq!(last, Some(Command::ReleaseFaults));
        let (mut machine, _) = after(paused, &[Event::EarlyPlaced, Event::Loaded]);
        assert_eq!(machine.handle(Event::Cancel).unwrap(), [Command::Discard]);
    }
}
