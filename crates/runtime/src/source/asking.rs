//! Asking the guest about its pages, on a thread of its own: meanwhile the destination creates its like.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::source::{Enlightenment, Event};
use vmferry_guest::{Enlightened, FreeKnowledge, GuestError, Vm};

use super::driver::{Driver, Input};
use crate::link::chain;

/// How to ask.
#[derive(Clone, Copy)]
struct Question {
    active_within: Duration,
    timeout: Duration,
    /// Writes are tracked already.
    tracked: bool,
}

impl Driver {
    /// Asks the guest. The answer comes as an event, unless the migration has ended by then.
    pub(super) fn ask_guest(&self, tracked: bool) {
        let tuning = &self.shared.request.tuning;
        let question = Question {
            active_within: tuning.active_within,
            timeout: tuning.agent_timeout,
            tracked,
        };
        let (vm, shared, inputs) = (
            Arc::clone(&self.vm),
            Arc::clone(&self.shared),
            self.inputs.clone(),
        );
        let ask = move || {
            let _usage = shared.usage.thread();
            let answer = ask(&*vm, question);
            let _ = inputs.send(Input::Local(Event::Enlightened(answer)));
        };
        thread::Builder::new()
            .name("out agent".into())
            .spawn(ask)
            .expect("a thread can be started");
    }
}

fn ask(vm: &dyn Vm, question: Question) -> Enlightenment {
    let Some(guest) = vm.enlightened() else {
        return Enlightenment::Nothing {
            why: "it has no agent's port; a guest that `vmferry run --agent` starts has one".into(),
        };
    };
    answer_of(guest, question).unwrap_or_else(|error| Enlightenment::Nothing { why: chain(&error) })
}

fn answer_of(guest: &dyn Enlightened, question: Question) -> Result<Enlightenment, GuestError> {
    let deadline = Instant::now() + question.timeout;
    if !question.tracked
        && let FreeKnowledge::Listed { why } = guest.calibrate(question.timeout)?
    {
        return Ok(Enlightenment::Inexact { why });
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let hints = guest.enlighten(question.active_within, left.max(Duration::from_millis(1)))?;
    Ok(Enlightenment::Told {
        hints,
        exact: !question.tracked,
    })
}
