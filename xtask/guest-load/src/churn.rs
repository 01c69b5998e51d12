//! The allocation load: files in memory (tmpfs) of random sizes that come and go, each checked while it is there and once more
//! before it goes, and processes that start and end beside. The kernel takes pages and gives them back all the time.

use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::pattern::{self, PAGE};

const PAGES_PER_MIB: usize = (1 << 20) / PAGE;
/// The largest file, in pages.
const MOST_PAGES: usize = 256;
const REPORT_EVERY: Duration = Duration::from_secs(1);
/// Between two steps: the load is to allocate, not to use up a processor.
const PAUSE: Duration = Duration::from_millis(2);
/// A process is started at one step of so many.
const STEPS_A_PROCESS: u64 = 32;

/// Keeps up to `mib` MiB in files of `folder`, for ever.
pub(crate) fn run(mib: usize, folder: &Path) -> Result<Infallible, String> {
    let mut churn = Churn::new(mib * PAGES_PER_MIB, folder);
    let mut report_at = Instant::now() + REPORT_EVERY;
    loop {
        churn.step()?;
        if churn.steps.is_multiple_of(STEPS_A_PROCESS) {
            Command::new("true")
                .status()
                .map_err(|error| format!("cannot run true: {error}"))?;
        }
        if Instant::now() >= report_at {
            println!("guest-load: {}", churn.status());
            report_at += REPORT_EVERY;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A file, all of whose pages are of one place and version.
struct File {
    path: PathBuf,
    number: u64,
    pages: usize,
}

struct Churn {
    folder: PathBuf,
    limit_pages: usize,
    files: Vec<File>,
    held_pages: usize,
    steps: u64,
    random: u64,
    checked: u64,
    first_fault: Option<String>,
}

impl Churn {
    fn new(limit_pages: usize, folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            limit_pages,
            files: Vec::new(),
            held_pages: 0,
            steps: 0,
            random: 1,
            checked: 0,
            first_fault: None,
        }
    }

    /// Checks a file, then makes one or ends one.
    fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        if !self.files.is_empty() {
            let any = self.below(self.files.len());
            self.check(any)?;
        }
        let pages = 1 + self.below(MOST_PAGES);
        // Mostly full, with phases in which much is given back.
        let shrinking = self.steps / 256 % 2 == 1 && self.below(3) > 0;
        if self.held_pages + pages <= self.limit_pages && !shrinking {
            self.make(pages)
        } else if self.files.is_empty() {
            Ok(())
        } else {
            let any = self.below(self.files.len());
            self.check(any)?;
            let file = self.files.swap_remove(any);
            self.held_pages -= file.pages;
            fs::remove_file(&file.path).map_err(|error| format!("cannot remove a file: {error}"))
        }
    }

    fn make(&mut self, pages: usize) -> Result<(), String> {
        let number = self.steps;
        let path = self.folder.join(format!("churn-{number}"));
        let mut content = vec![0; pages * PAGE];
        for (page, block) in content.chunks_exact_mut(PAGE).enumerate() {
            pattern::fill(block, page as u64, number);
        }
        fs::write(&path, &content).map_err(|error| format!("cannot write a file: {error}"))?;
        self.files.push(File { path, number, pages });
        self.held_pages += pages;
        Ok(())
    }

    fn check(&mut self, index: usize) -> Result<(), String> {
        let file = &self.files[index];
        let content = fs::read(&file.path).map_err(|error| format!("cannot read a file: {error}"))?;
        let mut faults = content
            .chunks(PAGE)
            .enumerate()
            .filter_map(|(page, block)| pattern::check(block, page as u64, file.number).err());
        let fault = match content.len() == file.pages * PAGE {
            true => faults.next(),
            false => Some(format!("{} bytes", content.len())),
        };
        self.checked += 1;
        if let (Some(fault), None) = (fault, &self.first_fault) {
            println!("guest-load: CORRUPT file {} page {fault}", file.number);
            self.first_fault = Some(fault);
        }
        Ok(())
    }

    fn status(&self) -> String {
        match &self.first_fault {
            None => format!(
                "ok passes={} files={} pages={}",
                self.checked,
                self.files.len(),
                self.held_pages
            ),
            Some(fault) => format!("CORRUPT, first page {fault}"),
        }
    }

    /// A number below `bound` (xorshift: the load needs variety, nothing more).
    fn below(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_and_go_within_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        let mut churn = Churn::new(2000, folder.path());
        let (mut most, mut least) = (0, usize::MAX);
        for _ in 0..600 {
            churn.step().unwrap();
            if churn.steps > 200 {
                (most, least) = (most.max(churn.held_pages), least.min(churn.held_pages));
            }
        }
        assert!(most <= 2000 && most > 1500 && least < 1000, "{least} to {most}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), churn.files.len());
        assert!(churn.status().starts_with("ok passes="));
    }

    #[test]
    fn a_damaged_page_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut churn = Churn::new(2000, folder.path());
        churn.make(10).unwrap();
        let path = churn.files[0].path.clone();
        let mut content = fs::read(&path).unwrap();
        content[5 * PAGE..6 * PAGE].fill(0);
        fs::write(&path, content).unwrap();
        churn.check(0).unwrap();
        assert_eq!(
            churn.status(),
            "CORRUPT, first page 5: all zero, expected version 0"
        );
    }
}
