//! Streams for vmferry: TCP and unix sockets behind one trait.
//!
//! An [`Endpoint`] names a place; [`Listener::bind`] and [`connect()`] make [`BoxedStream`]s of it. Nothing
//! here knows what the streams carry. A stream that is a plain socket shows its file descriptor
//! ([`Stream::plain_fd`]), so that pages go from and to guest memory without a copy in user space; a stream
//! that encrypts would answer none there, and its users copy.
#![forbid(unsafe_code)]

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod connect;
pub mod endpoint;
pub mod error;
pub mod listener;
mod socket;
pub mod stream;
mod tcp;
mod unix;

pub use connect::connect;
pub use endpoint::{DEFAULT_PORT, Endpoint};
pub use error::{Result, TransportError};
pub use listener::Listener;
pub use stream::{BoxedStream, DEFAULT_PEER_TIMEOUT, Stream};
