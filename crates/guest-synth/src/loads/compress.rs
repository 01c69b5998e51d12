//! Compression: texts in RAM are edited and compressed one after the other, the results kept in RAM.

use serde::{Deserialize, Serialize};
use vmferry_core::PAGE_SIZE;
use xxhash_rust::xxh3::xxh3_64;

use crate::loads::text::write_text;
use crate::loads::{Checks, Context, Cursor, Load};
use crate::memory::{GuestMemory, Region, mix3};

const TEXT_PAGES: u64 = 4;
const TEXT_BYTES: usize = (TEXT_PAGES * PAGE_SIZE) as usize;
/// A result and its header, with room for a text that does not compress.
const RESULT_PAGES: u64 = 5;
const HEADER_WORDS: usize = 4;
const HEADER_BYTES: u64 = HEADER_WORDS as u64 * 8;
const MAX_RESULT_BYTES: usize = (RESULT_PAGES * PAGE_SIZE - HEADER_BYTES) as usize;
/// Length of the line that an edit changes.
const EDITION_BYTES: usize = 32;

/// The texts, then their results. A text starts with the number of its edition; texts before the cursor are in
/// this lap's edition, the others in that of the lap before, and so are the results.
pub(crate) struct Compress {
    region: Region,
    seed: u64,
    texts: u64,
    cursor: CompressCursor,
}

/// How far the load is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CompressCursor {
    /// Complete passes over the texts.
    lap: u64,
    /// Next text to edit.
    text: u64,
}

/// What stands before a compressed text.
struct Header {
    edition: u64,
    len_bytes: u64,
    text_hash: u64,
    result_hash: u64,
}

impl Compress {
    pub(crate) fn new(region: Region, seed: u64) -> Self {
        let texts = region.pages / (TEXT_PAGES + RESULT_PAGES);
        Self {
            region,
            seed,
            texts,
            cursor: CompressCursor::default(),
        }
    }

    fn text_offset(&self, text: u64) -> u64 {
        self.region.page(text * TEXT_PAGES)
    }

    fn result_offset(&self, text: u64) -> u64 {
        self.region.page(self.texts * TEXT_PAGES + text * RESULT_PAGES)
    }

    /// Compresses `content`, which is `edition` of text `text`, into RAM.
    fn store_result(&self, ram: &GuestMemory, text: u64, edition: u64, content: &[u8]) {
        let mut result = [0; MAX_RESULT_BYTES];
        let len = lz4_flex::block::compress_into(content, &mut result).expect("there is room for the worst");
        let result = &result[..len];
        let header = [edition, len as u64, xxh3_64(content), xxh3_64(result)];
        let offset = self.result_offset(text);
        ram.write(offset + HEADER_BYTES, result);
        ram.write_words(offset, &header);
    }

    fn load_header(&self, ram: &GuestMemory, text: u64) -> Header {
        let mut words = [0; HEADER_WORDS];
        ram.read_words(self.result_offset(text), &mut words);
        let [edition, len_bytes, text_hash, result_hash] = words;
        Header {
            edition,
            len_bytes,
            text_hash,
            result_hash,
        }
    }

    /// Checks that `content` is `edition` of text `text` and that the result is its compressed form.
    fn check(&self, ram: &GuestMemory, text: u64, edition: u64, content: &[u8]) -> Result<(), String> {
        let page = self.region.first_page + text * TEXT_PAGES;
        if content[..EDITION_BYTES] != edition_line(edition) {
            return Err(format!(
                "compression: the text at page {page} is not in edition {edition}"
            ));
        }
        let header = self.load_header(ram, text);
        let result_page = self.result_offset(text) / PAGE_SIZE;
        if header.edition != edition || header.len_bytes > MAX_RESULT_BYTES as u64 {
            let found = header.edition;
            return Err(format!(
                "compression: the result at page {result_page} is of edition {found}, expected {edition}"
            ));
        }
        if header.text_hash != xxh3_64(content) {
            return Err(format!("compression: the text at page {page} is damaged"));
        }
        let mut result = [0; MAX_RESULT_BYTES];
        let result = &mut result[..header.len_bytes as usize];
        ram.read(self.result_offset(text) + HEADER_BYTES, result);
        let mut decompressed = [0; TEXT_BYTES];
        let decoded = lz4_flex::block::decompress_into(result, &mut decompressed);
        if header.result_hash != xxh3_64(result) || decoded.is_err() || decompressed != *content {
            return Err(format!(
                "compression: the result at page {result_page} does not decompress to its text"
            ));
        }
        Ok(())
    }

    fn read_text(&self, ram: &GuestMemory, text: u64) -> [u8; TEXT_BYTES] {
        let mut content = [0; TEXT_BYTES];
        ram.read(self.text_offset(text), &mut content);
        content
    }

    fn first_edition(&self, text: u64) -> [u8; TEXT_BYTES] {
        let mut content = [0; TEXT_BYTES];
        content[..EDITION_BYTES].copy_from_slice(&edition_line(0));
        write_text(mix3(self.seed, text, 0), &mut content[EDITION_BYTES..]);
        content
    }
}

/// The line by which editions differ.
fn edition_line(edition: u64) -> [u8; EDITION_BYTES] {
    let line = format!("Edition {edition:>22}.\n");
    line.as_bytes()
        .try_into()
        .expect("the number has at most 20 digits")
}

impl Load for Compress {
    fn prefill(&self, ram: &GuestMemory) {
        for text in 0..self.texts {
            let content = self.first_edition(text);
            ram.write(self.text_offset(text), &content);
            self.store_result(ram, text, 0, &content);
        }
    }

    fn operate(&mut self, cx: &mut Context<'_>) {
        let CompressCursor { lap, text } = self.cursor;
        let mut content = self.read_text(cx.ram, text);
        cx.checks.record(self.check(cx.ram, text, lap, &content));
        let line = edition_line(lap + 1);
        content[..EDITION_BYTES].copy_from_slice(&line);
        cx.ram.write(self.text_offset(text), &line);
        self.store_result(cx.ram, text, lap + 1, &content);
        self.cursor = match text + 1 {
            end if end == self.texts => CompressCursor {
                lap: lap + 1,
                text: 0,
            },
            text => CompressCursor { lap, text },
        };
    }

    fn verify(&self, ram: &GuestMemory, checks: &mut Checks) {
        for text in 0..self.texts {
            let edition = self.cursor.lap + u64::from(text < self.cursor.text);
            let content = self.read_text(ram, text);
            checks.record(self.check(ram, text, edition, &content));
            let original = self.first_edition(text);
            checks.expect(content[EDITION_BYTES..] == original[EDITION_BYTES..], || {
                format!("compression: text {text} is not the one that was written at the start")
            });
        }
    }

    fn cursor(&self) -> Cursor {
        Cursor::Compress(self.cursor.clone())
    }

    fn restore(&mut self, cursor: &Cursor) -> bool {
        match cursor {
            Cursor::Compress(cursor) if cursor.text < self.texts && cursor.lap < u64::MAX / 2 => {
                self.cursor = cursor.clone();
                true
            }
            _ => false,
        }
    }
}
