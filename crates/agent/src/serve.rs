//! Answering the host.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use vmferry_agent_proto::message::MAX_LAST_RUNS;
use vmferry_agent_proto::{
    Answer, Body, Call, FrameRange, LastRun, ProtoError, Request, VERSION, read_request, write_answer,
};

use crate::activity::{self, Activity, Ran};
use crate::classify::FrameMap;
use crate::error::{AgentError, Result};
use crate::kernel;
use crate::port::{self, Wait};
use crate::proc::iomem::Frames;
use crate::proc::{self, load};

/// Where the ports are.
const PORTS: &str = "/sys/class/virtio-ports";
/// How often to look for a port that is not there: its driver may load later.
const PORT_EVERY: Duration = Duration::from_secs(1);
/// How often to look which threads run, where the kernel does not keep that.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// The most bytes of a reason or a name that is sent.
const MAX_TEXT_BYTES: usize = 60;

/// Serves the port as long as the guest lives.
pub(crate) fn forever() -> Result<()> {
    let mut activity = Activity::default();
    loop {
        let Some(device) = port::find(Path::new(PORTS)) else {
            std::thread::sleep(PORT_EVERY);
            continue;
        };
        let port = port::open(&device)?;
        while Path::new(&device).exists() {
            activity.look();
            if port::wait(&port, LOOK_EVERY)? == Wait::Nothing {
                continue;
            }
            // A host that leaves in the middle, or says what we do not know: the next one begins afresh.
            if let Err(error) = answer_one(&port, &mut activity) {
                eprintln!("vmferry-agent: {}", error.in_one_line());
            }
        }
    }
}

fn answer_one(mut port: &File, activity: &mut Activity) -> Result<()> {
    let Request { id, call } = read_request(&mut port)?;
    let mut send = |body: Body| write_answer(&mut port, &Answer { id, body });
    match answer(&call, activity, &mut send) {
        // What broke is the port: nothing more can be said.
        Err(AgentError::Port(error)) => Err(error.into()),
        Err(error) => Ok(send(Body::Failed {
            reason: clip(&error.in_one_line(), 4 * MAX_TEXT_BYTES),
        })?),
        Ok(()) => Ok(()),
    }
}

fn answer(
    call: &Call,
    activity: &mut Activity,
    send: &mut dyn FnMut(Body) -> std::result::Result<(), ProtoError>,
) -> Result<()> {
    match *call {
        Call::Ping { version } => send(Body::Pong {
            version: version.min(VERSION),
        })?,
        Call::Classify { active_within_ms } => {
            let within = Duration::from_millis(active_within_ms.into());
            let active = active_processes(&activity.last_runs(), within);
            FrameMap::classify(&active, None)?.chunks(|chunk| send(Body::Map(chunk)))?;
        }
        Call::ClassifyIn {
            active_within_ms,
            ref frames,
        } => {
            let within = Duration::from_millis(active_within_ms.into());
            let active = active_processes(&activity.last_runs(), within);
            FrameMap::classify(&active, Some(&ranges(frames)))?.chunks(|chunk| send(Body::Map(chunk)))?;
        }
        Call::Free => FrameMap::free(None)?.chunks(|chunk| send(Body::Map(chunk)))?,
        Call::FreeIn { ref frames } => {
            FrameMap::free(Some(&ranges(frames)))?.chunks(|chunk| send(Body::Map(chunk)))?;
        }
        Call::Load => {
            let (loadavg, meminfo) = (proc::read("/proc/loadavg")?, proc::read("/proc/meminfo")?);
            let load = load::parse(&loadavg, &meminfo).ok_or_else(|| AgentError::Strange {
                path: "/proc/meminfo",
                problem: "a field is missing there or in /proc/loadavg".into(),
            })?;
            send(Body::Load(load))?;
        }
        Call::LastRuns => {
            let runs = activity.last_runs();
            send(Body::LastRuns(
                runs.iter().take(MAX_LAST_RUNS).map(describe).collect(),
            ))?;
        }
        Call::Kernel => send(Body::Kernel(kernel::describe()?))?,
    }
    Ok(())
}

fn ranges(frames: &[FrameRange]) -> Vec<Frames> {
    let range = |range: &FrameRange| Frames {
        first: range.first,
        end: range.first + range.count,
    };
    frames.iter().map(range).collect()
}

/// The processes that ran within a time.
pub(crate) fn active_processes(runs: &[Ran], within: Duration) -> Vec<u32> {
    runs.iter()
        .filter(|ran| ran.ago <= within)
        .map(|ran| ran.pid)
        .collect()
}

fn describe(ran: &Ran) -> LastRun {
    LastRun {
        pid: ran.pid,
        ago_ms: ran.ago.as_millis() as u64,
        name: clip(&activity::name_of(ran.pid), MAX_TEXT_BYTES),
    }
}

/// The beginning of a text, within a bound.
fn clip(text: &str, limit_bytes: usize) -> String {
    let end = (0..=limit_bytes.min(text.len()))
        .rev()
        .find(|&end| text.is_char_boundary(end))
        .unwrap_or(0);
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_ran_lately_are_active() {
        let ran = |pid, secs| Ran {
            pid,
            ago: Duration::from_secs(secs),
        };
        let runs = [ran(1, 0), ran(20, 16), ran(3, 17)];
        assert_eq!(active_processes(&runs, Duration::from_secs(16)), [1, 20]);
    }

    #[test]
    fn texts_are_cut_between_letters() {
        assert_eq!(clip("größer", 4), "grö");
        assert_eq!(clip("größer", 3), "gr");
        assert_eq!(clip("gr", 3), "gr");
    }

    fn ask(call: &Call) -> Vec<Body> {
        let mut bodies = Vec::new();
        answer(call, &mut Activity::default(), &mut |body| {
            bodies.push(body);
            Ok(())
        })
        .unwrap();
        bodies
    }

    #[test]
    fn the_lower_version_is_spoken() {
        assert_eq!(ask(&Call::Ping { version: 9 }), [Body::Pong { version: VERSION }]);
        assert_eq!(ask(&Call::Ping { version: 0 }), [Body::Pong { version: 0 }]);
    }

    #[test]
    fn this_machine_has_a_load_and_processes() {
        let [Body::Load(load)] = ask(&Call::Load)[..] else {
            panic!("one load")
        };
        assert!(load.free_kib <= load.total_kib && load.total_kib > 0);
        let bodies = ask(&Call::LastRuns);
        let [Body::LastRuns(runs)] = bodies.as_slice() else {
            panic!("one list")
        };
        assert!(runs.iter().any(|run| run.pid == std::process::id()));
    }
}
