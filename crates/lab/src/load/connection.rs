//! A connection to a server that speaks in lines with pieces of known length between them.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest line of an answer that is accepted.
const MAX_LINE: u64 = 512;
const BUFFER: usize = 64 << 10;

/// Connects. `timeout` bounds the connecting, and after it every single wait for the server.
pub(super) fn open(address: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    Ok(stream)
}

/// Such a connection.
pub(super) struct Lines {
    stream: BufReader<TcpStream>,
    line: String,
    server: &'static str,
}

impl Lines {
    /// See [`open`]. `server` names it in errors.
    pub(super) fn open(address: SocketAddr, timeout: Duration, server: &'static str) -> io::Result<Self> {
        Ok(Self {
            stream: BufReader::with_capacity(BUFFER, open(address, timeout)?),
            line: String::new(),
            server,
        })
    }

    /// Sends.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// The next line, without its end.
    pub(super) fn read_line(&mut self) -> io::Result<&str> {
        self.line.clear();
        (&mut self.stream).take(MAX_LINE).read_line(&mut self.line)?;
        match self.line.strip_suffix("\r\n") {
            Some(line) => Ok(line),
            None if self.line.is_empty() => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )),
            None => Err(self.unexpected("a line")),
        }
    }

    /// Reads a line that has to be `expected`.
    pub(super) fn expect(&mut self, expected: &str) -> io::Result<()> {
        if self.read_line()? == expected {
            Ok(())
        } else {
            Err(self.unexpected(expected))
        }
    }

    /// The next bytes.
    pub(super) fn read_exact(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.stream.read_exact(bytes)
    }

    /// The line that was read last is not what had to come.
    pub(super) fn unexpected(&self, expected: &str) -> io::Error {
        let (server, found) = (self.server, self.line.trim_end());
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{server} answered {found:?} instead of {expected}"),
        )
    }
}
