//! What the flags of a page frame in `/proc/kpageflags` say about its class.

use vmferry_agent_proto::Use;
use vmferry_core::hints::Class;

/// Bits of `/proc/kpageflags` (`Documentation/admin-guide/mm/pagemap.rst`).
mod bit {
    pub(super) const LRU: u64 = 1 << 5;
    pub(super) const ACTIVE: u64 = 1 << 6;
    pub(super) const SLAB: u64 = 1 << 7;
    pub(super) const BUDDY: u64 = 1 << 10;
    pub(super) const MMAP: u64 = 1 << 11;
    pub(super) const ANON: u64 = 1 << 12;
    pub(super) const SWAPCACHE: u64 = 1 << 13;
    pub(super) const SWAPBACKED: u64 = 1 << 14;
    pub(super) const COMPOUND_HEAD: u64 = 1 << 15;
    pub(super) const COMPOUND_TAIL: u64 = 1 << 16;
    pub(super) const HUGE: u64 = 1 << 17;
    pub(super) const UNEVICTABLE: u64 = 1 << 18;
    pub(super) const HWPOISON: u64 = 1 << 19;
    pub(super) const NOPAGE: u64 = 1 << 20;
    pub(super) const THP: u64 = 1 << 22;
    pub(super) const OFFLINE: u64 = 1 << 23;
    pub(super) const PGTABLE: u64 = 1 << 26;
    pub(super) const RESERVED: u64 = 1 << 32;
    pub(super) const MAPPEDTODISK: u64 = 1 << 34;
    pub(super) const PRIVATE: u64 = 1 << 35;
}

/// Frames below this one are never called free: firmware keeps things there that no flag shows.
pub(crate) const FIRST_FREE_FRAME: u64 = (1 << 20) / 4096;

/// Whether the frame is part of a free block. The flag is set on all pages of it, not only the first.
///
/// A frame without any flag or use is *not* free: it may be in a list of a CPU, but the tail of a kernel allocation and a
/// page that is being taken look the same.
pub(crate) fn is_free(frame: u64, flags: u64) -> bool {
    flags & bit::BUDDY != 0 && flags & (bit::HWPOISON | bit::OFFLINE) == 0 && frame >= FIRST_FREE_FRAME
}

/// Whether the number of its mappings decides what a frame with these flags is, in [`use_of`].
pub(crate) fn depends_on_mappings(flags: u64) -> bool {
    let told =
        bit::NOPAGE | bit::BUDDY | bit::HWPOISON | bit::OFFLINE | bit::RESERVED | bit::PGTABLE | bit::SLAB;
    let users = bit::ANON | bit::SWAPCACHE | bit::HUGE | bit::MMAP;
    let files = bit::LRU | bit::MAPPEDTODISK | bit::SWAPBACKED | bit::UNEVICTABLE | bit::THP;
    flags & (told | users | files) == 0
}

/// What a frame is, as far as its flags and the number of its mappings show. Those of files and processes can still
/// become more urgent by who uses them.
pub(crate) fn use_of(frame: u64, flags: u64, mappings: u64) -> Use {
    let has = |bits: u64| flags & bits != 0;
    if has(bit::NOPAGE) {
        return Use::Absent;
    }
    if is_free(frame, flags) {
        return Use::Is(Class::Free);
    }
    let class = if has(bit::BUDDY | bit::HWPOISON | bit::OFFLINE) {
        Class::Other
    } else if has(bit::RESERVED) {
        // With a private field it is vmemmap, which every allocation touches; else firmware's or the early kernel's.
        Class::KernelAllocated
    } else if has(bit::PGTABLE) {
        Class::PageTables
    } else if has(bit::SLAB) {
        Class::KernelAllocated
    } else if has(bit::ANON | bit::SWAPCACHE | bit::HUGE) {
        // Before the files: an anonymous page uses the bit of MAPPEDTODISK for something else. Whether its process is
        // active is not seen here.
        Class::Other
    } else if has(bit::LRU | bit::MAPPEDTODISK | bit::SWAPBACKED | bit::UNEVICTABLE | bit::THP) {
        if has(bit::ACTIVE) {
            Class::FileActive
        } else {
            Class::FileInactive
        }
    } else if mappings > 0 || has(bit::MMAP) {
        // A driver's own memory that a process has mapped.
        Class::MemoryIo
    } else if flags & !(bit::COMPOUND_HEAD | bit::COMPOUND_TAIL) != 0
        || has(bit::COMPOUND_HEAD | bit::COMPOUND_TAIL | bit::PRIVATE)
    {
        Class::KernelAllocated
    } else {
        Class::Other
    };
    Use::Is(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: u64 = 5000;

    fn class(flags: u64) -> Class {
        match use_of(FRAME, flags, 0) {
            Use::Is(class) => class,
            Use::Absent => panic!("{flags:#x} is absent"),
        }
    }

    #[test]
    fn only_buddy_pages_above_the_first_mib_are_free() {
        assert_eq!(class(1 << 10), Class::Free);
        assert_eq!(use_of(255, 1 << 10, 0), Use::Is(Class::Other));
        assert_eq!(use_of(256, 1 << 10, 0), Use::Is(Class::Free));
        assert_eq!(class(0), Class::Other, "no flags and no use is not free");
        assert_eq!(class(1 << 10 | 1 << 19), Class::Other, "broken memory");
    }

    // Combinations of flags put together by hand after the kernel's documentation of kpageflags.
    #[test]
    fn combinations_of_flags_and_their_classes() {
        assert_eq!(class(0x1_0000_0000), Class::KernelAllocated, "reserved at boot");
        assert_eq!(class(0x9_0000_0000), Class::KernelAllocated, "vmemmap");
        assert_eq!(class(0x400_0000), Class::PageTables);
        assert_eq!(class(0x80), Class::KernelAllocated, "slab");
        assert_eq!(class(0x8080), Class::KernelAllocated, "slab of several pages");
        assert_eq!(class(0x1_0000), Class::KernelAllocated, "tail of an allocation");
        assert_eq!(class(0x5868), Class::Other, "anonymous, mapped");
        assert_eq!(class(0x4_0000_5868), Class::Other, "anonymous with the owner bit");
        assert_eq!(class(0x6c), Class::FileActive);
        assert_eq!(class(0x4_0000_002c), Class::FileInactive);
        assert_eq!(use_of(FRAME, 1 << 20, 0), Use::Absent);
    }

    #[test]
    fn mappings_matter_exactly_where_they_make_a_difference() {
        for bits in 0..1u64 << 18 {
            // All flags that are known, one bit of `bits` each.
            let known = [
                5, 6, 7, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 22, 26, 32, 34,
            ];
            let flags = known
                .iter()
                .enumerate()
                .fold(0, |flags, (index, bit)| flags | (bits >> index & 1) << bit);
            let differs = use_of(FRAME, flags, 0) != use_of(FRAME, flags, 1);
            assert_eq!(depends_on_mappings(flags), differs, "{flags:#x}");
        }
    }

    #[test]
    fn memory_of_a_driver_in_a_process_is_for_devices() {
        assert_eq!(use_of(FRAME, 0, 1), Use::Is(Class::MemoryIo));
        assert_eq!(use_of(FRAME, 1 << 11, 1), Use::Is(Class::MemoryIo));
        assert_eq!(use_of(FRAME, 1 << 32, 1), Use::Is(Class::KernelAllocated));
    }
}
