//! What can go wrong between us and QEMU's monitor.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why a QMP command or connection failed.
#[derive(Debug, Error)]
pub enum QmpError {
    /// Nobody listens at the socket: QEMU has ended, or the path is wrong.
    #[error("cannot connect to QEMU's monitor at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The socket accepts, but QEMU does not greet: it serves one client at a time.
    #[error(
        "QEMU's monitor at {} does not greet within {timeout:?}: another client (libvirt?) may hold it; \
         give QEMU a second -qmp socket",
        path.display()
    )]
    NoGreeting {
        /// The socket.
        path: PathBuf,
        /// How long we waited.
        timeout: Duration,
    },
    /// What answers at the socket does not speak QMP.
    #[error("what answers at {} is not QMP: {what}", path.display())]
    NotQmp {
        /// The socket.
        path: PathBuf,
        /// What came instead.
        what: String,
    },
    /// The connection ended before the answer.
    #[error("QEMU closed its monitor before it answered {command}: {why}")]
    Lost {
        /// The command that was waiting, or to be sent.
        command: &'static str,
        /// How it ended.
        why: String,
    },
    /// No answer in time.
    #[error("QEMU did not answer {command} within {timeout:?}")]
    TimedOut {
        /// The command, or the event waited for.
        command: &'static str,
        /// How long we waited.
        timeout: Duration,
    },
    /// QEMU answered with an error.
    #[error("QEMU refused {command}: {description} ({class})")]
    Refused {
        /// The command.
        command: &'static str,
        /// QEMU's error class.
        class: String,
        /// QEMU's own words.
        description: String,
    },
    /// The answer has not the form it should have.
    #[error("QEMU's answer to {command} is not understood")]
    BadReply {
        /// The command.
        command: &'static str,
        /// What does not fit.
        #[source]
        source: serde_json::Error,
    },
}

impl QmpError {
    /// Whether the error means that QEMU's end of the connection does not exist any more.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Lost { .. })
    }

    /// Whether QEMU does not know the command.
    pub fn is_unknown_command(&self) -> bool {
        matches!(self, Self::Refused { class, .. } if class == "CommandNotFound")
    }
}
