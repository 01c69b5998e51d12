//! As much of memcached's text protocol as the client speaks.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use super::connection::Lines;
use super::key_value::Store;

/// A connection to a memcached server.
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
            lines: Lines::open(address, timeout, "memcached")?,
            request: Vec::new(),
        })
    }

    /// The server's version.
    ///
    /// # Errors
    /// When it does not answer in time, or with nonsense.
    pub fn version(&mut self) -> io::Result<String> {
        self.lines.write(b"version\r\n")?;
        let version = self
            .lines
            .read_line()?
            .strip_prefix("VERSION ")
            .map(str::to_owned);
        version.ok_or_else(|| self.lines.unexpected("VERSION"))
    }
}

impl Store for Connection {
    fn send_set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.request.clear();
        write!(self.request, "set {key} 0 0 {}\r\n", value.len())?;
        self.request.extend_from_slice(value);
        self.request.extend_from_slice(b"\r\n");
        self.lines.write(&self.request)
    }

    fn stored(&mut self) -> io::Result<()> {
        self.lines.expect("STORED")
    }

    fn get(&mut self, key: &str, value: &mut Vec<u8>) -> io::Result<bool> {
        self.request.clear();
        write!(self.request, "get {key}\r\n")?;
        self.lines.write(&self.request)?;
        let line = self.lines.read_line()?;
        if line == "END" {
            return Ok(false);
        }
        let length = value_length(line, key).ok_or_else(|| self.lines.unexpected("VALUE or END"))?;
        value.resize(length, 0);
        self.lines.read_exact(value)?;
        self.lines.expect("")?;
        self.lines.expect("END")?;
        Ok(true)
    }
}

/// The length in `VALUE key flags length`.
fn value_length(line: &str, key: &str) -> Option<usize> {
    let mut words = line.strip_prefix("VALUE ")?.split(' ');
    (words.next() == Some(key)).then_some(())?;
    let length: usize = words.nth(1)?.parse().ok()?;
    // memcached's own limit for an item, by default.
    (length <= 1 << 20).then_some(length)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::guards::Process;
    use crate::load::key_value::tests::{check_nonsense, check_server, start};

    /// A memcached of the host's on loopback, or nothing where none is installed.
    pub(in crate::load) fn server(memory_mib: u32) -> Option<(Process, SocketAddr)> {
        start("memcached", |command, port| {
            command.args(["-u", "root", "-l", "127.0.0.1", "-p", port]);
            command.args(["-m", &memory_mib.to_string()]);
        })
    }

    #[test]
    fn values_come_back_from_a_real_server() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let mut connection = Connection::open(address, Duration::from_secs(20)).unwrap();
        assert!(connection.version().unwrap().starts_with('1'));
        check_server(&mut connection);
    }

    #[test]
    fn answers_that_are_none_are_errors() {
        let answers = [
            "STORED",
            "VALUE other 0 3\r\nabc\r\nEND\r\n",
            "VALUE key 0 9999999999\r\n",
            "BOO\r\n",
        ];
        check_nonsense(&answers, "get key\r\n".len(), |address, timeout| {
            Ok(Box::new(Connection::open(address, timeout)?))
        });
    }
}
