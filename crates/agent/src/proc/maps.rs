//! `/proc/PID/maps`: what a process has mapped.

use std::ops::Range;

/// A mapping worth looking into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// Its pages, as numbers of 4 KiB.
    pub(crate) pages: Range<u64>,
    /// Whether code in it can run.
    pub(crate) is_code: bool,
}

/// The mappings in the text of `/proc/PID/maps` that can have pages: neither those without any permission, which may
/// reserve terabytes, nor those of the kernel's.
pub(crate) fn parse(text: &str) -> Vec<Mapping> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let name = words.nth(3).unwrap_or_default();
    if permissions.starts_with("---") || ["[vsyscall]", "[vvar]", "[vvar_vclock]"].contains(&name) {
        return None;
    }
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    (start < end).then(|| Mapping {
        pages: start / 4096..end / 4096,
        is_code: permissions.as_bytes().get(2) == Some(&b'x'),
    })
}

/// The page frame in an entry of `/proc/PID/pagemap`, where the page is in memory.
pub(crate) fn frame_of(entry: u64) -> Option<u64> {
    let frame = entry & ((1 << 55) - 1);
    (entry >> 63 == 1 && frame != 0).then_some(frame)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_and_special_mappings_are_left_out() {
        let maps = parse(include_str!("../../fixtures/maps"));
        assert_eq!(maps.iter().filter(|mapping| mapping.is_code).count(), 3);
        assert_eq!(
            maps[0],
            Mapping {
                pages: 0x5_5d01_c227..0x5_5d01_c229,
                is_code: false
            }
        );
        assert_eq!(maps.len(), 9);
        // 1 TiB without any permission.
        assert!(!maps.iter().any(|mapping| mapping.pages.contains(&0x7_efff_ffff)));
    }

    #[test]
    fn only_present_pages_have_a_frame() {
        assert_eq!(frame_of(1 << 63 | 1 << 55 | 0x1234), Some(0x1234));
        assert_eq!(frame_of(1 << 62 | 0x1234), None, "swapped out");
        assert_eq!(frame_of(1 << 63), None, "hidden from those without rights");
        assert_eq!(frame_of(0), None);
    }
}
