//! As much of memcached's text protocol as the client speaks.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest line of an answer that is accepted.
const MAX_LINE: u64 = 512;

/// A connection to a memcached server.
pub struct Connection {
    stream: BufReader<TcpStream>,
    line: String,
    request: Vec<u8>,
}

impl Connection {
    /// Connects. `timeout` bounds the connecting, and after it every single wait for the server.
    ///
    /// # Errors
    /// When it does not answer in time, or with nonsense.
    pub fn open(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(Self {
            stream: BufReader::with_capacity(64 << 10, stream),
            line: String::new(),
            request: Vec::new(),
        })
    }

    /// The server's version.
    ///
    /// # Errors
    /// When it does not answer in time, or with nonsense.
    pub fn version(&mut self) -> io::Result<String> {
        self.stream.get_mut().write_all(b"version\r\n")?;
        let line = self.read_line()?;
        line.strip_prefix("VERSION ")
            .map(str::to_owned)
            .ok_or_else(|| unexpected("VERSION", line))
    }

    /// Stores a value.
    ///
    /// # Errors
    /// When it does not answer in time, or with nonsense.
    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.send_set(key, value)?;
        self.stored()
    }

    /// Stores values, `window` requests ahead of the answers, which is much faster than one by one. `more` writes
    /// the next value into its buffer and returns its key.
    ///
    /// # Errors
    /// See [`Connection::set`].
    pub fn set_all(
        &mut self,
        window: usize,
        mut more: impl FnMut(&mut Vec<u8>) -> Option<String>,
    ) -> io::Result<()> {
        let mut value = Vec::new();
        let mut waiting = 0;
        while let Some(key) = more(&mut value) {
            self.send_set(&key, &value)?;
            waiting += 1;
            if waiting == window {
                self.stored()?;
                waiting -= 1;
            }
        }
        (0..waiting).try_for_each(|_| self.stored())
    }

    /// Reads the value of a key into `value`; `false` when there is none.
    ///
    /// # Errors
    /// See [`Connection::set`].
    pub fn get(&mut self, key: &str, value: &mut Vec<u8>) -> io::Result<bool> {
        self.request.clear();
        write!(self.request, "get {key}\r\n")?;
        self.stream.get_mut().write_all(&self.request)?;
        let line = self.read_line()?;
        if line == "END" {
            return Ok(false);
        }
        let length = value_length(line, key).ok_or_else(|| unexpected("VALUE or END", line))?;
        value.resize(length, 0);
        self.stream.read_exact(value)?;
        for expected in ["", "END"] {
            let line = self.read_line()?;
            if line != expected {
                return Err(unexpected("END", line));
            }
        }
        Ok(true)
    }

    fn send_set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        self.request.clear();
        write!(self.request, "set {key} 0 0 {}\r\n", value.len())?;
        self.request.extend_from_slice(value);
        self.request.extend_from_slice(b"\r\n");
        self.stream.get_mut().write_all(&self.request)
    }

    fn stored(&mut self) -> io::Result<()> {
        let line = self.read_line()?;
        if line == "STORED" {
            Ok(())
        } else {
            Err(unexpected("STORED", line))
        }
    }

    fn read_line(&mut self) -> io::Result<&str> {
        self.line.clear();
        (&mut self.stream).take(MAX_LINE).read_line(&mut self.line)?;
        match self.line.strip_suffix("\r\n") {
            Some(line) => Ok(line),
            None if self.line.is_empty() => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the server closed the connection",
            )),
            None => Err(unexpected("a line", &self.line)),
        }
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

fn unexpected(expected: &str, found: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("memcached answered {found:?} instead of {expected}"),
    )
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::TcpListener;
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;
    use crate::guards::Process;

    const TIMEOUT: Duration = Duration::from_secs(20);

    /// A memcached of the host's on loopback, or nothing where none is installed.
    pub(crate) fn server(memory_mib: u32) -> Option<(Process, SocketAddr)> {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new("memcached");
        command.args(["-u", "root", "-l", "127.0.0.1", "-p", &address.port().to_string()]);
        command
            .args(["-m", &memory_mib.to_string()])
            .stderr(Stdio::null());
        let Ok(child) = command.spawn() else {
            eprintln!("skipped: memcached is not installed");
            return None;
        };
        let process = Process::new(child);
        let end = Instant::now() + TIMEOUT;
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < end, "memcached does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        Some((process, address))
    }

    #[test]
    fn values_come_back_from_a_real_server() {
        let Some((_server, address)) = server(64) else {
            return;
        };
        let mut connection = Connection::open(address, TIMEOUT).unwrap();
        assert!(connection.version().unwrap().starts_with('1'));
        let mut value = Vec::new();
        assert!(!connection.get("nothing", &mut value).unwrap());
        connection.set("key", b"a value with\r\nEND\r\nin it").unwrap();
        assert!(connection.get("key", &mut value).unwrap());
        assert_eq!(value, b"a value with\r\nEND\r\nin it");

        let mut number = 0u32;
        let next = |value: &mut Vec<u8>| {
            number += 1;
            value.clear();
            value.extend_from_slice(&number.to_le_bytes());
            (number <= 1000).then(|| format!("n{number}"))
        };
        connection.set_all(64, next).unwrap();
        for number in [1u32, 500, 1000] {
            assert!(connection.get(&format!("n{number}"), &mut value).unwrap());
            assert_eq!(value, number.to_le_bytes());
        }
    }

    #[test]
    fn answers_that_are_none_are_errors() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let long = "x".repeat(4096);
        let answers = [
            "STORED",
            "VALUE other 0 3\r\nabc\r\nEND\r\n",
            "VALUE key 0 9999999999\r\n",
            "BOO\r\n",
            &long,
            "",
        ];
        for answer in answers {
            let peer = std::thread::spawn({
                let (listener, answer) = (listener.try_clone().unwrap(), answer.to_owned());
                move || {
                    let (mut stream, _) = listener.accept().unwrap();
                    stream.read_exact(&mut [0; 9]).unwrap();
                    // The client may hang up in the middle of the long one.
                    let _ = stream.write_all(answer.as_bytes());
                }
            });
            let mut connection = Connection::open(address, TIMEOUT).unwrap();
            assert!(connection.get("key", &mut Vec::new()).is_err(), "{answer:?}");
            peer.join().unwrap();
        }
    }
}
