//! The RAM of a guest, addressed by page number over all blocks.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun, RamLayout};
use vmferry_memory::{SharedMemory, TransferPipe};

/// From here on a part of a run goes through the pipe: below, its second system call costs more than a few faults.
const SPLICE_FROM_BYTES: u64 = 32 << 10;

/// The RAM blocks of a guest, each a shared mapping of its file.
///
/// The guest runs and writes while we read: no reference into this memory is ever handed out, contents are
/// copied, compared or passed to the kernel by offset. Every run passed in must lie in the layout; what comes
/// from a peer is checked with [`RamLayout::check`] first.
pub struct GuestRam {
    layout: RamLayout,
    blocks: Vec<Arc<SharedMemory>>,
}

impl GuestRam {
    /// RAM of `layout`, block by block in `blocks`.
    ///
    /// # Panics
    /// When the blocks do not have the sizes of the layout.
    pub fn new(layout: RamLayout, blocks: Vec<Arc<SharedMemory>>) -> Self {
        assert_eq!(layout.blocks().len(), blocks.len(), "one memory a block");
        for (block, memory) in layout.blocks().iter().zip(&blocks) {
            assert_eq!(
                block.pages * PAGE_SIZE,
                memory.len(),
                "size of block {}",
                block.name
            );
        }
        Self { layout, blocks }
    }

    /// The layout.
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// The memory of block `index`.
    pub fn block(&self, index: usize) -> &Arc<SharedMemory> {
        &self.blocks[index]
    }

    /// Copies the pages of `run` out; `data` has `run.bytes()` bytes.
    pub fn read(&self, run: PageRun, data: &mut [u8]) {
        let mut rest = data;
        for part in self.layout.split(run) {
            let (head, tail) = rest.split_at_mut(part.len_bytes as usize);
            self.blocks[part.block].read_at(part.offset_bytes, head);
            rest = tail;
        }
    }

    /// Copies `data`, `run.bytes()` bytes, into the pages of `run`.
    pub fn write(&self, run: PageRun, data: &[u8]) {
        let mut rest = data;
        for part in self.layout.split(run) {
            let (head, tail) = rest.split_at(part.len_bytes as usize);
            self.blocks[part.block].write_at(part.offset_bytes, head);
            rest = tail;
        }
    }

    /// The same through the memory files, which costs less where the pages hold nothing yet.
    ///
    /// # Errors
    /// When there is no room.
    pub fn write_fresh(&self, run: PageRun, data: &[u8]) -> io::Result<()> {
        let mut rest = data;
        for part in self.layout.split(run) {
            let (head, tail) = rest.split_at(part.len_bytes as usize);
            self.blocks[part.block].write_through_file(part.offset_bytes, head)?;
            rest = tail;
        }
        Ok(())
    }

    /// The byte that fills `page` wholly, if one does.
    pub fn uniform_byte(&self, page: u64) -> Option<u8> {
        let (block, offset) = self.locate(page);
        self.blocks[block].page_is_uniform(offset)
    }

    /// The 128-bit xxh3 hash of `page`.
    pub fn hash(&self, page: u64) -> u128 {
        let (block, offset) = self.locate(page);
        self.blocks[block].hash_page(offset)
    }

    /// Writes `header` and then the pages of `runs` to a socket, without a copy in user space.
    ///
    /// # Errors
    /// What the socket answers.
    pub fn send(&self, socket: BorrowedFd<'_>, header: &[u8], run: PageRun) -> io::Result<()> {
        let mut header = header;
        for part in self.layout.split(run) {
            self.blocks[part.block].write_range_to(socket, header, &[(part.offset_bytes, part.len_bytes)])?;
            header = &[];
        }
        Ok(())
    }

    /// Moves the pages of `run` from a socket straight into memory, large runs inside the kernel by way of `pipe`.
    ///
    /// # Errors
    /// What the socket answers; [`io::ErrorKind::UnexpectedEof`] where it ends early. The pipe is of no use then.
    pub fn receive(&self, socket: BorrowedFd<'_>, pipe: &mut TransferPipe, run: PageRun) -> io::Result<()> {
        for part in self.layout.split(run) {
            let (memory, at, len) = (&self.blocks[part.block], part.offset_bytes, part.len_bytes);
            if len < SPLICE_FROM_BYTES {
                memory.read_range_from(socket, &[(at, len)])?;
            } else {
                memory.splice_range_from(socket, pipe, at, len)?;
            }
        }
        Ok(())
    }

    /// The pages that hold data; all others are holes and read as zero.
    ///
    /// # Errors
    /// When the memory file cannot be asked.
    pub fn data_pages(&self) -> io::Result<PageBitmap> {
        let mut pages = PageBitmap::new(self.layout.pages());
        for (index, memory) in self.blocks.iter().enumerate() {
            let start = self.layout.block_run(index).first;
            for extent in memory.data_extents(0..memory.len()) {
                let extent = extent.map_err(io::Error::other)?;
                let first = extent.start / PAGE_SIZE;
                let end = extent.end.div_ceil(PAGE_SIZE);
                pages.insert_run(PageRun::new(start + first, end - first));
            }
        }
        Ok(pages)
    }

    /// Adds to `pages` those that hold data now and are not in it: quickly, where it was [`GuestRam::data_pages`] a short while
    /// ago. What became a hole since stays in it.
    ///
    /// # Errors
    /// When the memory file cannot be asked.
    pub fn add_new_data(&self, pages: &mut PageBitmap) -> io::Result<()> {
        let mut holes = pages.clone();
        holes.invert();
        for hole in holes.runs() {
            for part in self.layout.split(hole) {
                let start = self.layout.block_run(part.block).first;
                let range = part.offset_bytes..part.offset_bytes + part.len_bytes;
                for extent in self.blocks[part.block].data_extents(range) {
                    let extent = extent.map_err(io::Error::other)?;
                    let first = extent.start / PAGE_SIZE;
                    let end = extent.end.div_ceil(PAGE_SIZE);
                    pages.insert_run(PageRun::new(start + first, end - first));
                }
            }
        }
        Ok(())
    }

    /// The parts of `run` that hold nothing.
    ///
    /// # Errors
    /// When the memory file cannot be asked.
    pub fn holes_in(&self, run: PageRun) -> io::Result<Vec<PageRun>> {
        let mut holes = Vec::new();
        for part in self.layout.split(run) {
            let start = self.layout.block_run(part.block).first;
            let end = part.offset_bytes + part.len_bytes;
            let mut at = part.offset_bytes / PAGE_SIZE;
            let mut add = |from: u64, to: u64| {
                if from < to {
                    holes.push(PageRun::new(start + from, to - from));
                }
            };
            for extent in self.blocks[part.block].data_extents(part.offset_bytes..end) {
                let extent = extent.map_err(io::Error::other)?;
                add(at, extent.start / PAGE_SIZE);
                at = extent.end.div_ceil(PAGE_SIZE);
            }
            add(at, end / PAGE_SIZE);
        }
        Ok(holes)
    }

    /// Turns the pages of `run` into holes.
    ///
    /// # Errors
    /// When the memory file does not support it.
    pub fn punch(&self, run: PageRun) -> io::Result<()> {
        for part in self.layout.split(run) {
            self.blocks[part.block]
                .punch_hole(part.offset_bytes..part.offset_bytes + part.len_bytes)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn locate(&self, page: u64) -> (usize, u64) {
        let part = self
            .layout
            .split(PageRun::single(page))
            .next()
            .expect("a page of the layout");
        (part.block, part.offset_bytes)
    }
}

#[cfg(test)]
mod tests {
    use vmferry_core::RamBlock;

    use super::*;

    #[test]
    fn data_that_came_since_is_found_in_the_holes() {
        let block = |name: &str, pages| RamBlock {
            name: name.into(),
            pages,
        };
        let layout = RamLayout::new(vec![block("main", 64), block("dimm", 16)]).unwrap();
        let blocks = [64, 16].map(|pages| Arc::new(SharedMemory::create("test", pages * PAGE_SIZE).unwrap()));
        let ram = GuestRam::new(layout, blocks.into());
        let write = |pages: &[u64]| {
            for &page in pages {
                ram.write(PageRun::single(page), &[1; PAGE_SIZE as usize]);
            }
        };
        write(&[0, 5, 6, 63, 70]);
        let mut pages = ram.data_pages().unwrap();
        let before = pages.clone();
        ram.add_new_data(&mut pages).unwrap();
        assert_eq!(pages, before);
        // Beside what was there, between, at the borders of a block; and what was there is a hole now.
        write(&[4, 7, 40, 62, 64, 79]);
        ram.punch(PageRun::single(5)).unwrap();
        ram.add_new_data(&mut pages).unwrap();
        let run = |first, count| PageRun::new(first, count);
        let holes = ram.holes_in(run(3, 64)).unwrap();
        assert_eq!(holes, [run(3, 1), run(5, 1), run(8, 32), run(41, 21), run(65, 2)]);
        let mut expected = ram.data_pages().unwrap();
        assert!(expected.insert(5), "it was punched");
        assert_eq!(pages, expected);
    }
}
