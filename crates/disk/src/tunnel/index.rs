//! Where blocks with a known hash lie.

use std::collections::HashMap;

use super::frame::Hash;

/// A block in one of several disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the disk.
    pub disk: u16,
    /// Where in it.
    pub offset: u64,
}

/// Remembers, for as many hashes as it may, where a block with each was seen last. What lies there may have changed since.
#[derive(Debug)]
pub struct Index {
    places: HashMap<Hash, Place>,
    /// Hashes in the order in which they came, as a ring.
    order: Vec<Hash>,
    next: usize,
    limit: usize,
}

impl Index {
    /// An index of at most `limit` blocks; beyond that the oldest are forgotten.
    pub fn new(limit: usize) -> Self {
        Self {
            places: HashMap::new(),
            order: Vec::new(),
            next: 0,
            limit: limit.max(1),
        }
    }

    /// A block with this hash lies there now.
    pub fn seen(&mut self, hash: Hash, place: Place) {
        if let Some(known) = self.places.get_mut(&hash) {
            *known = place;
            return;
        }
        if self.order.len() < self.limit {
            self.order.push(hash);
        } else {
            let oldest = std::mem::replace(&mut self.order[self.next], hash);
            self.places.remove(&oldest);
            self.next = (self.next + 1) % self.limit;
        }
        self.places.insert(hash, place);
    }

    /// Where a block with this hash was seen last.
    pub fn find(&self, hash: &Hash) -> Option<Place> {
        self.places.get(hash).copied()
    }

    /// How many blocks it knows.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it knows none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten() {
        let place = |offset| Place { disk: 0, offset };
        let mut index = Index::new(2);
        for number in 0..3 {
            index.seen([number; 32], place(number.into()));
        }
        assert_eq!(index.find(&[0; 32]), None);
        assert_eq!(index.find(&[1; 32]), Some(place(1)));
        index.seen([1; 32], place(9));
        assert_eq!((index.find(&[1; 32]), index.len()), (Some(place(9)), 2));
        for number in 3..9 {
            index.seen([number; 32], place(number.into()));
        }
        assert_eq!(index.len(), 2);
    }
}
