//! As much of PostgreSQL's protocol (version 3) as the client speaks: simple queries whose answers are read as text. A library for all
//! of it would bring more than thirty crates.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::connection;

/// Version 3.0.
const PROTOCOL: u32 = 3 << 16;
const PARAMETERS: &[u8] = b"user\0postgres\0database\0postgres\0\0";
/// Longest message that is accepted.
const MAX_MESSAGE: usize = 1 << 20;

/// A connection to a PostgreSQL server that asks for no password.
pub struct Connection {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
}

/// A message from the server.
struct Message {
    kind: u8,
    content: Vec<u8>,
}

impl Connection {
    /// Connects. `timeout` bounds the connecting, and after it every single wait for the server.
    ///
    /// # Errors
    /// When it does not answer in time, with nonsense, or that it serves nobody yet.
    pub fn open(address: SocketAddr, timeout: Duration) -> io::Result<Self> {
        let mut opened = Self {
            stream: BufReader::new(connection::open(address, timeout)?),
            request: Vec::new(),
        };
        let length = (8 + PARAMETERS.len()) as u32;
        opened.request.extend(length.to_be_bytes());
        opened.request.extend(PROTOCOL.to_be_bytes());
        opened.request.extend(PARAMETERS);
        opened.stream.get_mut().write_all(&opened.request)?;
        opened.rows()?;
        Ok(opened)
    }

    /// Lets the server do something, and returns the first column of each row.
    ///
    /// # Errors
    /// When it does not answer in time, with nonsense, or with an error.
    pub fn query(&mut self, statement: &str) -> io::Result<Vec<String>> {
        self.request.clear();
        self.request.push(b'Q');
        self.request
            .extend((4 + statement.len() as u32 + 1).to_be_bytes());
        self.request.extend(statement.as_bytes());
        self.request.push(0);
        self.stream.get_mut().write_all(&self.request)?;
        self.rows()
    }

    /// Waits for at most so long from now on, each time.
    ///
    /// # Errors
    /// When the system does not permit it.
    pub fn set_timeout(&mut self, timeout: Duration) -> io::Result<()> {
        self.stream.get_ref().set_read_timeout(Some(timeout))
    }

    /// Everything until the server is ready for the next query.
    fn rows(&mut self) -> io::Result<Vec<String>> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let Message { kind, content } = self.read()?;
            match kind {
                // Ready.
                b'Z' => return error.map_or(Ok(rows), Err),
                b'D' => rows.push(first_column(&content).ok_or_else(|| nonsense("a row"))?),
                // There is no way on from a fatal one, and the server hangs up.
                b'E' => match said(&content) {
                    (true, text) => return Err(io::Error::other(text)),
                    (false, text) => error = Some(io::Error::other(text)),
                },
                b'R' if content != 0u32.to_be_bytes() => {
                    return Err(io::Error::other("PostgreSQL asks for a password"));
                }
                // Let in; parameters, keys, notices, descriptions of rows, ends of statements.
                b'R' | b'S' | b'K' | b'N' | b'T' | b'C' | b'I' => {}
                _ => return Err(nonsense(&format!("a message of kind {kind}"))),
            }
        }
    }

    fn read(&mut self) -> io::Result<Message> {
        let mut head = [0; 5];
        self.stream.read_exact(&mut head)?;
        let [kind, length @ ..] = head;
        let length = (u32::from_be_bytes(length) as usize).checked_sub(4);
        let length = length.filter(|&length| length <= MAX_MESSAGE);
        let mut content = vec![0; length.ok_or_else(|| nonsense("a length"))?];
        self.stream.read_exact(&mut content)?;
        Ok(Message { kind, content })
    }
}

/// The first of a row's columns; empty where it is null.
fn first_column(row: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(row.get(2..6)?.try_into().ok()?);
    let bytes = match usize::try_from(length) {
        Ok(length) => row.get(6..6 + length)?,
        Err(_) => &[],
    };
    String::from_utf8(bytes.to_vec()).ok()
}

/// Whether an error is fatal, and what it says.
fn said(error: &[u8]) -> (bool, String) {
    let field = |kind: u8| {
        let mut fields = error.split(|&byte| byte == 0);
        let bytes = fields.find_map(|field| field.strip_prefix(&[kind]));
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    };
    let fatal = matches!(field(b'S').as_str(), "FATAL" | "PANIC");
    (fatal, format!("PostgreSQL says: {}", field(b'M')))
}

fn nonsense(what: &str) -> io::Error {
    let why = format!("PostgreSQL answered with {what} that is none");
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn message(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = (4 + content.len() as u32).to_be_bytes();
        [&[kind][..], &length, content].concat()
    }

    fn row(columns: &[Option<&str>]) -> Vec<u8> {
        let mut content = (columns.len() as u16).to_be_bytes().to_vec();
        for column in columns {
            content.extend(column.map_or(-1, |text| text.len() as i32).to_be_bytes());
            content.extend(column.unwrap_or_default().as_bytes());
        }
        message(b'D', &content)
    }

    /// A server that lets its client in and answers the first query with these messages.
    fn answer(answers: Vec<u8>) -> io::Result<Vec<String>> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut greeting = vec![0; 8 + PARAMETERS.len()];
            stream.read_exact(&mut greeting).unwrap();
            let welcome = [
                message(b'R', &[0; 4]),
                message(b'S', b"a\0b\0"),
                message(b'Z', b"I"),
            ];
            stream.write_all(&welcome.concat()).unwrap();
            let mut query = vec![0; 5 + b"SELECT 1\0".len()];
            stream.read_exact(&mut query).unwrap();
            assert!(query.starts_with(b"Q\0\0\0\x0dSELECT 1\0"), "{query:?}");
            // The client may hang up in the middle.
            let _ = stream.write_all(&answers);
        });
        let answer = Connection::open(address, Duration::from_secs(20))?.query("SELECT 1");
        server.join().unwrap();
        answer
    }

    #[test]
    fn rows_are_read() {
        let rows = [row(&[Some("one"), Some("x")]), row(&[None]), row(&[Some("")])].concat();
        let rest = [message(b'C', b"SELECT 3\0"), message(b'Z', b"I")].concat();
        assert_eq!(answer([rows, rest].concat()).unwrap(), ["one", "", ""]);
    }

    #[test]
    fn errors_say_what_the_server_says() {
        let ready = message(b'Z', b"I");
        for (severity, rest) in [("ERROR", ready.clone()), ("FATAL", Vec::new())] {
            let error = message(b'E', format!("S{severity}\0C23505\0Mno way\0\0").as_bytes());
            let error = answer([error, rest].concat()).unwrap_err();
            assert_eq!(error.to_string(), "PostgreSQL says: no way");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        for nonsense in [
            message(b'?', b""),
            message(b'D', b"\0\x01\0\0\0\x09abc"),
            message(b'D', b"\0"),
            message(b'R', &3u32.to_be_bytes()),
            b"D\0\0\0\x03".to_vec(),
            b"D\x7f\0\0\0".to_vec(),
            b"D\0\0\0\x09abc".to_vec(),
            Vec::new(),
        ] {
            assert!(answer(nonsense.clone()).is_err(), "{nonsense:?}");
        }
    }
}
