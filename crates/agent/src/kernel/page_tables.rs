//! Page tables of x86-64, walked from outside.

use crate::error::Result;

const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The tables of an address space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PageTables {
    /// Physical address of the uppermost table.
    pub(crate) top: u64,
    /// Levels of tables: 4 or 5.
    pub(crate) levels: u32,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The physical address.
    pub(crate) address: u64,
    /// Bytes from there to the end of the page, of whatever size.
    pub(crate) bytes_left: u64,
}

impl PageTables {
    /// Where `address` leads, with `read` giving the 8 bytes at a physical address; none where nothing is mapped.
    pub(crate) fn walk(
        self,
        read: &mut impl FnMut(u64) -> Result<u64>,
        address: u64,
    ) -> Result<Option<Place>> {
        let mut table = self.top;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let entry = read(table + (address >> shift & 511) * 8)?;
            if entry & PRESENT == 0 {
                return Ok(None);
            }
            if level == 0 || (level <= 2 && entry & LARGE != 0) {
                let inside = (1 << shift) - 1;
                return Ok(Some(Place {
                    address: (entry & ADDRESS & !inside) | (address & inside),
                    bytes_left: (1 << shift) - (address & inside),
                }));
            }
            table = entry & ADDRESS;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const ADDRESS: u64 = 0xffff_ea00_0040_1040;

    fn walk(levels: u32, entries: &[(u64, u64)]) -> Option<Place> {
        let entries: HashMap<u64, u64> = entries.iter().copied().collect();
        let tables = PageTables { top: 0x1000, levels };
        tables
            .walk(
                &mut |address| Ok(entries.get(&address).copied().unwrap_or(0)),
                ADDRESS,
            )
            .unwrap()
    }

    #[test]
    fn large_and_small_pages() {
        let upper = [
            (0x1000 + (ADDRESS >> 39 & 511) * 8, 0x2003),
            (0x2000 + (ADDRESS >> 30 & 511) * 8, 0x3003),
        ];
        let middle = 0x3000 + (ADDRESS >> 21 & 511) * 8;
        let large = [&upper[..], &[(middle, 1 << 63 | 0x780_10e3)]].concat();
        assert_eq!(
            walk(4, &large),
            Some(Place {
                address: 0x780_1040,
                bytes_left: 0x20_0000 - 0x1040
            })
        );
        let small = [&upper[..], &[(middle, 0x4003), (0x4008, 0x9003)]].concat();
        assert_eq!(
            walk(4, &small),
            Some(Place {
                address: 0x9040,
                bytes_left: 0xfc0
            })
        );
        assert_eq!(walk(4, &upper), None);
    }

    #[test]
    fn five_levels() {
        let entries = [
            (0x1000 + 511 * 8, 0x2003),
            (0x2000 + (ADDRESS >> 39 & 511) * 8, 0x3003),
            (0x3000 + (ADDRESS >> 30 & 511) * 8, 0x4000_00e3),
        ];
        let inside = ADDRESS & ((1 << 30) - 1);
        assert_eq!(
            walk(5, &entries),
            Some(Place {
                address: 0x4000_0000 | inside,
                bytes_left: (1 << 30) - inside
            })
        );
    }
}
