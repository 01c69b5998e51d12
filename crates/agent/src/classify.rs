//! What every page frame is used for.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use vmferry_agent_proto::map::{FrameRun, MapChunk, MapCoder, Use};
use vmferry_core::hints::Class;

use crate::error::{AgentError, Result};
use crate::flags;
use crate::proc::iomem::{Frames, PhysicalMemory};
use crate::proc::{self, cmdline, maps};

/// Entries of a table read at once.
const TABLE_ENTRIES: usize = 64 << 10;
/// The most pages of a process's address space that are looked at: 32 GiB.
const MAX_PAGES_OF_PROCESS: u64 = 8 << 20;

/// The use of each frame below the end of memory.
#[derive(Debug)]
pub(crate) struct FrameMap {
    uses: Vec<Use>,
    /// The frames that were looked at, ascending; all others are absent. In a guest with much memory that is free they are few.
    looked_at: Vec<Frames>,
}

impl FrameMap {
    /// The use of all frames, or of those `within`, where the processes `active` are those that ran lately.
    pub(crate) fn classify(active: &[u32], within: Option<&[Frames]>) -> Result<Self> {
        let memory = physical_memory()?;
        let mut map = Self::new(&memory, within);
        let all_flags = Table::open("/proc/kpageflags")?;
        let mut all_counts = Counts::open()?;
        for range in map.looked_at.clone() {
            all_flags.read(range, |first, flags| {
                let counts = all_counts.of(first, flags)?;
                for ((frame, &flags), &mappings) in (first..).zip(flags).zip(counts) {
                    map.uses[frame as usize] = flags::use_of(frame, flags, mappings);
                }
                Ok(())
            })?;
        }
        map.raise_kernel(&memory);
        for &pid in active {
            map.raise_process(pid);
        }
        map.keep_what_is_checked()?;
        Ok(map)
    }

    /// Only the free frames, of all or of those `within`; all others are absent.
    pub(crate) fn free(within: Option<&[Frames]>) -> Result<Self> {
        let memory = physical_memory()?;
        let mut map = Self::new(&memory, within);
        let table = Table::open("/proc/kpageflags")?;
        for range in map.looked_at.clone() {
            table.read(range, |first, flags| {
                for (frame, &flags) in (first..).zip(flags) {
                    if flags::is_free(frame, flags) {
                        map.uses[frame as usize] = Use::Is(Class::Free);
                    }
                }
                Ok(())
            })?;
        }
        map.keep_what_is_checked()?;
        Ok(map)
    }

    /// Where the kernel checks what free pages hold, none is free to be dropped.
    fn keep_what_is_checked(&mut self) -> Result<()> {
        if cmdline::checks_free_pages(&proc::read("/proc/cmdline")?) {
            let free = self.uses.iter_mut().filter(|each| **each == Use::Is(Class::Free));
            free.for_each(|each| *each = Use::Is(Class::Other));
        }
        Ok(())
    }

    fn new(memory: &PhysicalMemory, within: Option<&[Frames]>) -> Self {
        Self {
            uses: vec![Use::Absent; memory.end() as usize],
            looked_at: wanted(memory, within),
        }
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
        let mut reached = 0;
        for range in &self.looked_at {
            let mut push = |first, count, is| {
                coder
                    .push(FrameRun { first, count, is })
                    .map_or(Ok(()), &mut each)
            };
            if range.first > reached {
                push(reached, range.first - reached, Use::Absent)?;
            }
            let mut first = range.first;
            for same in self.uses[range.first as usize..range.end as usize].chunk_by(|a, b| a == b) {
                push(first, same.len() as u64, same[0])?;
                first += same.len() as u64;
            }
            reached = range.end;
        }
        coder.finish().into_iter().try_for_each(each)
    }

    /// How many frames each class has, in the order of [`Class::ALL`].
    pub(crate) fn counts(&self) -> [u64; Class::ALL.len()] {
        let mut counts = [0; Class::ALL.len()];
        for &each in &self.uses {
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
        if let Some(Use::Is(was)) = self.uses.get_mut(frame as usize)
            && class < *was
        {
            *was = class;
        }
    }

    fn get(&self, frame: u64) -> Option<Use> {
        self.uses.get(frame as usize).copied()
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

/// The frames of memory, or those of them that somebody wants to know about, in whatever order he names them: ascending,
/// each once.
fn wanted(memory: &PhysicalMemory, within: Option<&[Frames]>) -> Vec<Frames> {
    let Some(within) = within else {
        return memory.ram.clone();
    };
    let common = |a: &Frames, b: &Frames| {
        let (first, end) = (a.first.max(b.first), a.end.min(b.end));
        (first < end).then_some(Frames { first, end })
    };
    let of_one = |ram| within.iter().filter_map(move |range| common(ram, range));
    let mut found: Vec<Frames> = memory.ram.iter().flat_map(of_one).collect();
    found.sort_unstable_by_key(|range| range.first);
    found.dedup_by(|next, last| {
        let touches = next.first <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
    found
}

/// `/proc/kpagecount`, read only where it decides: the kernel looks every entry up, which takes as long as its flags.
struct Counts {
    table: Table,
    counts: Vec<u64>,
    part: Vec<u64>,
}

impl Counts {
    /// Frames between two that matter which are read along rather than left out.
    const GAP: usize = 64;

    fn open() -> Result<Self> {
        Ok(Self {
            table: Table::open("/proc/kpagecount")?,
            counts: Vec::new(),
            part: Vec::new(),
        })
    }

    /// How often each of the frames from `first` on, which have these flags, is mapped, as far as that matters.
    fn of(&mut self, first: u64, flags: &[u64]) -> Result<&[u64]> {
        self.counts.clear();
        self.counts.resize(flags.len(), 0);
        let matters = |at: &usize| flags::depends_on_mappings(flags[*at]);
        let mut next = (0..flags.len()).find(matters);
        while let Some(start) = next {
            let mut end = start + 1;
            next = None;
            for at in (start + 1..flags.len()).filter(matters) {
                if at > end + Self::GAP {
                    next = Some(at);
                    break;
                }
                end = at + 1;
            }
            self.table
                .read_into(first + start as u64, end - start, &mut self.part)?;
            self.counts[start..start + self.part.len()].copy_from_slice(&self.part);
        }
        Ok(&self.counts)
    }
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
        FrameMap {
            looked_at: vec![Frames {
                first: 0,
                end: uses.len() as u64,
            }],
            uses: uses.to_vec(),
        }
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
            map.uses,
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
    fn only_what_somebody_wants_to_know_of_memory_is_looked_at() {
        let frames = |first, end| Frames { first, end };
        let memory = PhysicalMemory {
            ram: vec![frames(1, 159), frames(256, 1000)],
            ..PhysicalMemory::default()
        };
        assert_eq!(wanted(&memory, None), memory.ram);
        let within = [frames(0, 10), frames(100, 300), frames(990, 5000), frames(20, 20)];
        assert_eq!(
            wanted(&memory, Some(&within)),
            [
                frames(1, 10),
                frames(100, 159),
                frames(256, 300),
                frames(990, 1000)
            ]
        );
    }

    #[test]
    fn counts_are_read_where_they_matter() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        for entry in 0..1000u64 {
            file.write_all(&entry.to_ne_bytes()).unwrap();
        }
        let table = Table::open(file.path().display().to_string()).unwrap();
        let mut counts = Counts {
            table,
            counts: Vec::new(),
            part: Vec::new(),
        };
        let buddy = 1 << 10;
        let mut flags = vec![buddy; 400];
        for at in [5, 6, 70, 300] {
            flags[at] = 0;
        }
        let got = counts.of(100, &flags).unwrap();
        for at in [5, 6, 70, 300] {
            assert_eq!(got[at], 100 + at as u64);
        }
        assert_eq!((got[0], got[200], got[301]), (0, 0, 0), "not read");
    }

    #[test]
    fn what_was_not_looked_at_is_absent() {
        let frames = |first, end| Frames { first, end };
        let mut map = map(&[Use::Is(Class::Free); 1000]);
        map.looked_at = vec![frames(100, 200), frames(900, 1000)];
        let mut got = Vec::new();
        let mut reader = MapReader::new(1000);
        map.chunks(|chunk| reader.take(&chunk, |run| got.push((run.first, run.count, run.is))))
            .unwrap();
        let free = Use::Is(Class::Free);
        assert_eq!(
            got,
            [
                (0, 100, Use::Absent),
                (100, 100, free),
                (200, 700, Use::Absent),
                (900, 100, free)
            ]
        );
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
