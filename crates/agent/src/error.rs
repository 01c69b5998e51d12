//! What the agent cannot do.

use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vmferry_agent_proto::ProtoError;

/// Result of what the agent does.
pub(crate) type Result<T> = std::result::Result<T, AgentError>;

/// Why the agent could not do something.
#[derive(Debug, Error)]
pub(crate) enum AgentError {
    /// A file of the system does not open or read.
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file of the system says something else than expected.
    #[error("{path} is not understood: {problem}")]
    Strange { path: &'static str, problem: String },
    /// The port broke.
    #[error("the port failed")]
    Port(#[from] ProtoError),
    /// Waiting for the port failed.
    #[error("waiting for the host failed")]
    Wait(#[source] io::Error),
}

impl AgentError {
    /// Why a file could not be read.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { path, source }
    }

    /// The error and what led to it, in one line.
    pub(crate) fn in_one_line(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line
    }
}
