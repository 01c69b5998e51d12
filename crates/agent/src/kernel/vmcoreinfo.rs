//! VMCOREINFO: what the kernel says about itself to tools that read crashed kernels.

/// What is needed of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VmcoreInfo {
    /// Address of the kernel's uppermost page table in the kernel's image.
    pub(crate) top_table: u64,
    /// What to add to an offset in the image for its physical address; may be negative, wrapped.
    pub(crate) phys_base: u64,
    /// Levels of page tables.
    pub(crate) levels: u32,
    /// Bytes of a `struct page`.
    pub(crate) page_bytes: u16,
    /// Offsets in it: of `_refcount`,
    pub(crate) refcount_offset: u16,
    /// of `_mapcount`,
    pub(crate) mapcount_offset: u16,
    /// and of `private`.
    pub(crate) private_offset: u16,
    /// The value of `_mapcount` in the first page of a free block.
    pub(crate) buddy_value: u32,
    /// The highest order of a free block.
    pub(crate) max_order: u8,
}

impl VmcoreInfo {
    /// Finds it among the notes; none where a part is missing.
    pub(crate) fn parse(notes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(notes);
        let value = |key: &str| {
            text.lines().find_map(|line| {
                line.trim_start_matches(['\0', ' '])
                    .strip_prefix(key)?
                    .strip_prefix('=')
            })
        };
        let number = |key: &str| value(key)?.trim_end_matches('\0').parse::<i64>().ok();
        let small = |key: &str| u16::try_from(number(key)?).ok();
        let top_table = value("SYMBOL(init_top_pgt)").or_else(|| value("SYMBOL(swapper_pg_dir)"))?;
        let page_bytes = small("SIZE(page)").filter(|&bytes| bytes > 0 && 4096 % bytes == 0)?;
        Some(Self {
            top_table: u64::from_str_radix(top_table, 16)
                .ok()
                .filter(|&address| address >= super::IMAGE_BASE)?,
            phys_base: number("NUMBER(phys_base)")? as u64,
            levels: if number("NUMBER(pgtable_l5_enabled)") == Some(1) {
                5
            } else {
                4
            },
            page_bytes,
            refcount_offset: small("OFFSET(page._refcount)")?,
            mapcount_offset: small("OFFSET(page._mapcount)")?,
            private_offset: small("OFFSET(page.private)")?,
            buddy_value: number("NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)")? as u32,
            // One list of free blocks an order.
            max_order: u8::try_from(number("LENGTH(zone.free_area)")?.checked_sub(1)?).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTES: &[u8] = include_bytes!("../../fixtures/vmcoreinfo");

    #[test]
    fn a_real_kernel_of_6_1() {
        let info = VmcoreInfo::parse(NOTES).unwrap();
        assert_eq!(
            (info.page_bytes, info.refcount_offset, info.mapcount_offset),
            (64, 52, 48)
        );
        assert_eq!((info.private_offset, info.levels), (40, 4));
        assert_eq!((info.buddy_value as i32, info.max_order), (-129, 10));
    }

    #[test]
    fn a_part_that_is_missing_is_not_guessed() {
        let text = String::from_utf8_lossy(NOTES);
        for key in [
            "SIZE(page)",
            "OFFSET(page._refcount)",
            "OFFSET(page._mapcount)",
            "OFFSET(page.private)",
            "NUMBER(PAGE_BUDDY_MAPCOUNT_VALUE)",
            "LENGTH(zone.free_area)",
            "NUMBER(phys_base)",
        ] {
            let without = text.replace(key, "OTHER");
            assert_eq!(VmcoreInfo::parse(without.as_bytes()), None, "{key}");
        }
        // Either name of the table will do.
        let one_name = text.replace("SYMBOL(init_top_pgt)", "OTHER");
        assert!(VmcoreInfo::parse(one_name.as_bytes()).is_some());
        let no_name = one_name.replace("SYMBOL(swapper_pg_dir)", "OTHER");
        assert_eq!(VmcoreInfo::parse(no_name.as_bytes()), None);
    }
}
