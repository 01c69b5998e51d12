//! What a block holds: words that follow from its place and its version alone, so that any check can be made from these two.

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;

const WORD: usize = size_of::<u64>();

/// Fills the block, a multiple of eight bytes, for this place and version.
pub(crate) fn fill(block: &mut [u8], place: u64, version: u64) {
    block
        .chunks_exact_mut(WORD)
        .zip(words(place, version))
        .for_each(|(bytes, word)| {
            bytes.copy_from_slice(&word.to_le_bytes());
        });
}

/// Checks the block; an error says what is there instead.
pub(crate) fn check(block: &[u8], place: u64, version: u64) -> Result<(), String> {
    let mut difference = 0;
    for (bytes, word) in block.chunks_exact(WORD).zip(words(place, version)) {
        difference |= read(bytes) ^ word;
    }
    if difference == 0 {
        Ok(())
    } else {
        Err(describe(block, place, version))
    }
}

/// The place, the version, then a sequence that starts at a mix of the two: a block of another place or version differs in every
/// word but the first or second, and a torn block differs from the tear on.
fn words(place: u64, version: u64) -> impl Iterator<Item = u64> {
    const STEP: u64 = 0xD6E8_FEB8_6659_FD93;
    let mix = (place ^ version.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ version;
    (0_u64..).map(move |index| match index {
        0 => place,
        1 => version,
        _ => mix.wrapping_add(index.wrapping_mul(STEP)),
    })
}

fn describe(block: &[u8], place: u64, version: u64) -> String {
    if block.iter().all(|&byte| byte == 0) {
        return format!("{place}: all zero, expected version {version}");
    }
    let found = read(&block[WORD..2 * WORD]);
    if check_words(block, place, found) {
        return format!("{place}: whole but of version {found}, expected version {version}");
    }
    let first = block
        .chunks_exact(WORD)
        .zip(words(place, version))
        .position(|(bytes, word)| read(bytes) != word);
    format!(
        "{place}: differs from version {version} at byte {}",
        first.unwrap_or(0) * WORD
    )
}

fn check_words(block: &[u8], place: u64, version: u64) -> bool {
    block
        .chunks_exact(WORD)
        .zip(words(place, version))
        .all(|(bytes, word)| read(bytes) == word)
}

fn read(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_filled_checks() {
        let mut block = [0; PAGE];
        fill(&mut block, 7, 3);
        assert_eq!(check(&block, 7, 3), Ok(()));
    }

    #[test]
    fn old_torn_zero_and_foreign_blocks_are_told_apart() {
        let (mut old, mut new) = ([0; PAGE], [0; PAGE]);
        fill(&mut old, 7, 2);
        fill(&mut new, 7, 3);
        assert_eq!(
            check(&old, 7, 3).unwrap_err(),
            "7: whole but of version 2, expected version 3"
        );
        let torn = [&new[..64], &old[64..]].concat();
        assert_eq!(
            check(&torn, 7, 3).unwrap_err(),
            "7: differs from version 3 at byte 64"
        );
        assert_eq!(
            check(&[0; PAGE], 7, 3).unwrap_err(),
            "7: all zero, expected version 3"
        );
        assert!(check(&new, 8, 3).is_err());
        let mut one_bit = new;
        one_bit[PAGE - 1] ^= 1;
        assert!(check(&one_bit, 7, 3).is_err());
    }
}
