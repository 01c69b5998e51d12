//! Writes of another process, held up.

use std::time::{Duration, Instant};

use vmferry_memory::{Features, Held, Mode, PagemapScanner, UffdRequest, Userfaultfd, WriteGate};

use crate::puppet::Puppet;
use crate::{PAGE, permitted};

const PAGES: u64 = 600;
/// Long enough for what must not happen to happen.
const A_WHILE: Duration = Duration::from_millis(150);
const PATIENCE: Duration = Duration::from_secs(20);

fn gate(puppet: &Puppet, watch_drops: bool) -> WriteGate {
    let uffd = puppet.process().take_userfaultfd(UffdRequest::Full).unwrap();
    let scanner = PagemapScanner::open(puppet.pid()).unwrap();
    WriteGate::new(uffd, scanner, puppet.mappings(), watch_drops).unwrap()
}

/// Waits for the next thing to happen.
fn next(gate: &WriteGate) -> Held {
    let (began, mut held) = (Instant::now(), Vec::new());
    while held.is_empty() {
        assert!(began.elapsed() < PATIENCE, "nothing happens");
        gate.wait(Duration::from_millis(20), &mut held).unwrap();
    }
    held.swap_remove(0)
}

/// Writes by the process and by the kernel for it, through both of its mappings: each waits, and the page is as it was
/// until it is released; other pages are not held up.
#[test]
fn a_write_waits_until_its_page_is_released() {
    if !permitted() {
        return;
    }
    let mut puppet = Puppet::new(PAGES);
    puppet.write(false, 0, 7, &(0..PAGES - 50).collect::<Vec<_>>());
    assert_eq!(puppet.ask("map 100 200"), "1");
    let gate = gate(&puppet, false);
    gate.protect(0..PAGES * PAGE).unwrap();
    // Two of data, by two mappings (page 5 of the second is page 105), and one of a hole.
    let writes = [
        ("write 0", 3, 3),
        ("kernel-write 0", 4, 4),
        ("write 1", 5, 105),
        ("write 0", PAGES - 2, PAGES - 2),
    ];
    for (verb, page, in_file) in writes {
        puppet.tell(&format!("{verb} 99 {page}"));
        assert_eq!(next(&gate), Held::Write(in_file * PAGE));
        assert!(
            !puppet.answers_within(A_WHILE),
            "the write of page {page} went on"
        );
        let before = if in_file < PAGES - 50 { 7 } else { 0 };
        assert_eq!(puppet.memory.load_u64(in_file * PAGE), before);
        gate.release(in_file * PAGE..(in_file + 1) * PAGE).unwrap();
        assert_eq!(puppet.answer(), "done");
        assert_eq!(puppet.memory.load_u64(in_file * PAGE), 99);
    }
    // Through the other mapping it is released as well.
    puppet.write(false, 0, 100, &[105]);
    gate.release(200 * PAGE..300 * PAGE).unwrap();
    puppet.write(true, 0, 5, &(200..300).collect::<Vec<_>>());
    puppet.tell("write 0 98 300");
    assert_eq!(next(&gate), Held::Write(300 * PAGE));
    gate.end().unwrap();
    assert_eq!(puppet.answer(), "done");
    puppet.write(false, 0, 6, &(0..PAGES).collect::<Vec<_>>());
}

/// As when a daemon is killed: no copy of the descriptor is left anywhere, and the process goes on.
#[test]
fn who_waits_goes_on_when_the_gate_is_gone() {
    if !permitted() {
        return;
    }
    let mut puppet = Puppet::new(PAGES);
    puppet.write(false, 0, 7, &(0..PAGES).collect::<Vec<_>>());
    let open = puppet.process().find_userfaultfds().unwrap();
    let gate = gate(&puppet, false);
    assert_eq!(
        puppet.process().find_userfaultfds().unwrap(),
        open,
        "no copy stays there"
    );
    gate.protect(0..PAGES * PAGE).unwrap();
    puppet.tell("write 0 8 17");
    assert_eq!(next(&gate), Held::Write(17 * PAGE));
    drop(gate);
    assert_eq!(puppet.answer(), "done");
    // Its pages hold what they held, and what was written since.
    let words = Puppet::words(&puppet.ask("read 0 2"));
    assert!(
        words
            .iter()
            .enumerate()
            .all(|(page, &(first, _))| first == if page == 17 { 8 } else { 7 })
    );
    // And the next one finds the memory free.
    let uffd = puppet.process().take_userfaultfd(UffdRequest::Full).unwrap();
    uffd.handshake(Features::TRACKING).unwrap();
    uffd.register(puppet.mappings()[0].addresses.clone(), Mode::WP)
        .unwrap();
}

/// Which pages were touched shows page by page, and what is protected stays so when mappings are dropped.
#[test]
fn touched_pages_are_told_apart() {
    if !permitted() {
        return;
    }
    let mut puppet = Puppet::new(PAGES);
    puppet.write(false, 0, 7, &(0..PAGES - 50).collect::<Vec<_>>());
    let gate = gate(&puppet, false);
    gate.protect(0..PAGES * PAGE).unwrap();
    puppet
        .process()
        .madvise_dontneed(gate.mappings()[0].addresses.clone())
        .unwrap();
    let touched = || {
        let mut pages = Vec::new();
        gate.scan_touched(&mut |range| pages.extend(range.start / PAGE..range.end / PAGE))
            .unwrap();
        pages
    };
    assert_eq!(touched(), []);
    assert_eq!(puppet.ask("map 40 1"), "1");
    // Mapping 1 came after the gate: it is not among what is looked at.
    assert_eq!(Puppet::words(&puppet.ask("read 1 1")), [(7, 0)]);
    puppet.tell("write 0 9 30");
    assert_eq!(next(&gate), Held::Write(30 * PAGE));
    gate.release(30 * PAGE..31 * PAGE).unwrap();
    assert_eq!(puppet.answer(), "done");
    assert_eq!(touched(), [30]);
    puppet.ask("read 0 1");
    assert_eq!(touched().len() as u64, PAGES);
}

/// A process all of whose pages are protected, and whose drops of pages are told of.
fn while_drops_are_watched() -> (Puppet, WriteGate) {
    let mut puppet = Puppet::new(PAGES);
    puppet.write(false, 0, 7, &(0..PAGES).collect::<Vec<_>>());
    let gate = gate(&puppet, true);
    gate.protect(0..PAGES * PAGE).unwrap();
    (puppet, gate)
}

/// A balloon punches first and then drops the mapping; the latter waits until somebody has heard of it.
#[test]
fn dropped_mappings_are_reported() {
    if !permitted() {
        return;
    }
    let (puppet, gate) = while_drops_are_watched();
    let process = puppet.process();
    std::thread::scope(|scope| {
        let drops =
            scope.spawn(|| process.madvise_dontneed(puppet.base() + 8 * PAGE..puppet.base() + 12 * PAGE));
        assert_eq!(next(&gate), Held::Dropped(8 * PAGE..12 * PAGE));
        drops.join().unwrap().unwrap();
    });
}

/// Who answers a write does not fail, and nobody waits for ever, because a balloon drops pages at that moment.
#[test]
fn a_page_is_released_while_another_is_dropped() {
    if !permitted() {
        return;
    }
    let (puppet, gate) = while_drops_are_watched();
    let process = puppet.process();
    std::thread::scope(|scope| {
        let drops =
            scope.spawn(|| process.madvise_dontneed(puppet.base() + 8 * PAGE..puppet.base() + 12 * PAGE));
        // It waits for somebody to read of it.
        std::thread::sleep(A_WHILE);
        gate.release(0..PAGE).unwrap();
        gate.protect(0..PAGE).unwrap();
        drops.join().unwrap().unwrap();
        assert_eq!(next(&gate), Held::Dropped(8 * PAGE..12 * PAGE));
    });
}

/// The kernel's features are asked for by name, and another userfaultfd on the range is said to be there.
#[test]
fn a_tracker_has_to_let_go_first() {
    if !permitted() {
        return;
    }
    let puppet = Puppet::new(PAGES);
    let (tracking, _) = puppet.process().steal_userfaultfd(UffdRequest::Full).unwrap();
    tracking.handshake(Features::TRACKING).unwrap();
    tracking
        .register(puppet.mappings()[0].addresses.clone(), Mode::WP)
        .unwrap();
    let uffd: Userfaultfd = puppet.process().take_userfaultfd(UffdRequest::Full).unwrap();
    let scanner = PagemapScanner::open(puppet.pid()).unwrap();
    let refused = WriteGate::new(uffd, scanner, puppet.mappings(), false)
        .err()
        .expect("it is taken");
    assert!(
        matches!(refused, vmferry_memory::Error::AlreadyRegistered { .. }),
        "{refused}"
    );
    tracking
        .unregister(puppet.mappings()[0].addresses.clone())
        .unwrap();
    drop(gate(&puppet, false));
}
