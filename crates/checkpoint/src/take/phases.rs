//! What took how long.

use std::time::Instant;

use vmferry_core::take::TakePhase;

/// A clock that starts with the request.
pub(super) struct Phases {
    began: Instant,
    done: Vec<TakePhase>,
}

impl Phases {
    pub(super) fn begin() -> Self {
        Self {
            began: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Does `work` as the phase `name`.
    pub(super) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> T) -> T {
        let start_ms = self.elapsed_ms();
        let result = work();
        self.done.push(TakePhase {
            name: name.to_owned(),
            start_ms,
            end_ms: self.elapsed_ms(),
        });
        result
    }

    pub(super) fn elapsed_ms(&self) -> f64 {
        self.began.elapsed().as_secs_f64() * 1e3
    }

    pub(super) fn into_done(self) -> Vec<TakePhase> {
        self.done
    }
}
