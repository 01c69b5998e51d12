//! Why nothing could be simulated.

use thiserror::Error;
use vmferry_trace::TraceError;

/// See the module.
#[derive(Debug, Error)]
pub enum SimError {
    /// The trace is of no use.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A path on which nothing can move.
    #[error("{what} of {value} is not possible; {mend}")]
    Path {
        /// Which figure.
        what: &'static str,
        /// Its value.
        value: String,
        /// What is possible.
        mend: &'static str,
    },
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The state machine refused an event: a bug of the simulator.
    #[error("the simulated migration broke off: {0}")]
    Broken(String),
    /// No end within the time or the steps that a simulation may take.
    #[error("the simulated migration did not end within {0}")]
    Endless(&'static str),
}
