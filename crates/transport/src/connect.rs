//! Connecting within a time-out.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::endpoint::Endpoint;
use crate::error::{Result, TransportError};
use crate::stream::BoxedStream;
use crate::{tcp, unix};

/// A connection to `endpoint`, made within `timeout` (finding the host's address included). Every address
/// of the host is tried in turn.
///
/// # Errors
/// [`TransportError::Resolve`], [`TransportError::NobodyListens`], [`TransportError::ConnectTimeout`] or
/// [`TransportError::Connect`].
pub fn connect(endpoint: &Endpoint, timeout: Duration) -> Result<BoxedStream> {
    let deadline = Instant::now() + timeout;
    let attempt = match endpoint {
        Endpoint::Tcp { host, port } => connect_tcp(&resolve(host, *port, timeout)?, deadline),
        Endpoint::Unix { path } => connect_unix(path, deadline),
    };
    attempt.map_err(|source| {
        let endpoint = endpoint.clone();
        match source.kind() {
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => {
                TransportError::NobodyListens { endpoint, source }
            }
            ErrorKind::TimedOut => TransportError::ConnectTimeout { endpoint, timeout },
            _ => TransportError::Connect { endpoint, source },
        }
    })
}

/// The addresses of `host`. The resolver knows no time-out: where it hangs, it is left behind in its thread.
pub(crate) fn resolve(host: &str, port: u16, timeout: Duration) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (send, receive) = mpsc::channel();
    let name = host.to_owned();
    std::thread::spawn(move || {
        // Nobody waits any more when the time is over: then the answer is of no use.
        let _ = send.send((name.as_str(), port).to_socket_addrs().map(Vec::from_iter));
    });
    let addresses = receive
        .recv_timeout(timeout)
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()));
    match addresses {
        Ok(addresses) if !addresses.is_empty() => Ok(addresses),
        Ok(_) => Err(TransportError::Resolve {
            host: host.to_owned(),
            source: ErrorKind::NotFound.into(),
        }),
        Err(source) => Err(TransportError::Resolve {
            host: host.to_owned(),
            source,
        }),
    }
}

fn connect_tcp(addresses: &[SocketAddr], deadline: Instant) -> io::Result<BoxedStream> {
    let mut failure = io::Error::from(ErrorKind::TimedOut);
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        // An address that does not answer leaves time for the others.
        let share = left / (addresses.len() - index) as u32;
        if share.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(address, share).and_then(tcp::stream) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Connecting to a unix socket would wait without bound for a listener whose queue is full.
pub(crate) fn connect_unix(path: &Path, deadline: Instant) -> io::Result<BoxedStream> {
    const RETRY: Duration = Duration::from_millis(5);
    let address = SocketAddrUnix::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(Errno::AGAIN) => return Err(ErrorKind::TimedOut.into()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let socket = UnixStream::from(socket);
    socket.set_nonblocking(false)?;
    Ok(unix::stream(socket))
}
