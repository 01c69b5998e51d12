//! Text that compresses like text: words of a made-up vocabulary, the common ones often, in lines.

const VOCABULARY: usize = 4096;
const LINE: usize = 72;

/// So many bytes, the same every time.
pub(crate) fn write(bytes: usize) -> Vec<u8> {
    let mut numbers = Numbers(1);
    let vocabulary: Vec<Vec<u8>> = (0..VOCABULARY).map(|_| word(&mut numbers)).collect();
    let mut text = Vec::with_capacity(bytes + LINE);
    let mut line = 0;
    while text.len() < bytes {
        // A bound that is itself a number of chance makes the first words the likely ones.
        let bound = (0..2).fold(VOCABULARY, |bound, _| 1 + numbers.below(bound));
        let word = &vocabulary[numbers.below(bound)];
        text.extend_from_slice(word);
        line += word.len() + 1;
        text.push(if line > LINE { b'\n' } else { b' ' });
        if line > LINE {
            line = 0;
        }
    }
    text.truncate(bytes);
    text
}

fn word(numbers: &mut Numbers) -> Vec<u8> {
    const LETTERS: &[u8] = b"eeeettaaooinnssrrhhldcumfpgwybvkxjqz";
    let length = 2 + numbers.below(9);
    (0..length)
        .map(|_| LETTERS[numbers.below(LETTERS.len())])
        .collect()
}

/// Numbers of chance: splitmix64.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    /// The next one.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn it_is_text_of_the_length_asked_for_and_always_the_same() {
        let text = write(100_000);
        assert_eq!(text.len(), 100_000);
        assert_eq!(text, write(100_000));
        let text = String::from_utf8(text).unwrap();
        assert!(text.lines().all(|line| line.len() < LINE + 12));
        let mut counts = HashMap::<_, u32>::new();
        text.split_whitespace()
            .for_each(|word| *counts.entry(word).or_default() += 1);
        let most = counts.values().max().unwrap();
        assert!(
            counts.len() > 1000 && *most > 100,
            "{} words, {most}",
            counts.len()
        );
    }
}
