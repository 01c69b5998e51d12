//! Listening.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::connect::{connect_unix, resolve};
use crate::endpoint::Endpoint;
use crate::error::{Result, TransportError};
use crate::stream::BoxedStream;
use crate::{tcp, unix};

/// How long the resolver may take for the name of an address to listen at.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);

/// Listens at one endpoint. Dropping it frees the endpoint; a unix socket's file goes with it.
pub struct Listener {
    socket: Socket,
    endpoint: Endpoint,
    closed: AtomicBool,
}

enum Socket {
    Tcp(TcpListener),
    /// With device and inode of its file, so that nobody else's is removed at the end.
    Unix(UnixListener, (u64, u64)),
}

impl Listener {
    /// Listens at `endpoint`. A unix socket is for its owner only (mode 0600), and the file that an ended
    /// listener left behind is replaced.
    ///
    /// # Errors
    /// [`TransportError::AddressInUse`], [`TransportError::Resolve`] or [`TransportError::Bind`].
    pub fn bind(endpoint: &Endpoint) -> Result<Self> {
        let bound = match endpoint {
            Endpoint::Tcp { host, port } => bind_tcp(&resolve(host, *port, RESOLVE_TIMEOUT)?),
            Endpoint::Unix { path } => bind_unix(path).map(|socket| (socket, endpoint.clone())),
        };
        match bound {
            Ok((socket, endpoint)) => Ok(Self {
                socket,
                endpoint,
                closed: AtomicBool::new(false),
            }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(TransportError::AddressInUse {
                endpoint: endpoint.clone(),
            }),
            Err(source) => Err(TransportError::Bind {
                endpoint: endpoint.clone(),
                source,
            }),
        }
    }

    /// Where it listens: with the port that the system chose where 0 was asked for.
    pub fn local_endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// [`TransportError::ListenerClosed`] after [`Listener::shutdown`]; else [`TransportError::Accept`],
    /// for example when there are too many open files, after which accepting again may work.
    pub fn accept(&self) -> Result<BoxedStream> {
        loop {
            let accepted = self.socket.accept();
            if self.closed.load(Ordering::Acquire) {
                return Err(TransportError::ListenerClosed {
                    endpoint: self.endpoint.clone(),
                });
            }
            match accepted {
                Ok(stream) => return Ok(stream),
                // A peer that gave up between its connect and our accept is no failure of ours.
                Err(error) if is_peers_failure(&error) => {}
                Err(source) => {
                    return Err(TransportError::Accept {
                        endpoint: self.endpoint.clone(),
                        source,
                    });
                }
            }
        }
    }

    /// Ends listening: who waits in [`Listener::accept`] returns with [`TransportError::ListenerClosed`].
    pub fn shutdown(&self) {
        self.closed.store(true, Ordering::Release);
        // On Linux this wakes an accept; on a socket that is shut down already it changes nothing.
        let _ = rustix::net::shutdown(self.socket.as_fd(), rustix::net::Shutdown::Both);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let (Socket::Unix(_, identity), Endpoint::Unix { path }) = (&self.socket, &self.endpoint)
            && file_identity(path).is_ok_and(|found| found == *identity)
        {
            // Nothing can be done about a file that cannot be removed; the next bind replaces it.
            let _ = fs::remove_file(path);
        }
    }
}

impl Socket {
    fn accept(&self) -> io::Result<BoxedStream> {
        match self {
            Self::Tcp(listener) => tcp::stream(listener.accept()?.0),
            Self::Unix(listener, _) => Ok(unix::stream(listener.accept()?.0)),
        }
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

fn bind_tcp(addresses: &[SocketAddr]) -> io::Result<(Socket, Endpoint)> {
    let listener = TcpListener::bind(addresses)?;
    let address = listener.local_addr()?;
    Ok((
        Socket::Tcp(listener),
        Endpoint::tcp(address.ip().to_string(), address.port()),
    ))
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse && is_left_behind(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(Socket::Unix(listener, file_identity(path)?))
}

/// Whether `path` is a socket at which nobody listens any more.
fn is_left_behind(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    is_socket
        && connect_unix(path, Instant::now()).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

fn file_identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

fn is_peers_failure(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::NotConnected
    )
}
