//! Reading and writing memory that somebody else writes at the same time.
//!
//! To the language a plain load that races with a store is undefined, and `memcpy` is made of plain loads. On
//! x86_64 the work here is done by assembly, which the compiler cannot look into: what it reads is whatever the
//! hardware delivers. Elsewhere they are relaxed atomics, word by word. Either way a torn page is
//! possible and is the caller's to deal with (the page is then dirty and crosses again); undefined behaviour is not.

/// Copies `len` bytes out of shared memory.
///
/// # Safety
/// `src` must be mapped and readable and `dst` valid for writes, both for `len` bytes; `dst` must be private to
/// the caller.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn copy_out(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both ranges; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _, inout("rsi") src => _, inout("rdi") dst => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies `len` bytes into shared memory.
///
/// # Safety
/// `src` must be valid for reads and `dst` mapped and writable, both for `len` bytes; `src` must be private to
/// the caller.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn copy_in(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the same instruction, and the caller vouches for both ranges.
    unsafe { copy_out(src, dst, len) }
}

/// Sets `len` bytes of shared memory to `byte`.
///
/// # Safety
/// `dst` must be mapped and writable for `len` bytes.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn fill(dst: *mut u8, byte: u8, len: usize) {
    // SAFETY: the caller vouches for the range; the direction flag is clear by the ABI.
    unsafe {
        std::arch::asm!(
            "rep stosb",
            inout("rcx") len => _, inout("rdi") dst => _, in("al") byte,
            options(nostack, preserves_flags)
        );
    }
}

/// Whether every one of `len` bytes of shared memory, taken as words, equals `word`.
///
/// # Safety
/// `src` must be mapped and readable for `len` bytes and aligned to 16; `len` must be a multiple of 64, and not 0.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn all_words_are(src: *const u8, len: usize, word: u64) -> bool {
    let equal_bytes: u32;
    // The index runs from -len up to 0. Differences gather in xmm1 and are looked at once, at the end.
    // SAFETY: the caller vouches for the range and its alignment; SSE2 is part of x86_64.
    unsafe {
        std::arch::asm!(
            "movq xmm0, {word}",
            "punpcklqdq xmm0, xmm0",
            "pxor xmm1, xmm1",
            "2:",
            "movdqa xmm2, [{end} + {index}]",
            "movdqa xmm3, [{end} + {index} + 16]",
            "movdqa xmm4, [{end} + {index} + 32]",
            "movdqa xmm5, [{end} + {index} + 48]",
            "pxor xmm2, xmm0",
            "pxor xmm3, xmm0",
            "pxor xmm4, xmm0",
            "pxor xmm5, xmm0",
            "por xmm2, xmm3",
            "por xmm4, xmm5",
            "por xmm1, xmm2",
            "por xmm1, xmm4",
            "add {index}, 64",
            "jne 2b",
            "pxor xmm0, xmm0",
            "pcmpeqb xmm1, xmm0",
            "pmovmskb {equal:e}, xmm1",
            word = in(reg) word,
            end = in(reg) src.wrapping_add(len),
            index = inout(reg) len.wrapping_neg() => _,
            equal = out(reg) equal_bytes,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _, out("xmm4") _, out("xmm5") _,
            options(nostack, readonly)
        );
    }
    equal_bytes == 0xFFFF
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) use portable::{all_words_are, copy_in, copy_out, fill};

/// The same by relaxed atomics: bytes up to a word boundary of the shared side, then words, then bytes.
#[cfg_attr(target_arch = "x86_64", cfg(test))]
mod portable {
    use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

    const WORD: usize = size_of::<u64>();

    /// See the x86_64 function of this name.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn copy_out(src: *const u8, dst: *mut u8, len: usize) {
        let head = src.align_offset(WORD).min(len);
        let words = (len - head) / WORD;
        // SAFETY: every access lies within the `len` bytes the caller vouches for; shared words are aligned.
        unsafe {
            for i in (0..head).chain(head + words * WORD..len) {
                dst.add(i).write((*src.add(i).cast::<AtomicU8>()).load(Relaxed));
            }
            for i in (0..words).map(|w| head + w * WORD) {
                dst.add(i)
                    .cast::<u64>()
                    .write_unaligned((*src.add(i).cast::<AtomicU64>()).load(Relaxed));
            }
        }
    }

    /// See the x86_64 function of this name.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn copy_in(src: *const u8, dst: *mut u8, len: usize) {
        let head = dst.align_offset(WORD).min(len);
        let words = (len - head) / WORD;
        // SAFETY: every access lies within the `len` bytes the caller vouches for; shared words are aligned.
        unsafe {
            for i in (0..head).chain(head + words * WORD..len) {
                (*dst.add(i).cast::<AtomicU8>()).store(src.add(i).read(), Relaxed);
            }
            for i in (0..words).map(|w| head + w * WORD) {
                (*dst.add(i).cast::<AtomicU64>()).store(src.add(i).cast::<u64>().read_unaligned(), Relaxed);
            }
        }
    }

    /// See the x86_64 function of this name.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn all_words_are(src: *const u8, len: usize, word: u64) -> bool {
        let words = src.cast::<AtomicU64>();
        // SAFETY: aligned and within the `len` bytes the caller vouches for.
        (0..len / WORD).all(|i| unsafe { &*words.add(i) }.load(Relaxed) == word)
    }

    /// See the x86_64 function of this name.
    ///
    /// # Safety
    /// As there.
    pub(crate) unsafe fn fill(dst: *mut u8, byte: u8, len: usize) {
        let pattern = [byte; 64];
        for done in (0..len).step_by(pattern.len()) {
            // SAFETY: within the `len` bytes the caller vouches for.
            unsafe { copy_in(pattern.as_ptr(), dst.add(done), (len - done).min(pattern.len())) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A difference is found wherever it is, and nothing outside the range is looked at.
    #[test]
    fn one_differing_byte_is_found() {
        #[repr(align(64))]
        struct Aligned([u8; 512]);
        for check in [
            all_words_are as unsafe fn(*const u8, usize, u64) -> bool,
            portable::all_words_are,
        ] {
            for len in [64, 128, 256] {
                let mut bytes = Aligned([0x5A; 512]);
                bytes.0[..64].fill(1);
                bytes.0[64 + len..].fill(2);
                // SAFETY: 64 bytes into an array that is aligned to 64, and not past its end.
                let same = |bytes: &Aligned| unsafe {
                    check(bytes.0.as_ptr().add(64), len, u64::from_ne_bytes([0x5A; 8]))
                };
                assert!(same(&bytes));
                for at in 64..64 + len {
                    bytes.0[at] ^= 0x80;
                    assert!(!same(&bytes), "byte {at}");
                    bytes.0[at] ^= 0x80;
                }
            }
        }
    }

    /// Both ways of copying agree with a plain copy, whatever the alignment and the length.
    #[test]
    fn copies_every_alignment() {
        let source: Vec<u8> = (0..200u32).map(|i| (i * 7 + 1) as u8).collect();
        for offset in 0..9 {
            for len in 0..100 {
                let expected = &source[offset..offset + len];
                type Copy = unsafe fn(*const u8, *mut u8, usize);
                for copy in [copy_out as Copy, copy_in, portable::copy_out, portable::copy_in] {
                    let mut target = [0xAAu8; 128];
                    // SAFETY: both buffers are private and longer than `len` past the offsets.
                    unsafe { copy(source.as_ptr().add(offset), target.as_mut_ptr().add(3), len) };
                    assert_eq!(&target[3..3 + len], expected);
                    assert!(target[..3].iter().chain(&target[3 + len..]).all(|&b| b == 0xAA));
                }
                for fill in [fill, portable::fill as unsafe fn(*mut u8, u8, usize)] {
                    let mut target = [0xAAu8; 128];
                    // SAFETY: the buffer is private and longer than `len` past the offset.
                    unsafe { fill(target.as_mut_ptr().add(offset), 7, len) };
                    assert!(target[offset..offset + len].iter().all(|&b| b == 7));
                    assert!(
                        target[..offset]
                            .iter()
                            .chain(&target[offset + len..])
                            .all(|&b| b == 0xAA)
                    );
                }
            }
        }
    }
}
