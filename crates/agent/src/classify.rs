//! What every page frame is used for.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use vmferry_agent_proto::map::{FrameRun, MapChunk, MapCoder, Use};
use vmferry_core::hints::Class;

use crate::error::{AgentError, Result};
use crate::flags;
use crate::proc::iomem::{Frames, PhysicalMemory};
use crate::proc::{self, maps};

/// Entries of a table read at once.
const TABLE_ENTRIES: usize = 64 << 10;
/// The most pages of a process's address space that are looked at: 32 GiB.
const MAX_PAGES_OF_PROCESS: u64 = 8 << 20;

/// The use of each frame below the end of memory.
#[derive(Debug)]
pub(crate) struct FrameMap(Vec<Use>);

impl FrameMap {
    /// The use of all frames, where the processes `active` are those that ran lately.
    pub(crate) fn classify(active: &[u32]) -> Result<Self> {
        let memory = physical_memory()?;
        let mut map = Self(vec![Use::Absent; memory.end() as usize]);
        let (all_flags, all_counts) = (Table::open("/proc/kpageflags")?, Table::open("/proc/kpagecount")?);
        let mut counts = Vec::new();
        for range in &memory.ram {
            all_flags.read(*range, |first, flags| {
                all_counts.read_into(first, flags.len(), &mut counts)?;
                for (index, &flags) in flags.iter().enumerate() {
                    let frame = first + index as u64;
                    let mappings = counts.get(index).copied().unwrap_or(0);
                    map.0[frame as usize] = flags::use_of(frame, flags, mappings);
                }
                Ok(())
            })?;
        }
        map.raise_kernel(&memory);
        for &pid in active {
            map.raise_process(pid);
        }
        Ok(map)
    }

    /// Only the free frames; all others are absent.
    pub(crate) fn free() -> Result<Self> {
        let memory = physical_memory()?;
        let mut map = Self(vec![Use::Absent; memory.end() as usize]);
        let table = Table::open("/proc/kpageflags")?;
        for range in &memory.ram {
            table.read(*range, |first, flags| {
                for (frame, &flags) in (first..).zip(flags) {
                    if flags::is_free(frame, flags) {
                        map.0[frame as usize] = Use::Is(Class::Free);
                    }
                }
                Ok(())
            })?;
        }
        Ok(map)
    }

    /// Hands the map out in chunks.
    ///
    /// # Errors
    /// Those of `each`.
    pub(crate) fn chunks<E>(
        &self,
        mut each: impl FnMut(MapChunk) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut coder = MapCoder::default();
        let mut first = 0;
        for same in self.0.chunk_by(|a, b| a == b) {
            let count = same.len() as u64;
            coder
                .push(FrameRun {
                    first,
                    count,
                    is: same[0],
                })
                .map_or(Ok(()), &mut each)?;
            first += count;
        }
        coder.finish().into_iter().try_for_each(each)
    }

    /// How many frames each class has, in the order of [`Class::ALL`].
    pub(crate) fn counts(&self) -> [u64; Class::ALL.len()] {
        let mut counts = [0; Class::ALL.len()];
        for &each in &self.0 {
            if let Use::Is(class) = each {
                counts[usize::from(class.number())] += 1;
            }
        }
        counts
    }

    /// The kernel itself. Parts that it has given back after its start are free or somebody else's.
    fn raise_kernel(&mut self, memory: &PhysicalMemory) {
        let kernel = [
            (&memory.kernel_code, Class::KernelCode),
            (&memory.kernel_data, Class::KernelAllocated),
        ];
        for (ranges, class) in kernel {
            for frame in ranges.iter().flat_map(|range| range.first..range.end) {
                if self.get(frame) != Some(Use::Is(Class::Free)) {
                    self.raise(frame, class);
                }
            }
        }
    }

    /// The pages of a process. One that ended meanwhile has none.
    fn raise_process(&mut self, pid: u32) {
        let Ok(text) = proc::read(format!("/proc/{pid}/maps")) else {
            return;
        };
        let mappings = maps::parse(&text);
        if mappings.is_empty() {
            return;
        }
        let Ok(pagemap) = Table::open(format!("/proc/{pid}/pagemap")) else {
            return;
        };
        let mut left = MAX_PAGES_OF_PROCESS;
        for mapping in mappings {
            let class = if mapping.is_code {
                Class::UserCode
            } else {
                Class::UserData
            };
            let pages = Frames {
                first: mapping.pages.start,
                end: mapping.pages.end.min(mapping.pages.start + left),
            };
            left -= pages.end - pages.first;
            // What cannot be read says nothing.
            let _ = pagemap.read(pages, |_, entries| {
                for frame in entries.iter().filter_map(|&entry| maps::frame_of(entry)) {
                    self.raise(frame, class);
                }
                Ok(())
            });
        }
    }

    /// Makes a frame more urgent. One that is in use is not free, whatever was seen before.
    fn raise(&mut self, frame: u64, class: Class) {
        if let Some(Use::Is(was)) = self.0.get_mut(frame as usize)
            && class < *was
        {
            *was = class;
        }
    }

    fn get(&self, frame: u64) -> Option<Use> {
        self.0.get(frame as usize).copied()
    }
}

fn physical_memory() -> Result<PhysicalMemory> {
    let memory = PhysicalMemory::parse(&proc::read("/proc/iomem")?);
    if memory.ram.is_empty() {
        return Err(AgentError::Strange {
            path: "/proc/iomem",
            problem: "it shows no memory; the agent has to be root".into(),
        });
    }
    Ok(memory)
}

/// A file of 64-bit entries, one a frame or a page.
struct Table {
    path: String,
    file: File,
}

impl Table {
    fn open(path: impl Into<String>) -> Result<Self> {
        let path = path.into();
        let file = File::open(&path).map_err(AgentError::file(&path))?;
        Ok(Self { path, file })
    }

    /// Hands out the entries of a range in parts, each with the number of its first, up to where the file ends.
    fn read(&self, range: Frames, mut each: impl FnMut(u64, &[u64]) -> Result<()>) -> Result<()> {
        let mut entries = Vec::new();
        let mut first = range.first;
        while first < range.end {
            let wanted = (range.end - first).min(TABLE_ENTRIES as u64) as usize;
            self.read_into(first, wanted, &mut entries)?;
            if entries.is_empty() {
                break;
            }
            each(first, &entries)?;
            first += entries.len() as u64;
        }
        Ok(())
    }

    /// Reads at most `count` entries from number `first`; fewer at the end of the file.
    fn read_into(&self, first: u64, count: usize, entries: &mut Vec<u64>) -> Result<()> {
        let mut bytes = vec![0; count * 8];
        let mut filled = 0;
        while filled < bytes.len() {
            let at = first * 8 + filled as u64;
            match self
                .file
                .read_at(&mut bytes[filled..], at)
                .map_err(AgentError::file(&self.path))?
            {
                0 => break,
                got => filled += got,
            }
        }
        let (whole, _) = bytes[..filled].as_chunks::<8>();
        entries.clear();
        entries.extend(whole.iter().map(|&bytes| u64::from_ne_bytes(bytes)));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use vmferry_agent_proto::MapReader;

    use super::*;

    fn map(uses: &[Use]) -> FrameMap {
        FrameMap(uses.to_vec())
    }

    #[test]
    fn a_frame_only_becomes_more_urgent_and_what_is_mapped_is_not_free() {
        let mut map = map(&[
            Use::Is(Class::KernelCode),
            Use::Is(Class::Free),
            Use::Is(Class::FileActive),
            Use::Absent,
        ]);
        (0..9).for_each(|frame| map.raise(frame, Class::UserData));
        assert_eq!(
            map.0,
            [
                Use::Is(Class::KernelCode),
                Use::Is(Class::UserData),
                Use::Is(Class::UserData),
                Use::Absent
            ]
        );
    }

    #[test]
    fn chunks_give_the_map_back() {
        let pattern = [Use::Is(Class::Free), Use::Absent, Use::Is(Class::Other)];
        let uses: Vec<Use> = (0..200_000).map(|frame| pattern[frame % 7 % 3]).collect();
        let mut chunks = Vec::new();
        map(&uses)
            .chunks(|chunk| {
                chunks.push(chunk);
                Ok::<_, ()>(())
            })
            .unwrap();
        assert!(chunks.len() > 1, "more than a chunk holds");
        let mut back = Vec::new();
        let mut reader = MapReader::new(uses.len() as u64);
        for chunk in &chunks {
            reader
                .take(chunk, |run| back.extend(vec![run.is; run.count as usize]))
                .unwrap();
        }
        assert!(reader.is_finished() && back == uses);
    }

    #[test]
    fn a_table_ends_where_its_file_does() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let entries: Vec<u64> = (0..100_000).collect();
        for entry in &entries {
            file.write_all(&entry.to_ne_bytes()).unwrap();
        }
        file.write_all(&[1, 2, 3]).unwrap();
        let table = Table::open(file.path().display().to_string()).unwrap();
        let mut got = Vec::new();
        let range = Frames {
            first: 10,
            end: 1 << 40,
        };
        table
            .read(range, |first, part| {
                assert_eq!(part[0], first);
                got.extend_from_slice(part);
                Ok(())
            })
            .unwrap();
        assert_eq!(got, entries[10..]);
    }
}
