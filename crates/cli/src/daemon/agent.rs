//! Asking the agent in a guest for an operator.

use std::time::{Duration, Instant};

use vmferry_core::hints::Class;
use vmferry_core::tuning::MAX_AGENT_TIMEOUT;
use vmferry_core::{Hints, PAGE_SIZE, Tuning};

use super::host::{LocalHost, of_guest};
use super::refusal::Refusal;
use super::registry::Slot;
use crate::api::{AgentInfo, AgentRequest, ClassBytes};

impl LocalHost {
    /// What the agent in a guest that runs here says.
    pub(super) fn ask_agent(&self, name: &str, request: &AgentRequest) -> Result<AgentInfo, Refusal> {
        let timeout = Duration::from_millis(request.timeout_ms);
        if timeout.is_zero() || timeout > MAX_AGENT_TIMEOUT {
            return Err(Refusal::bad_request(format!(
                "an agent cannot have {} ms to answer; choose more than 0 and at most {} ms",
                request.timeout_ms,
                MAX_AGENT_TIMEOUT.as_millis()
            )));
        }
        let (Slot::Here(member)
        | Slot::Leaving { member, .. }
        | Slot::Receiving { member, .. }
        | Slot::Resuming { member, .. }) = self.registry.get(name)?
        else {
            return Err(Refusal::conflict(format!("guest {name} does not run here"))
                .mend(format!("`vmferry status {name}` shows what it does")));
        };
        let guest = member.vm.enlightened().ok_or_else(|| {
            Refusal::conflict(format!("guest {name} has no port for an agent"))
                .mend("start it with `vmferry run --agent`, and vmferry-agent in it")
        })?;
        let deadline = Instant::now() + timeout;
        let load = guest.load(timeout).map_err(of_guest)?;
        let left = || {
            deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1))
        };
        let last_runs = guest.last_runs(left()).map_err(of_guest)?;
        let classes = match request.classes {
            false => None,
            true => {
                guest.calibrate(left()).map_err(of_guest)?;
                let active_within = Tuning::default().active_within;
                let hints = guest.enlighten(active_within, left()).map_err(of_guest)?;
                Some(classes(&hints))
            }
        };
        Ok(AgentInfo {
            balloon_bytes: request.balloon.then(|| load.memory_available_bytes / 10 * 9),
            load,
            last_runs,
            classes,
        })
    }
}

fn classes(hints: &Hints) -> Vec<ClassBytes> {
    let counts = Class::ALL.into_iter().zip(hints.counts());
    let bytes = |(class, pages)| ClassBytes {
        class,
        bytes: pages * PAGE_SIZE,
    };
    counts.map(bytes).collect()
}
