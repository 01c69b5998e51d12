//! The one error of this crate. What happens on a connected stream is a plain `std::io::Error`.

use std::io;
use std::time::Duration;

use thiserror::Error;

use crate::endpoint::Endpoint;

/// Result of an operation on an endpoint.
pub type Result<T> = std::result::Result<T, TransportError>;

/// Why there is no connection.
#[derive(Debug, Error)]
pub enum TransportError {
    /// A text that names no endpoint.
    #[error("{text:?} is no endpoint: {problem}; write host, host:port, tcp:host:port or unix:/path")]
    Endpoint {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host's name has no address.
    #[error("cannot find the address of {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver answered.
        #[source]
        source: io::Error,
    },
    /// Nobody listens there.
    #[error("nothing listens at {endpoint}; is `vmferry host` running there?")]
    NobodyListens {
        /// Where.
        endpoint: Endpoint,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// No answer in time.
    #[error("no answer from {endpoint} within {} ms; check the address, the network and firewalls", timeout.as_millis())]
    ConnectTimeout {
        /// Where.
        endpoint: Endpoint,
        /// How long was waited.
        timeout: Duration,
    },
    /// Connecting failed in another way.
    #[error("cannot connect to {endpoint}")]
    Connect {
        /// Where.
        endpoint: Endpoint,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// Somebody listens at the endpoint already.
    #[error("{endpoint} is in use by another process; choose another endpoint or stop that process")]
    AddressInUse {
        /// Where.
        endpoint: Endpoint,
    },
    /// Listening failed in another way.
    #[error("cannot listen at {endpoint}")]
    Bind {
        /// Where.
        endpoint: Endpoint,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// No connection can be accepted.
    #[error("cannot accept a connection at {endpoint}")]
    Accept {
        /// Where.
        endpoint: Endpoint,
        /// What the system answered.
        #[source]
        source: io::Error,
    },
    /// The listener was shut down by this process.
    #[error("the listener at {endpoint} was closed")]
    ListenerClosed {
        /// Where it listened.
        endpoint: Endpoint,
    },
}
