//! Differences to the version sent before: what did not change becomes zero, which LZ4 makes short.

/// Writes `old` exclusive-or `new` into `difference`.
///
/// # Panics
/// When they have not the same length.
pub(super) fn difference(old: &[u8], new: &[u8], difference: &mut Vec<u8>) {
    difference.clear();
    difference.extend_from_slice(old);
    apply(new, difference);
}

/// Turns the old version in `pages` into the new one.
///
/// # Panics
/// When they have not the same length.
pub(super) fn apply(difference: &[u8], pages: &mut [u8]) {
    assert_eq!(difference.len(), pages.len(), "two versions of the same pages");
    // By zip, so that the compiler sees no bounds and uses vectors.
    for (byte, change) in pages.iter_mut().zip(difference) {
        *byte ^= change;
    }
}
