//! The tracker against a model of which pages were written.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vmferry_memory::{
    Error, Features, FileId, Mode, PagemapScanner, SharedMemory, UffdRequest, Userfaultfd, WpAsyncTracker,
    WriteFaultCost, mappings_of,
};

use crate::puppet::Puppet;
use crate::{PAGE, can_track, permitted};

const PAGES: u64 = 1200;

/// Something that happens between scans.
#[derive(Clone, Debug)]
enum Step {
    /// Pages are written, through which mapping, and whether by a system call.
    Write {
        mapping: usize,
        by_kernel: bool,
        pages: Vec<u64>,
    },
    /// A run of pages is written.
    WriteRun {
        start: u64,
        len: u64,
    },
    /// The host gives pages back.
    Punch {
        start: u64,
        len: u64,
    },
    /// The process drops its page table entries; the file keeps the data.
    Drop {
        start: u64,
        len: u64,
    },
    Peek,
    Scan,
}

/// The second mapping of the puppet covers these pages.
const SECOND: Range<u64> = 700..1000;

fn step() -> impl Strategy<Value = Step> {
    let pages = |count: u64| prop::collection::vec(0..count, 1..20);
    prop_oneof![
        4 => (any::<bool>(), pages(PAGES)).prop_map(|(by_kernel, pages)| Step::Write { mapping: 0, by_kernel, pages }),
        2 => (any::<bool>(), pages(SECOND.end - SECOND.start))
            .prop_map(|(by_kernel, pages)| Step::Write { mapping: 1, by_kernel, pages }),
        2 => (0..PAGES, 1..600u64).prop_map(|(start, len)| Step::WriteRun { start, len: len.min(PAGES - start) }),
        1 => (0..PAGES, 1..600u64).prop_map(|(start, len)| Step::Punch { start, len: len.min(PAGES - start) }),
        1 => (0..PAGES, 1..600u64).prop_map(|(start, len)| Step::Drop { start, len: len.min(PAGES - start) }),
        1 => Just(Step::Peek),
        3 => Just(Step::Scan),
    ]
}

/// What must be reported, and what may be besides.
#[derive(Default)]
struct Model {
    written: BTreeSet<u64>,
    /// Punched or dropped since it was written or protected: over-reporting is harmless.
    uncertain: BTreeSet<u64>,
}

impl Model {
    fn check(&self, reported: &BTreeSet<u64>) -> Result<(), TestCaseError> {
        let missed: Vec<&u64> = self.written.difference(reported).collect();
        prop_assert!(missed.is_empty(), "written and not reported: {:?}", missed);
        let invented: Vec<&u64> = reported
            .iter()
            .filter(|p| !self.written.contains(p) && !self.uncertain.contains(p))
            .collect();
        prop_assert!(invented.is_empty(), "reported and not written: {:?}", invented);
        Ok(())
    }
}

fn reported(scan: impl FnOnce(&mut dyn FnMut(Range<u64>)) -> Result<u64, Error>) -> BTreeSet<u64> {
    let mut pages = BTreeSet::new();
    scan(&mut |range| {
        assert!(
            range.start % PAGE == 0 && range.end % PAGE == 0 && !range.is_empty(),
            "{range:?}"
        );
        pages.extend(range.start / PAGE..range.end / PAGE);
    })
    .unwrap();
    pages
}

/// Runs `steps` and compares every scan with the model. `write` and `forget` act in the tracked process.
fn follow(
    steps: &[Step],
    memory: &SharedMemory,
    tracker: &mut WpAsyncTracker,
    mut write: impl FnMut(bool, usize, &[u64]),
    mut forget: impl FnMut(u64, u64),
) -> Result<(), TestCaseError> {
    let mut model = Model::default();
    tracker.arm().unwrap();
    for step in steps.iter().chain([&Step::Peek, &Step::Scan, &Step::Scan]) {
        match step {
            Step::Write {
                mapping,
                by_kernel,
                pages,
            } => {
                write(*by_kernel, *mapping, pages);
                let first = if *mapping == 1 { SECOND.start } else { 0 };
                model.written.extend(pages.iter().map(|page| page + first));
            }
            Step::WriteRun { start, len } => {
                write(false, 0, &(*start..start + len).collect::<Vec<_>>());
                model.written.extend(*start..start + len);
            }
            Step::Punch { start, len } => {
                memory.punch_hole(start * PAGE..(start + len) * PAGE).unwrap();
                model.written.retain(|page| !(*start..start + len).contains(page));
                model.uncertain.extend(*start..start + len);
            }
            Step::Drop { start, len } => {
                forget(*start, *len);
                model.uncertain.extend(*start..start + len);
            }
            Step::Peek => model.check(&reported(|found| tracker.peek(&mut |range| found(range))))?,
            Step::Scan => {
                model.check(&reported(|found| tracker.scan(&mut |range| found(range))))?;
                model = Model::default();
            }
        }
    }
    tracker.disarm().unwrap();
    Ok(())
}

fn run(cases: u32, test: impl Fn(Vec<Step>) -> Result<(), TestCaseError>) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..25), test)
        .unwrap();
}

#[test]
fn a_scan_finds_what_our_own_process_wrote() {
    if !can_track() {
        return;
    }
    run(60, |steps| {
        let memory = SharedMemory::create("tracked", PAGES * PAGE).unwrap();
        let (first, len) = (SECOND.start * PAGE, (SECOND.end - SECOND.start) * PAGE);
        let second = SharedMemory::from_fd(memory.fd().try_clone_to_owned().unwrap(), first, len).unwrap();
        let mappings = mappings_of(std::process::id(), FileId::of(memory.fd()).unwrap()).unwrap();
        let (uffd, _) = Userfaultfd::open().unwrap();
        let scanner = PagemapScanner::open(std::process::id()).unwrap();
        let mut tracker = WpAsyncTracker::new(Arc::new(uffd), scanner, mappings).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let write = |by_kernel, mapping, pages: &[u64]| {
            let memory = if mapping == 1 { &second } else { &memory };
            for page in pages {
                if by_kernel {
                    rustix::io::write(&writer, &[1]).unwrap();
                    let reader = std::os::fd::AsFd::as_fd(&reader);
                    memory.read_range_from(reader, &[(page * PAGE, 1)]).unwrap();
                } else {
                    memory.store_u64(page * PAGE, 1);
                }
            }
        };
        follow(&steps, &memory, &mut tracker, write, |_, _| {})
    });
}

#[test]
fn a_scan_finds_what_another_process_wrote() {
    if !permitted() {
        return;
    }
    run(30, |steps| {
        let mut puppet = Puppet::new(PAGES);
        let process = puppet.process();
        let base = puppet.base();
        assert_eq!(
            puppet.ask(&format!("map {} {}", SECOND.start, SECOND.end - SECOND.start)),
            "1"
        );
        let (uffd, _) = process.steal_userfaultfd(UffdRequest::Full).unwrap();
        let scanner = PagemapScanner::open(process.pid()).unwrap();
        let mut tracker = WpAsyncTracker::new(Arc::new(uffd), scanner, puppet.mappings()).unwrap();
        assert_eq!(tracker.tracked_pages(), PAGES + SECOND.end - SECOND.start);
        // What we write to the file ourselves is none of the tracker's business.
        puppet.memory.fill(0..PAGES * PAGE / 2, 1);
        let memory =
            SharedMemory::from_fd(puppet.memory.fd().try_clone_to_owned().unwrap(), 0, PAGES * PAGE).unwrap();
        let write = |by_kernel, mapping, pages: &[u64]| puppet.write(by_kernel, mapping, 1, pages);
        let forget = |start, len| {
            let range = base + start * PAGE..base + (start + len) * PAGE;
            process.madvise_dontneed(range).unwrap();
        };
        follow(&steps, &memory, &mut tracker, write, forget)
    });
}

/// Tracking needs no rights beyond user mode, and sees the kernel's writes even so.
#[test]
fn the_cost_of_a_write_is_measured_again_and_again() {
    if !can_track() {
        return;
    }
    let mut cost = WriteFaultCost::new().unwrap();
    for _ in 0..3 {
        // Unprotected a store takes a few nanoseconds; a fault takes hundreds on any machine.
        let write = cost.measure().unwrap();
        assert!(
            write > Duration::from_nanos(100),
            "the writes did not fault: {write:?}"
        );
    }
}

#[test]
fn user_mode_only_is_enough_to_track() {
    if !can_track() {
        return;
    }
    let mut puppet = Puppet::new(64);
    let (uffd, _) = puppet
        .process()
        .steal_userfaultfd(UffdRequest::UserModeOnly)
        .unwrap();
    let scanner = PagemapScanner::open(puppet.pid()).unwrap();
    let mut tracker = WpAsyncTracker::new(Arc::new(uffd), scanner, puppet.mappings()).unwrap();
    tracker.arm().unwrap();
    puppet.write(true, 0, 5, &[3, 9]);
    puppet.write(false, 0, 6, &[10]);
    assert_eq!(
        reported(|found| tracker.scan(&mut |range| found(range))),
        [3, 9, 10].into()
    );
    assert_eq!(
        reported(|found| tracker.scan(&mut |range| found(range))),
        [].into()
    );
}

/// What a scan must not be asked for is an error, not an empty answer.
#[test]
fn scanning_what_is_not_tracked_is_refused() {
    if !permitted() {
        return;
    }
    let mut puppet = Puppet::new(64);
    let (uffd, _) = puppet.process().steal_userfaultfd(UffdRequest::Full).unwrap();
    let uffd = Arc::new(uffd);
    let scanner = || PagemapScanner::open(puppet.pid()).unwrap();
    let mut tracker = WpAsyncTracker::new(uffd.clone(), scanner(), puppet.mappings()).unwrap();
    assert!(
        matches!(tracker.scan(&mut |_| {}), Err(Error::NotTracked { .. })),
        "never armed"
    );
    tracker.arm().unwrap();
    // Another userfaultfd on the same range.
    let (other, _) = puppet.process().steal_userfaultfd(UffdRequest::Full).unwrap();
    let mut second = WpAsyncTracker::new(Arc::new(other), scanner(), puppet.mappings()).unwrap();
    assert!(matches!(second.arm(), Err(Error::AlreadyRegistered { .. })));
    // Somebody unregisters behind the tracker's back.
    uffd.unregister(puppet.mappings()[0].addresses.clone()).unwrap();
    assert!(
        matches!(tracker.scan(&mut |_| {}), Err(Error::NotTracked { .. })),
        "unregistered"
    );
    // And one that was set up for something else.
    let (plain, _) = puppet.process().steal_userfaultfd(UffdRequest::Full).unwrap();
    plain.handshake(Features::POST_COPY).unwrap();
    let refused = WpAsyncTracker::new(Arc::new(plain), scanner(), puppet.mappings());
    assert!(matches!(refused.err(), Some(Error::FeaturesFixed { .. })));
    puppet.write(false, 0, 1, &[0]);
}

#[test]
fn present_pages_are_found() {
    if !can_track() {
        return;
    }
    let mut puppet = Puppet::new(600);
    puppet.write(false, 0, 1, &[5, 6, 7, 300]);
    let mut scanner = PagemapScanner::open(puppet.pid()).unwrap();
    let base = puppet.base();
    let mut found = Vec::new();
    let pages = scanner
        .scan_present(base..base + 600 * PAGE, |range| {
            found.push((range.start - base) / PAGE..(range.end - base) / PAGE);
        })
        .unwrap();
    assert_eq!((pages, found), (4, vec![5..8, 300..301]));
    // Runs longer than, and more runs than, one request reports.
    let many: Vec<u64> = (0..600).collect();
    puppet.write(false, 0, 1, &many);
    let mut found = Vec::new();
    scanner
        .scan_present(base..base + 600 * PAGE, |range| found.push(range))
        .unwrap();
    assert!(
        found.len() == 1 && found[0] == (base..base + 600 * PAGE),
        "{found:x?}"
    );
    assert!(matches!(
        PagemapScanner::open(u32::MAX >> 1),
        Err(Error::ProcessGone)
    ));
}

/// More runs than one request of the scanner reports: none is lost or cut at the seams.
#[test]
fn a_scan_goes_on_past_the_bound_of_one_request() {
    if !can_track() {
        return;
    }
    let memory = SharedMemory::create("tracked", 20_000 * PAGE).unwrap();
    let (uffd, _) = Userfaultfd::open().unwrap();
    uffd.handshake(Features::TRACKING).unwrap();
    uffd.register(memory.addresses(), Mode::WP).unwrap();
    uffd.write_protect(memory.addresses(), true).unwrap();
    let written = |page: u64| !page.is_multiple_of(3);
    (0..20_000)
        .filter(|&page| written(page))
        .for_each(|page| memory.store_u64(page * PAGE, 1));
    let mut scanner = PagemapScanner::open(std::process::id()).unwrap();
    let base = memory.addresses().start;
    let mut runs = Vec::new();
    let pages = scanner
        .scan_written(memory.addresses(), true, |r| {
            runs.push((r.start - base) / PAGE..(r.end - base) / PAGE);
        })
        .unwrap();
    let expected: Vec<Range<u64>> = (0..20_000)
        .step_by(3)
        .map(|p| p + 1..(p + 3).min(20_000))
        .collect();
    assert_eq!(pages, (0..20_000).filter(|&page| written(page)).count() as u64);
    assert!(
        runs == expected,
        "{} runs instead of {}",
        runs.len(),
        expected.len()
    );
    assert_eq!(scanner.scan_written(memory.addresses(), true, |_| {}).unwrap(), 0);
}

/// Whole page tables that are dropped after their pages were written: the kernel may free them, and what they
/// knew must not be lost.
#[test]
fn dropped_page_tables_lose_no_write() {
    if !permitted() {
        return;
    }
    const MANY: u64 = 4 * 512;
    let mut puppet = Puppet::new(MANY);
    let process = puppet.process();
    let all = puppet.mappings()[0].addresses.clone();
    let (uffd, _) = process.steal_userfaultfd(UffdRequest::Full).unwrap();
    let scanner = PagemapScanner::open(process.pid()).unwrap();
    let mut tracker = WpAsyncTracker::new(Arc::new(uffd), scanner, puppet.mappings()).unwrap();
    for punch in [false, true] {
        tracker.arm().unwrap();
        let pages: Vec<u64> = (0..MANY).collect();
        puppet.write(false, 0, 1, &pages);
        if punch {
            // Two page tables' worth of holes, then written again.
            puppet.memory.punch_hole(0..MANY * PAGE).unwrap();
            puppet.write(false, 0, 2, &pages);
        } else {
            process.madvise_dontneed(all.clone()).unwrap();
        }
        assert_eq!(
            reported(|found| tracker.scan(&mut |range| found(range))).len() as u64,
            MANY
        );
        // The pages that were reported are protected again, there or not.
        puppet.write(false, 0, 3, &[0, 700]);
        assert_eq!(
            reported(|found| tracker.scan(&mut |range| found(range))),
            [0, 700].into()
        );
    }
}
