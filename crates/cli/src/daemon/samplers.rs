//! What the daemon learns about its guests while they run: one sampler for each that is here and whole.
//!
//! A guest has one tracker at a time. So a sampler begins before the guest's slot says that it is here, when nobody else
//! can have got hold of it yet, and ends as soon as somebody takes hold of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_core::Tuning;
use vmferry_core::sampling::{Budget, Learned, Ready, SamplingReport};
use vmferry_runtime::{GuestDir, Sampler, sampler};

use super::recordings::Recordings;
use super::registry::Member;
use crate::failure;

/// The samplers of a host.
pub(super) struct Samplers {
    /// None where nothing is to be learned.
    budget: Option<Budget>,
    /// None once the daemon ends.
    guests: Mutex<Option<BTreeMap<String, Entry>>>,
    /// Who has the tracker of a guest instead.
    pub(super) recordings: Recordings,
}

/// What there is of a guest.
enum Entry {
    /// It is being learned about; its directory.
    Active(Sampler, PathBuf),
    /// It is being moved; if it stays after all, this is gone on with.
    Known(Box<Learned>),
}

impl Samplers {
    pub(super) fn new(budget: Option<Budget>) -> Self {
        Self {
            budget,
            guests: Mutex::new(Some(BTreeMap::new())),
            recordings: Recordings::default(),
        }
    }

    pub(super) fn budget_percent(&self) -> Option<f64> {
        self.budget.map(Budget::as_percent)
    }

    /// The guest is here and whole: begins to learn about it, or goes on.
    pub(super) fn begin(&self, member: &Member) {
        let Some(budget) = self.budget else { return };
        let name = &member.vm.spec().name;
        let kept = from_file(name, &member.dir);
        let mut guests = self.lock();
        let Some(guests) = guests.as_mut() else { return };
        let known = match guests.remove(name) {
            // Only one at a time: it is the same guest.
            Some(active @ Entry::Active(..)) => {
                guests.insert(name.clone(), active);
                return;
            }
            Some(Entry::Known(learned)) => Some(*learned),
            None => kept,
        };
        let tuning = Tuning::default();
        let sampler = Sampler::start(member.vm.clone(), &tuning, budget, known);
        guests.insert(name.clone(), Entry::Active(sampler, member.dir.clone()));
    }

    /// The guest is to be moved: its sampler lets go of it, and whoever records it, for what a migration can use.
    pub(super) fn let_go(&self, name: &str) -> Option<Ready> {
        self.recordings.let_go(name);
        let active = match self.lock().as_mut()?.remove(name)? {
            Entry::Active(sampler, _) => sampler,
            Entry::Known(_) => return None,
        };
        // Outside of the lock: it may be in the middle of a scan.
        let learned = active.end();
        let ready = sampler::ready(&learned);
        self.remember(name, Box::new(learned));
        ready
    }

    /// The guest is to be recorded: its sampler lets go of it, and goes on afterwards ([`Samplers::begin`]).
    pub(super) fn set_aside(&self, name: &str) {
        let active = match self.lock().as_mut().and_then(|guests| guests.remove(name)) {
            Some(Entry::Active(sampler, _)) => sampler,
            Some(Entry::Known(learned)) => return self.remember(name, learned),
            None => return,
        };
        // Outside of the lock.
        self.remember(name, Box::new(active.end()));
    }

    fn remember(&self, name: &str, learned: Box<Learned>) {
        if let Some(guests) = self.lock().as_mut() {
            guests.insert(name.to_owned(), Entry::Known(learned));
        }
    }

    /// The guest is not this host's any more, or is about to be ended.
    pub(super) fn forget(&self, name: &str) {
        self.recordings.let_go(name);
        let entry = self.lock().as_mut().and_then(|guests| guests.remove(name));
        // Outside of the lock.
        drop(entry);
    }

    pub(super) fn report(&self, name: &str) -> Option<SamplingReport> {
        match self.lock().as_ref()?.get(name)? {
            Entry::Active(sampler, _) => Some(sampler.report()),
            Entry::Known(_) => None,
        }
    }

    /// Ends all of them for good, and keeps what they learned for the next daemon.
    pub(super) fn end(&self) {
        self.recordings.end();
        let guests = self.lock().take().unwrap_or_default();
        for (name, entry) in guests {
            let Entry::Active(sampler, dir) = entry else {
                continue;
            };
            let path = GuestDir::new(dir).learned();
            if let Err(error) = sampler::keep(&path, &sampler.end()) {
                let why = failure::chain(&error.into());
                tracing::warn!("what was learned of {name} is not kept: {why}");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<BTreeMap<String, Entry>>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an earlier daemon learned of a guest.
fn from_file(name: &str, dir: &Path) -> Option<Learned> {
    sampler::load(&GuestDir::new(dir.to_owned()).learned()).unwrap_or_else(|error| {
        let why = failure::chain(&error.into());
        tracing::warn!("what an earlier daemon learned of {name} is lost: {why}");
        None
    })
}
