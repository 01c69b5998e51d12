//! Tests of shared memory.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize};

use proptest::prelude::*;

use super::*;

const PAGE: u64 = PAGE_SIZE as u64;

fn memory(pages: u64) -> SharedMemory {
    SharedMemory::create("ram-test", pages * PAGE).unwrap()
}

/// Bytes that differ from page to page and within a page.
fn pattern(len: u64, seed: u64) -> Vec<u8> {
    (0..len)
        .map(|i| ((i + seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8)
        .collect()
}

fn contents(memory: &SharedMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len() as usize];
    memory.read_at(0, &mut bytes);
    bytes
}

#[test]
fn bytes_come_back() {
    let memory = memory(3);
    let bytes = pattern(5000, 1);
    memory.write_at(100, &bytes);
    let mut back = vec![0; 5000];
    memory.read_at(100, &mut back);
    assert_eq!(back, bytes);
    memory.fill(200..300, 0xEE);
    memory.read_at(199, &mut back[..102]);
    assert_eq!((back[0], back[101]), (bytes[99], bytes[200]));
    assert!(back[1..101].iter().all(|&byte| byte == 0xEE));
    // Up to the last byte, and nothing at the end.
    memory.write_at(3 * PAGE - 1, &[9]);
    memory.write_at(3 * PAGE, &[]);
}

#[test]
fn what_is_written_through_the_file_is_in_memory() {
    let memory = memory(4);
    let bytes = pattern(2 * PAGE, 3);
    memory.write_through_file(PAGE, &bytes).unwrap();
    let mut expected = vec![0; 4 * PAGE as usize];
    expected[PAGE as usize..3 * PAGE as usize].copy_from_slice(&bytes);
    assert_eq!(contents(&memory), expected);
}

#[test]
#[should_panic(expected = "past the end")]
fn nothing_is_written_through_the_file_past_the_end() {
    let _ = memory(1).write_through_file(8, &[0; PAGE as usize]);
}

#[test]
fn words_are_atomic() {
    let memory = memory(1);
    memory.store_u64(8, 41);
    assert_eq!(memory.fetch_update(8, |old| Some(old + 1)), Ok(41));
    assert_eq!(memory.fetch_update(8, |_| None), Err(42));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                (0..10_000).for_each(|_| assert!(memory.fetch_update(8, |old| Some(old + 1)).is_ok()));
            });
        }
    });
    assert_eq!(memory.load_u64(8), 20_042);
}

#[test]
fn a_second_mapping_of_the_file_sees_the_same() {
    let memory = memory(4);
    let upper = SharedMemory::from_fd(memory.fd().try_clone_to_owned().unwrap(), 2 * PAGE, 2 * PAGE).unwrap();
    memory.store_u64(2 * PAGE + 8, 7);
    assert_eq!(
        (upper.load_u64(8), upper.len(), upper.file_offset()),
        (7, 2 * PAGE, 2 * PAGE)
    );
    let extents: Vec<_> = upper.data_extents(0..upper.len()).map(Result::unwrap).collect();
    assert_eq!(extents, std::slice::from_ref(&(0..PAGE)));
    upper.punch_hole(0..PAGE).unwrap();
    assert_eq!(memory.load_u64(2 * PAGE + 8), 0);
}

#[test]
fn the_length_is_sealed() {
    let memory = memory(4);
    assert_eq!(
        rustix::fs::ftruncate(memory.fd(), PAGE),
        Err(rustix::io::Errno::PERM)
    );
    assert_eq!(
        rustix::fs::ftruncate(memory.fd(), 8 * PAGE),
        Err(rustix::io::Errno::PERM)
    );
    // What a hypervisor does with a file of the right length.
    rustix::fs::ftruncate(memory.fd(), 4 * PAGE).unwrap();
}

#[test]
fn bad_lengths_and_ranges_are_refused() {
    for len in [0, 1, PAGE + 1, u64::MAX - PAGE + 1] {
        assert!(SharedMemory::create("ram-test", len).is_err(), "{len}");
    }
    let memory = memory(4);
    let file = || memory.fd().try_clone_to_owned().unwrap();
    assert!(SharedMemory::from_fd(file(), 1, PAGE).is_err());
    assert!(SharedMemory::from_fd(file(), u64::MAX - PAGE + 1, PAGE).is_err());
    let refused = SharedMemory::from_fd(file(), PAGE, 4 * PAGE)
        .err()
        .expect("reaches past the end");
    assert!(
        matches!(refused, Error::BadLength { found, expected, .. } if (found, expected) == (4 * PAGE, 5 * PAGE))
    );
    for range in [1..PAGE, 0..5 * PAGE, 0..PAGE + 1] {
        assert!(memory.punch_hole(range.clone()).is_err(), "{range:?}");
        assert!(memory.populate(range.clone()).is_err(), "{range:?}");
    }
}

#[test]
#[should_panic(expected = "past the end")]
fn reading_past_the_end_panics() {
    memory(1).read_at(PAGE - 1, &mut [0; 2]);
}

#[test]
#[should_panic(expected = "past the end")]
fn an_offset_that_overflows_panics() {
    memory(1).write_at(u64::MAX, &[0; 2]);
}

#[test]
fn uniform_pages_are_told_from_others() {
    let memory = memory(2);
    assert_eq!(memory.page_is_uniform(PAGE), Some(0));
    memory.fill(PAGE..2 * PAGE, 0xA5);
    assert_eq!(memory.page_is_uniform(PAGE), Some(0xA5));
    // One byte that differs, wherever it is.
    for at in 0..PAGE {
        memory.write_at(PAGE + at, &[0xA4]);
        assert_eq!(memory.page_is_uniform(PAGE), None, "byte {at}");
        memory.write_at(PAGE + at, &[0xA5]);
    }
    // A page of equal words of unequal bytes.
    (0..PAGE)
        .step_by(8)
        .for_each(|at| memory.store_u64(PAGE + at, 0x0101_0101_0101_0102));
    assert_eq!(memory.page_is_uniform(PAGE), None);
}

#[test]
fn hashes_follow_the_contents() {
    let memory = memory(2);
    let bytes = pattern(PAGE, 3);
    memory.write_at(0, &bytes);
    memory.write_at(PAGE, &bytes);
    assert_eq!(memory.hash_page(0), xxhash_rust::xxh3::xxh3_128(&bytes));
    assert_eq!(memory.hash_page(0), memory.hash_page(PAGE));
    memory.write_at(2 * PAGE - 1, &[!bytes[PAGE_SIZE - 1]]);
    assert_ne!(memory.hash_page(0), memory.hash_page(PAGE));
}

#[test]
fn holes_are_found_made_and_filled() {
    let memory = memory(1000);
    let all = 0..memory.len();
    let extents = |range| memory.data_extents(range).map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(
        (extents(all.clone()), memory.allocated_bytes().unwrap()),
        (vec![], 0)
    );

    memory.fill(10 * PAGE..20 * PAGE, 1);
    memory.store_u64(500 * PAGE, 1);
    memory.store_u64(999 * PAGE, 1);
    let (a, b, c) = (
        10 * PAGE..20 * PAGE,
        500 * PAGE..501 * PAGE,
        999 * PAGE..1000 * PAGE,
    );
    assert_eq!(extents(all.clone()), [a, b.clone(), c]);
    assert_eq!(memory.allocated_bytes().unwrap(), 12 * PAGE);
    // Clipped at both ends of what was asked for.
    assert_eq!(
        extents(15 * PAGE..500 * PAGE),
        std::slice::from_ref(&(15 * PAGE..20 * PAGE))
    );
    assert_eq!(extents(20 * PAGE..500 * PAGE), []);
    assert_eq!(extents(500 * PAGE..u64::MAX)[0], b);
    assert_eq!(extents(all.end..all.end), []);

    memory.punch_hole(12 * PAGE..14 * PAGE).unwrap();
    memory.punch_hole(500 * PAGE..1000 * PAGE).unwrap();
    memory.punch_hole(PAGE..PAGE).unwrap();
    assert_eq!(extents(all), [10 * PAGE..12 * PAGE, 14 * PAGE..20 * PAGE]);
    assert_eq!(memory.allocated_bytes().unwrap(), 8 * PAGE);
    // Reading a hole allocates it.
    assert_eq!(
        (memory.load_u64(12 * PAGE), memory.allocated_bytes().unwrap()),
        (0, 9 * PAGE)
    );
    memory.punch_hole(12 * PAGE..13 * PAGE).unwrap();

    memory.populate(0..100 * PAGE).unwrap();
    assert_eq!(extents(0..memory.len()), std::slice::from_ref(&(0..100 * PAGE)));
}

#[test]
fn memory_crosses_a_socket_without_a_copy_of_ours() {
    let (source, target) = (memory(300), memory(300));
    source.write_at(0, &pattern(source.len(), 5));
    // More ranges than one system call takes, of all sorts of lengths, none and odd ones too, in any order.
    let mut ranges: Vec<(u64, u64)> = (0..290)
        .rev()
        .map(|page| (page * PAGE, (page * 37) % PAGE))
        .collect();
    ranges.push((290 * PAGE, 10 * PAGE));
    let (near, far) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let near = near;
            source.write_range_to(near.as_fd(), b"header", &ranges).unwrap();
            source.write_range_to(near.as_fd(), b"", &[]).unwrap();
            source.write_range_to(near.as_fd(), b"end", &[]).unwrap();
        });
        let mut far = &far;
        let mut text = [0; 6];
        far.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"header");
        target.read_range_from(far.as_fd(), &ranges).unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"end");
    });
    let mut expected = vec![0; target.len() as usize];
    for &(offset, len) in &ranges {
        source.read_at(offset, &mut expected[offset as usize..(offset + len) as usize]);
    }
    assert!(contents(&target) == expected, "what arrived differs");
}

/// Signals cut system calls short in the middle: nothing is lost or sent twice.
#[test]
fn transfers_survive_interruption() {
    static CAUGHT: AtomicUsize = AtomicUsize::new(0);
    extern "C" fn note(_: libc::c_int) {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: all zeros is a valid sigaction (and without SA_RESTART); the handler only touches an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note as extern "C" fn(libc::c_int) as usize;
        assert_eq!(libc::sigaction(libc::SIGUSR2, &action, std::ptr::null_mut()), 0);
    }
    let (source, target) = (memory(2000), memory(2000));
    source.write_at(0, &pattern(source.len(), 9));
    let ranges: Vec<(u64, u64)> = (0..2000).map(|page| (page * PAGE, PAGE)).collect();
    let (near, far) = UnixStream::pair().unwrap();
    let (mut relay_in, relay_out) = UnixStream::pair().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (source, target, ranges, near, relay_out) = (&source, &target, &ranges, &near, &relay_out);
        let (tell, threads) = std::sync::mpsc::channel();
        let tell_too = tell.clone();
        let writer = scope.spawn(move || {
            tell.send(rustix::thread::gettid()).unwrap();
            source.write_range_to(near.as_fd(), b"", ranges).unwrap();
            near.shutdown(std::net::Shutdown::Write).unwrap();
        });
        let reader = scope.spawn(move || {
            tell_too.send(rustix::thread::gettid()).unwrap();
            target.read_range_from(relay_out.as_fd(), ranges).unwrap();
        });
        // A relay that passes on odd pieces, so that both sides wait for it all the time.
        scope.spawn(move || {
            let mut piece = [0; 7001];
            for _ in 0..(2000 * PAGE).div_ceil(7001) {
                let len = rest_of(&far, &mut piece);
                relay_in.write_all(&piece[..len]).unwrap();
                std::thread::yield_now();
            }
        });
        let done = &done;
        scope.spawn(move || {
            let threads: Vec<_> = threads
                .iter()
                .take(2)
                .map(|thread| thread.as_raw_nonzero().get())
                .collect();
            let process = std::process::id();
            while !done.load(Ordering::Relaxed) {
                for thread in &threads {
                    // SAFETY: sends a signal that has a handler; a thread that has ended gets none.
                    unsafe { libc::syscall(libc::SYS_tgkill, process, *thread, libc::SIGUSR2) };
                }
                std::thread::yield_now();
            }
        });
        while !(writer.is_finished() && reader.is_finished()) {
            std::thread::yield_now();
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(
        CAUGHT.load(Ordering::Relaxed) > 10,
        "no interruptions: nothing was tested"
    );
    assert!(contents(&target) == contents(&source), "what arrived differs");
}

/// Fills `piece` from the stream as far as there is anything.
fn rest_of(mut stream: &UnixStream, piece: &mut [u8]) -> usize {
    let mut len = 0;
    while len < piece.len() {
        match stream.read(&mut piece[len..]).unwrap() {
            0 => break,
            read => len += read,
        }
    }
    len
}

#[test]
fn a_stream_that_ends_early_is_an_error() {
    let target = memory(4);
    let (mut near, far) = UnixStream::pair().unwrap();
    near.write_all(&pattern(PAGE + 5, 1)).unwrap();
    drop(near);
    let error = target.read_range_from(far.as_fd(), &[(0, 2 * PAGE)]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let error = target
        .write_range_to(far.as_fd(), b"header", &[(0, PAGE)])
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}

/// Frames of all lengths, with bytes in between that belong to nobody's memory, over both kinds of sockets.
#[test]
fn memory_crosses_a_pipe_inside_the_kernel() {
    let source = memory(700);
    source.write_at(0, &pattern(source.len(), 7));
    let ranges = [
        (0, 1),
        (PAGE - 1, 3 * PAGE),
        (8 * PAGE, 300 * PAGE),
        (400 * PAGE, 300 * PAGE),
    ];
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let tcp = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (near, far) = UnixStream::pair().unwrap();
    let pairs: [(OwnedFd, OwnedFd); 2] = [
        (tcp.into(), listener.accept().unwrap().0.into()),
        (near.into(), far.into()),
    ];
    for (near, far) in pairs {
        // Memory that does not begin where its file does.
        let file = create_memfd("offset").unwrap();
        rustix::fs::ftruncate(&file, 702 * PAGE).unwrap();
        let target = SharedMemory::from_fd(file, 2 * PAGE, 700 * PAGE).unwrap();
        let mut pipe = TransferPipe::new().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let near = near;
                for range in ranges {
                    source.write_range_to(near.as_fd(), b"header", &[range]).unwrap();
                }
                source.write_range_to(near.as_fd(), b"half", &[]).unwrap();
            });
            let mut header = [0; 6];
            for (offset, len) in ranges {
                let (came, _) =
                    rustix::net::recv(&far, &mut header, rustix::net::RecvFlags::WAITALL).unwrap();
                assert_eq!(&header[..came], b"header");
                target
                    .splice_range_from(far.as_fd(), &mut pipe, offset, len)
                    .unwrap();
            }
            let error = target
                .splice_range_from(far.as_fd(), &mut pipe, 350 * PAGE, 8)
                .unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        });
        let mut expected = vec![0; target.len() as usize];
        for (offset, len) in ranges {
            source.read_at(offset, &mut expected[offset as usize..(offset + len) as usize]);
        }
        expected[350 * PAGE as usize..][..4].copy_from_slice(b"half");
        assert!(contents(&target) == expected, "what arrived differs");
        assert!(!pipe.is_refused, "fell back to a read");
    }
}

/// What can be read but not spliced is read, from wherever the splice was refused.
#[test]
fn what_cannot_be_spliced_is_read() {
    let target = memory(20);
    let bytes = pattern(8 * PAGE, 3);
    let mut pipe = TransferPipe::new().unwrap();
    // A file opened for appending takes no splice.
    rustix::fs::fcntl_setfl(target.fd(), rustix::fs::OFlags::APPEND).unwrap();
    let (mut near, far) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| near.write_all(&bytes).unwrap());
        target
            .splice_range_from(far.as_fd(), &mut pipe, 4 * PAGE, 8 * PAGE)
            .unwrap();
    });
    assert!(pipe.is_refused, "the file was to refuse");
    assert_eq!(contents(&target)[4 * PAGE as usize..12 * PAGE as usize], bytes);
    let error = target
        .splice_range_from(far.as_fd(), &mut pipe, 19 * PAGE, 2 * PAGE)
        .unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn ranges_past_the_end_are_refused_before_a_byte_moves() {
    let memory = memory(4);
    let (mut near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    for bad in [(4 * PAGE, 1), (PAGE, 4 * PAGE), (u64::MAX, 2), (8, u64::MAX)] {
        let error = memory
            .write_range_to(far.as_fd(), b"header", &[(0, PAGE), bad])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        let error = memory
            .read_range_from(far.as_fd(), &[(0, PAGE), bad])
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(
        near.read(&mut [0; 1]).unwrap_err().kind(),
        io::ErrorKind::WouldBlock
    );
}

proptest! {
    /// However few bytes each system call moves, every byte is offered once and in order.
    #[test]
    fn partial_transfers_go_on_where_they_stopped(
        header in 0usize..40,
        ranges in prop::collection::vec((0u64..60, 0u64..4), 0..300),
        moves in prop::collection::vec(1usize..200, 1..40),
    ) {
        let memory = memory(1);
        memory.write_at(0, &pattern(PAGE, 11));
        let header = pattern(header as u64, 77);
        let mut expected = header.clone();
        for &(offset, len) in &ranges {
            let mut bytes = vec![0; len as usize];
            memory.read_at(offset, &mut bytes);
            expected.extend(bytes);
        }
        let first = libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() };
        let mut pending = Pending::new(&memory, first, &ranges).unwrap();
        let mut moved = Vec::new();
        let mut moves = moves.iter().cycle();
        while !pending.is_done() {
            let (vectors, count) = pending.next_batch();
            // SAFETY: `next_batch` says how many vectors there are, and what they point to is alive and quiet.
            let offered: Vec<u8> = unsafe {
                std::slice::from_raw_parts(vectors, count as usize)
                    .iter()
                    .filter(|vector| vector.iov_len > 0)
                    .flat_map(|v| std::slice::from_raw_parts(v.iov_base.cast::<u8>(), v.iov_len).to_vec())
                    .collect()
            };
            prop_assert!(!offered.is_empty());
            let now = (*moves.next().unwrap()).min(offered.len());
            moved.extend_from_slice(&offered[..now]);
            prop_assert_eq!(pending.advance(now as isize).unwrap(), Some(now));
        }
        prop_assert!(moved == expected);
    }
}
