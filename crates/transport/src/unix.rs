//! Unix sockets: two daemons on one host, and tests.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::sockopt;

use crate::socket::{Socket, SocketStream};
use crate::stream::BoxedStream;

/// The stream over a connected socket.
pub(crate) fn stream(socket: UnixStream) -> BoxedStream {
    Box::new(SocketStream::new(socket))
}

impl Socket for UnixStream {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        Self::shutdown(self, how)
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_read_timeout(self, timeout)
    }

    fn set_nodelay(&self, _nodelay: bool) -> io::Result<()> {
        Ok(())
    }

    fn set_low_delay(&self) -> io::Result<()> {
        Ok(())
    }

    /// The kernel closes the socket when the peer's process ends: there is no silent death to find.
    fn set_most_unsent(&self, _bytes: u32) -> io::Result<()> {
        Ok(())
    }

    fn set_peer_timeout(&self, _timeout: Duration) -> io::Result<()> {
        Ok(())
    }

    fn peer(&self) -> String {
        sockopt::socket_peercred(self).map_or_else(
            |_| "a local process".into(),
            |peer| format!("process {}", peer.pid.as_raw_nonzero()),
        )
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::{Endpoint, Listener, TransportError, conformance, connect};

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        let number = AtomicU32::new(0);
        let free = || {
            Endpoint::unix(
                dir.path()
                    .join(format!("socket{}", number.fetch_add(1, Ordering::Relaxed))),
            )
        };
        conformance::run(|| {
            let listener = Listener::bind(&free()).unwrap();
            let client = connect(listener.local_endpoint(), Duration::from_secs(30)).unwrap();
            (client, listener.accept().unwrap())
        });
        conformance::run_endpoints(free);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            0,
            "files of sockets are left"
        );
    }

    #[test]
    fn a_file_left_behind_is_replaced_and_another_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        // The standard library's listener leaves its file behind, like a process that was killed.
        drop(UnixListener::bind(&path).unwrap());
        let listener = Listener::bind(&Endpoint::unix(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        drop(listener);
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&Endpoint::unix(&path)).err().unwrap();
        assert!(matches!(error, TransportError::AddressInUse { .. }), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_file_of_another_listener_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = Listener::bind(&Endpoint::unix(&path)).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists(), "the second listener's file is gone");
    }

    #[test]
    fn a_full_queue_ends_with_the_time_out() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let deaf = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&deaf, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&deaf, 0).unwrap();
        let mut kept = Vec::new();
        let error = loop {
            match connect(&Endpoint::unix(&path), Duration::from_millis(50)) {
                Ok(stream) => kept.push(stream),
                Err(error) => break error,
            }
            assert!(kept.len() < 100, "a queue of no length takes every connection");
        };
        assert!(matches!(error, TransportError::ConnectTimeout { .. }), "{error}");
    }
}
