//! Page faults of another process, served by us.

use std::ops::Range;
use std::time::Duration;

use vmferry_memory::{
    CopyMode, Event, FaultFlags, Features, Ioctls, Mode, Outcome, PAGE_SIZE, SharedMemory, Stopped,
    UffdRequest, Userfaultfd,
};

use crate::puppet::Puppet;
use crate::{PAGE, permitted};

/// What page `number` holds at the source: every third one zeros, the others words of its number.
pub(crate) fn content(number: u64) -> [u8; PAGE_SIZE] {
    let word = if number.is_multiple_of(3) {
        0
    } else {
        number << 8 | 1
    };
    let mut page = [0; PAGE_SIZE];
    page.chunks_exact_mut(8)
        .for_each(|chunk| chunk.copy_from_slice(&u64::to_ne_bytes(word)));
    page
}

/// The first and the last word of every page of `pages`, as a puppet should read them.
pub(crate) fn expected(pages: Range<u64>) -> Vec<(u64, u64)> {
    let word = |number| u64::from_ne_bytes(content(number)[..8].try_into().unwrap());
    pages.map(|number| (word(number), word(number))).collect()
}

/// A puppet with its mapping registered for faults in `mode`; gives back the userfaultfd and the mapping's address.
fn registered(pages: u64, features: Features, mode: Mode) -> (Puppet, Userfaultfd, u64) {
    let puppet = Puppet::new(pages);
    let (uffd, _) = puppet.process().steal_userfaultfd(UffdRequest::Full).unwrap();
    uffd.handshake(features).unwrap();
    let base = puppet.base();
    let requests = uffd.register(base..base + pages * PAGE, mode).unwrap();
    assert!(requests.contains(Ioctls::WAKE | Ioctls::COPY | Ioctls::ZEROPAGE));
    (puppet, uffd, base)
}

/// Answers faults by `serve(page, flags)` until the puppet answers its command.
pub(crate) fn serve_until_answer(
    puppet: &mut Puppet,
    uffd: &Userfaultfd,
    base: u64,
    mut serve: impl FnMut(u64, FaultFlags),
) -> String {
    let mut events = Vec::new();
    while !puppet.answers_within(Duration::ZERO) {
        uffd.read_events(&mut events, Some(Duration::from_millis(5)))
            .unwrap();
        for event in events.drain(..) {
            let Event::PageFault { address, flags, .. } = event else {
                panic!("unexpected {event:?}")
            };
            serve((address - base) / PAGE, flags);
        }
    }
    puppet.answer()
}

fn complete(bytes: u64) -> Outcome {
    Outcome {
        installed: bytes,
        stopped: None,
    }
}

#[test]
fn missing_pages_are_copied_or_zeroed() {
    if !permitted() {
        return;
    }
    let (mut puppet, uffd, base) = registered(600, Features::POST_COPY, Mode::MISSING);
    // Two threads and a page in turns: faults overlap, and each page is asked for once.
    puppet.tell("read 0 2");
    let mut served = vec![0; 600];
    let words = serve_until_answer(&mut puppet, &uffd, base, |page, flags| {
        assert!(!flags.intersects(FaultFlags::MINOR | FaultFlags::WP), "{flags:?}");
        served[page as usize] += 1;
        let address = base + page * PAGE;
        let outcome = if page % 3 == 0 {
            uffd.zeropage(address..address + PAGE, CopyMode::empty()).unwrap()
        } else {
            uffd.copy(address, &content(page), CopyMode::empty()).unwrap()
        };
        assert_eq!(outcome, complete(PAGE));
    });
    assert!(served.iter().all(|&times| times == 1), "{served:?}");
    assert!(Puppet::words(&words) == expected(0..600), "wrong contents");
}

/// Faults and a push of whole runs at the same time: the push skips what is there.
#[test]
fn a_push_runs_beside_the_faults() {
    if !permitted() {
        return;
    }
    let (mut puppet, uffd, base) = registered(2000, Features::POST_COPY, Mode::MISSING);
    puppet.tell("read 0 2");
    let mut present = 0;
    std::thread::scope(|scope| {
        let uffd = &uffd;
        let (begin, begun) = std::sync::mpsc::channel();
        let pusher = scope.spawn(move || {
            begun.recv().unwrap();
            let mut skipped = 0;
            for first in (0..125).rev().map(|run| run * 16) {
                let run: Vec<u8> = (first..first + 16).flat_map(content).collect();
                let mut at = 0;
                while at < run.len() {
                    let address = base + first * PAGE + at as u64;
                    let outcome = uffd.copy(address, &run[at..], CopyMode::empty()).unwrap();
                    at += outcome.installed as usize;
                    if outcome.stopped == Some(Stopped::Present) {
                        skipped += 1;
                        at += PAGE_SIZE;
                    }
                }
            }
            skipped
        });
        let words = serve_until_answer(&mut puppet, uffd, base, |page, _| {
            // The push begins once there is something for it to meet.
            let _ = begin.send(());
            let address = base + page * PAGE;
            match uffd.copy(address, &content(page), CopyMode::empty()).unwrap() {
                Outcome {
                    installed: PAGE,
                    stopped: None,
                } => {}
                // The push was quicker. Its wake may have come before this fault was waiting.
                Outcome {
                    installed: 0,
                    stopped: Some(Stopped::Present),
                } => {
                    present += 1;
                    uffd.wake(address..address + PAGE).unwrap();
                }
                other => panic!("{other:?}"),
            }
        });
        assert!(Puppet::words(&words) == expected(0..2000), "wrong contents");
        present += pusher.join().unwrap();
    });
    assert!(present > 0, "push and faults never met: nothing was tested");
}

#[test]
fn a_copy_stops_at_a_page_that_is_there() {
    if !permitted() {
        return;
    }
    let (mut puppet, uffd, base) = registered(16, Features::POST_COPY, Mode::MISSING);
    let run: Vec<u8> = (0..8).flat_map(content).collect();
    let none = CopyMode::empty();
    assert_eq!(
        uffd.copy(base + 5 * PAGE, &content(5), none).unwrap(),
        complete(PAGE)
    );
    let present = |installed| Outcome {
        installed,
        stopped: Some(Stopped::Present),
    };
    assert_eq!(uffd.copy(base, &run, none).unwrap(), present(5 * PAGE));
    assert_eq!(
        uffd.copy(base + 5 * PAGE, &run[5 * PAGE_SIZE..], none).unwrap(),
        present(0)
    );
    assert_eq!(
        uffd.copy(base + 6 * PAGE, &run[6 * PAGE_SIZE..], none).unwrap(),
        complete(2 * PAGE)
    );
    assert_eq!(
        uffd.zeropage(base + 4 * PAGE..base + 10 * PAGE, none).unwrap(),
        present(0)
    );
    assert_eq!(
        uffd.zeropage(base + 8 * PAGE..base + 16 * PAGE, none).unwrap(),
        complete(8 * PAGE)
    );
    let words = Puppet::words(&puppet.ask("read 0 1"));
    assert!(
        words[..8] == expected(0..8) && words[8..].iter().all(|&pair| pair == (0, 0)),
        "{words:?}"
    );

    // Not whole pages, not registered, and after the end of the process.
    assert!(uffd.copy(base, &run[..100], none).is_err());
    assert!(uffd.copy(base + 1, &content(0), none).is_err());
    assert!(uffd.copy(base, &[], none).is_err());
    uffd.unregister(base..base + 16 * PAGE).unwrap();
    puppet.memory.punch_hole(0..16 * PAGE).unwrap();
    assert!(uffd.copy(base, &content(0), none).is_err());
    drop(puppet);
    let gone = uffd.copy(base, &content(0), none).unwrap_err();
    assert!(matches!(gone, vmferry_memory::Error::ProcessGone), "{gone}");
}

/// A hybrid's destination: pages with even numbers arrived before and are stale, the others never came.
#[test]
fn minor_faults_show_a_page_only_once_it_is_filled() {
    if !permitted() {
        return;
    }
    let (mut puppet, uffd, base) = registered(600, Features::HYBRID, Mode::MISSING | Mode::MINOR);
    let file = puppet.memory.fd().try_clone_to_owned().unwrap();
    let memory = SharedMemory::from_fd(file, 0, 600 * PAGE).unwrap();
    let sent = |page: u64| page.is_multiple_of(2);
    for page in (0..600).filter(|&page| sent(page)) {
        memory.fill(page * PAGE..(page + 1) * PAGE, 0xEE);
    }
    puppet.tell("read 0 2");
    let (mut minor, mut missing) = (0, 0);
    let words = serve_until_answer(&mut puppet, &uffd, base, |page, flags| {
        let address = base + page * PAGE;
        if flags.contains(FaultFlags::MINOR) {
            assert!(sent(page), "page {page} was never sent");
            minor += 1;
            // Filled in place; the puppet sees none of it before the page is mapped.
            memory.write_at(page * PAGE, &content(page));
            let outcome = uffd
                .continue_range(address..address + PAGE, CopyMode::empty())
                .unwrap();
            assert_eq!(outcome, complete(PAGE));
        } else {
            assert!(!sent(page), "page {page} is there");
            missing += 1;
            assert_eq!(
                uffd.copy(address, &content(page), CopyMode::empty()).unwrap(),
                complete(PAGE)
            );
        }
    });
    assert_eq!((minor, missing), (300, 300));
    assert!(Puppet::words(&words) == expected(0..600), "wrong contents");

    // Mapped already; and a hole, which there is nothing in to map.
    let stopped = |stopped| Outcome {
        installed: 0,
        stopped: Some(stopped),
    };
    let first = base..base + 2 * PAGE;
    assert_eq!(
        uffd.continue_range(first.clone(), CopyMode::empty()).unwrap(),
        stopped(Stopped::Present)
    );
    memory.punch_hole(0..2 * PAGE).unwrap();
    assert_eq!(
        uffd.continue_range(first.clone(), CopyMode::empty()).unwrap(),
        stopped(Stopped::Hole)
    );
    memory.write_at(0, &content(1));
    let partly = Outcome {
        installed: PAGE,
        stopped: Some(Stopped::Hole),
    };
    assert_eq!(uffd.continue_range(first, CopyMode::empty()).unwrap(), partly);
}

/// A page the balloon gave back at the destination faults again; what it is answered with is what is read.
#[test]
fn a_punched_page_is_missing_again() {
    if !permitted() {
        return;
    }
    let (mut puppet, uffd, base) = registered(4, Features::POST_COPY, Mode::MISSING);
    let run: Vec<u8> = (0..4).flat_map(content).collect();
    assert_eq!(
        uffd.copy(base, &run, CopyMode::empty()).unwrap(),
        complete(4 * PAGE)
    );
    assert!(Puppet::words(&puppet.ask("read 0 1")) == expected(0..4));
    puppet.memory.punch_hole(2 * PAGE..3 * PAGE).unwrap();
    puppet.tell("read 0 1");
    let mut asked = Vec::new();
    let words = serve_until_answer(&mut puppet, &uffd, base, |page, _| {
        asked.push(page);
        let address = base + page * PAGE;
        assert!(
            uffd.zeropage(address..address + PAGE, CopyMode::empty())
                .unwrap()
                .is_complete()
        );
    });
    assert_eq!((asked, Puppet::words(&words)[2]), (vec![2], (0, 0)));
}

/// Installed without waking, a page wakes its reader only when it is told to.
#[test]
fn wakes_can_be_put_off() {
    if !permitted() {
        return;
    }
    let (mut puppet, uffd, base) = registered(1, Features::POST_COPY, Mode::MISSING);
    puppet.tell("read 0 1");
    let mut events = Vec::new();
    while uffd.read_events(&mut events, None).unwrap() == 0 {}
    assert!(
        uffd.copy(base, &content(1), CopyMode::DONTWAKE)
            .unwrap()
            .is_complete()
    );
    assert!(!puppet.answers_within(Duration::from_millis(30)));
    assert_eq!(uffd.info().unwrap().waiting, 1);
    uffd.wake(base..base + PAGE).unwrap();
    assert!(Puppet::words(&puppet.answer()) == expected(1..2));
}
