//! What every backend has to fulfil, as one suite that all of them run from their tests.
//!
//! A backend implements [`Subject`] and calls [`run`]. The checks judge a guest by its RAM, so that they need
//! nothing of it but that it runs; a guest that also checks its own data ([`Subject::violations`]) proves more.
//! What the suite asks is what the traits promise, no more.

mod faults;
mod holding;
mod life;
mod moving;
mod snapshot;
mod tracking;

use std::error::Error;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::guest::Vm;

/// The backend under test, as far as the suite has to know it.
pub trait Subject: Sync {
    /// A new guest that runs. Part of its RAM is untouched; no device of it has pages pinned and none discards
    /// pages. Small is good: each check starts one or two.
    fn source(&self) -> Arc<dyn Vm>;

    /// A new guest that waits for what `source` is.
    fn incoming(&self, source: &dyn Vm) -> Arc<dyn Vm>;

    /// What the guest, which is paused with all its pages there, finds wrong with its own data.
    fn violations(&self, guest: &dyn Vm) -> Vec<String> {
        let _ = guest;
        Vec::new()
    }

    /// Whether the guest writes to its RAM all the time it runs. Without that the checks cannot demand that
    /// something was written.
    fn is_busy(&self) -> bool;

    /// Waits while the guest runs: long enough for a busy guest to write a few pages.
    fn let_run(&self, guest: &dyn Vm) {
        let _ = guest;
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// One demand on a backend.
pub struct Check {
    /// What is demanded.
    pub name: &'static str,
    check: fn(&dyn Subject) -> Outcome,
}

impl Check {
    /// Makes the check, printing its name.
    ///
    /// # Errors
    /// With what was found where it fails.
    pub fn run(&self, subject: &dyn Subject) -> Result<(), Failure> {
        let start = Instant::now();
        let outcome = (self.check)(subject);
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!(
            "conformance: {} ... {verdict} ({} ms)",
            self.name,
            start.elapsed().as_millis()
        );
        outcome.map_err(|Problem(found)| Failure {
            check: self.name,
            found,
        })
    }
}

/// A demand that is not met.
#[derive(Debug)]
pub struct Failure {
    /// The check's name.
    pub check: &'static str,
    /// What was found.
    pub found: String,
}

/// All checks.
pub fn checks() -> Vec<Check> {
    [
        life::checks(),
        tracking::checks(),
        moving::checks(),
        faults::checks(),
        holding::checks(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs all checks on `subject`, printing the name of each, and answers which failed.
pub fn failures(subject: &dyn Subject) -> Vec<Failure> {
    checks()
        .iter()
        .filter_map(|check| check.run(subject).err())
        .collect()
}

/// Runs all checks on `subject`.
///
/// # Panics
/// When one of them fails, with what was found by all that failed.
pub fn run(subject: &dyn Subject) {
    let failures = failures(subject);
    let list: Vec<_> = failures
        .iter()
        .map(|failure| format!("{}: {}", failure.check, failure.found))
        .collect();
    assert!(
        failures.is_empty(),
        "the backend does not conform:\n  {}",
        list.join("\n  ")
    );
}

type Outcome<T = ()> = Result<T, Problem>;

/// What a check found, in words.
struct Problem(String);

impl<E: Error> From<E> for Problem {
    /// An operation that was to work and did not.
    fn from(error: E) -> Self {
        let mut words = format!("unexpected error: {error}");
        let mut source = error.source();
        while let Some(error) = source {
            words.push_str(&format!(": {error}"));
            source = error.source();
        }
        Self(words)
    }
}

fn demand(holds: bool, otherwise: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(Problem(otherwise())) }
}

/// An operation that was not to work.
fn demand_error<T>(result: crate::Result<T>, operation: &str) -> Outcome {
    result
        .err()
        .map(|_| ())
        .ok_or_else(|| Problem(format!("{operation} was accepted")))
}

fn demand_intact(subject: &dyn Subject, guest: &dyn Vm) -> Outcome {
    let violations = subject.violations(guest);
    demand(violations.is_empty(), || {
        format!("the guest finds {}", violations.join("; "))
    })
}

/// A guest that does not outlive its check, however that ends.
struct Held(Arc<dyn Vm>);

impl Held {
    fn source(subject: &dyn Subject) -> Self {
        Self(subject.source())
    }

    fn incoming(subject: &dyn Subject, source: &Held) -> Self {
        Self(subject.incoming(&*source.0))
    }
}

impl Deref for Held {
    type Target = dyn Vm;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.destroy();
    }
}
