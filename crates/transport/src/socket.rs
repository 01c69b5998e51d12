//! What streams over plain sockets have in common.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::net::sockopt;

use crate::stream::{BoxedStream, Stream};

/// A connected socket of the standard library, and what differs from kind to kind.
pub(crate) trait Socket: AsFd + Send + Sync + Sized + 'static
where
    for<'a> &'a Self: Read + Write,
{
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;
    fn set_nodelay(&self, nodelay: bool) -> io::Result<()>;
    fn set_low_delay(&self) -> io::Result<()>;
    fn set_most_unsent(&self, bytes: u32) -> io::Result<()>;
    fn set_peer_timeout(&self, timeout: Duration) -> io::Result<()>;
    fn peer(&self) -> String;
}

/// A stream over a plain socket. Clones share the one descriptor.
pub(crate) struct SocketStream<S> {
    socket: Arc<S>,
    /// Kept from the beginning: a socket that is reset does not know its peer any more.
    peer: Arc<str>,
    written: Arc<AtomicU64>,
}

impl<S: Socket> SocketStream<S>
where
    for<'a> &'a S: Read + Write,
{
    pub(crate) fn new(socket: S) -> Self {
        let peer = socket.peer().into();
        Self {
            socket: Arc::new(socket),
            peer,
            written: Arc::default(),
        }
    }
}

impl<S> Read for SocketStream<S>
where
    for<'a> &'a S: Read,
{
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        (&*self.socket).read(space)
    }

    fn read_vectored(&mut self, spaces: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        (&*self.socket).read_vectored(spaces)
    }
}

impl<S> Write for SocketStream<S>
where
    for<'a> &'a S: Write,
{
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = (&*self.socket).write(bytes)?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let written = (&*self.socket).write_vectored(pieces)?;
        self.written.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S: Socket> Stream for SocketStream<S>
where
    for<'a> &'a S: Read + Write,
{
    fn try_clone(&self) -> io::Result<BoxedStream> {
        Ok(Box::new(Self {
            socket: self.socket.clone(),
            peer: self.peer.clone(),
            written: self.written.clone(),
        }))
    }

    fn shutdown(&self) -> io::Result<()> {
        match self.socket.shutdown(Shutdown::Both) {
            // The peer has ended the connection already.
            Err(error) if error.kind() == ErrorKind::NotConnected => Ok(()),
            result => result,
        }
    }

    fn plain_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_read_timeout(timeout)
    }

    fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        self.socket.set_nodelay(nodelay)
    }

    fn set_low_delay(&self) -> io::Result<()> {
        self.socket.set_low_delay()
    }

    fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(sockopt::set_socket_send_buffer_size(&*self.socket, bytes)?)
    }

    fn set_most_unsent(&self, bytes: u32) -> io::Result<()> {
        self.socket.set_most_unsent(bytes)
    }

    fn set_peer_timeout(&self, timeout: Duration) -> io::Result<()> {
        self.socket.set_peer_timeout(timeout)
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }

    fn bytes_written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn note_written(&self, bytes: u64) {
        self.written.fetch_add(bytes, Ordering::Relaxed);
    }
}
