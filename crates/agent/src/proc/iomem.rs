//! `/proc/iomem`: where memory is, and the kernel in it.

/// Page frames from `first` up to, not including, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frames {
    pub(crate) first: u64,
    pub(crate) end: u64,
}

/// What the classes need of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PhysicalMemory {
    /// What the kernel manages.
    pub(crate) ram: Vec<Frames>,
    /// The kernel's code.
    pub(crate) kernel_code: Vec<Frames>,
    /// The kernel's data: constants, variables, zeroed variables.
    pub(crate) kernel_data: Vec<Frames>,
}

impl PhysicalMemory {
    /// Reads the text of `/proc/iomem`. For anybody but root all its addresses are zero, which gives nothing.
    pub(crate) fn parse(text: &str) -> Self {
        let mut memory = Self::default();
        for line in text.lines() {
            let Some((range, name)) = line.trim().split_once(" : ") else {
                continue;
            };
            let Some(frames) = parse_range(range) else {
                continue;
            };
            match name {
                "System RAM" => memory.ram.push(frames),
                "Kernel code" => memory.kernel_code.push(frames),
                "Kernel rodata" | "Kernel data" | "Kernel bss" => memory.kernel_data.push(frames),
                _ => {}
            }
        }
        memory
    }

    /// The frame after the last one of RAM.
    pub(crate) fn end(&self) -> u64 {
        self.ram.iter().map(|frames| frames.end).max().unwrap_or(0)
    }
}

/// `START-LAST`, hexadecimal, with every frame that it touches.
fn parse_range(range: &str) -> Option<Frames> {
    let (start, last) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let last = u64::from_str_radix(last, 16).ok()?;
    (last > start).then_some(Frames {
        first: start / 4096,
        end: last / 4096 + 1,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_lies_in_ram() {
        let memory = PhysicalMemory::parse(include_str!("../../fixtures/iomem"));
        let frames = |first, end| Frames { first, end };
        assert_eq!(
            memory.ram,
            [
                frames(1, 0xa0),
                frames(0x100, 0xc0000),
                frames(0x10_0000, 0x64_0000)
            ]
        );
        assert_eq!(memory.kernel_code, [frames(0x1000, 0x220a)]);
        assert_eq!(memory.kernel_data.len(), 3);
        assert_eq!(memory.end(), 0x64_0000);
    }

    #[test]
    fn without_rights_there_is_nothing() {
        let text = "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n";
        assert_eq!(PhysicalMemory::parse(text), PhysicalMemory::default());
    }
}
