//! A number that tells contents apart: work that is done again has to give the same result, or memory was lost between.

/// Odd, with about as many ones as zeros.
const FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// Of these bytes. Each word's share depends on its place, and a difference in one word always shows.
pub(crate) fn of(bytes: &[u8]) -> u64 {
    let chunks = bytes.chunks_exact(size_of::<u64>());
    let mut last = [0; size_of::<u64>()];
    last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
    let words = chunks.map(|chunk| chunk.try_into().map_or(0, u64::from_le_bytes));
    let sum = words.fold(bytes.len() as u64, |sum, word| {
        (sum ^ word).wrapping_mul(FACTOR).rotate_left(29)
    });
    (sum ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR)
}

/// What results were when the work was done for the first time.
#[derive(Debug, Default)]
pub(crate) struct Known(Vec<Option<u64>>);

impl Known {
    /// Notes the first result of a piece of work; complains, in a line, about a later one that differs.
    pub(crate) fn check(&mut self, piece: usize, result: &[u8], what: &str) -> Result<(), String> {
        if self.0.len() <= piece {
            self.0.resize(piece + 1, None);
        }
        let digest = of(result);
        match *self.0[piece].get_or_insert(digest) {
            first if first == digest => Ok(()),
            _ => Err(format!("{what} {piece} is not what it was at first")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_and_the_length_count() {
        let bytes: Vec<u8> = (0..37).collect();
        for bit in 0..bytes.len() * 8 {
            let mut other = bytes.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of(&bytes), of(&other), "bit {bit}");
        }
        assert_ne!(of(&[0; 8]), of(&[0; 9]));
        let mut swapped = bytes.clone();
        swapped.swap(0, 8);
        assert_ne!(of(&bytes), of(&swapped));
    }

    #[test]
    fn a_result_has_to_stay() {
        let mut known = Known::default();
        assert_eq!(known.check(3, b"one", "file"), Ok(()));
        assert_eq!(known.check(3, b"one", "file"), Ok(()));
        assert_eq!(known.check(0, b"two", "file"), Ok(()));
        assert_eq!(
            known.check(3, b"two", "file").unwrap_err(),
            "file 3 is not what it was at first"
        );
    }
}
