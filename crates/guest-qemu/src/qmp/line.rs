//! Lines of bounded length from a socket.

use std::io::{self, Read};

/// The longest line accepted. The longest that QEMU sends is its schema, about 250 KB.
pub(super) const MAX_LINE_BYTES: usize = 16 << 20;

/// Splits what it reads into lines without their line end.
pub(super) struct LineReader<R> {
    source: R,
    buffer: Vec<u8>,
    /// Where the first line not yet handed out starts in `buffer`.
    start: usize,
    /// Up to where `buffer` is known to hold no line end.
    searched: usize,
}

impl<R: Read> LineReader<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: Vec::new(),
            start: 0,
            searched: 0,
        }
    }

    /// The next line; `None` at the end of the stream. After an error of kind `WouldBlock` or `TimedOut` it
    /// can be called again, nothing is lost.
    pub(super) fn next_line(&mut self) -> io::Result<Option<&[u8]>> {
        loop {
            if let Some(at) = self.buffer[self.searched..]
                .iter()
                .position(|&byte| byte == b'\n')
            {
                let line = self.start..self.searched + at;
                self.start = line.end + 1;
                self.searched = self.start;
                return Ok(Some(self.buffer[line].trim_ascii_end()));
            }
            self.searched = self.buffer.len();
            if self.searched - self.start > MAX_LINE_BYTES {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("a line longer than {MAX_LINE_BYTES} bytes"),
                ));
            }
            if !self.read_more()? {
                return Ok(None);
            }
        }
    }

    fn read_more(&mut self) -> io::Result<bool> {
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        let filled = self.buffer.len();
        self.buffer.resize(filled + (64 << 10), 0);
        let read = loop {
            match self.source.read(&mut self.buffer[filled..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        self.buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        Ok(read? > 0)
    }

    pub(super) fn source(&self) -> &R {
        &self.source
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_whole_however_they_were_cut() {
        /// Gives its bytes three at a time.
        struct Dribble<'a>(&'a [u8]);
        impl Read for Dribble<'_> {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                let count = self.0.len().min(3).min(into.len());
                into[..count].copy_from_slice(&self.0[..count]);
                self.0 = &self.0[count..];
                Ok(count)
            }
        }
        let mut lines = LineReader::new(Dribble(b"first\r\n\nthe third\nrest"));
        assert_eq!(lines.next_line().unwrap(), Some(&b"first"[..]));
        assert_eq!(lines.next_line().unwrap(), Some(&b""[..]));
        assert_eq!(lines.next_line().unwrap(), Some(&b"the third"[..]));
        assert_eq!(lines.next_line().unwrap(), None);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let error = LineReader::new(io::repeat(b'x')).next_line().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
