//! What can go wrong in a lab.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use thiserror::Error;
use vmferry_api::ClientError;
use vmferry_core::report::Outcome;
use vmferry_guest_qemu::qmp::QmpError;

/// Why something in the lab did not work.
#[derive(Debug, Error)]
pub enum LabError {
    /// No forecast could be made.
    #[error("cannot forecast the migration")]
    Forecast(#[source] crate::forecasting::ForecastingError),
    /// A signal ended it.
    #[error("interrupted")]
    Interrupted,
    /// The system refused something.
    #[error("cannot {what}")]
    System {
        /// What was to be done, as the end of a sentence that begins with "cannot".
        what: String,
        /// What it answered.
        #[source]
        source: std::io::Error,
    },
    /// A program did not do its work.
    #[error("`{line}` failed: {said}")]
    Program {
        /// Its command line.
        line: String,
        /// What it said.
        said: String,
    },
    /// Something did not come.
    #[error("waited {} s for {what}", limit.as_secs())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// A host daemon ended.
    #[error("the daemon of host {host} ended ({status}){log}")]
    DaemonEnded {
        /// The host.
        host: String,
        /// How it ended.
        status: ExitStatus,
        /// What it logged last.
        log: String,
    },
    /// A host daemon refused something, or cannot be asked.
    #[error("host {host} did not do it")]
    Host {
        /// The host.
        host: String,
        /// What it answered.
        #[source]
        source: ClientError,
    },
    /// A QEMU refused something.
    #[error("the {side}'s QEMU did not do it")]
    Qemu {
        /// Which one.
        side: &'static str,
        /// What it answered.
        #[source]
        source: QmpError,
    },
    /// A QEMU ended.
    #[error("the {side}'s QEMU ended{log}")]
    QemuEnded {
        /// Which one.
        side: &'static str,
        /// What it said last.
        log: String,
    },
    /// QEMU's migration took too long.
    #[error("QEMU's migration did not end within {} s: {standing}", limit.as_secs_f64())]
    NotConverged {
        /// How long it was waited for.
        limit: Duration,
        /// How far it was.
        standing: String,
    },
    /// The guest is not what it should be.
    #[error("the guest {0}")]
    Guest(String),
    /// The guest's server and its client did not come together.
    #[error("the client cannot {what} in the guest")]
    Client {
        /// What the client wanted of it, as in "fill memcached".
        what: String,
        /// What happened.
        #[source]
        source: std::io::Error,
    },
    /// The guest image cannot be used.
    #[error("{} {why}; `cargo xtask image` makes it", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The guest image lacks programs.
    #[error("{} is not there; `cargo xtask image --layers {layer}` makes it", path.display())]
    Layer {
        /// The file.
        path: PathBuf,
        /// What it would hold.
        layer: &'static str,
    },
    /// Something a run needs is not there.
    #[error("{0}")]
    Missing(String),
    /// A migration did not complete.
    #[error("the migration did not complete ({outcome:?}): {why}")]
    NotMoved {
        /// How it ended.
        outcome: Outcome,
        /// What its report says.
        why: String,
    },
    /// There is no scenario of this name.
    #[error(
        "there is no scenario {name:?}; there are {known}, or name a file with a path or the ending .toml"
    )]
    UnknownScenario {
        /// The name.
        name: String,
        /// Those there are.
        known: String,
    },
    /// A scenario that makes no sense.
    #[error("{place}: {why}")]
    BadScenario {
        /// File, and line where it is known.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A file that is not one of this scenario's results.
    #[error("{} {why}; name another file, or let --fresh replace it", path.display())]
    NotTheseResults {
        /// The file.
        path: PathBuf,
        /// What it is instead.
        why: String,
    },
    /// A file without results of a bench.
    #[error("{} {why}", path.display())]
    NoResults {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Results that have nothing to do with each other.
    #[error("cannot compare them: {0}")]
    NotComparable(String),
    /// A thread of the lab got lost.
    #[error("a request got lost")]
    Lost,
}

/// Result of something in the lab.
pub type Result<T> = std::result::Result<T, LabError>;

impl LabError {
    /// The system refused `what`, as the end of a sentence that begins with "cannot".
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }

    /// Whether it was the user who ended it.
    pub fn is_interrupted(&self) -> bool {
        matches!(self, Self::Interrupted)
    }

    /// The error and its causes on one line.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            line = format!("{line}: {error}");
            cause = error.source();
        }
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}
