//! One plain QEMU, as a process that goes with its guard.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use vmferry_guest_qemu::QemuConfig;
use vmferry_guest_qemu::qmp::commands::{Capability, MigrateSetCapabilities};
use vmferry_guest_qemu::qmp::{Command as QmpCommand, Qmp, Schema};
use vmferry_memory::spawn_detached;

use super::monitor::{KnownCapability, QueryCapabilities, SetParameters};
use super::report::Side;
use super::request::PeerRequest;
use crate::error::{LabError, Result};
use crate::guards::{Interrupt, Process};
use crate::hosts::last_lines;
use crate::namespace::Namespace;

/// How long QEMU may take until its monitor answers.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long its monitor may take to greet.
const GREETING_LIMIT: Duration = Duration::from_secs(10);
/// Lines of what it said that are shown when it ended.
const LOG_LINES: usize = 3;
/// Name of the guest on its command line.
const GUEST: &str = "bench";

/// A QEMU with its monitor.
pub(super) struct Qemu {
    side: Side,
    /// Before the process: its end is no news then.
    pub(super) qmp: Qmp,
    /// Its command line.
    pub(super) line: Vec<String>,
    log: PathBuf,
    _process: Process,
}

impl Qemu {
    /// Starts it inside a namespace, with its files in a folder that is made, and waits until its monitor answers.
    pub(super) fn start(
        side: Side,
        config: &QemuConfig,
        folder: &Path,
        namespace: &Namespace,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let folder = folder.join(side.name());
        std::fs::create_dir(&folder).map_err(LabError::system(format!("make {}", folder.display())))?;
        let plain = config.plain(GUEST, &folder);
        let mut line = vec![plain.binary];
        line.extend(plain.args);
        if side == Side::Destination {
            line.extend(["-incoming", "defer"].map(str::to_owned));
        }
        let log = folder.join("log");
        let said = File::create(&log).map_err(LabError::system(format!("make {}", log.display())))?;
        let also = said.try_clone().map_err(LabError::system("share a log"))?;
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .stdin(Stdio::null())
            .stdout(said)
            .stderr(also);
        // In a session of its own, as vmferry starts it: a Ctrl-C at the terminal is for us alone, and the kernel shares processors
        // out by session.
        let child = namespace.enter(|| spawn_detached(command, &[]))?;
        let child = child.map_err(LabError::system(format!("start {}", line[0])))?;
        let mut process = Process::new(child);
        let what = format!("the monitor of the {}'s QEMU", side.name());
        let qmp = interrupt.wait_for(&what, START_LIMIT, || {
            if process.exit_status()?.is_some() {
                return Err(ended(side, &log));
            }
            if !plain.monitor.exists() {
                return Ok(None);
            }
            match Qmp::connect(&plain.monitor, GREETING_LIMIT) {
                Ok(qmp) => Ok(Some(qmp)),
                // Bound, and not listening yet.
                Err(error) if error.is_disconnect() => Ok(None),
                Err(source) => Err(LabError::Qemu {
                    side: side.name(),
                    source,
                }),
            }
        })?;
        Ok(Self {
            side,
            qmp,
            line,
            log,
            _process: process,
        })
    }

    /// Executes a command.
    pub(super) fn run<C: QmpCommand>(&self, command: &C) -> Result<C::Reply> {
        self.qmp.run(command).map_err(|source| {
            if source.is_disconnect() {
                self.ended()
            } else {
                LabError::Qemu {
                    side: self.side.name(),
                    source,
                }
            }
        })
    }

    /// That it does not exist any more, with what it said last.
    pub(super) fn ended(&self) -> LabError {
        ended(self.side, &self.log)
    }

    /// What it said last; empty where that is nothing.
    pub(super) fn last_words(&self) -> String {
        last_lines(&self.log, LOG_LINES)
    }

    /// Makes it ready for a migration as it is asked for.
    pub(super) fn set_up(&self, request: &PeerRequest) -> Result<()> {
        self.check(request)?;
        let capabilities = request.capabilities().map(|capability| Capability {
            capability,
            state: true,
        });
        self.run(&MigrateSetCapabilities {
            capabilities: capabilities.collect(),
        })?;
        self.run(&SetParameters(&request.parameters)).map(drop)
    }

    /// Whether it can do that at all, by its own account.
    fn check(&self, request: &PeerRequest) -> Result<()> {
        let capabilities = self.run(&QueryCapabilities {})?;
        let schema = self.qmp.schema().map_err(|source| LabError::Qemu {
            side: self.side.name(),
            source,
        })?;
        match lacking(request, &capabilities, &schema) {
            None => Ok(()),
            Some(what) => Err(LabError::Missing(format!(
                "the QEMU that is installed cannot do {}: it lacks {what}",
                request.peer
            ))),
        }
    }
}

/// The first thing that a QEMU lacks.
fn lacking(request: &PeerRequest, capabilities: &[KnownCapability], schema: &Schema) -> Option<String> {
    let is_known = |name: &str| capabilities.iter().any(|known| known.capability == name);
    if let Some(name) = request.capabilities().find(|name| !is_known(name)) {
        return Some(format!("the migration capability {name}"));
    }
    const SET: &str = "migrate-set-parameters";
    let lacks = |(name, value): (&String, &Value)| {
        if !schema.supports_argument(SET, name) {
            return Some(format!("the migration parameter {name}"));
        }
        // Of the values, words are those that a version may not have.
        let word = value.as_str()?;
        let lacks = !schema.supports_value(SET, name, word);
        lacks.then(|| format!("the value {word} of the migration parameter {name}"))
    };
    request.parameters.iter().find_map(lacks)
}

fn ended(side: Side, log: &Path) -> LabError {
    LabError::QemuEnded {
        side: side.name(),
        log: last_lines(log, LOG_LINES),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::bench::scenario::Options;
    use crate::peer::Peer;

    /// What a QEMU without post-copy preempt and without zstd says.
    fn lacks(peer: Peer) -> Option<String> {
        let capabilities = json!([
            {"capability": "events", "state": false},
            {"capability": "multifd", "state": false},
            {"capability": "postcopy-ram", "state": false}
        ]);
        let schema = json!([
            {"name": "migrate-set-parameters", "meta-type": "command", "arg-type": "1"},
            {"name": "1", "meta-type": "object", "members": [
                {"name": "max-bandwidth", "type": "int"},
                {"name": "downtime-limit", "type": "int"},
                {"name": "multifd-compression", "type": "2"}
            ]},
            {"name": "int", "meta-type": "builtin"},
            {"name": "2", "meta-type": "enum", "values": ["none", "zlib"]}
        ]);
        let capabilities: Vec<KnownCapability> = serde_json::from_value(capabilities).unwrap();
        let schema = Schema::new(serde_json::from_value(schema).unwrap());
        let request = PeerRequest::new(peer, &Options::new()).unwrap();
        lacking(&request, &capabilities, &schema)
    }

    #[test]
    fn what_a_qemu_lacks_is_named() {
        assert_eq!(lacks(Peer::PreCopy), None);
        assert_eq!(lacks(Peer::Multifd), None);
        assert_eq!(lacks(Peer::PostCopy), None);
        let preempt = lacks(Peer::PostCopyPreempt).unwrap();
        assert_eq!(preempt, "the migration capability postcopy-preempt");
        let zstd = lacks(Peer::MultifdZstd).unwrap();
        assert_eq!(
            zstd,
            "the value zstd of the migration parameter multifd-compression"
        );
    }
}
