//! Which pages of a checkpoint lie together in its store.

use crate::bitmap::PageBitmap;

/// No group: the page holds no data.
const NONE: u32 = u32::MAX;

/// The pages of a checkpoint in *groups*: what a group holds costs one read together. Groups are numbered in the order in
/// which it is best to read them where nothing else is known. A page that is in no group holds no data. 12 bytes a page.
#[derive(Debug)]
pub struct Placement {
    /// Group of each page.
    groups: Vec<u32>,
    /// Where the members of each group begin, and the number of all at the end.
    starts: Vec<usize>,
    /// The pages of each group, ascending.
    members: Vec<u64>,
}

impl Placement {
    /// The placement of a guest of `pages` pages: `places` names pages with their groups; a page that is named twice is where
    /// it was named last. Groups should be numbered from 0 without large gaps.
    ///
    /// # Panics
    /// When a page is beyond `pages`, or a group is `u32::MAX`: the caller has checked what it read.
    pub fn new(pages: u64, places: impl IntoIterator<Item = (u64, u32)>) -> Self {
        let mut groups = vec![NONE; pages as usize];
        let mut count = 0;
        for (page, group) in places {
            assert_ne!(group, NONE, "a group that stands for none");
            groups[page as usize] = group;
            count = count.max(group + 1);
        }
        let mut starts = vec![0; count as usize + 1];
        for &group in groups.iter().filter(|&&group| group != NONE) {
            starts[group as usize + 1] += 1;
        }
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let mut members = vec![0; starts[count as usize]];
        let mut next = starts.clone();
        for (page, &group) in groups.iter().enumerate() {
            if group != NONE {
                members[next[group as usize]] = page as u64;
                next[group as usize] += 1;
            }
        }
        Self {
            groups,
            starts,
            members,
        }
    }

    /// How many pages the guest has.
    pub fn pages(&self) -> u64 {
        self.groups.len() as u64
    }

    /// How many groups there are.
    pub fn groups(&self) -> u32 {
        self.starts.len() as u32 - 1
    }

    /// The group of `page`; none where it holds no data, or is beyond the guest.
    pub fn group(&self, page: u64) -> Option<u32> {
        let group = *self.groups.get(usize::try_from(page).ok()?)?;
        (group != NONE).then_some(group)
    }

    /// The pages of `group`, ascending.
    pub fn members(&self, group: u32) -> &[u64] {
        &self.members[self.starts[group as usize]..self.starts[group as usize + 1]]
    }

    /// All pages that hold data.
    pub fn data(&self) -> PageBitmap {
        let mut data = PageBitmap::new(self.pages());
        for &page in &self.members {
            data.insert(page);
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_their_pages_and_holes_have_no_group() {
        let placement = Placement::new(10, [(7, 1), (2, 0), (3, 1), (2, 1), (9, 3)]);
        assert_eq!((placement.pages(), placement.groups()), (10, 4));
        assert_eq!(placement.members(1), [2, 3, 7]);
        assert!(placement.members(0).is_empty() && placement.members(2).is_empty());
        assert_eq!(
            [2, 9, 0, 10, u64::MAX].map(|page| placement.group(page)),
            [Some(1), Some(3), None, None, None]
        );
        assert_eq!(placement.data().pages().collect::<Vec<_>>(), [2, 3, 7, 9]);
        let empty = Placement::new(3, []);
        assert_eq!((empty.groups(), empty.data().count()), (0, 0));
    }
}
