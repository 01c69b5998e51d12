//! A connection, whatever it runs over.

use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// After how long without a sign of life a peer counts as gone, unless set otherwise.
pub const DEFAULT_PEER_TIMEOUT: Duration = Duration::from_secs(15);

/// A stream of any kind.
pub type BoxedStream = Box<dyn Stream>;

/// A connection: bytes in order, both ways at once. Clones share it, so one thread can read while another
/// one writes, and options set on one hold for all.
///
/// Streams come with Nagle's algorithm off and notice a peer that is gone after [`DEFAULT_PEER_TIMEOUT`].
pub trait Stream: Read + Write + Send {
    /// Another handle of the same connection.
    ///
    /// # Errors
    /// When the system refuses.
    fn try_clone(&self) -> io::Result<BoxedStream>;

    /// Ends the connection both ways, for all clones: who reads or writes in another thread returns.
    /// Ending what has ended is no error.
    ///
    /// # Errors
    /// When the system refuses.
    fn shutdown(&self) -> io::Result<()>;

    /// The socket, where bytes written to it are the bytes of the stream: so that pages need no copy in user
    /// space. What goes this way is told to [`Stream::note_written`]. None where the stream is encoded.
    fn plain_fd(&self) -> Option<BorrowedFd<'_>>;

    /// After how long a read without a byte fails with `WouldBlock` or `TimedOut`; none waits for ever.
    ///
    /// # Errors
    /// When it is zero, or the system refuses.
    fn set_read_timeout(&self, timeout: Option<Duration>) -> io::Result<()>;

    /// Whether small writes go out at once (no Nagle's algorithm). Means nothing but over TCP.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_nodelay(&self, nodelay: bool) -> io::Result<()>;

    /// Marks what is sent as little and urgent (type of service: low delay), so that queues on the way which look at
    /// that let it pass bulk data. Means nothing but over TCP.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_low_delay(&self) -> io::Result<()>;

    /// How many bytes may wait to be sent; the system doubles and bounds it.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_send_buffer(&self, bytes: usize) -> io::Result<()>;

    /// How many bytes may wait behind those that are on their way: a write that would leave more of them blocks until they
    /// are fewer. Unlike a small send buffer this costs no throughput on a long way. Means nothing but over TCP.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_most_unsent(&self, bytes: u32) -> io::Result<()>;

    /// After how long without a sign of life the peer counts as gone, and reads and writes fail: at least a
    /// second. A peer that acknowledges but does not read for this long while something is to be sent
    /// counts as gone, too. Means nothing but between hosts.
    ///
    /// # Errors
    /// When the system refuses.
    fn set_peer_timeout(&self, timeout: Duration) -> io::Result<()>;

    /// Who is at the other end, for messages.
    fn peer(&self) -> String;

    /// Bytes written on all clones, those of [`Stream::note_written`] included.
    fn bytes_written(&self) -> u64;

    /// Counts bytes that were written to [`Stream::plain_fd`] directly.
    fn note_written(&self, bytes: u64);
}
