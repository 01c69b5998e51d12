//! Where the pages of a checkpoint being written go.

use std::collections::HashMap;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun};

use crate::chunk::CHUNK_PAGES;
use crate::hash::Hash;
use crate::manifest::PageCounts;
use crate::table::{self, Place, TABLE_PAGES, Table};

const PAGE_BYTES: usize = PAGE_SIZE as usize;
/// Pages of this checkpoint whose equals are looked for: bounds the memory it takes (about 50 bytes each). Beyond it, new ones
/// are not noted, and an equal one is stored once more.
const MOST_KNOWN: usize = 4 << 20;

/// What a page holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Content {
    /// One byte, over and over.
    Uniform(u8),
    /// Something of this hash.
    Data(Hash),
}

impl Content {
    pub(super) fn of(page: &[u8]) -> Self {
        let first = u64::from_ne_bytes([page[0]; 8]);
        let words = page.as_chunks::<8>().0;
        let different = words
            .iter()
            .fold(0, |all, word| all | (u64::from_ne_bytes(*word) ^ first));
        match different {
            0 => Self::Uniform(page[0]),
            _ => Self::Data(Hash::of(page)),
        }
    }

    pub(super) fn hash(&self) -> Option<Hash> {
        match self {
            Self::Uniform(_) => None,
            Self::Data(hash) => Some(*hash),
        }
    }
}

/// A chunk that pages are put into.
#[derive(Debug)]
pub(super) struct Open {
    /// Its number among the chunks of the checkpoint.
    pub(super) number: u32,
    pub(super) plain: Vec<u8>,
    pub(super) hashes: Vec<Hash>,
}

/// The places of the pages written so far.
pub(super) struct Packer {
    /// Of each table whose pages were touched: the places of its pages, none where they are not written.
    places: Vec<Option<Box<[Option<Place>]>>>,
    pages: u64,
    inherited: Option<PageBitmap>,
    open: Option<Open>,
    /// Where pages of this checkpoint are that the store did not have.
    known: HashMap<Hash, Place>,
    /// Numbers of the chunks that the store had.
    shared: HashMap<Hash, u32>,
    shared_names: HashMap<u32, Hash>,
    chunks: u32,
    counts: PageCounts,
    tables: Vec<table::Packed>,
}

impl Packer {
    pub(super) fn new(pages: u64) -> Self {
        Self {
            places: (0..pages.div_ceil(TABLE_PAGES)).map(|_| None).collect(),
            pages,
            inherited: None,
            open: None,
            known: HashMap::new(),
            shared: HashMap::new(),
            shared_names: HashMap::new(),
            chunks: 0,
            counts: PageCounts::default(),
            tables: Vec::new(),
        }
    }

    /// Places the pages from `first`, whose bytes are `data`; `found` tells for each that is not uniform where the store has it.
    /// Answers the chunks that are full.
    pub(super) fn add(
        &mut self,
        first: u64,
        data: &[u8],
        contents: &[Content],
        found: &[Option<(Hash, u16)>],
    ) -> Vec<Open> {
        let mut found = found.iter();
        let mut full = Vec::new();
        for (index, (content, page)) in contents.iter().zip(data.chunks_exact(PAGE_BYTES)).enumerate() {
            let place = match *content {
                Content::Uniform(byte) => {
                    self.counts.uniform += 1;
                    uniform(byte)
                }
                Content::Data(hash) => match found.next().expect("one for each page with a hash") {
                    Some((chunk, index)) => {
                        self.counts.deduplicated += 1;
                        let chunk = self.shared_number(*chunk);
                        Place::Stored { chunk, index: *index }
                    }
                    None => self.place(hash, page, &mut full),
                },
            };
            self.set(first + index as u64, place);
        }
        full
    }

    fn place(&mut self, hash: Hash, page: &[u8], full: &mut Vec<Open>) -> Place {
        if let Some(place) = self.known.get(&hash) {
            self.counts.deduplicated += 1;
            return *place;
        }
        self.counts.new += 1;
        let chunks = &mut self.chunks;
        let open = self.open.get_or_insert_with(|| Open {
            number: next(chunks),
            plain: Vec::with_capacity(CHUNK_PAGES * PAGE_BYTES),
            hashes: Vec::with_capacity(CHUNK_PAGES),
        });
        let place = Place::Stored {
            chunk: open.number,
            index: open.hashes.len() as u16,
        };
        open.plain.extend_from_slice(page);
        open.hashes.push(hash);
        if open.hashes.len() == CHUNK_PAGES {
            full.extend(self.open.take());
        }
        if self.known.len() < MOST_KNOWN {
            self.known.insert(hash, place);
        }
        place
    }

    pub(super) fn uniform(&mut self, run: PageRun, byte: u8) {
        self.counts.uniform += run.count;
        run.pages().for_each(|page| self.set(page, uniform(byte)));
    }

    pub(super) fn inherit(&mut self, set: &PageBitmap) {
        match &mut self.inherited {
            Some(inherited) => inherited.union_with(set),
            none => *none = Some(set.clone()),
        }
    }

    /// The chunk that is not full, at the end.
    pub(super) fn take_open(&mut self) -> Option<Open> {
        self.open.take()
    }

    pub(super) fn counts(&self) -> PageCounts {
        self.counts
    }

    /// How many pages of `run`, those of one table, are inherited and not written.
    pub(super) fn inherited_in(&self, run: PageRun) -> u64 {
        let Some(inherited) = &self.inherited else {
            return 0;
        };
        let all = inherited.count_in(run);
        let Some(places) = &self.places[(run.first / TABLE_PAGES) as usize] else {
            return all;
        };
        let written = run
            .pages()
            .zip(places.iter())
            .filter(|(_, place)| place.is_some());
        all - written.filter(|(page, _)| inherited.contains(*page)).count() as u64
    }

    /// Gives the pages of `run`, those of one table, that are inherited and not written the places that they have in `table`.
    pub(super) fn fill_from(&mut self, run: PageRun, table: &Table) {
        let Some(inherited) = self.inherited.take() else {
            return;
        };
        let numbers: Vec<u32> = table
            .chunks
            .iter()
            .map(|&name| self.shared_number(name))
            .collect();
        let places = self.places_of(run.first);
        for (page, (place, parents)) in run.pages().zip(places.iter_mut().zip(&table.places)) {
            if place.is_none() && inherited.contains(page) {
                *place = Some(match *parents {
                    Place::Stored { chunk, index } => Place::Stored {
                        chunk: numbers[chunk as usize],
                        index,
                    },
                    other => other,
                });
            }
        }
        self.inherited = Some(inherited);
    }

    /// Makes table `index` of `pages` pages; `names` are those of the checkpoint's own chunks. Answers its name; none where all
    /// its pages are holes.
    pub(super) fn finish_table(
        &mut self,
        index: usize,
        pages: u64,
        names: &HashMap<u32, Hash>,
    ) -> Option<Hash> {
        let places = self.places[index].take()?;
        let places = places
            .iter()
            .take(pages as usize)
            .map(|place| place.unwrap_or(Place::Hole));
        let shared = &self.shared_names;
        let table = Table::of(places, |number| {
            let name = names.get(&number).or_else(|| shared.get(&number));
            *name.expect("every chunk that was placed is in the store")
        });
        let packed = super::pack(table)?;
        let name = packed.name;
        self.tables.push(packed);
        Some(name)
    }

    /// The tables made.
    pub(super) fn take_tables(&mut self) -> Vec<table::Packed> {
        std::mem::take(&mut self.tables)
    }

    fn set(&mut self, page: u64, place: Place) {
        self.places_of(page)[(page % TABLE_PAGES) as usize] = Some(place);
    }

    /// The places of the table that `page` belongs to.
    fn places_of(&mut self, page: u64) -> &mut [Option<Place>] {
        let pages = self.pages;
        let index = (page / TABLE_PAGES) as usize;
        self.places[index].get_or_insert_with(|| {
            let length = crate::manifest::table_pages(pages, index);
            vec![None; length as usize].into_boxed_slice()
        })
    }

    fn shared_number(&mut self, name: Hash) -> u32 {
        *self.shared.entry(name).or_insert_with(|| {
            let number = next(&mut self.chunks);
            self.shared_names.insert(number, name);
            number
        })
    }
}

fn next(chunks: &mut u32) -> u32 {
    let number = *chunks;
    *chunks += 1;
    number
}

/// A page of zeros is a hole: both read the same.
fn uniform(byte: u8) -> Place {
    match byte {
        0 => Place::Hole,
        byte => Place::Uniform(byte),
    }
}
