//! What sits in the guest and says what its pages are used for; what the host makes of it.

use vmferry_core::hints::{Class, Hints};
use vmferry_core::source::{Enlightenment, Event};
use vmferry_core::{PageBitmap, PageRun};

use crate::chooser::Chooser;
use crate::source_host::Input;
use crate::world::World;

/// What a page holds that nobody needs any more.
const GARBAGE: u32 = u32::MAX;

/// The agent of a guest. Its classes are arbitrary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Agent {
    /// The host can tell free pages while the guest stands still.
    Exact,
    /// The host knows free pages only by the agent's list.
    Inexact,
    /// The host finds out that there is none.
    Absent,
    /// It never answers.
    Silent,
}

impl Agent {
    pub(crate) fn choose(chooser: &mut Chooser) -> Self {
        [
            Self::Exact,
            Self::Exact,
            Self::Inexact,
            Self::Inexact,
            Self::Absent,
            Self::Silent,
        ][chooser.below(6) as usize]
    }
}

/// The agent is being asked.
#[derive(Debug)]
pub(crate) enum Asked {
    /// It has not looked yet.
    Unread { tracked: bool },
    /// It looked; the guest goes on while its answer is on its way.
    Read(Enlightenment),
}

impl World {
    /// The thread that asks the agent goes on.
    pub(crate) fn agent_answers(&mut self) -> bool {
        if self.scenario.agent == Agent::Silent {
            return false;
        }
        match self.source.asked.take() {
            None => return false,
            Some(asked) if self.chooser.below(4) > 0 => self.source.asked = Some(asked),
            Some(Asked::Unread { tracked }) => {
                self.source.asked = Some(Asked::Read(self.agent_looks(tracked)));
            }
            Some(Asked::Read(answer)) => self
                .source
                .mailbox
                .push_back(Input::Local(Event::Enlightened(answer))),
        }
        true
    }

    fn agent_looks(&mut self, tracked: bool) -> Enlightenment {
        match self.scenario.agent {
            Agent::Exact => Enlightenment::Told {
                hints: self.hints(false),
                exact: true,
            },
            Agent::Inexact if tracked => Enlightenment::Told {
                hints: self.hints(true),
                exact: false,
            },
            Agent::Inexact => Enlightenment::Inexact {
                why: "lockdown".into(),
            },
            Agent::Absent | Agent::Silent => Enlightenment::Nothing {
                why: "no port".into(),
            },
        }
    }

    /// Any classes, but for the free pages where they count.
    fn hints(&mut self, honest: bool) -> Hints {
        let mut hints = Hints::new(self.scenario.pages);
        for page in 0..self.scenario.pages {
            let free = self.guest.free.contains(page);
            let class = match Class::of_number(self.chooser.below(10) as u8) {
                _ if honest && free => Class::Free,
                Some(Class::Free) | None if honest => Class::Other,
                class => class.unwrap_or(Class::Other),
            };
            hints.set(PageRun::single(page), class);
        }
        hints
    }

    /// What the host finds in the memory of the stopped guest; at times it has been reset meanwhile.
    pub(crate) fn free_at_stop(&mut self) -> Option<PageBitmap> {
        assert_eq!(
            self.scenario.agent,
            Agent::Exact,
            "nobody said that this can be told"
        );
        (!self.chooser.once_in(8)).then(|| self.guest.free.clone())
    }

    /// Whatever is sent of them now, or read here, is seen.
    pub(crate) fn spoil_dropped(&mut self) {
        let dropped = self.source.machine.as_ref().and_then(|machine| machine.dropped());
        let Some(dropped) = dropped.cloned() else { return };
        for page in dropped.pages() {
            self.source.memory.version[page as usize] = GARBAGE;
        }
        self.source.dropped = dropped;
    }

    /// Whether pages were dropped, as known by this agent, and the migration went well.
    pub(crate) fn dropped(&self, agent: Agent) -> bool {
        self.scenario.agent == agent && self.completed() && !self.source.dropped.is_empty()
    }
}
