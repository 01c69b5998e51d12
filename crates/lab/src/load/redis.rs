//! As much of redis' protocol (RESP, version 2) as the client speaks.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use super::connection::Lines;
use super::key_value::Store;

/// Longest value that is accepted: far longer than any that is stored.
const MAX_VALUE: usize = 16 << 20;

/// A connection to a redis server.
pub struct Connection {
    lines: Lines,
    request: Vec<u8>,
}

impl Connection {
    /// Connects. `timeout` bounds the connecting, and after it every single wait for the server.
    ///
    /// # Errors
    /// When it does not answer in time, or with nonsense.
    pub fn open(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        Ok(Self {
            lines: Lines::open(address, timeout, "redis")?,
            request: Vec::new(),
        })
    }

    /// Asks whether it is there.
    ///
    /// # Errors
    /// When it does not answer in time, or with nonsense.
    pub fn ping(&mut self) -> io::Result<()> {
        self.send(&[b"PING"])?;
        self.lines.expect("+PONG")
    }

    /// A command is an array of strings, each with its length before it.
    fn send(&mut self, words: &[&[u8]]) -> io::Result<()> {
        self.request.clear();
        write!(self.request, "*{}\r\n", words.len())?;
        for word in words {
            write!(self.request, "${}\r\n", word.len())?;
            self.request.extend_from_slice(word);
            self.request.extend_from_slice(b"\r\n");
        }
        self.lines.write(&self.request)
    }
}

impl Store for Connection {
    fn send_set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.send(&[b"SET", key.as_bytes(), value])
    }

    fn stored(&mut self) -> io::Result<()> {
        self.lines.expect("+OK")
    }

    fn get(&mut self, key: &str, value: &mut Vec<u8>) -> io::Result<bool> {
        self.send(&[b"GET", key.as_bytes()])?;
        let line = self.lines.read_line()?;
        if line == "$-1" {
            return Ok(false);
        }
        let length: Option<usize> = line.strip_prefix('$').and_then(|length| length.parse().ok());
        let length = length.filter(|&length| length <= MAX_VALUE);
        value.resize(length.ok_or_else(|| self.lines.unexpected("a value"))?, 0);
        self.lines.read_exact(value)?;
        self.lines.expect("")?;
        Ok(true)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::guards::Process;
    use crate::load::key_value::tests::{check_nonsense, check_server, start};

    /// A redis of the host's on loopback, or nothing where none is installed.
    pub(in crate::load) fn server() -> Option<(Process, SocketAddr)> {
        start("redis-server", |command, port| {
            command.args(["--bind", "127.0.0.1", "--port", port, "--save", ""]);
        })
    }

    #[test]
    fn values_come_back_from_a_real_server() {
        let Some((_server, address)) = server() else {
            return;
        };
        let mut connection = Connection::open(address, Duration::from_secs(20)).unwrap();
        connection.ping().unwrap();
        check_server(&mut connection);
    }

    #[test]
    fn answers_that_are_none_are_errors() {
        let answers = [
            "+OK\r\n",
            "$3\r\nabcdef\r\n",
            "$99999999999\r\n",
            "-ERR no\r\n",
            "$-2\r\n",
        ];
        check_nonsense(
            &answers,
            "*2\r\n$3\r\nGET\r\n$3\r\nkey\r\n".len(),
            |address, timeout| Ok(Box::new(Connection::open(address, timeout)?)),
        );
    }
}
