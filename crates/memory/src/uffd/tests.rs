//! Tests of a userfaultfd of our own process.

use std::os::fd::AsFd;
use std::time::Duration;

use super::*;
use crate::{PAGE_SIZE, SharedMemory};

const PAGE: u64 = PAGE_SIZE as u64;

/// A userfaultfd for all faults, or `None` (and a word about it) where there is no right to one.
fn open() -> Option<Userfaultfd> {
    match Userfaultfd::open() {
        Ok((uffd, Permission::SystemCall | Permission::Device)) => Some(uffd),
        other => {
            println!("skipped: no full userfaultfd here: {other:?}");
            None
        }
    }
}

#[test]
fn features_are_switched_on_once() {
    let Some(uffd) = open() else { return };
    assert_eq!(uffd.info().unwrap().features, None);
    assert_eq!(uffd.handshake(Features::POST_COPY).unwrap(), Features::POST_COPY);
    assert_eq!(uffd.info().unwrap().features, Some(Features::POST_COPY));
    assert_eq!(uffd.handshake(Features::POST_COPY).unwrap(), Features::POST_COPY);
    let refused = uffd.handshake(Features::HYBRID).unwrap_err();
    assert!(
        matches!(
            refused,
            Error::FeaturesFixed {
                missing: Features::MINOR_SHMEM
            }
        ),
        "{refused}"
    );
    assert!(
        Userfaultfd::probe_features()
            .unwrap()
            .contains(Features::POST_COPY)
    );
}

#[test]
fn features_of_the_future_are_missing() {
    let Some(uffd) = open() else { return };
    let future = Features::from_bits_retain(1 << 62);
    let refused = uffd.handshake(future | Features::POST_COPY).unwrap_err();
    assert!(
        matches!(refused, Error::FeaturesMissing { missing } if missing == future),
        "{refused}"
    );
    // A refusal leaves it fit for use.
    uffd.handshake(Features::POST_COPY).unwrap();
}

/// What keeps a safe interface safe: no memory that anybody holds references into.
#[test]
fn only_shared_memory_of_ours_can_be_registered() {
    let Some(uffd) = open() else { return };
    uffd.handshake(Features::POST_COPY).unwrap();
    let memory = SharedMemory::create("uffd-test", 8 * PAGE).unwrap();
    let own = memory.addresses();
    let heap = vec![0u8; 64 * PAGE_SIZE];
    let page_of_heap = (heap.as_ptr() as u64).next_multiple_of(PAGE);
    for range in [
        page_of_heap..page_of_heap + PAGE,
        own.start - PAGE..own.end,
        own.start..own.end + PAGE,
    ] {
        let refused = uffd.register(range.clone(), Mode::MISSING).unwrap_err();
        assert!(matches!(refused, Error::BadRange { .. }), "{range:x?}: {refused}");
    }
    uffd.register(own.start + PAGE..own.end, Mode::MISSING).unwrap();
    drop(memory);
    assert!(matches!(
        uffd.register(own, Mode::MISSING),
        Err(Error::BadRange { .. })
    ));
}

#[test]
fn a_range_has_one_userfaultfd() {
    let (Some(first), Some(second)) = (open(), open()) else {
        return;
    };
    first.handshake(Features::POST_COPY).unwrap();
    second.handshake(Features::POST_COPY).unwrap();
    let memory = SharedMemory::create("uffd-test", 8 * PAGE).unwrap();
    first.register(memory.addresses(), Mode::MISSING).unwrap();
    first.register(memory.addresses(), Mode::MISSING).unwrap();
    let refused = second.register(memory.addresses(), Mode::MISSING).unwrap_err();
    assert!(matches!(refused, Error::AlreadyRegistered { .. }), "{refused}");
    first.unregister(memory.addresses()).unwrap();
    second.register(memory.addresses(), Mode::MISSING).unwrap();
}

#[test]
fn ranges_must_be_whole_pages() {
    let Some(uffd) = open() else { return };
    uffd.handshake(Features::TRACKING).unwrap();
    let memory = SharedMemory::create("uffd-test", 8 * PAGE).unwrap();
    let start = memory.addresses().start;
    for range in [
        start..start,
        start..start + 1,
        start + 1..start + PAGE,
        start + PAGE..start,
    ] {
        let (mode, none) = (Mode::WP, CopyMode::empty());
        let results = [
            uffd.register(range.clone(), mode).err(),
            uffd.unregister(range.clone()).err(),
            uffd.wake(range.clone()).err(),
            uffd.write_protect(range.clone(), true).err(),
            uffd.zeropage(range.clone(), none).err(),
            uffd.continue_range(range.clone(), none).err(),
        ];
        for result in results {
            assert!(
                matches!(result, Some(Error::BadRange { .. })),
                "{range:x?}: {result:?}"
            );
        }
    }
}

#[test]
fn what_is_no_userfaultfd_is_refused() {
    let memory = SharedMemory::create("uffd-test", PAGE).unwrap();
    assert!(Userfaultfd::from_fd(memory.fd().try_clone_to_owned().unwrap()).is_err());
}

#[test]
fn faults_of_our_own_threads_are_served() {
    let Some(uffd) = open() else { return };
    uffd.handshake(Features::POST_COPY | Features::THREAD_ID).unwrap();
    let memory = SharedMemory::create("uffd-test", 64 * PAGE).unwrap();
    uffd.register(memory.addresses(), Mode::MISSING).unwrap();
    std::thread::scope(|scope| {
        let faulter = scope.spawn(|| {
            (0..64).for_each(|page| memory.store_u64(page * PAGE + 8, 7));
            rustix::thread::gettid().as_raw_nonzero().get() as u32
        });
        let mut threads = Vec::new();
        let mut events = Vec::new();
        while !faulter.is_finished() {
            uffd.read_events(&mut events, Some(Duration::from_millis(5)))
                .unwrap();
            for event in events.drain(..) {
                let Event::PageFault {
                    address,
                    flags,
                    thread,
                } = event
                else {
                    panic!("{event:?}")
                };
                assert!(
                    memory.addresses().contains(&address) && flags == FaultFlags::WRITE,
                    "{flags:?}"
                );
                threads.push(thread);
                assert!(
                    uffd.copy(address, &[0x11; PAGE_SIZE], CopyMode::empty())
                        .unwrap()
                        .is_complete()
                );
            }
        }
        assert_eq!(threads, vec![faulter.join().unwrap(); 64]);
    });
    assert!((0..64).all(|page| memory.load_u64(page * PAGE + 8) == 7));
    assert!((0..64).all(|page| memory.load_u64(page * PAGE) == 0x1111_1111_1111_1111));
    // Nothing waits and nothing comes.
    assert_eq!(
        uffd.read_events(&mut Vec::new(), Some(Duration::ZERO)).unwrap(),
        0
    );
}

/// A page that a system call touches is served like any other.
#[test]
fn system_calls_fault_too() {
    let Some(uffd) = open() else { return };
    uffd.handshake(Features::POST_COPY).unwrap();
    let memory = SharedMemory::create("uffd-test", 4 * PAGE).unwrap();
    uffd.register(memory.addresses(), Mode::MISSING).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| memory.write_range_to(writer.as_fd(), b"", &[(PAGE, 2 * PAGE)]));
        let mut events = Vec::new();
        while !worker.is_finished() {
            uffd.read_events(&mut events, Some(Duration::from_millis(5)))
                .unwrap();
            for event in events.drain(..) {
                let Event::PageFault { address, .. } = event else {
                    panic!("{event:?}")
                };
                uffd.copy(address, &[0x22; PAGE_SIZE], CopyMode::empty()).unwrap();
            }
        }
        worker.join().unwrap().unwrap();
    });
    let target = SharedMemory::create("uffd-test", 2 * PAGE).unwrap();
    target.read_range_from(reader.as_fd(), &[(0, 2 * PAGE)]).unwrap();
    assert_eq!(
        (target.page_is_uniform(0), target.page_is_uniform(PAGE)),
        (Some(0x22), Some(0x22))
    );
}

/// Threads that touch page after page while the range is taken out of care: one that was about to wait when the kernel woke those who did
/// would wait for ever.
#[test]
fn nobody_waits_once_a_range_is_out_of_care() {
    const ROUNDS: u64 = 3000;
    const PAGES: u64 = 64;
    let Some(uffd) = open() else { return };
    uffd.handshake(Features::POST_COPY).unwrap();
    let mut forgotten = 0;
    for round in 0..ROUNDS {
        let memory = SharedMemory::create("uffd-test", PAGES * PAGE).unwrap();
        uffd.register(memory.addresses(), Mode::MISSING).unwrap();
        std::thread::scope(|scope| {
            let touch = || (0..PAGES).for_each(|page| memory.store_u64(page * PAGE, 7));
            let faulter = scope.spawn(touch);
            let mut events = Vec::new();
            let mut served = 0;
            while served < round % 8 {
                uffd.read_events(&mut events, None).unwrap();
                for event in events.drain(..) {
                    let Event::PageFault { address, .. } = event else {
                        panic!("{event:?}")
                    };
                    let page = address / PAGE * PAGE;
                    uffd.zeropage(page..page + PAGE, CopyMode::empty()).unwrap();
                    served += 1;
                }
            }
            (0..round % 97 * 20).for_each(|_| std::hint::spin_loop());
            uffd.unregister(memory.addresses()).unwrap();
            let began = std::time::Instant::now();
            while !faulter.is_finished() {
                if began.elapsed() > Duration::from_secs(5) {
                    forgotten += 1;
                    uffd.wake(memory.addresses()).unwrap();
                    break;
                }
                std::thread::yield_now();
            }
        });
    }
    assert_eq!(forgotten, 0, "of {ROUNDS} threads");
}
