//! A client of an NBD export: one request at a time, over any stream.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::{
    Fields, GREETING, MAX_NAME_BYTES, MAX_OPTION_BYTES, MAX_REQUEST_BYTES, OPTION, OPTION_REPLY, RequestHead,
    SIMPLE_REPLY, STRUCTURED_REPLY, answer, can, chunk, command, handshake, info, option, read_array,
    read_vec, write_all,
};
use crate::error::{DiskError, Result};

/// The context in which an export tells holes and zeros.
pub const ALLOCATION: &str = "base:allocation";
/// The most extents that are taken in one answer.
const MAX_EXTENTS: u32 = 1 << 20;
/// What is being done, in errors.
const GREETED: &str = "the greeting of an NBD server";
const ANSWERED: &str = "the answer of an NBD server";

/// A part of an export of which a metadata context says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, bytes.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// What the context says.
    pub flags: u32,
}

impl Extent {
    /// In [`ALLOCATION`]: whether it reads as zeros. In a dirty bitmap's context: see [`Extent::is_dirty`].
    pub const fn is_zero(&self) -> bool {
        self.flags & 2 != 0
    }

    /// In the context of a dirty bitmap: whether it was written.
    pub const fn is_dirty(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// The replies to an option: their kinds and what is in them.
type Answers = Vec<(u32, Vec<u8>)>;

/// A connection to an export.
#[derive(Debug)]
pub struct NbdClient<S> {
    stream: S,
    bytes: u64,
    flags: u16,
    structured: bool,
    context: Option<u32>,
    cookie: u64,
}

impl NbdClient<UnixStream> {
    /// Connects to the export of a server at a unix socket, with a metadata context if one is named.
    ///
    /// # Errors
    /// When nobody listens there, or as [`NbdClient::open`].
    pub fn connect(socket: &Path, export: &str, context: Option<&str>) -> Result<Self> {
        let stream = UnixStream::connect(socket).map_err(DiskError::stream("reach the NBD server"))?;
        Self::open(stream, export, context)
    }
}

impl<S: Read + Write> NbdClient<S> {
    /// Takes up an export over a stream that was just connected, with a metadata context if one is named.
    ///
    /// # Errors
    /// When there is no such export, or it has no such context.
    pub fn open(stream: S, export: &str, context: Option<&str>) -> Result<Self> {
        let mut client = Self {
            stream,
            bytes: 0,
            flags: 0,
            structured: false,
            context: None,
            cookie: 0,
        };
        client.greet()?;
        client.structured = client.ask(option::STRUCTURED_REPLY, &[])?.is_ok();
        if let Some(context) = context {
            client.choose_context(export, context)?;
        }
        client.go(export)?;
        Ok(client)
    }

    /// Size of the export in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether the export cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.flags & can::READ_ONLY != 0
    }

    /// Reads at `offset` until `data` is full.
    ///
    /// # Errors
    /// When the server fails, or the range does not lie in the export.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        for (index, part) in data.chunks_mut(MAX_REQUEST_BYTES as usize).enumerate() {
            let offset = offset + index as u64 * u64::from(MAX_REQUEST_BYTES);
            self.send(command::READ, 0, offset, part.len() as u32)?;
            self.receive("reading", offset, Some(part), None)?;
        }
        Ok(())
    }

    /// Writes `data` at `offset`.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_range(offset, data.len() as u64)?;
        for (index, part) in data.chunks(MAX_REQUEST_BYTES as usize).enumerate() {
            let offset = offset + index as u64 * u64::from(MAX_REQUEST_BYTES);
            self.send(command::WRITE, 0, offset, part.len() as u32)?;
            write_all(&mut self.stream, part, "write to an NBD export")?;
            self.receive("writing", offset, None, None)?;
        }
        Ok(())
    }

    /// Makes a range read as zeros, as a hole where that is possible.
    ///
    /// # Errors
    /// As [`NbdClient::read`].
    pub fn write_zeroes(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.check_range(offset, bytes)?;
        if self.flags & can::WRITE_ZEROES == 0 {
            return self.write_plain_zeroes(offset, bytes);
        }
        let mut at = offset;
        while at < offset + bytes {
            let len = (offset + bytes - at).min(u64::from(u32::MAX >> 1) & !0xffff);
            self.send(command::WRITE_ZEROES, 0, at, len as u32)?;
            self.receive("zeroing", at, None, None)?;
            at += len;
        }
        Ok(())
    }

    /// Everything written before is on stable storage when this returns.
    ///
    /// # Errors
    /// When the server fails.
    pub fn flush(&mut self) -> Result<()> {
        if self.flags & can::FLUSH == 0 {
            return Ok(());
        }
        self.send(command::FLUSH, 0, 0, 0)?;
        self.receive("flushing", 0, None, None)
    }

    /// What the metadata context says of a range; the answer may end before the range does, and has at least one extent.
    ///
    /// # Errors
    /// Without a context, or as [`NbdClient::read`].
    pub fn extents(&mut self, offset: u64, bytes: u64) -> Result<Vec<Extent>> {
        self.check_range(offset, bytes)?;
        if self.context.is_none() {
            return Err(DiskError::unexpected(
                "a question about extents",
                "a metadata context to be chosen first",
            ));
        }
        let len = bytes.min(u64::from(u32::MAX >> 1) & !0xffff).max(1) as u32;
        self.send(command::BLOCK_STATUS, 0, offset, len)?;
        let mut extents = Vec::new();
        self.receive("asking for extents", offset, None, Some(&mut extents))?;
        // The last one may go on behind the range.
        let end = offset + bytes;
        for extent in &mut extents {
            extent.bytes = extent.bytes.min(end.saturating_sub(extent.offset));
        }
        extents.retain(|extent| extent.bytes > 0);
        match extents.is_empty() {
            true => Err(DiskError::unexpected("no extent", "at least one")),
            false => Ok(extents),
        }
    }

    /// Ends the connection in order.
    pub fn disconnect(mut self) {
        let _ = self.send(command::DISCONNECT, 0, 0, 0);
    }

    fn write_plain_zeroes(&mut self, offset: u64, bytes: u64) -> Result<()> {
        let zeros = vec![0; bytes.min(1 << 20) as usize];
        let mut at = offset;
        while at < offset + bytes {
            let len = (offset + bytes - at).min(zeros.len() as u64);
            self.write(at, &zeros[..len as usize])?;
            at += len;
        }
        Ok(())
    }

    fn check_range(&self, offset: u64, bytes: u64) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(DiskError::unexpected(
                format!("a range of {bytes} bytes at {offset}"),
                format!("one within the {} bytes of the export", self.bytes),
            )),
        }
    }

    fn greet(&mut self) -> Result<()> {
        let greeting: [u8; 18] = read_array(&mut self.stream, GREETED)?;
        let mut fields = Fields(&greeting);
        if (fields.u64()?, fields.u64()?) != (GREETING, OPTION) {
            return Err(DiskError::unexpected("something else", GREETED));
        }
        let flags = fields.u16()?;
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(DiskError::unexpected(
                "an old handshake",
                "the fixed newstyle handshake of NBD",
            ));
        }
        let ours = u32::from(handshake::FIXED_NEWSTYLE | flags & handshake::NO_ZEROES);
        write_all(&mut self.stream, &ours.to_be_bytes(), "greet an NBD server")
    }

    /// Sends an option; answers the payloads of its replies, or the error.
    fn ask(&mut self, number: u32, data: &[u8]) -> Result<std::result::Result<Answers, String>> {
        let mut message = OPTION.to_be_bytes().to_vec();
        message.extend(number.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        write_all(&mut self.stream, &message, "ask an NBD server")?;
        let mut answers = Vec::new();
        loop {
            let head: [u8; 20] = read_array(&mut self.stream, ANSWERED)?;
            let mut fields = Fields(&head);
            let (magic, about, kind, len) = (fields.u64()?, fields.u32()?, fields.u32()?, fields.u32()?);
            if (magic, about) != (OPTION_REPLY, number) {
                return Err(DiskError::unexpected("something else", ANSWERED));
            }
            let payload = read_vec(&mut self.stream, len, MAX_OPTION_BYTES, ANSWERED)?;
            match kind {
                answer::ACK => return Ok(Ok(answers)),
                kind if kind & answer::ERROR != 0 => {
                    let said = String::from_utf8_lossy(&payload).into_owned();
                    return Ok(Err(format!("error {} {said}", kind & !answer::ERROR)
                        .trim_end()
                        .to_owned()));
                }
                kind => answers.push((kind, payload)),
            }
            if answers.len() > 64 {
                return Err(DiskError::unexpected("more than 64 parts", ANSWERED));
            }
        }
    }

    fn choose_context(&mut self, export: &str, context: &str) -> Result<()> {
        let why = |why: String| DiskError::Export {
            export: export.to_owned(),
            why,
        };
        if !self.structured {
            return Err(why("its server knows no metadata".into()));
        }
        let mut query = counted(export);
        query.extend(1u32.to_be_bytes());
        query.extend(counted(context));
        let answers = self.ask(option::SET_META_CONTEXT, &query)?.map_err(why)?;
        for (kind, payload) in answers {
            let mut fields = Fields(&payload);
            let id = fields.u32()?;
            if kind == answer::META_CONTEXT && fields.0 == context.as_bytes() {
                self.context = Some(id);
            }
        }
        match self.context {
            Some(_) => Ok(()),
            None => Err(why(format!("it has no context {context:?}"))),
        }
    }

    fn go(&mut self, export: &str) -> Result<()> {
        let why = |why: String| DiskError::Export {
            export: export.to_owned(),
            why,
        };
        if export.len() > MAX_NAME_BYTES {
            return Err(why("its name is too long".into()));
        }
        let mut wish = counted(export);
        wish.extend(0u16.to_be_bytes());
        let answers = self.ask(option::GO, &wish)?.map_err(why)?;
        for (kind, payload) in answers {
            let mut fields = Fields(&payload);
            if kind == answer::INFO && fields.u16()? == info::EXPORT {
                self.bytes = fields.u64()?;
                self.flags = fields.u16()?;
                return Ok(());
            }
        }
        Err(DiskError::unexpected("nothing about the export", "its size"))
    }

    fn send(&mut self, command: u16, flags: u16, offset: u64, len: u32) -> Result<()> {
        self.cookie += 1;
        let head = RequestHead {
            flags,
            command,
            cookie: self.cookie,
            offset,
            len,
        };
        write_all(
            &mut self.stream,
            &head.encode(),
            "send a request to an NBD server",
        )
    }

    /// Receives the reply to the request that was sent last.
    fn receive(
        &mut self,
        doing: &'static str,
        offset: u64,
        mut data: Option<&mut [u8]>,
        mut extents: Option<&mut Vec<Extent>>,
    ) -> Result<()> {
        let mut failed = None;
        loop {
            let magic = u32::from_be_bytes(read_array(&mut self.stream, ANSWERED)?);
            if magic == SIMPLE_REPLY {
                let code = self.simple_reply()?;
                if let (0, Some(data)) = (code, &mut data) {
                    self.stream
                        .read_exact(data)
                        .map_err(DiskError::stream(ANSWERED))?;
                }
                failed = (code != 0).then_some(code);
                break;
            }
            if magic != STRUCTURED_REPLY || !self.structured {
                return Err(DiskError::unexpected(format!("{magic:#x}"), ANSWERED));
            }
            let head: [u8; 16] = read_array(&mut self.stream, ANSWERED)?;
            let mut fields = Fields(&head);
            let (flags, kind, cookie, len) = (fields.u16()?, fields.u16()?, fields.u64()?, fields.u32()?);
            self.check_cookie(cookie)?;
            match (kind, &mut data, &mut extents) {
                (chunk::NONE, ..) => drop(read_vec(&mut self.stream, len, 0, ANSWERED)?),
                (chunk::OFFSET_DATA, Some(data), _) => self.take_data(offset, len, data)?,
                (chunk::OFFSET_HOLE, Some(data), _) => self.take_hole(offset, len, data)?,
                (chunk::BLOCK_STATUS, _, Some(extents)) => self.take_extents(offset, len, extents)?,
                (kind, ..) if kind & chunk::ERROR != 0 => {
                    let payload = read_vec(&mut self.stream, len, MAX_OPTION_BYTES, ANSWERED)?;
                    failed = Some(Fields(&payload).u32()?);
                }
                _ => return Err(DiskError::unexpected(format!("a reply of kind {kind}"), ANSWERED)),
            }
            if flags & chunk::DONE != 0 {
                break;
            }
        }
        match failed {
            Some(code) => Err(DiskError::Refused { doing, offset, code }),
            None => Ok(()),
        }
    }

    fn simple_reply(&mut self) -> Result<u32> {
        let head: [u8; 12] = read_array(&mut self.stream, ANSWERED)?;
        let mut fields = Fields(&head);
        let (code, cookie) = (fields.u32()?, fields.u64()?);
        self.check_cookie(cookie)?;
        Ok(code)
    }

    fn check_cookie(&self, cookie: u64) -> Result<()> {
        match cookie == self.cookie {
            true => Ok(()),
            false => Err(DiskError::unexpected("the reply to another request", ANSWERED)),
        }
    }

    fn take_data(&mut self, offset: u64, len: u32, data: &mut [u8]) -> Result<()> {
        let at = u64::from_be_bytes(read_array(&mut self.stream, ANSWERED)?);
        let part = part_of(data, offset, at, u64::from(len).wrapping_sub(8))?;
        self.stream.read_exact(part).map_err(DiskError::stream(ANSWERED))
    }

    fn take_hole(&mut self, offset: u64, len: u32, data: &mut [u8]) -> Result<()> {
        let payload = read_vec(&mut self.stream, len, 12, ANSWERED)?;
        let mut fields = Fields(&payload);
        let (at, bytes) = (fields.u64()?, fields.u32()?);
        part_of(data, offset, at, bytes.into())?.fill(0);
        Ok(())
    }

    fn take_extents(&mut self, offset: u64, len: u32, extents: &mut Vec<Extent>) -> Result<()> {
        let payload = read_vec(&mut self.stream, len, 4 + 8 * MAX_EXTENTS, ANSWERED)?;
        let mut fields = Fields(&payload);
        if Some(fields.u32()?) != self.context {
            return Err(DiskError::unexpected("extents of another context", ANSWERED));
        }
        let mut at = offset;
        while !fields.0.is_empty() {
            let bytes = u64::from(fields.u32()?);
            extents.push(Extent {
                offset: at,
                bytes,
                flags: fields.u32()?,
            });
            at += bytes;
        }
        Ok(())
    }
}

/// The part of `data`, which stands for what lies at `offset`, of `bytes` at `at`.
fn part_of(data: &mut [u8], offset: u64, at: u64, bytes: u64) -> Result<&mut [u8]> {
    let begins = at.checked_sub(offset);
    let range =
        begins.and_then(|begins| Some(begins as usize..usize::try_from(begins.checked_add(bytes)?).ok()?));
    range
        .and_then(|range| data.get_mut(range))
        .ok_or_else(|| DiskError::unexpected(format!("{bytes} bytes at {at}"), "data of what was asked for"))
}

fn counted(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
