//! The guests of a host by name, and what may be done with each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmferry_checkpoint::resume::Resuming;
use vmferry_guest::Vm;
use vmferry_runtime::Outgoing;

use super::refusal::Refusal;

/// A guest and its directory.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) dir: PathBuf,
}

/// What a host has under a name.
///
/// ```text
/// (none) -> Busy -> Here -> Leaving -> (none)   moved away
///    |               ^  ^------'                cancelled, failed
///    |-> Arriving -> Receiving
///    '-> Busy -> Resuming                         from a checkpoint
/// ```
#[derive(Clone)]
pub(super) enum Slot {
    /// The name is taken: something is being done that takes a while.
    Busy {
        /// What, as in "is being started".
        doing: &'static str,
    },
    /// The guest is this host's, and all of it is here.
    Here(Member),
    /// The guest is being moved away. Until the commit point it is this host's.
    Leaving {
        member: Member,
        /// Of the migration.
        id: String,
        /// Endpoint of the destination.
        to: String,
        outgoing: Outgoing,
    },
    /// The guest is being moved here, and not this host's yet.
    Arriving {
        member: Member,
        /// Of the migration.
        id: String,
    },
    /// The guest is this host's and runs; pages of it still arrive.
    Receiving {
        member: Member,
        /// Of the migration.
        id: String,
    },
    /// The guest is being resumed from a checkpoint; once it runs it is this host's, and pages of it are in the store only.
    Resuming {
        member: Member,
        /// Of the resume.
        id: String,
        resuming: Resuming,
    },
    /// There is a directory, and its guest cannot be used.
    Stuck {
        dir: PathBuf,
        backend: String,
        /// Why, for the operator.
        why: String,
        /// The guest, where there is one.
        vm: Option<Arc<dyn Vm>>,
    },
}

impl Slot {
    /// The guest and its directory, where it can be asked anything.
    pub(super) fn member(&self) -> Option<&Member> {
        match self {
            Self::Here(member)
            | Self::Leaving { member, .. }
            | Self::Arriving { member, .. }
            | Self::Receiving { member, .. }
            | Self::Resuming { member, .. } => Some(member),
            Self::Busy { .. } | Self::Stuck { .. } => None,
        }
    }
}

/// All of them. Nothing slow is done under its lock.
#[derive(Default)]
pub(super) struct Registry {
    slots: Mutex<BTreeMap<String, Slot>>,
}

impl Registry {
    /// What there is under `name`.
    pub(super) fn get(&self, name: &str) -> Result<Slot, Refusal> {
        self.lock().get(name).cloned().ok_or_else(|| unknown(name))
    }

    /// Everything there is.
    pub(super) fn all(&self) -> Vec<(String, Slot)> {
        self.lock()
            .iter()
            .map(|(name, slot)| (name.clone(), slot.clone()))
            .collect()
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Takes a name for a guest that is to be. It is free again when the claim is dropped.
    pub(super) fn claim(self: &Arc<Self>, name: &str, doing: &'static str) -> Result<Claim, Refusal> {
        let mut slots = self.lock();
        if slots.contains_key(name) {
            return Err(
                Refusal::conflict(format!("a guest named {name} is on this host already"))
                    .mend("choose another name, or stop that one with `vmferry stop`"),
            );
        }
        slots.insert(name.to_owned(), Slot::Busy { doing });
        Ok(Claim {
            registry: Arc::clone(self),
            name: name.to_owned(),
            back: None,
        })
    }

    /// Takes hold of a guest if `check` lets it; what was there comes back when the claim is dropped.
    pub(super) fn take<T>(
        self: &Arc<Self>,
        name: &str,
        doing: &'static str,
        check: impl FnOnce(&Slot) -> Result<T, Refusal>,
    ) -> Result<(Claim, T), Refusal> {
        let mut slots = self.lock();
        let slot = slots.get_mut(name).ok_or_else(|| unknown(name))?;
        if let Slot::Busy { doing } = slot {
            return Err(
                Refusal::conflict(format!("guest {name} {doing}")).mend("wait a moment and repeat it")
            );
        }
        let checked = check(slot)?;
        let back = Some(std::mem::replace(slot, Slot::Busy { doing }));
        Ok((
            Claim {
                registry: Arc::clone(self),
                name: name.to_owned(),
                back,
            },
            checked,
        ))
    }

    /// Changes what is under `name`: `change` gets it and says what is there afterwards, or none for nothing.
    pub(super) fn change(&self, name: &str, change: impl FnOnce(Slot) -> Option<Slot>) {
        let mut slots = self.lock();
        if let Some(slot) = slots.remove(name).and_then(change) {
            slots.insert(name.to_owned(), slot);
        }
    }

    /// Puts a guest that was found at the start under its name.
    pub(super) fn insert(&self, name: &str, slot: Slot) {
        self.lock().insert(name.to_owned(), slot);
    }

    /// Forgets everything, and gives it back.
    pub(super) fn drain(&self) -> BTreeMap<String, Slot> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that nobody else may touch meanwhile.
pub(super) struct Claim {
    registry: Arc<Registry>,
    name: String,
    /// What comes back when nothing was settled.
    back: Option<Slot>,
}

impl Claim {
    /// It ended well: this is under the name from now on, or nothing.
    pub(super) fn settle(mut self, slot: Option<Slot>) {
        self.back = slot;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut slots = self.registry.lock();
        match self.back.take() {
            Some(slot) => slots.insert(std::mem::take(&mut self.name), slot),
            None => slots.remove(&self.name),
        };
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal::not_found(format!("there is no guest {name} on this host")).mend("see `vmferry list`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stuck(why: &str) -> Slot {
        Slot::Stuck {
            dir: PathBuf::new(),
            backend: "none".into(),
            why: why.into(),
            vm: None,
        }
    }

    #[test]
    fn a_name_is_claimed_once_and_free_again_when_nothing_came_of_it() {
        let registry = Arc::new(Registry::default());
        let claim = registry.claim("web", "is being started").unwrap();
        assert_eq!(
            registry.claim("web", "is being started").err().unwrap().status,
            409
        );
        assert_eq!(
            registry
                .take("web", "is being ended", |_| Ok(()))
                .err()
                .unwrap()
                .status,
            409
        );
        drop(claim);
        assert_eq!(registry.get("web").err().unwrap().status, 404);
        registry
            .claim("web", "is being started")
            .unwrap()
            .settle(Some(stuck("here")));
        assert_eq!(registry.len(), 1);
    }

    #[test]
    fn what_was_there_comes_back_when_something_did_not_work() {
        let registry = Arc::new(Registry::default());
        registry.insert("web", stuck("old"));
        let (claim, ()) = registry.take("web", "is being ended", |_| Ok(())).unwrap();
        assert!(matches!(registry.get("web").unwrap(), Slot::Busy { .. }));
        drop(claim);
        assert!(matches!(registry.get("web").unwrap(), Slot::Stuck { why, .. } if why == "old"));
        let refused = registry.take("web", "", |_| Err::<(), _>(Refusal::conflict("no")));
        assert_eq!(refused.err().unwrap().line(), "no");
        let (claim, ()) = registry.take("web", "is being ended", |_| Ok(())).unwrap();
        claim.settle(None);
        assert_eq!(registry.len(), 0);
    }
}
