//! A handler that dies in the middle of a post-copy, and the one that comes after it.

use std::time::Duration;

use vmferry_memory::{CopyMode, Event, Features, Mode, UffdRequest, Userfaultfd};

use crate::faults::{content, expected, serve_until_answer};
use crate::puppet::Puppet;
use crate::{PAGE, permitted};

const PAGES: u64 = 300;

#[test]
fn faults_wait_for_the_next_handler() {
    if !permitted() {
        return;
    }
    let mut puppet = Puppet::new(PAGES);
    let base = puppet.base();
    let all = base..base + PAGES * PAGE;
    let left_open = {
        // The first handler: serves some faults, reads one more, and dies.
        let (uffd, remote_fd) = puppet.process().steal_userfaultfd(UffdRequest::Full).unwrap();
        uffd.handshake(Features::POST_COPY).unwrap();
        uffd.register(all.clone(), Mode::MISSING).unwrap();
        puppet.tell("read 0 2");
        let mut events = Vec::new();
        let mut served = 0;
        while served < 100 {
            uffd.read_events(&mut events, None).unwrap();
            for event in events.drain(..) {
                let Event::PageFault { address, .. } = event else {
                    panic!("unexpected {event:?}")
                };
                uffd.copy(address, &content((address - base) / PAGE), CopyMode::empty())
                    .unwrap();
                served += 1;
            }
        }
        while uffd.read_events(&mut events, None).unwrap() == 0 {}
        remote_fd
    };
    // Nobody serves: nobody is woken either, least of all with a zero page.
    assert!(
        !puppet.answers_within(Duration::from_millis(50)),
        "a reader went on without its page"
    );

    // The next one knows nothing but the process.
    let process = puppet.process();
    assert_eq!(process.find_userfaultfds().unwrap(), [left_open]);
    let uffd = Userfaultfd::from_fd(process.getfd(left_open).unwrap()).unwrap();
    let found = uffd.info().unwrap();
    assert_eq!(found.features, Some(Features::POST_COPY));
    assert!(found.waiting >= 1, "{found:?}");
    assert_eq!(uffd.handshake(Features::POST_COPY).unwrap(), Features::POST_COPY);
    // What its predecessor had read and not answered is reported again.
    uffd.wake(all.clone()).unwrap();
    let words = serve_until_answer(&mut puppet, &uffd, base, |page, _| {
        uffd.copy(base + page * PAGE, &content(page), CopyMode::empty())
            .unwrap();
    });
    assert!(Puppet::words(&words) == expected(0..PAGES), "bad pages");

    // All is there: nothing is left behind.
    uffd.unregister(all).unwrap();
    drop(uffd);
    process.close_remote(left_open).unwrap();
    assert_eq!(process.find_userfaultfds().unwrap(), []);
    assert!(
        Puppet::words(&puppet.ask("read 0 2")) == expected(0..PAGES),
        "bad pages"
    );
}

/// What the copy left open in the process is good for: without it, waiting readers see zeros.
#[test]
fn closing_the_last_copy_lets_readers_see_zeros() {
    if !permitted() {
        return;
    }
    let mut puppet = Puppet::new(2);
    let base = puppet.base();
    let process = puppet.process();
    let (uffd, remote_fd) = process.steal_userfaultfd(UffdRequest::Full).unwrap();
    uffd.handshake(Features::POST_COPY).unwrap();
    uffd.register(base..base + 2 * PAGE, Mode::MISSING).unwrap();
    puppet.tell("read 0 1");
    while uffd.info().unwrap().waiting == 0 {
        std::thread::yield_now();
    }
    process.close_remote(remote_fd).unwrap();
    assert!(!puppet.answers_within(Duration::from_millis(30)));
    drop(uffd);
    assert_eq!(Puppet::words(&puppet.answer()), [(0, 0); 2]);
}
