//! What the guest's agent says, as the trace has it.
//!
//! It is asked as a driver asks it: with the offer, or once writes are tracked where free pages are known by the guest's own list only.

use std::time::Duration;

use vmferry_core::PageBitmap;
use vmferry_core::hints::{Class, Hints};
use vmferry_core::source::{Enlightenment, Event};
use vmferry_trace::GuestHints;

use crate::link::ns;
use crate::source::SourceHost;
use crate::units::Units;
use crate::world::{Agenda, Guest, What};

/// Reading the 64 bytes that a Linux guest's kernel keeps for a page, nanoseconds, at 10 GB/s.
const ACCOUNT_NS_PER_PAGE: f64 = 6.4;

/// The account of a guest in units.
#[derive(Debug)]
pub(crate) struct Told {
    hints: Hints,
    took: Duration,
    exact: bool,
}

impl Told {
    /// A unit is of the class of its chosen page.
    pub(crate) fn new(told: &GuestHints, units: Units) -> Self {
        let mut hints = Hints::new(units.count());
        for (class, pages) in told.classes() {
            let mut of_class = PageBitmap::new(units.count());
            pages.runs().for_each(|run| units.add(run, &mut of_class));
            of_class.runs().for_each(|run| hints.set(run, class));
        }
        Self {
            hints,
            took: Duration::from_micros(told.took_us),
            exact: told.exact,
        }
    }

    /// What the guest uses its pages for at `now`: what it wrote of the free ones since it was recorded is its data.
    fn hints_at(&self, now: Duration, guest: &mut Guest<'_>) -> Hints {
        let mut written = PageBitmap::new(self.hints.pages());
        guest
            .replay
            .add_dirty(Duration::ZERO, guest.own_time(now), &mut written);
        written.intersect_with(self.hints.free());
        let mut hints = self.hints.clone();
        written.runs().for_each(|run| hints.set(run, Class::UserData));
        hints
    }
}

impl SourceHost<'_> {
    /// The guest is asked while the destination prepares.
    pub(crate) fn ask_guest(&mut self, agenda: &mut Agenda) {
        let (after, answer) = match &self.recorded.told {
            None => {
                let why = "the trace does not say what the guest uses its pages for".into();
                (Duration::ZERO, Enlightenment::Nothing { why })
            }
            Some(told) if told.exact => {
                let (hints, exact) = (told.hints.clone(), true);
                (told.took, Enlightenment::Told { hints, exact })
            }
            Some(_) => {
                let why = "that is how it was when the guest was recorded".into();
                (Duration::ZERO, Enlightenment::Inexact { why })
            }
        };
        agenda.at(agenda.now + after, What::ToSource(Event::Enlightened(answer)));
    }

    /// It is asked once more, now that what it writes from here on is known.
    pub(crate) fn guest_lists(&mut self, agenda: &mut Agenda, guest: &mut Guest<'_>) {
        if let Some(told) = &self.recorded.told {
            let answer = Enlightenment::Told {
                hints: told.hints_at(agenda.now, guest),
                exact: false,
            };
            agenda.at(agenda.now + told.took, What::ToSource(Event::Enlightened(answer)));
        }
    }

    /// What it takes at the stop to find free pages: the account of each page that is in use is read.
    pub(crate) fn finding_free(&self) -> Duration {
        let used = |told: &Told| told.hints.pages() - told.hints.free().count();
        let pages = self.recorded.told.as_ref().map_or(0, used) * self.units.per();
        ns(ACCOUNT_NS_PER_PAGE, pages as f64)
    }

    /// The pages that are free at the stop.
    pub(crate) fn free_pages(&self, guest: &mut Guest<'_>) -> Option<PageBitmap> {
        let told = self.recorded.told.as_ref()?;
        Some(told.hints_at(self.paused_at, guest).free().clone())
    }
}
