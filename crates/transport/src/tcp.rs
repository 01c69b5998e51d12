//! TCP.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::net::sockopt;

use crate::socket::{Socket, SocketStream};
use crate::stream::{BoxedStream, DEFAULT_PEER_TIMEOUT};

/// Probes of a silent peer within the peer time-out.
const KEEPALIVE_PROBES: u32 = 3;
/// Type of service "low delay" of RFC 1349, which Linux's own queues go by: `pfifo_fast` sends it first.
const LOW_DELAY: u8 = 0x10;

/// The stream over a connected socket.
pub(crate) fn stream(socket: TcpStream) -> io::Result<BoxedStream> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&socket, true)?;
    Socket::set_peer_timeout(&socket, DEFAULT_PEER_TIMEOUT)?;
    Ok(Box::new(SocketStream::new(socket)))
}

impl Socket for TcpStream {
    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        Self::shutdown(self, how)
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Self::set_read_timeout(self, timeout)
    }

    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        Self::set_nodelay(self, nodelay)
    }

    fn set_low_delay(&self) -> io::Result<()> {
        // Over IPv6 this is the traffic class; a socket for both families has both.
        if self.local_addr()?.is_ipv6() {
            sockopt::set_ipv6_tclass(self, u32::from(LOW_DELAY))?;
        }
        match sockopt::set_ip_tos(self, LOW_DELAY) {
            Err(_) if self.local_addr()?.is_ipv6() => Ok(()),
            result => Ok(result?),
        }
    }

    fn set_most_unsent(&self, bytes: u32) -> io::Result<()> {
        socket2::SockRef::from(self).set_tcp_notsent_lowat(bytes)
    }

    /// Keepalive finds a dead peer while nothing is sent, the user time-out while something is.
    fn set_peer_timeout(&self, timeout: Duration) -> io::Result<()> {
        let timeout = timeout.max(Duration::from_secs(1));
        let probe = Duration::from_secs((timeout.as_secs() / u64::from(KEEPALIVE_PROBES + 1)).max(1));
        sockopt::set_tcp_keepidle(self, probe)?;
        sockopt::set_tcp_keepintvl(self, probe)?;
        sockopt::set_tcp_keepcnt(self, KEEPALIVE_PROBES)?;
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        Ok(sockopt::set_tcp_user_timeout(self, timeout_ms)?)
    }

    fn peer(&self) -> String {
        self.peer_addr()
            .map_or_else(|_| "a host that is gone".into(), |address| address.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::{Endpoint, Listener, TransportError, conformance, connect};

    fn pair() -> (BoxedStream, BoxedStream) {
        let listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0)).unwrap();
        let client = connect(listener.local_endpoint(), Duration::from_secs(30)).unwrap();
        (client, listener.accept().unwrap())
    }

    #[test]
    fn conforms() {
        conformance::run(pair);
        conformance::run_endpoints(|| Endpoint::tcp("127.0.0.1", 0));
    }

    #[test]
    fn conforms_over_ipv6() {
        if std::net::TcpListener::bind("[::1]:0").is_err() {
            eprintln!("skipped: no IPv6 loopback on this machine");
            return;
        }
        conformance::run_endpoints(|| Endpoint::tcp("::1", 0));
    }

    #[test]
    fn names_are_resolved() {
        let listener = Listener::bind(&Endpoint::tcp("localhost", 0)).unwrap();
        let Endpoint::Tcp { port, .. } = *listener.local_endpoint() else {
            panic!("not TCP")
        };
        connect(&Endpoint::tcp("localhost", port), Duration::from_secs(30)).unwrap();
        let error = connect(&Endpoint::tcp("no-such-host.invalid", 1), Duration::from_secs(2))
            .err()
            .unwrap();
        assert!(matches!(error, TransportError::Resolve { .. }), "{error}");
    }

    #[test]
    fn no_answer_ends_with_the_time_out() {
        // A listener whose queue is full leaves the next connection without an answer.
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let deaf = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&deaf, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&deaf, 0).unwrap();
        let address = std::net::SocketAddr::try_from(getsockname(&deaf).unwrap()).unwrap();
        let endpoint = Endpoint::tcp("127.0.0.1", address.port());
        let timeout = Duration::from_millis(200);
        let begin = Instant::now();
        let mut kept = Vec::new();
        let error = loop {
            match connect(&endpoint, timeout) {
                Ok(stream) => kept.push(stream),
                Err(error) => break error,
            }
            assert!(kept.len() < 100, "a queue of no length takes every connection");
        };
        assert!(matches!(error, TransportError::ConnectTimeout { .. }), "{error}");
        assert!(begin.elapsed() >= timeout, "gave up before its time");
    }

    #[test]
    fn a_peer_that_gave_up_does_not_disturb_the_listener() {
        let listener = Listener::bind(&Endpoint::tcp("127.0.0.1", 0)).unwrap();
        let reset = connect(listener.local_endpoint(), Duration::from_secs(30)).unwrap();
        sockopt::set_socket_linger(reset.plain_fd().unwrap(), Some(Duration::ZERO)).unwrap();
        drop(reset);
        let mut client = connect(listener.local_endpoint(), Duration::from_secs(30)).unwrap();
        client.write_all(b"x").unwrap();
        // The connection that was reset may be handed out first: reading from it fails.
        let came = (0..2).any(|_| {
            listener
                .accept()
                .unwrap()
                .read(&mut [0; 1])
                .is_ok_and(|count| count == 1)
        });
        assert!(came, "the second connection is lost");
    }

    #[test]
    fn options_reach_the_socket() {
        let (client, _server) = pair();
        let socket = client.plain_fd().unwrap();
        assert!(sockopt::tcp_nodelay(socket).unwrap());
        assert!(sockopt::socket_keepalive(socket).unwrap());
        assert_eq!(
            sockopt::tcp_user_timeout(socket).unwrap(),
            DEFAULT_PEER_TIMEOUT.as_millis() as u32
        );
        client.set_peer_timeout(Duration::from_secs(8)).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(socket).unwrap(), 8000);
        assert_eq!(sockopt::tcp_keepidle(socket).unwrap(), Duration::from_secs(2));
        assert_eq!(sockopt::tcp_keepintvl(socket).unwrap(), Duration::from_secs(2));
        client.set_nodelay(false).unwrap();
        assert!(!sockopt::tcp_nodelay(socket).unwrap());
        assert_eq!(sockopt::ip_tos(socket).unwrap(), 0);
        client.set_low_delay().unwrap();
        assert_eq!(sockopt::ip_tos(socket).unwrap(), LOW_DELAY);
        client.set_most_unsent(128 << 10).unwrap();
        let unsent = socket2::SockRef::from(&socket).tcp_notsent_lowat().unwrap();
        assert_eq!(unsent, 128 << 10);
    }
}
