//! Text that reads like text to a compressor.

use crate::memory::mix;

const WORDS: [&str; 64] = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "it",
    "was",
    "for",
    "on",
    "are",
    "with",
    "as",
    "his",
    "they",
    "at",
    "be",
    "this",
    "from",
    "have",
    "or",
    "by",
    "one",
    "had",
    "not",
    "but",
    "what",
    "all",
    "were",
    "when",
    "there",
    "can",
    "machine",
    "memory",
    "page",
    "network",
    "host",
    "source",
    "journey",
    "harbour",
    "ferry",
    "passenger",
    "river",
    "crossing",
    "evening",
    "measure",
    "sixteen",
    "between",
    "another",
    "question",
    "answer",
    "quickly",
    "without",
    "remember",
    "stillness",
    "paused",
    "resumed",
    "counted",
    "vessel",
    "anchor",
    "current",
    "bridge",
    "shore",
];

/// Fills `text` with words chosen by `seed`.
pub(crate) fn write_text(seed: u64, text: &mut [u8]) {
    let mut at = 0;
    let mut state = seed;
    while at < text.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let bits = mix(state);
        let word = WORDS[(bits % WORDS.len() as u64) as usize].as_bytes();
        let separator = if bits >> 60 == 0 { b". " as &[u8] } else { b" " };
        for part in [word, separator] {
            let len = part.len().min(text.len() - at);
            text[at..at + len].copy_from_slice(&part[..len]);
            at += len;
        }
    }
}
